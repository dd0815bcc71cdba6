"""python -m records summarize [--json] [--target L] PATH...: what each entry shows."""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from records.judge.logs import Entry, Run, read_entry
from records.judge.statistics import Crossing, StepStatistics, Summary, summarize_entry, threshold
from records.judge.tracks import entry_track

MOST_ROWS = 1000  # of the validations of all runs together


def register(subparsers) -> None:
    """Add the subcommand `summarize`."""
    parser = subparsers.add_parser("summarize", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a log, or a folder of logs: one entry")
    parser.add_argument("--json", action="store_true", help="an object for one entry, a list for several")
    told = "validation loss to reach (the track's)"
    parser.add_argument("--target", type=positive_number, metavar="L", help=told)
    parser.set_defaults(func=run)


def positive_number(text: str) -> float:
    """A number above 0 of a command line. Raises argparse's error for anything else, nan and inf too."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """Print the summaries; 1 where an entry has no run."""
    entries = [read_entry(path) for path in args.paths]
    summaries = [summarize(entry, args.target) for entry in entries]
    if args.json:
        objects = [as_json(summary) for summary in summaries]
        print(json.dumps(objects if len(objects) > 1 else objects[0], indent=1, allow_nan=False))
    else:
        print("\n\n".join("\n".join(as_text(summary)) for summary in summaries))
    return 0 if all(summary.runs for summary in summaries) else 1


def summarize(entry: Entry, target: float | None = None) -> Summary:
    """An entry by its track's target (or another) and sigma. Raises TrackError for an unknown track."""
    track = entry_track(entry)
    return summarize_entry(entry, track.target if target is None else target, track.sigma)


def as_json(summary: Summary) -> dict:
    """Plain data for JSON; what is not a finite number is null."""
    judged = summary.judged
    return finite(
        {
            "name": summary.name,
            "runs": summary.n,
            "target": summary.target,
            "sigma": summary.sigma,
            "threshold": threshold(summary.sigma),
            "first_crossing_step": summary.first_crossing_step,
            "first_significant_step": summary.first_significant_step,
            "judged_step": judged and judged.step,
            "mean_val_loss": summary.mean_val_loss,
            "std_val_loss": judged and judged.std,
            "statistic": summary.statistic,
            "z": judged and judged.z,
            "p": judged and judged.p,
            "significant": summary.first_significant_step is not None,
            "ms_per_step": summary.ms_per_step,
            "per_run": [
                {
                    "file": run.path.name,
                    "index": run.index,
                    "seed": run.seed,
                    "total_steps": run.total_steps,
                    "last_step": run.validations[-1].step,
                    "last_val_loss": run.validations[-1].val_loss,
                    "first_crossing_validation": crossing and crossing.step,
                    "first_crossing_step": crossing and crossing.interpolated,
                }
                for run, crossing in zip(summary.runs, summary.crossings, strict=True)
            ],
            "validations": len(summary.steps),
            "steps": [asdict(at) for at in shortened(summary)],
            "warnings": list(summary.warnings),
        }
    )


def as_text(summary: Summary) -> Iterator[str]:
    """The lines of a summary for a reader."""
    if not summary.runs:
        yield f"{summary.name}: no run found"
        yield from _warning_lines(summary.warnings)
        return
    yield f"{summary.name}: {count(summary.n, 'run')}, {_told_runs(summary.runs)}"
    yield from _verdict_lines(summary)
    if summary.steps:
        yield ""
        head = ["step", "mean", "std", "min", "max", "statistic", "z", "p", ""]
        shown = shortened(summary)
        yield from table(head, [_step_row(at) for at in shown])
        if len(shown) < len(summary.steps):
            yield f"{len(shown)} of {len(summary.steps)} validations"
    yield ""
    head = ["run", "seed", "steps", "last step", "val_loss", "first at target", "interpolated"]
    yield from table(head, [_run_row(*pair) for pair in zip(summary.runs, summary.crossings, strict=True)])
    yield from _warning_lines(summary.warnings)


def shortened(summary: Summary) -> list[StepStatistics]:
    """The steps to show: all, or of very many MOST_ROWS evenly, the judged one and the last."""
    every = -(-len(summary.steps) // MOST_ROWS)
    last = len(summary.steps) - 1
    return [at for i, at in enumerate(summary.steps) if i % every == 0 or i == last or at is summary.judged]


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _told_runs(runs: Iterable[Run]) -> str:
    files = len({run.path for run in runs})
    totals = sorted({run.total_steps for run in runs})
    return f"{count(files, 'file')}, {' or '.join(map(str, totals))} steps"


def _verdict_lines(summary: Summary) -> Iterator[str]:
    at, asked = summary.judged, threshold(summary.sigma)
    if at is None:
        yield f"target {summary.target}: cannot be judged, no validation is common to all runs"
        return
    rule = f"(target - mean) sqrt(n) = {at.statistic:.5f}, rule 2 asks for {asked:.5f}"
    if at.significant:
        yield f"target {summary.target}: reached at step {at.step}, the first significant step"
    else:
        yield f"target {summary.target}: not shown at any common step; at the last one, {at.step}:"
    spread = f", std {at.std:.5f}" if at.n > 1 else ""
    yield f"  mean val_loss {at.mean:.5f} over {count(at.n, 'run')}{spread}"
    yield f"  {rule}; z {at.z:.2f}, p {at.p:.2g}"
    crossed = sum(crossing is not None for crossing in summary.crossings)
    mean = f", on average at step {summary.first_crossing_step:.1f}" if summary.first_crossing_step else ""
    yield f"  {crossed} of {count(summary.n, 'run')} came to the target{mean}"
    if summary.ms_per_step is not None:
        yield f"  {summary.ms_per_step:.2f} ms a step (median between validations)"


def _step_row(at: StepStatistics) -> list[str]:
    losses = (at.mean, at.std if at.n > 1 else None, at.min, at.max, at.statistic)
    told = ["-" if value is None else f"{value:.5f}" for value in losses]
    return [str(at.step), *told, f"{at.z:.2f}", f"{at.p:.2g}", "significant" if at.significant else ""]


def _run_row(run: Run, crossing: Crossing | None) -> list[str]:
    last = run.validations[-1]
    return [
        run.name if run.index else run.path.name,
        "-" if run.seed is None else str(run.seed),
        str(run.total_steps),
        str(last.step),
        f"{last.val_loss:.5f}",
        str(crossing.step) if crossing else "-",
        f"{crossing.interpolated:.1f}" if crossing else "-",
    ]


def _warning_lines(warnings: Iterable[str]) -> Iterator[str]:
    for i, warning in enumerate(warnings):
        if i == 0:
            yield "\nwarnings:"
        yield f"  - {warning}"


def count(n: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def finite(table: dict[str, object]) -> dict[str, object]:
    """NaN and infinities, which JSON does not have, become None."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(value) for key, value in table.items()}
