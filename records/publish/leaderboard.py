"""`python -m records leaderboard`: a track's README.md and figure, made from its entries' logs.

An entry's result is its first significant step, its rank one more than the number of entries shown to be
ahead of it. Published results are listed apart: their logs are not here, so nothing of them is recomputed.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from records.judge.paired import TTest
from records.judge.ranking import FAMILY, Ranking, rank
from records.judge.statistics import threshold
from records.judge.tracks import DEFAULT
from records.publish.entry_page import (
    Standing,
    entry_page,
    mean_curve,
    number,
    read_standing,
    read_toml,
    seed_ranges,
)
from records.publish.pages import FIGURE, PREDICTION, Page, escape, table
from records.publish.pictures import Place, Result, leaderboard_picture
from records.publish.prediction import pairings, prediction_picture, prediction_text
from records.publish.recipe_table import disagreements
from records.run.recipe_files import shipped_recipes
from records.run.track import RECORDS, Track, TrackError, shipped_tracks

PULL_REQUEST = "https://github.com/KellerJordan/modded-nanogpt/pull/{}"
CURVES = 10  # drawn near the target: the first of the ranking


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "leaderboard", help="make the pages of tracks and entries from the logs, or check them"
    )
    parser.add_argument("--track", metavar="NAME", help="only this track (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    parser.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    tracks = shipped_tracks()
    if args.track and args.track not in tracks:
        raise TrackError(f"--track {args.track}: expected {' or '.join(tracks)}; others have no leaderboard")
    pages = [page for name in ([args.track] if args.track else tracks) for page in track_pages(tracks[name])]
    if not args.check:
        for page in pages:
            page.write()
            print(os.path.relpath(page.folder / "README.md"))
        return 0
    lines = [line for page in pages for line in page.differences()]
    if not lines:
        print(f"{len(pages)} pages are what the logs say")
        return 0
    print("\n".join(lines))
    print("The committed pages differ from the logs: run `python -m records leaderboard`.", file=sys.stderr)
    return 1


def track_pages(track: Track, records: Path = RECORDS) -> list[Page]:
    """The page of each entry of a track, then the track's own."""
    folder = records / track.name
    entries = read_standings(folder, track)
    pages = [entry_page(entry, track, folder) for entry in entries]
    return [*pages, leaderboard_page(folder, track, entries)]


def read_standings(folder: Path, track: Track) -> list[Standing]:
    """The entries of a track, best first: significant ones by steps, then loss; then the others by loss."""
    found = [read_standing(file.parent, track) for file in sorted(folder.glob("[!.]*/recipe.toml"))]

    def order(standing: Standing) -> tuple:
        step, mean = standing.summary.first_significant_step, standing.summary.mean_val_loss
        return (step is None, step or 0, mean is None, mean or 0.0, standing.name)

    return sorted(found, key=order)


def leaderboard_page(folder: Path, track: Track, entries: Sequence[Standing]) -> Page:
    published = read_published(folder)
    recipes = {name: read_toml(file)[1] for name, file in shipped_recipes(folder).items()}
    own = [
        Result(e.name, e.date, e.summary.first_significant_step, own=True)
        for e in entries
        if e.date and e.summary.first_significant_step is not None
    ]
    history = [Result(p["name"], p["date"], p["steps"], own=False) for p in published]
    results = history + own if history else []  # without published results there is one day to show
    ranking = rank([e.summary for e in entries], track)
    entries = sorted(entries, key=lambda e: ranking.ranks.get(e.name, len(entries) + 1))
    places = [
        Place(e.name, ranking.ranks[e.name], test.mean, test.low, test.high)
        for e in entries
        if not history and (test := ranking.steps.get(e.name))
    ]
    curves = [curve for e in entries[:CURVES] if (curve := mean_curve(e.name, e.summary)).steps]
    parts = [
        f"# Track {escape(track.name)}\n",
        f"Reach a validation loss of {track.target:g} in as few steps as possible. An entry's result is the "
        "first step, common to all its runs, at which (target - mean) sqrt(n) is at least "
        f"{threshold(track.sigma):.4g} (sigma {track.sigma:g}).\n",
        see_also(folder),
        f"![{'record over time' if results else 'steps to the target'}, and curves near it]({FIGURE})\n"
        if results or curves
        else "",
        f"Curves of the first {CURVES} entries.\n" if len(entries) > CURVES else "",
        "## Entries\n",
        entries_table(entries, ranking),
    ]
    elsewhere = read_published(folder.parent / DEFAULT) if track.name != DEFAULT else []
    if len(paired := pairings(entries, track, elsewhere)) > 2:
        parts += [f"## Does {track.name} predict {DEFAULT}?\n", prediction_text(paired)]
        parts.append(f"![steps here over published steps]({PREDICTION})\n")
    without_runs = {name: r for name, r in recipes.items() if not any(was_run(r, e) for e in entries)}
    if without_runs:
        parts += ["## Recipes without runs here\n", recipes_table(without_runs)]
    if published:
        parts += ["## Published results (not ours)\n", published_table(published, recipes, entries)]
    if reported := read_published(folder, kind="open"):
        parts += [
            "## Reported in open pull requests (not accepted, not ours)\n",
            open_table(reported, recipes),
        ]
    parts.append("Made from the logs by `python -m records leaderboard`; do not edit.\n")
    pictures = (
        {FIGURE: leaderboard_picture(results, curves, track.target, places)} if results or curves else {}
    )
    if len(paired) > 2:
        pictures[PREDICTION] = prediction_picture(paired)
    return Page(folder, "\n".join(part for part in parts if part), pictures)


def see_also(folder: Path) -> str:
    """Links to the pages written by hand beside this one."""
    pages = sorted(file.name for file in folder.glob("*.md") if file.name != "README.md")
    return "See also: " + ", ".join(f"[{escape(name)}]({name})" for name in pages) + ".\n" if pages else ""


def entries_table(entries: Sequence[Standing], ranking: Ranking) -> str:
    if not entries:
        return "None yet: `python -m records submit NAME --recipe RECIPE LOG...` makes the first.\n"
    header = (
        "rank", "entry", "steps", "mean val_loss", "runs", "(target - mean) sqrt(n)", "p",
        "steps to the target (95%)", "ms/step", "optimizer", "seeds", "date",
    )  # fmt: skip
    rows = []
    for entry in entries:
        summary, at = entry.summary, entry.summary.judged
        step = summary.first_significant_step
        rows.append(
            (
                ranking.ranks.get(entry.name, "-"),
                f"[{escape(entry.name)}]({entry.name}/)",
                step if step is not None else f"not in {at.step}" if at else "-",
                number(summary.mean_val_loss, ".5f"),
                summary.n,
                number(summary.statistic, ".5f"),
                number(at.p if at else None, ".1g"),
                with_interval(ranking.steps.get(entry.name)),
                number(summary.ms_per_step, ".1f"),
                escape(entry.optimizer),
                escape(seed_ranges(summary.seeds)),
                escape(entry.date or "?"),
            )
        )
    notes = (
        "Rank: one more than the number of entries shown to be ahead, no better than that of an entry with "
        "fewer steps to the target. Entries of one rank cannot be told "
        f"apart by these runs: of {ranking.pairs} pairs {ranking.decided} are decided, by paired t-tests of "
        "the steps to the target on shared seeds (by the pairwise rule where none are shared), with Holm's "
        f"correction for the number of pairs (at most {FAMILY:.0%} that any is decided wrongly).\n\n"
        "Steps: the first at which rule 2 is met. Steps to the target: where a run's curve first meets it, "
        "interpolated, or continued as steep as over its last tenth; mean over the runs and 95% t-interval. "
        "ms/step belongs to the machine of the runs and ranks nothing."
    )
    if any(e.summary.first_significant_step is None for e in entries):
        notes += " An entry without a rank does not show the target; its loss is the last common step's."
    return table(header, rows, right=(0, 2, 3, 4, 5, 6, 7, 8)) + f"\n{notes}\n"


def with_interval(test: TTest | None) -> str:
    """Such as: 360.0 (352.1 to 367.9)."""
    if test is None:
        return "-"
    if test.low is None:
        return f"{test.mean:.1f}"
    return f"{test.mean:.1f} ({test.low:.1f} to {test.high:.1f})"


def recipes_table(recipes: dict[str, dict]) -> str:
    rows = []
    for name, recipe in recipes.items():
        step = str(recipe.get("matrix", {}).get("step", "?"))
        rows.append((f"[{escape(name)}]({name}.toml)", escape(step), escape(recipe.get("description", ""))))
    note = "No entry here has run these: what they reach is not known.\n\n"
    return note + table(("recipe", "optimizer", "description"), rows)


def published_table(published: Sequence[dict], recipes: dict[str, dict], entries: Sequence[Standing]) -> str:
    counterparts: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        prefix = re.match(r"(\d+)_", name)
        result = recipe.get("published", int(prefix[1]) if prefix else None)
        counterparts.setdefault(str(result), []).append(f"[{escape(name)}]({name}.toml)")
    for entry in entries:
        link = f"[{escape(entry.name)}]({entry.name}/)"
        counterparts.setdefault(str(entry.recipe.get("published")), []).append(link)
    rows = [
        (
            p["number"],
            escape(p["name"]),
            p["steps"],
            f"{p['mean_val_loss']:.4f}",
            p["runs"],
            "yes" if p["significant"] else "no",
            escape(p["date"]),
            f"[#{p['pull_request']}]({PULL_REQUEST.format(p['pull_request'])})" if p["pull_request"] else "",
            ", ".join(counterparts.get(str(p["number"]), [])),
        )
        for p in sorted(published, key=lambda p: (p["steps"], p["number"]))
    ]
    header = ("#", "result", "steps", "mean val_loss", "runs", "significant", "date", "source", "recipe here")
    note = (
        "Published by contributors of the modded-nanoGPT optimization benchmark, as they state them: "
        "not run and not verified here.\n\n"
    )
    return note + table(header, rows, right=(0, 2, 3, 4))


def open_table(reported: Sequence[dict], recipes: dict[str, dict]) -> str:
    """What pull requests report that nobody has accepted yet; recipes by their names, open_2580_..."""
    rows = [
        (
            p["steps"],
            escape(p["name"]),
            number(p["mean_val_loss"], ".5f"),
            p["runs"],
            escape(p["date"]),
            f"[#{p['pull_request']}]({PULL_REQUEST.format(p['pull_request'])})" if p["pull_request"] else "",
            escape(p["source"]),
            ", ".join(
                f"[{escape(name)}]({name}.toml)"
                for name in recipes
                if re.match(rf"open_{p['steps']}(?!\d)", name)
            ),
        )
        for p in sorted(reported, key=lambda p: p["steps"])
    ]
    header = ("steps", "result", "mean val_loss", "runs", "date", "pull request", "source", "recipe here")
    return "As their authors state them.\n\n" + table(header, rows, right=(0, 2, 3))


def was_run(recipe: dict, entry: Standing) -> bool:
    """Whether an entry's runs are of this shipped recipe: every key it sets has the same value in theirs."""
    return not disagreements(recipe, entry.recipe)


def read_published(folder: Path, kind: str | None = None) -> list[dict]:
    """The published results of a track (published.json): the accepted, or those of a kind, "open"."""
    path = folder / "published.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [result for result in results if result.get("kind") == kind]
