"""python -m tests.benchmarks.fuzz_logs [--logs 10000] [--seed 0]: damage logs, let every command judge them.

No traceback may come. Every value read must stand in the damaged log, as the loss of its step. A value that
is not one of the log before it was damaged must come with a complaint, unless the damage made a well-formed
line of it: such values are counted. A log that shows nothing must say why.
"""

import argparse
import contextlib
import io
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for log_text and made_logs, as pytest does

from log_text import damage, log_text, run_text, shifted  # noqa: E402
from made_logs import write_log  # noqa: E402

from records.__main__ import main as records  # noqa: E402
from records.judge.logs import Entry, read_log  # noqa: E402
from records.judge.statistics import summarize_entry  # noqa: E402

COMMAND_EVERY = 50  # the whole command line takes longest: on one log of this many
COMMANDS = (["summarize"], ["summarize", "--json"], ["check"], ["extract"])
VALUE = re.compile(rb"step:(\d{1,9})/(\d{1,9}) +val_loss:(\d+\.?\d*|nan|-?inf)(?!\S)")

Values = set[tuple[int, int, str]]  # step, total steps, repr of the loss (nan equals itself there)


def originals(folder: Path) -> list[bytes]:
    """One of our logs, small ones of the published forms, and real ones where they are at hand."""
    small = [
        log_text(run_text(seed=0), run_text(shifted(0.001), seed=1)),
        run_text() + run_text(shifted(-0.001)),
        log_text(run_text(extra=" ema_val_loss:3.00000"), facts=["Using seed=9", "Using lr=0.1"]),
    ]
    shared = Path(__file__).resolve().parents[3] / "shared" / "track3_logs"
    real = [next((shared / number).glob("*.txt")).read_bytes() for number in ("13", "20") if shared.exists()]
    return [write_log(folder / "ours.txt").read_bytes(), *(text.encode() for text in small), *real]


def read_values(path: Path) -> tuple[Entry, Values]:
    """The log as an entry, and all its validations."""
    log = read_log(path)
    found = {(v.step, run.total_steps, repr(v.val_loss)) for run in log.runs for v in run.validations}
    return Entry("damaged", path, (log,)), found


def judge(path: Path, text: bytes, true: Values) -> tuple[int, int, int]:
    """Values read, those among them that are new in a log without a complaint, complaints."""
    entry, values = read_values(path)
    summary = summarize_entry(entry, 3.28)
    stated = {(int(step), int(total), repr(float(loss))) for step, total, loss in VALUE.findall(text)}
    assert values <= stated, f"stand nowhere: {values - stated}"
    assert entry.runs or entry.problems, "no run and no complaint"
    assert summary.judged is None or all(summary.judged.step in run.curve for run in entry.runs)
    return len(values), 0 if summary.warnings else len(values - true), len(summary.warnings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began, codes, sums = time.perf_counter(), {}, [0, 0, 0]
    with tempfile.TemporaryDirectory() as name:
        path, true = Path(name) / "damaged.txt", {}
        for text in originals(Path(name)):
            path.write_bytes(text)
            true[text] = read_values(path)[1]
        for number in range(args.logs):
            chance = random.Random(f"{args.seed} {number}")
            original = text = chance.choice(list(true))
            for _ in range(chance.randrange(1, 6)):
                text = damage(text, chance)
            path.write_bytes(text)
            try:
                found = judge(path, text, true[original])
            except Exception:
                print(f"log {number} of seed {args.seed}", file=sys.stderr)
                raise
            sums = [a + b for a, b in zip(sums, found, strict=True)]
            for command in [*COMMANDS, ["compare", str(path)]] if number % COMMAND_EVERY == 0 else []:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    code = records([*command, str(path)])
                codes[f"{command[0]} {code}"] = codes.get(f"{command[0]} {code}", 0) + 1
    seconds = time.perf_counter() - began
    print(
        f"{args.logs} damaged logs in {seconds:.0f} s: no traceback, {sums[0]} values, {sums[2]} complaints;"
    )
    print(f"{sums[1]} values that well-formed damage made, in logs without any complaint")
    print("exit codes of the commands:", dict(sorted(codes.items())))


if __name__ == "__main__":
    main()
