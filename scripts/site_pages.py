"""Pages of the site that are generated from the code: a hook of MkDocs (see mkdocs.yml)."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import architecture
import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# The packages of this checkout are imported even if none is installed.
sys.path.append(str(ROOT))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    pages = {
        "reference/cli.md": "".join(command_line()),
        "reference/spec.md": "".join(spec_page()),
        "reference/methods.md": "".join(methods_page()),
        "images/architecture.svg": architecture.svg(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for file in sorted(RESULTS.rglob("*")):
        if file.suffix in (".md", ".csv", ".json"):
            name = file.relative_to(RESULTS).as_posix()
            pages[f"results/{name}"] = file.read_text(encoding="utf-8")
    pages |= gallery()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def gallery() -> dict[str, str]:
    """Return the files of the gallery, which are pages without the site's frame."""
    from reports.gallery.site import write_gallery

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_gallery(RESULTS, root, readings="../results/")
        found = sorted(file for file in root.rglob("*") if file.is_file())
        return {f"gallery/{file.relative_to(root).as_posix()}": file.read_text("utf-8") for file in found}


# Commands


def command_line() -> Iterator[str]:
    """Yield the reference of every command."""
    from harness.cli.main import cli

    yield "# Commands\n\nGenerated from the commands themselves: this is what `--help` prints.\n"
    yield from _command(cli, click.Context(cli, info_name="flowrace"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    level = "##" if context.parent is None or context.parent.parent is None else "###"
    if context.parent is not None:
        yield f"\n{level} {context.command_path}\n"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"\n```text\n{usage}\n```\n\n{_prose(command.help)}\n"
    records = [param.get_help_record(context) for param in command.get_params(context)]
    shown = [record for record in records if record and "--help" not in record[0]]
    if shown:
        yield "\n| option | |\n|---|---|\n"
        yield from (f"| {_code(option)} | {_cell(text)} |\n" for option, text in shown)
    if command.epilog:
        epilog = inspect.cleandoc(command.epilog.replace("\b", ""))
        yield f"\n```text\n{epilog}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, name
            yield from _command(found, click.Context(found, info_name=name, parent=context))


# Fields of the spec


def spec_page() -> Iterator[str]:
    """Yield the reference of every field of a spec."""
    from harness.config.fields import MEANINGS, section_text, spec_fields

    meanings = "".join(f"- **{name}**: {text}.\n" for name, text in MEANINGS.items())
    yield (
        "# Spec fields\n\n"
        "Generated from the models in `harness/config/`: the output of `flowrace spec`. A field is set "
        "in a TOML file, in a study's `[set]` or `[axes]`, or with `--set PATH=VALUE`. Each field "
        f"belongs to one of four:\n\n{meanings}\n"
        "Fields that are **hashed** are part of the run id. Fields that are hashed *if set* were added "
        "later. At their default they are not part of the id, so that older runs keep their ids. The fields "
        "of `method` depend on the method: see [Methods](methods.md).\n"
    )
    fields = spec_fields()
    for section in dict.fromkeys(field.path.rpartition(".")[0] for field in fields):
        about = section_text(section)
        yield f"\n## {section or 'the run'}\n\n" + (f"{about}\n\n" if about else "")
        yield "| path | type | default | limits or choices | belongs to | hashed | meaning |\n"
        yield "|---|---|---|---|---|---|---|\n"
        for field in fields:
            if field.path.rpartition(".")[0] == section:
                cells = (
                    _code(field.path),
                    _code(field.type),
                    _code(repr(field.default)),
                    _cell(", ".join(field.choices) or field.limits),
                    field.belongs,
                    {"never": "no", "if set": "if set", "always": "yes"}[field.in_id],
                    _cell(field.meaning),
                )
                yield f"| {' | '.join(cells)} |\n"


# Methods


def methods_page() -> Iterator[str]:
    """Yield the reference of every method: its equations, needs and settings."""
    from harness.cli.catalogue import entries, percent
    from harness.cli.method_facts import SIZES, description, facts
    from harness.config import registry

    yield (
        "# Methods\n\n"
        "Generated from the classes in `methods/`: the output of `flowrace list methods` and `flowrace "
        "explain METHOD`. A setting is changed with `--set method.NAME=VALUE`. Extra FLOPs are those of a "
        "training step beyond `flow`'s, counted at SiT-B/2 with 256 tokens and batch 256.\n"
    )
    for name, entry in entries().items():
        if name not in registry.METHODS:
            continue
        about = facts(name)
        yield f"\n## {name}\n\n```text\n{description(name)}\n```\n\n"
        yield f"Needs: {', '.join(about.needs) or 'nothing'}. Extra FLOPs: {percent(entry.extra_flops)}. "
        yield _cell(f"Source: {about.source}. {about.headline}") + "\n\n"
        meanings = {field["path"].removeprefix("method."): field["meaning"] for field in about.fields}
        sizes = " | ".join(f"SiT-{size}" for size in SIZES)
        yield f"| setting | {sizes} | meaning |\n|---|{'---|' * len(SIZES)}---|\n"
        for setting in about.defaults["B"]:
            values = " | ".join(f"{_code(about.defaults[size][setting])}" for size in SIZES)
            yield f"| `{setting}` | {values} | {_cell(meanings[setting])} |\n"


def _prose(text: str | None) -> str:
    """Return a docstring as Markdown: click's marks removed, brackets kept as text."""
    lines = inspect.cleandoc((text or "").replace("\b", "")).splitlines()
    return "\n".join(_escaped(line) for line in lines)


def _code(value: object) -> str:
    """Return a value as code for a cell. A table leaves bars in code alone."""
    return f"`{' '.join(str(value).split())}`"


def _cell(text: str) -> str:
    """Return text for a cell: one line, without bars that would end it."""
    return _escaped(" ".join(text.split())).replace("|", "&#124;")


def _escaped(line: str) -> str:
    """Escape tags and emphasis outside code."""
    parts = line.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
