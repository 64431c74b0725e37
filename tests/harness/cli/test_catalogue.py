"""`flowrace list` and `flowrace explain`, against costs on paper and published layers; the page on
encoders."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import timm
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import save_file

from harness.assembly.resolve import load_spec
from harness.cli import catalogue, doctor, method_facts
from harness.cli.explain import explain
from harness.cli.probe import probe
from harness.config import registry
from harness.config.backbone_spec import BackboneSpec
from harness.encoders.base import Choice, open_encoder
from harness.errors import UserError
from harness.files.terminal import reflowed
from methods.common.alignment import check_layer
from methods.common.method import Method, MethodConfig
from metrics.extractors.open_clip_recipe import find_recipe
from tests.conftest import ROOT

D, T, WIDTH, BATCH = 768, 256, 2048, 256


@pytest.fixture(scope="module")
def entries() -> dict[str, catalogue.Entry]:
    return catalogue.entries()


def forward(depth: int = 12) -> int:
    """Compute on paper the FLOPs of one sample of SiT-B/2: embeddings, blocks and, after all 12, the last
    layer."""
    block = 12 * T * D * D + 2 * T * T * D + 6 * D * D
    final = 2 * D * D + T * D * 16 if depth == 12 else 0
    return 2 * (T * D * 16 + 256 * D + D * D + depth * block + final)


def test_entries_has_every_method(entries: dict[str, catalogue.Entry]) -> None:
    assert list(entries) == registry.names("method")
    assert all(entry.source and entry.summary and entry.extra_flops is not None for entry in entries.values())


def test_extra_flops_equal_those_on_paper(entries: dict[str, catalogue.Entry]) -> None:
    """Optimizer, EMA and the second row of modulation are within the tolerance of a thousandth."""
    assert entries["flow"].extra_flops == 0
    projector = 6 * T * (D * WIDTH + WIDTH * WIDTH + WIDTH * D)
    # ViT-B/14 at 224 pixels, with one class token.
    encoder = 2 * (12 * (12 * 257 * D * D + 2 * 257 * 257 * D) + T * D * 3 * 14 * 14)
    step = 3 * forward()
    assert entries["repa"].extra_flops == pytest.approx((projector + encoder) / step, abs=1e-3)
    head, levels = 6 * T * 4 * D * D, 6 * (12 * 6 + 2 + 1) * D * D
    assert entries["self_flow"].extra_flops == pytest.approx((forward(8) + head + levels) / step, abs=1e-3)


def test_list_prints_one_line_per_method_in_a_pipe() -> None:
    result = CliRunner().invoke(catalogue.list_, ["methods"], catch_exceptions=False)
    line = next(line for line in result.output.splitlines() if "self_flow" in line)
    for words in ("EMA teacher, 2 times per sample", "arXiv 2603.06507", "SiT-XL/2 FID 5.70 at 4M steps"):
        assert words in line
    assert len(result.output.splitlines()) < len(registry.names("method")) + 10


def test_list_without_argument_lists_everything() -> None:
    shown = CliRunner().invoke(catalogue.list_, [], catch_exceptions=False).output
    for title in ("methods", "encoders", "extractors", "datasets", "presets", "studies", "sizes", "samplers"):
        assert f"{title} " in shown
    line = next(line for line in shown.splitlines() if line.split()[:1] == ["repa"])
    assert "align an early layer with a frozen encoder's tokens" in line


def test_narrow_table_fits_and_has_every_cell(entries: dict[str, catalogue.Entry]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(catalogue.stacked(entries))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "repa" in shown and "+41.7 %  encoder timm:vit_base_patch14_dinov2.lvd142m\n" in shown
    together = " ".join(shown.split())
    for name, entry in entries.items():
        for text in (name, *entry.needs, entry.source, entry.headline):
            assert text in together


def test_entry_of_an_unavailable_method_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.METHODS, "lost", "methods.lost:Lost")
    found = catalogue.entries()
    assert found["lost"].summary == "not available: No module named 'methods.lost'"
    assert found["lost"].extra_flops is None and found["repa"].extra_flops > 0
    assert "No module named" in CliRunner().invoke(catalogue.list_, ["methods"]).output


class Undecided(MethodConfig):
    name: Literal["odd"] = "odd"
    strength_at: float


class Deep(MethodConfig):
    name: Literal["odd"] = "odd"
    layer: int = 20

    def resolved(self, backbone: BackboneSpec) -> MethodConfig:
        return self.model_copy(update={"layer": check_layer("layer", self.layer, 8, backbone)})


@pytest.mark.parametrize(
    ("config", "at", "reason"),
    [(Undecided, "B", "strength_at is missing"), (Deep, "B", "layer = 20: backbone B has layers 1 to 12")],
)
def test_method_without_defaults_leaves_other_entries_intact(
    monkeypatch: pytest.MonkeyPatch, config: type, at: str, reason: str
) -> None:
    odd = type("Odd", (Method,), {"Config": config})
    real = registry.load
    monkeypatch.setitem(registry.METHODS, "odd", "methods.odd:Odd")
    monkeypatch.setattr(registry, "load", lambda kind, name: odd if name == "odd" else real(kind, name))
    found = catalogue.entries()
    message = f"{__name__}:Odd has no defaults for SiT-{at}: {reason}"
    assert found["odd"] == catalogue.Entry(f"not available: {message}", available=False)
    assert found["repa"].extra_flops > 0 and found["repa"].available
    result = CliRunner().invoke(explain, ["odd"])
    assert isinstance(result.exception, UserError) and str(result.exception) == message


@pytest.mark.parametrize(
    "place", [*registry.ENCODERS.values(), *registry.TEXT_ENCODERS.values(), *registry.DATASETS.values()]
)
def test_written_docstring_equals_the_imported_one(place: str) -> None:
    module, _, name = place.partition(":")
    assert method_facts.written_docstring(place) == inspect.getdoc(
        getattr(importlib.import_module(module), name)
    )


def test_list_has_text_encoders_by_the_names_that_a_spec_takes() -> None:
    result = CliRunner().invoke(catalogue.list_, ["text_encoders", "--json"], catch_exceptions=False)
    listed = json.loads(result.output)["text_encoders"]
    assert {
        "minilm",
        "local:text",
        "random:text",
        "stored",
        "open_clip:<model>",
        "transformers:<folder or name>",
    } == set(listed)
    assert "MiniLM" in listed["minilm"]


def test_list_has_extractors() -> None:
    result = CliRunner().invoke(catalogue.list_, ["extractors", "--json"], catch_exceptions=False)
    listed = json.loads(result.output)["extractors"]
    assert {"inception", "video:<image extractor>", "yamnet[:<file>]"} <= listed.keys()
    assert listed["inception"] == "for image, 2048 features"


def test_explain_prints_the_published_layers() -> None:
    shown = json.loads(CliRunner().invoke(explain, ["repa", "--json"]).output)
    layers = {size: defaults["layer"] for size, defaults in shown["defaults"].items()}
    assert layers == {"S": 4, "B": 4, "L": 8, "XL": 8}
    assert shown["defaults"]["B"]["encoder.name"] == "timm:vit_base_patch14_dinov2.lvd142m"
    assert shown["needs"] == ["encoder timm:vit_base_patch14_dinov2.lvd142m"]


@pytest.mark.parametrize("name", registry.names("method"))
def test_explain_names_settings_as_set_takes_them(name: str) -> None:
    settings = json.loads(CliRunner().invoke(explain, [name, "--json"]).output)["defaults"]["S"]
    given = {setting: value for setting, value in settings.items() if value not in (None, [])}
    overrides = [f"method.{setting}={json.dumps(value)}" for setting, value in given.items()]
    base = ["backbone.size=S", f"method.name={name}"]
    assert load_spec("cifar10", [*base, *overrides]) == load_spec("cifar10", base)


def test_explain_lists_settings_of_parts_by_their_current_names() -> None:
    shown = CliRunner().invoke(explain, ["self_flow"]).output
    assert "parts.audio.mask_ratio" in shown and "mask_ratio_audio" not in shown


@pytest.mark.parametrize("name", registry.names("method"))
def test_explain_prints_equations_and_every_default(name: str) -> None:
    cls = registry.load("method", name)
    result = CliRunner().invoke(explain, [name])
    assert result.exit_code == 0 and re.search(r"\bL +=", result.output)
    # The text is reflowed to the width of the terminal.
    assert " ".join(method_facts.describe(cls).split()) in " ".join(result.output.split())
    assert all(field in result.output for field in cls.Config.model_fields if field != "name")


@pytest.mark.parametrize("name", registry.names("method"))
def test_reflowed_docstring_keeps_words_and_equations(name: str) -> None:
    docstring = method_facts.describe(registry.load("method", name))
    shown = reflowed(docstring, 80)
    assert shown.split() == docstring.split()
    assert max(map(len, shown.splitlines())) <= 80
    assert equations(docstring) <= equations(shown)


def equations(text: str) -> Counter[str]:
    """Return the left-hand sides of equations at the beginning of lines."""
    return Counter(re.findall(r"^\s*(\S+) = ", text, re.MULTILINE))


def test_explain_names_sizes_when_defaults_differ() -> None:
    result = CliRunner().invoke(explain, ["haste"])
    lines = {
        line.split()[0]: line.split(maxsplit=1)[-1].strip()
        for line in result.output.splitlines()
        if line.strip()
    }
    assert lines["schedule.until"] == "- (S), 100000 (B), 250000 (L, XL)"
    assert lines["layer"] == "4 (S, B), 8 (L, XL)" and lines["coefficient"] == "0.5"


def test_explain_suggests_the_nearest_method() -> None:
    result = CliRunner().invoke(explain, ["self-flow"])
    assert isinstance(result.exception, UserError) and "Did you mean 'self_flow'?" in str(result.exception)


@pytest.mark.parametrize("name", list(registry.METHODS))
def test_shipped_facts_equal_computed_ones(name: str) -> None:
    """`make counts` writes the shipped ones."""
    about = method_facts.computed(name)
    assert method_facts.facts(name) == about
    assert method_facts.description(name) == method_facts.describe(registry.load("method", name))


FEW = ("repa", "self_flow")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in registry.METHODS]
)
def test_shipped_flops_equal_a_fresh_count(name: str) -> None:
    assert method_facts.flops(name) == method_facts.step_flops(name)


def test_shipped_facts_have_exactly_the_registered_methods() -> None:
    assert method_facts.shipped().keys() == registry.METHODS.keys()


def test_flops_of_a_plugin_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: real(kind, "flow" if name == "flow_too" else name)
    )
    # A name of this test only, because a process keeps the count of each name.
    assert method_facts.flops("flow_too") == method_facts.shipped()["flow"]["flops"]


def test_lists_import_no_torch() -> None:
    """Importing torch would take seconds; `doctor` asks it about a GPU, where there is a driver."""
    commands = ["list", "list methods", "list extractors", "explain repa", "spec", "spec method.repa"]
    commands += [] if doctor._has_cuda_driver() else ["doctor"]
    code = f"""if True:
        import sys
        from click.testing import CliRunner
        from harness.cli.main import cli
        for words in {commands}:
            result = CliRunner().invoke(cli, words.split())
            assert result.output, result.exception
            print(words, "torch" in sys.modules)
    """
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert found.stdout.splitlines() == [f"{words} False" for words in commands], found.stderr


PAGE = (ROOT / "docs" / "guides" / "encoders.md").read_text()
ENCODERS = dict(re.findall(r"^\| `(\S+:\S+)` \| [^|]+ \| (.*\|)$", PAGE, re.MULTILINE))
SMALL = (
    "timm:vit_small_patch14_dinov2.lvd142m",
    "timm:vit_small_patch16_dinov3.lvd1689m",
    "open_clip:ViT-B-16-SigLIP.webli",
)
"""One of each kind; the others are built in the slow suite."""


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    made: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], made)
    return made


def test_encoder_page_has_every_family() -> None:
    assert {*SMALL} <= {*ENCODERS}
    for family, count in (("dinov2.", 8), ("dinov3.", 5), (".mae", 3), ("ViT-", 11), ("SigLIP", 6)):
        assert sum(family in name for name in ENCODERS) == count


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_on_the_page_has_published_weights(name: str) -> None:
    family, _, model = name.partition(":")
    assert timm.is_model_pretrained(model) if family == "timm" else find_recipe(model).repository


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SMALL else pytest.mark.slow) for n in ENCODERS]
)
def test_encoder_on_the_page_has_the_printed_size(name: str, page: dict[str, Any]) -> None:
    assert page["row"](name) == ENCODERS[name]


def test_row_of_the_page_counts_the_parameters_of_an_opened_encoder(
    page: dict[str, Any], tmp_path: Path
) -> None:
    """The position embedding of both is on the grid of 16x16."""
    tiny, file = "vit_tiny_patch16_224", tmp_path / "weights.safetensors"
    save_file(timm.create_model(tiny).state_dict(), file)
    choice, pictures = Choice(f"timm:{tiny}", str(file)), SimpleNamespace(shape=(3, 256, 256), classes=10)
    opened = open_encoder(choice, pictures, grid=(16, 16), held_out=0.1, device=torch.device("cpu"))
    assert page["row"](choice.name).startswith(f"{opened.params / 1e6:.1f} M | {opened.dim} |")


def test_encoder_page_quotes_the_error_for_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: str, local_files_only: bool) -> str:
        raise OSError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", empty)
    quote = " ".join(line.removeprefix(">").strip() for line in PAGE.splitlines() if line.startswith(">"))
    name, pictures = re.search(r"encoder '(\S+)'", quote)[1], SimpleNamespace(shape=(3, 256, 256), classes=10)
    with pytest.raises(UserError) as caught:
        open_encoder(Choice(name), pictures, grid=(16, 16), held_out=0.1, device=torch.device("cpu"))
    assert str(caught.value) == quote


def test_commands_of_the_encoder_page_are_valid() -> None:
    preset, *words = shlex.split(re.search(r"^flowrace run (.*)$", PAGE, re.MULTILINE)[1])
    overrides = [word for word in words if word != "--set"]
    spec = load_spec(preset, overrides)
    assert [encoder.name for encoder in spec.method.needs().encoders] == ["local:small", "random:small"]
    assert spec.id != load_spec(preset, [text.replace("random", "local") for text in overrides]).id
    options = {option for parameter in probe.params for option in parameter.opts}
    used = re.findall(r" (--\w+)", " ".join(re.findall(r"^flowrace probe .*$", PAGE, re.MULTILINE)))
    assert used and set(used) <= options
