"""The `flowrace` command: a group whose commands are imported only when they are called."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from harness import __version__
from harness.errors import RunStopped, UserError

COMMANDS = {  # name -> (module:function, one line of help); a package brings its own commands
    "data": (
        "harness.cli.data:data",
        "Make data ready for training: images, videos or sounds to latents.",
    ),
    "cost": ("harness.cli.cost:cost", "FLOPs, memory and time of a run, before it starts."),
    "run": (
        "harness.cli.run:run",
        "Train one spec: a preset, a TOML file or a run directory. Run again to continue.",
    ),
    "sweep": ("sweeps.cli.sweep:sweep", "Run a study: every run that is missing, then the report."),
    "status": ("sweeps.cli.status:status", "Where a study stands: done, running, failed, missing."),
    "tune": (
        "sweeps.cli.tune:tune",
        "Search every method's settings on equal budgets, on seeds of their own.",
    ),
    "retry": ("sweeps.cli.status:retry", "Run again what failed in a study."),
    "study": ("sweeps.cli.status:study", "What two studies differ in."),
    "report": ("reports.cli.report:report", "One HTML page and a CSV from run directories."),
    "figures": (
        "reports.cli.figures:figures",
        "The pictures of a report as PDF or SVG, for a paper.",
    ),
    "claims": (
        "reports.cli.claims:claims",
        "What papers claim, with sources; `claims check` finds what disagrees.",
    ),
    "audit": (
        "reports.cli.audit:audit",
        "What a claimed speed-up is worth: supported, refuted or inconclusive.",
    ),
    "mirror": ("harness.cli.mirror:mirror", "Make an MLflow store again from records."),
    "eval": (
        "harness.cli.evaluate:evaluate",
        "Measure a checkpoint of a run, or samples that anybody made.",
    ),
    "replicate": (
        "harness.cli.replicate:replicate",
        "Evaluate again, with replicates, around the crossing of a target.",
    ),
    "sample": ("harness.cli.sample:sample", "Draw samples from a checkpoint of a run."),
    "probe": (
        "harness.cli.probe:probe",
        "What the layers of a checkpoint know, beside a frozen encoder.",
    ),
    "list": (
        "harness.cli.catalogue:list_",
        "What there is: methods, encoders, extractors, datasets, presets, studies, sizes, samplers.",
    ),
    "explain": ("harness.cli.explain:explain", "A method's equations, needs and defaults by backbone size."),
    "verify": (
        "harness.cli.verify:verify",
        "Check golden vectors of released code against this installation.",
    ),
    "doctor": ("harness.cli.doctor:doctor", "Versions, device, disk, and what is missing."),
}


class _PipeClosed(Exception):
    """Whoever read our output has gone. Not an OSError, for which click ends with 1."""


class LazyGroup(click.Group):
    """Lists its commands from the table above and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), function)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, SystemExit) as error:  # rich makes it an exit with 1
            if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
                raise
            raise _PipeClosed from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: flowrace run digits --set method.name=self_flow --out runs/first",
)
@click.version_option(__version__, prog_name="flowrace")
def cli() -> None:
    """Race training objectives for flow-matching transformers on equal footing."""


def main() -> None:
    """Run the command line. Exit code 0: fine; 1: ours failed or a run stopped; 2: a mistake of the user's; 130:
    interrupted; 141: nobody reads the output any more, as a shell has it."""
    try:
        code = cli.main(prog_name="flowrace", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)  # what a command raises as Exit comes back as its code
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UserError as error:
        _say(str(error))
        sys.exit(2)
    except RunStopped as stop:
        _say(str(stop))
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        sys.exit(130)
    except _PipeClosed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _say(message: str) -> None:
    click.echo(f"error: {message}", err=True)


if __name__ == "__main__":
    main()
