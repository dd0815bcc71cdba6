"""Where nano's noise comes from: short trainings that differ in one source, and the entries' own curves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import stdev
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure

from records import RecordError
from records.judge.logs import read_entry
from records.publish.pictures import COLOURS, Picture
from records.run.recipe import Recipe
from records.run.track import RECORDS, read_track
from records.studies.page import FOLDER, Findings, Study, Table
from records.studies.short_training import ALONE, ROWS, trained
from train_gpt import GPT, load_recipe, make_model, validate

STEPS = 200
ENDS = ("embed.", "proj.")  # the embedding and the head


@dataclass(frozen=True)
class Setting:
    """A training: seeds of the blocks' and of the ends' initialisation; whether mlp.fc is mirrored, the one
    sign that this model does not make up for; a number that shuffles the data (0: as it is); by what part
    the weights are scaled; threads.
    """

    blocks: int = 0
    ends: int = 0
    mirrored: bool = False
    shuffle: int = 0
    nudge: float = 0.0
    threads: int = 1


GROUPS: dict[str, list[Setting]] = {  # what differs within a group
    "initialisation": [Setting(seed, seed) for seed in range(12)],
    "of the blocks alone": [Setting(seed, 0) for seed in range(12)],
    "of embedding and head alone": [Setting(0, seed) for seed in range(12)],
    "mirrored": [Setting(seed, seed, mirrored=True) for seed in range(12)],
    "order of the data": [Setting(shuffle=number) for number in range(12)],
    "rounding": [Setting(nudge=1e-6 * number) for number in range(12)],
    "two threads": [Setting(seed, seed, threads=2) for seed in range(6)],
}


def started(recipe: Recipe, setting: Setting) -> GPT:
    """The model as a setting starts it."""
    model, ends = (make_model(recipe, seed, ALONE.device, True) for seed in (setting.blocks, setting.ends))
    own = {name: p for name, p in ends.state_dict().items() if name.startswith(ENDS)}
    model.load_state_dict(model.state_dict() | own)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(1 + setting.nudge)
            if setting.mirrored and "mlp.fc.weight" in name:
                p.neg_()
    return model


def losses(recipe: Recipe, setting: Setting) -> list[float]:
    """Trains a setting; its loss on every part of the validation shard that is as long as the track's."""
    track = recipe.track
    torch.set_num_threads(setting.threads)
    order = np.random.default_rng(setting.shuffle).permutation(STEPS) if setting.shuffle else range(STEPS)
    model = started(recipe, setting)
    _, data = trained(model, recipe, order)
    starts = range(0, len(data.val) - track.val_tokens, track.val_tokens)
    parts = (cast(np.memmap, data.val[start:]) for start in starts)
    return [validate(model, part, track, ROWS, ALONE) for part in parts]


def trainings(train: bool) -> dict[str, list[list[float]]]:
    """By group, each setting's losses on the parts; those that are kept beside the page, else made anew."""
    kept = FOLDER / "noise" / "numbers.json"
    if kept.exists():
        return json.loads(kept.read_text())["losses"]
    if not train:
        raise RecordError(f"expected {kept}, found none; --train makes it in about half an hour")
    recipe = load_recipe("muon", [f"train_steps={STEPS}"], read_track("nano"))
    known = cache(lambda setting: losses(recipe, setting))
    return {name: [known(setting) for setting in group] for name, group in GROUPS.items()}


def parts_of_variance(table: np.ndarray) -> tuple[float, float]:
    """Of losses [settings, parts of the validation shard]: the standard deviation over settings that all
    parts share, and that of one part against the others once both means are taken out.
    """
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    settings, count = table.shape
    own = float((left**2).sum() / ((settings - 1) * (count - 1)))
    shared = float(table.mean(1).var(ddof=1)) - own / count
    return max(shared, 0.0) ** 0.5, own**0.5


def averaged() -> Iterator[tuple[str, list[float]]]:
    """Of each entry: the spread over seeds at its last validation, that of the means of the last 3 and 6."""
    for file in sorted((RECORDS / "nano").glob("*/recipe.toml")):
        curves = [{v.step: v.val_loss for v in run.validations} for run in read_entry(file.parent).runs]
        common = sorted(set.intersection(*map(set, curves)))
        if len(common) >= 6:
            tail = np.array([[curve[step] for step in common[-6:]] for curve in curves])
            yield file.parent.name, [stdev(tail[:, -count:].mean(1)) for count in (1, 3, 6)]


def noise(train: bool) -> Findings:
    """The study."""
    found = trainings(train)
    first = {name: [row[0] for row in group] for name, group in found.items()}
    rows: list[list] = []
    for name, group in found.items():
        shared, own = parts_of_variance(np.array(group))
        rows.append([name, len(group), stdev(first[name]), shared, own])
    usual, mirrored, threads = (first[name] for name in ("initialisation", "mirrored", "two threads"))
    pairs = [(a + b) / 2 for a, b in zip(usual, mirrored, strict=True)]
    moved = [[seed, b - a] for seed, (a, b) in enumerate(zip(usual, threads, strict=False))]
    tails = list(averaged())
    one, _, six = np.sqrt(np.mean([np.square(spreads) for _, spreads in tails], axis=0))
    by_name = {row[0]: row for row in rows}
    whole, part, rounding = *by_name["initialisation"][2::2], by_name["rounding"][2]
    verdict = (
        f"Over seeds the loss of {STEPS} steps of Muon spreads by {whole:.4f}. A millionth of every weight "
        f"spreads it by {rounding:.1g}: no choice of a start goes below that. Another validation set would "
        f"move a run by {part:.4f} against the others. The mean of an entry's last six validations spreads "
        f"by {six / one:.2f} of the last one alone ({len(tails)} entries). A seed and its mirror correlate "
        f"by {np.corrcoef(usual, mirrored)[0, 1]:.2f}: their mean spreads by {stdev(pairs):.4f}, that of "
        f"two seeds by {whole / 2**0.5:.4f}."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, values in enumerate(first.values()):
            axes.plot(values, [place] * len(values), "o", color=COLOURS[0], alpha=0.6, markersize=4)
        axes.set_yticks(range(len(first)), list(first))
        axes.invert_yaxis()
        axes.set_xlabel(f"validation loss after {STEPS} steps")

    header = ["what differs", "runs", "spread", "of all parts of the validation shard", "of one part alone"]
    tables = [
        Table("Standard deviation of the last loss", header, rows),
        Table(
            "Standard deviation of an entry's last validations",
            ["entry", "last", "of 3", "of 6"],
            [[entry, *spreads] for entry, spreads in tails],
        ),
        Table("The loss on two threads less that on one", ["seed", "difference"], moved),
    ]
    numbers = {"losses": found, "tails": tails}
    trained = len({setting for group in GROUPS.values() for setting in group})
    return Findings(
        verdict, f"seeds 0 to 11, {trained} trainings", tables,
        {"noise.svg": Picture(numbers, draw, 8.0, 3.6)}, numbers,
    )  # fmt: skip


STUDIES = (
    Study(
        "noise",
        "the noise of nano can be lowered without more time: by a longer validation set, by averaging the "
        "last validations, by a start that varies less, by pairs of mirrored seeds",
        "this project", noise, "--train",
    ),
)  # fmt: skip
