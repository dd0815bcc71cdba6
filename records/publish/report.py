"""`python -m records report [-o report.html] ENTRY|LOG...`: an offline HTML page about entries.

Curves by plotly and the sortable table by DataTables (from itables), both embedded; nothing is fetched, and
the page's content security policy forbids it. All text from logs is escaped.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from pathlib import Path

import itables
import plotly.graph_objects as go
import pyarrow as pa
from itables.javascript import generate_init_offline_itables_html
from itables.options import dt_bundle

from records import RecordError
from records.judge.compare import (
    OPPOSITE,
    Comparison,
    Interval,
    compare,
    in_words,
    seeds_in_words,
    side,
    test_in_words,
)
from records.judge.logs import Entry, read_entry
from records.judge.paired import ALPHA, PairedComparison
from records.judge.statistics import Summary
from records.judge.summarize import count, summarize
from records.judge.tracks import entry_track
from records.judge.warnings import settings
from records.publish.entry_page import mean_curve, number, read_toml, seed_ranges, verdict
from records.publish.instruments_view import instruments_section, measured_run
from records.publish.pictures import BANDED, COLOURS, near_target
from records.publish.recipe_table import flat, side_by_side
from records.run.files import write_whole
from records.run.track import Track

LINES = ("solid", "dash", "dot", "dashdot")  # another one each time the colours are used up
NAME_LENGTH = 60  # of a name in a legend or a heading
PLOT = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
}
CLASSES = {"better": "better", "worse": "worse", "not decided": "open"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
       max-width: 1300px; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table.plain { border-spacing: 0; border: 1px solid #ccc; border-width: 1px 0 0 1px;
              font: 13px/18px system-ui, sans-serif; }
table.plain th, table.plain td { border: 1px solid #ccc; border-width: 0 1px 1px 0; padding: 4px 10px;
                                 text-align: left; vertical-align: top; max-width: 22rem;
                                 overflow-wrap: break-word; }
#pairwise td { white-space: nowrap; }
table.plain th { background: #f3f3f3; }
table.plain th:first-child { position: sticky; left: 0; }
.better { background: #d7ead9; } .worse { background: #f6d9cf; } .open { background: #fff; }
tr.differs td { background: #fff4cc; }
tr.differs th { font-weight: 700; } tr.same th { font-weight: 400; }
li { overflow-wrap: anywhere; }
"""
# Scripts and styles of this file only; a blob: is how DataTables' embedded module is loaded.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: blob:"
)


@dataclass(frozen=True)
class Part:
    """One entry of a report. Its name there is short, on one line, and no other part's."""

    name: str
    entry: Entry
    summary: Summary
    recipe: dict


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `report`."""
    parser = subparsers.add_parser("report", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="ENTRY|LOG", help="a folder of logs, or a log: one entry")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="report.html")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and say where."""
    if args.output.exists() and args.output.suffix not in (".html", ".htm"):
        raise RecordError(f"{args.output} exists and is no .html file: name another with -o")
    page = report([read_entry(path) for path in args.paths])
    write_whole(args.output, page.encode())
    print(args.output)
    return 0


def report(entries: Sequence[Entry]) -> str:
    """The HTML page. Raises RecordError where the entries are of several tracks or hold no run at all."""
    tracks = {track.name: track for track in map(entry_track, entries)}
    if len(tracks) != 1:
        raise RecordError(f"expected entries of one track, found {', '.join(tracks)}: make a report for each")
    (track,) = tracks.values()
    if not any(entry.runs for entry in entries):
        raise RecordError("expected at least one run to report on, found none in these logs")
    parts = [
        Part(name, entry, replace(summarize(entry), name=name), entry_recipe(entry))
        for name, entry in zip(distinct_names(entries), entries, strict=True)
    ]
    found = (measured_run(part.name, [log.path for log in part.entry.logs]) for part in parts)
    measured = [run for run in found if run]
    plot = figure(parts, track).to_html(full_html=False, include_plotlyjs=True, div_id="curves", config=PLOT)
    title = f"{count(len(parts), 'entry').replace('entrys', 'entries')} of track {escape(track.name)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>Target: validation loss {track.target:g}. Lines are means over runs, bands (of up to {BANDED} entries)
their lowest and highest loss. Drag to zoom, double-click to go back; click a name to hide or show it,
double-click it to see it alone.</p>
{plot}
<h2>Entries</h2>
<p>Click a heading to sort.</p>
<div class="wide">{generate_init_offline_itables_html(dt_bundle)}{summary_table(parts)}</div>
<h2>Against each other</h2>
{pairwise(parts, track)}
{instruments_section(measured)}
<h2>Recipes</h2>
<div class="wide">{recipes_table(parts)}</div>
<h2>Warnings</h2>
{warnings_list(parts)}
</body>
</html>
"""


def distinct_names(entries: Sequence[Entry]) -> list[str]:
    """The entries' names as one short line each; where two are alike, with their place in the order given."""
    names = [" ".join(entry.name.split()) or "?" for entry in entries]
    short = [name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "\u2026" for name in names]
    return [f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, start=1)]


def entry_recipe(entry: Entry) -> dict:
    """Dotted keys of the effective recipe: the entry's recipe.toml, else of its first log to state one."""
    path = entry.path / "recipe.toml"
    if path.is_file():
        return flat(read_toml(path)[1])
    return next((flat(stated) for log in entry.logs if (stated := settings(log))), {})


def figure(parts: Sequence[Part], track: Track) -> go.Figure:
    """Mean curves with their bands, the target, and two buttons: near the target and the whole run."""
    plot = go.Figure()
    curves = [mean_curve(part.name, part.summary) for part in parts]
    shared = [
        {"legendgroup": str(i), "name": escape(part.name), "line_color": COLOURS[i % len(COLOURS)]}
        for i, part in enumerate(parts)
    ]
    banded = zip(curves, shared, strict=True) if len(curves) <= BANDED else ()
    for curve, same in banded:  # all bands first, so that none covers a line
        plot.add_scatter(
            x=curve.steps + curve.steps[::-1], y=curve.high + curve.low[::-1],
            fill="toself", fillcolor=same["line_color"], opacity=0.12, mode="lines", line_width=0,
            hoverinfo="skip", showlegend=False, **same,
        )  # fmt: skip
    for i, (curve, same) in enumerate(zip(curves, shared, strict=True)):
        runs = count(parts[i].summary.n, "run")
        plot.add_scatter(
            x=curve.steps, y=curve.mean, mode="lines+markers", marker_size=4,
            line_dash=LINES[i // len(COLOURS) % len(LINES)],
            customdata=list(zip(curve.low, curve.high, strict=True)),
            hovertemplate=f"<b>{same['name']}</b><br>step %{{x}}: mean %{{y:.5f}}<br>"
            f"%{{customdata[0]:.5f}} to %{{customdata[1]:.5f}} over {runs}<extra></extra>",
            **same,
        )  # fmt: skip
    plot.add_hline(y=track.target, line_dash="dash", line_color="#666", line_width=1)
    plot.add_annotation(
        x=0, xref="paper", y=track.target, text=f"target {track.target:g}", showarrow=False,
        xanchor="left", yanchor="bottom", bgcolor="rgba(255, 255, 255, 0.8)",
    )  # fmt: skip
    steps, losses = near_target(curves, track.target)
    near = {"xaxis.range": list(steps), "yaxis.range": list(losses)}
    whole = {"xaxis.autorange": True, "yaxis.autorange": True}
    buttons = [
        {"label": label, "method": "relayout", "args": [view]}
        for label, view in (("Near the target", near), ("Whole run", whole))
    ]
    top_left = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    plot.update_layout(
        template="plotly_white",
        height=600,
        margin={"l": 60, "r": 20, "t": 60, "b": 60},
        xaxis={"title": "step", "range": near["xaxis.range"]},
        yaxis={"title": "validation loss", "range": near["yaxis.range"]},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "top", "y": -0.15, "x": 0},
        updatemenus=[{"type": "buttons", "direction": "right", "buttons": buttons, **top_left}],
    )  # fmt: skip
    return plot


def summary_table(parts: Sequence[Part]) -> str:
    """One row an entry. Steps sort by their number, entries that do not show the target behind all others."""
    columns: dict[str, list[str]] = {}
    for part in parts:
        summary, at = part.summary, part.summary.judged
        step = summary.first_significant_step
        row = {
            "entry": part.name,
            "steps": str(step) if step is not None else f"not in {at.step}" if at else "no result",
            "mean val_loss": number(summary.mean_val_loss, ".5f"),
            "std": number(at.std if at else None, ".5f"),
            "runs": str(summary.n),
            "(target - mean) sqrt(n)": number(summary.statistic, ".5f"),
            "p": number(at.p if at else None, ".1g"),
            "mean crossing": number(summary.first_crossing_step, ".1f"),
            "ms/step": number(summary.ms_per_step, ".2f"),
            "optimizer": str(part.recipe.get("matrix.step", "-")),
            "seeds": seed_ranges(summary.seeds),
            "order": str(10**9 if step is None else step),
        }
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    names = list(columns)
    hidden, steps = names.index("order"), names.index("steps")
    nothing = {"topStart": None, "topEnd": None, "bottomStart": None, "bottomEnd": None}
    return itables.to_html_datatable(
        pa.table(columns), table_id="summary", connected=False, display_logo_when_loading=False, paging=False,
        layout=nothing, maxBytes=0, allow_html=False, style="width:100%;margin:0",
        text_in_header_can_be_selected=False,  # so that a click on it sorts
        columnDefs=[{"targets": [hidden], "visible": False}, {"targets": [steps], "orderData": [hidden]}],
    )  # fmt: skip


def pairwise(parts: Sequence[Part], track: Track) -> str:
    """Row against column by the pairwise rule and by seed, then every pair in words."""
    sides = {}
    for part in parts:
        try:
            sides[part.name] = side(part.summary, track)
        except RecordError:  # nothing to compare it by; its row says so
            continue
    if len(sides) < 2:
        return "<p>Fewer than two entries have a result to compare.</p>"
    pairs = {(a, b): compare(sides[a], sides[b]) for a, b in combinations(sides, 2)}
    head = "".join(f"<th>{escape(name)}</th>" for name in sides)
    rows = "".join(
        f"<tr><th>{escape(a)}</th>" + "".join(pair_cell(pairs, a, b) for b in sides) + "</tr>" for a in sides
    )
    told = "".join(f"<li>{escape(in_full(pair))}</li>" for pair in pairs.values())
    without = "".join(
        f"<p>{escape(part.name)}: {escape(verdict(part.summary).replace('**', ''))}</p>"
        for part in parts
        if part.name not in sides
    )
    asked = next(iter(pairs.values())).threshold
    return (
        f"<p>Row against column: the left-hand side of the pairwise rule, decided from {asked:.4g} on. Below "
        "it, where seeds are shared, the paired comparison: steps saved, or the loss where a side does not "
        f"come to the target, decided where p is below {ALPHA:g}.</p>"
        f'<div class="wide"><table class="plain" id="pairwise"><tr><th></th>{head}</tr>{rows}</table></div>'
        f"{without}<details><summary>Every pair in words (differences: the second's minus the "
        f"first's; bootstrap over runs)</summary><ul>{told}</ul></details>"
    )


def pair_cell(pairs: dict[tuple[str, str], Comparison], row: str, column: str) -> str:
    if row == column:
        return "<td></td>"
    turned = (row, column) not in pairs
    pair = pairs[column, row] if turned else pairs[row, column]
    sign = -1 if turned else 1
    told = OPPOSITE[pair.verdict] if turned else pair.verdict
    cell = f"{told}<br>{sign * pair.left_hand_side:+.5f}"
    if pair.paired:
        test, by_seed = pair.paired.test, pair.paired.verdict
        by_seed = OPPOSITE[by_seed] if turned else by_seed
        value = f"{sign * test.mean:+.1f} steps" if pair.paired.steps else f"{sign * test.mean:+.5f} loss"
        p = "" if test.p is None else f", p {test.p:.1g}"
        cell += f'<br><span class="{CLASSES[by_seed]}">by seed: {by_seed}, {value}{p}</span>'
    return f'<td class="{CLASSES[told]}">{cell}</td>'


def in_full(pair: Comparison) -> str:
    parts = [in_words(pair)]
    if pair.verdict == "not decided":
        parts.append(seeds_in_words(pair))
    if pair.loss_at_common_step:
        told = interval(pair.loss_at_common_step, "+.5f")
        parts.append(f"loss difference at step {pair.common_step} {told}")
    if pair.steps_to_target:
        parts.append(f"difference in steps to the target {interval(pair.steps_to_target, '+.1f')}")
    if pair.paired:
        parts += by_seed_in_full(pair.paired)
    return f"{pair.first.name} against {pair.second.name}: {pair.verdict}. {'; '.join(parts)}."


def by_seed_in_full(paired: PairedComparison) -> Iterator[str]:
    yield f"by seed, {count(paired.loss.n, 'shared seed')}: {paired.verdict}"
    yield f"loss difference at step {paired.step} {test_in_words(paired.loss, '+.5f')}"
    if paired.steps:
        yield f"difference in steps to the target {test_in_words(paired.steps, '+.1f')}"
    yield from (f"doubt: {doubt}" for doubt in paired.doubts)


def interval(found: Interval, form: str) -> str:
    """Such as: +12.0 (95% from +3.1 to +20.5); differences are the second's minus the first's."""
    if found.low is None or found.high is None:
        return f"{found.estimate:{form}} (a single run gives no interval)"
    return f"{found.estimate:{form}} (95% from {found.low:{form}} to {found.high:{form}})"


def recipes_table(parts: Sequence[Part]) -> str:
    """A row a key, a column an entry; rows with different values are marked and come first."""
    rows = sorted(side_by_side([part.recipe for part in parts]), key=lambda row: not row[2])
    if not rows:
        return "<p>None of these logs states its recipe.</p>"
    head = "".join(f"<th>{escape(part.name)}</th>" for part in parts)
    body = "".join(
        f'<tr class="{"differs" if differs else "same"}"><th>{"&ne; " * differs}{escape(key)}</th>'
        + "".join(f"<td>{'' if value is None else escape(str(value))}</td>" for value in values)
        + "</tr>"
        for key, values, differs in rows
    )
    return f'<table class="plain" id="recipes"><tr><th>key (&ne; differs)</th>{head}</tr>{body}</table>'


def warnings_list(parts: Sequence[Part]) -> str:
    told = "".join(
        f"<li>{escape(f'{part.name}: {warning}')}</li>" for part in parts for warning in part.summary.warnings
    )
    return f"<ul>{told}</ul>" if told else "<p>None.</p>"
