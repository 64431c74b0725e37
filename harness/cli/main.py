"""The `flowrace` command: a group whose commands are imported only when they are called."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from harness import __version__
from harness.errors import ERROR_PREFIX, RunStopped, UserError
from harness.files.terminal import shown_streams

NO_MEMORY = ("can't allocate memory", "CUDA out of memory")
"""Words of torch's errors if a tensor does not fit into memory."""
# Name -> (module:function, one line of help).
COMMANDS = {
    "data": (
        "harness.cli.data:data",
        "Prepare data for training: encode or import latents, or measure real samples.",
    ),
    "import": (
        "harness.cli.import_:import_",
        "Make a run of released weights: SiT, REPA, iREPA, REG, SRA, Self-Flow.",
    ),
    "cost": ("harness.cli.cost:cost", "Estimate FLOPs, memory and time of a run before it starts."),
    "run": (
        "harness.cli.run:run",
        "Train one spec: a preset, a TOML file or a run directory. Rerun to resume.",
    ),
    "finetune": (
        "harness.cli.finetune:finetune",
        "Fine-tune a generative run into a policy, on the demonstrations of a task.",
    ),
    "sweep": ("sweeps.cli.sweep:sweep", "Run every unfinished run of a study, then write the report."),
    "race": (
        "sweeps.cli.race:race",
        "Run a study pair by pair until its registered claims are decided.",
    ),
    "extend": ("sweeps.cli.extend:extend", "Continue a finished run, or all runs of a study, to more steps."),
    "status": ("sweeps.cli.status:status", "Print the status of a study: done, running, failed, missing."),
    "tune": (
        "sweeps.cli.tune:tune",
        "Search every method's settings on equal budgets and separate seeds.",
    ),
    "retry": ("sweeps.cli.status:retry", "Resume failed and stopped runs of a study."),
    "study": ("sweeps.cli.status:study", "Compare two studies."),
    "report": ("reports.cli.report:report", "Write an HTML page and a CSV from run directories."),
    "figures": (
        "reports.cli.figures:figures",
        "Draw the figures of a report as PDF or SVG, for a paper.",
    ),
    "claims": (
        "reports.cli.claims:claims",
        "Look up published numbers with sources; `claims check` finds contradictions.",
    ),
    "export": (
        "harness.cli.export:export",
        "Write records as CSV or Parquet, or the weights of a run in a released layout.",
    ),
    "audit": (
        "reports.cli.audit:audit",
        "Judge a claimed speed-up: supported, refuted or inconclusive.",
    ),
    "logs": (
        "reports.cli.logs:logs",
        "Convert curves of W&B, TensorBoard and other tools to CSV.",
    ),
    "mirror": ("harness.cli.mirror:mirror", "Bring an MLflow store up to date with run directories."),
    "eval": (
        "sweeps.cli.evaluate:evaluate",
        "Evaluate a run, all runs of a study, or samples from any source.",
    ),
    "replicate": (
        "harness.cli.replicate:replicate",
        "Evaluate again, with replicates, around the crossing of a target.",
    ),
    "sample": ("harness.cli.sample:sample", "Draw samples from a checkpoint of a run."),
    "rollout": (
        "harness.cli.rollout:rollout",
        "Let a policy act in a task in closed loop; success with intervals.",
    ),
    "success": (
        "reports.cli.success:success",
        "Compare the recorded success of two arms on the same starts.",
    ),
    "probe": (
        "harness.cli.probe:probe",
        "Probe the layers of a checkpoint, and compare them with a frozen encoder.",
    ),
    "list": (
        "harness.cli.catalogue:list_",
        "List methods, (text) encoders, codecs, extractors, datasets, tasks, presets, studies, sizes.",
    ),
    "explain": (
        "harness.cli.explain:explain",
        "Print a method's equations, needs and defaults by backbone size.",
    ),
    "spec": (
        "harness.cli.spec:spec",
        "Print the fields of a spec: type, default, meaning, and whether they change the weights.",
    ),
    "verify": (
        "harness.cli.verify:verify",
        "Check this installation against golden vectors of released code.",
    ),
    "doctor": (
        "harness.cli.doctor:doctor",
        "Check versions, devices, disk and cache, and print how to fix each problem.",
    ),
}


class _PipeClosed(Exception):
    """The reader of the output has closed the pipe. It is not an OSError, for which click exits with 1."""


class LazyGroup(click.Group):
    """Group of the commands in the table above; each is imported when it is called."""

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
        # rich turns a broken pipe into an exit with 1.
        except (BrokenPipeError, SystemExit) as error:
            if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
                raise
            raise _PipeClosed from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    # click would remove escape sequences of names in a pipe; they are shown instead (shown_streams).
    context_settings={"help_option_names": ["-h", "--help"], "color": True},
    epilog="Example: flowrace run digits --set method.name=self_flow --out runs/first",
)
@click.version_option(__version__, prog_name="flowrace")
def cli() -> None:
    """Race training objectives for flow-matching transformers on equal footing."""


def main() -> None:
    """Run the command line.

    Exit code 0: success; 1: an internal error or a stopped run; 2: the user's mistake; 130: interrupted; 141:
    the reader of the output has closed the pipe (the shell's convention).
    """
    with shown_streams():
        _main()


def _main() -> None:
    try:
        code = cli.main(prog_name="flowrace", standalone_mode=False)
        # click returns the code of an Exit that a command raises.
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UserError as error:
        _print_error(str(error))
        sys.exit(2)
    except RunStopped as stop:
        _print_error(str(stop))
        sys.exit(stop.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
            traceback.print_exc()
            sys.exit(1)
        _print_error(f"not enough memory: {str(error).splitlines()[-1] if str(error) else 'unknown size'}")
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _print_error("interrupted")
        sys.exit(130)
    except _PipeClosed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _print_error(message: str) -> None:
    click.echo(f"{ERROR_PREFIX}{message}", err=True, color=True)


if __name__ == "__main__":
    main()
