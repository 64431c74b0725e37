"""A fake run, without a network: it writes a real record, obeys --end-when, and follows the variable STUB.

fail=METHOD      runs of this method end with an error
fail=METHOD:log  the same, but they leave no `failed` file
wait             a run that starts at step 0 waits half way for a signal; a resumed run finishes
"""

from __future__ import annotations

import os
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

from harness.records.early_end import EarlyEnd, EndRule, parse_end_rule
from harness.records.record import Record
from harness.records.record_writer import RecordWriter


def main() -> None:
    spec_file, directory = Path(sys.argv[1]), Path(sys.argv[2])
    text, rule = spec_file.read_text(), end_rule(sys.argv[3:])
    spec, mode = tomllib.loads(text), os.environ.get("STUB", "")
    with RecordWriter(directory / spec_file.stem) as record:
        record.write_spec(text)
        begun = Record(record.path).last_step
        record.begin({"started": 1_700_000_000_000 + begun, "threads": 1}, after_step=begun)
        if mode.startswith(f"fail={spec['method']['name']}"):
            fail(record, mode)
        steps = spec["train"]["steps"]
        for step in range(begun + 1, steps + 1):
            record.append(*events(step, steps))
            if rule and step < steps and rule.end_of(Record(record.path).of("eval")):
                record.finish({"ended": EarlyEnd(step, steps, str(rule), 8 * steps, 10.0 * steps).row()})
                return
            if mode == "wait" and begun == 0 and step == steps // 2:
                wait()
        record.finish({})


def end_rule(words: list[str]) -> EndRule | None:
    if "--end-when" not in words:
        return None
    options = dict(zip(words[::2], words[1::2], strict=True))
    return parse_end_rule([options["--end-when"]], int(options["--patience"]), float(options["--margin"]))


def events(step: int, steps: int) -> list[dict[str, Any]]:
    common = {"step": step, "images": 8 * step, "flops": 10 * step}
    seconds = {"student": 0.5 * step}
    found = [{"kind": "train", **common, "loss": 1 / step, "losses": {}, "seconds": seconds}]
    if step in (steps // 2, steps):
        metrics = {"fd:local": {"mean": 40 / step, "low": None, "high": None, "n": 24}}
        found.append({"kind": "eval", **common, "metrics": metrics, "protocol": "p", "seconds": seconds})
        found.append({"kind": "checkpoint", **common, "file": "none"})
    return found


def fail(record: RecordWriter, mode: str) -> None:
    if not mode.endswith(":log"):
        record.fail({"reason": "the loss is not finite"})
    sys.exit("error: the loss is not finite")


def wait() -> None:
    def stop(number: int, _: object) -> None:
        print(f"stopped by {signal.Signals(number).name}", flush=True)
        sys.exit(130)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    print("waiting", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
