"""The report's part on instruments: what updates did to the matrices of the entries that measured them.

Curves by layer and kind of matrix, neurons that died, a heat map of neurons over steps, histograms of neurons
at three steps; of each entry the first run that was measured. Colours and lines are the report's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from records.publish.pictures import COLOURS
from records.run.instrument_log import read_neurons, read_numbers

LINES = ("solid", "dash", "dot", "dashdot")
FIRST = "row_variation"  # the quantity shown before another is chosen
WHATS = {  # by neuron -> its name on the page
    "update": "row norm of the update", "leverage": "leverage of the momentum's polar factor",
    "momentum": "row norm of the momentum", "weight": "row norm of the weight", "angle": "angle of the row",
    "activation": "activation norm on the validation set",
}  # fmt: skip
SHOWN = 12  # heat maps to choose from
PLOT = {"responsive": True, "displaylogo": False}


@dataclass(frozen=True)
class Measured:
    """A run of an entry: `numbers` by matrix or layer, {name: {quantity: [(step, value)]}}; `neurons` by
    (name, what): (steps, array [neurons, steps]).
    """

    name: str
    seed: int
    numbers: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
    neurons: Mapping[tuple[str, str], tuple[list[int], np.ndarray]]


def measured_run(name: str, logs: Sequence[Path]) -> Measured | None:
    """The first run of an entry's logs that instruments told of; None without one."""
    for log in logs:
        lines = read_numbers(log)
        if not lines:
            continue
        seed = lines[0]["seed"]
        numbers: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for line in (line for line in lines if line["seed"] == seed):
            of_name = numbers.setdefault(str(line["name"]), {})
            for key, value in line.items():
                if key not in ("seed", "step", "name", "units") and isinstance(value, int | float):
                    of_name.setdefault(key, []).append((line["step"], float(value)))
        neurons = {
            (of_name, what): (list(by_step), np.stack(list(by_step.values()), axis=1))
            for (of_seed, of_name, what), by_step in read_neurons(log).items()
            if of_seed == seed
        }
        return Measured(name, seed, numbers, neurons)
    return None


def layer_and_kind(name: str) -> tuple[int, str]:
    """ "blocks.2.attn.k.weight" is (2, "attn.k"); a name without a number is of layer 0."""
    found = re.search(r"\.(\d+)\.(.+)$", name)
    layer, kind = (int(found[1]), found[2]) if found else (0, name)
    return layer, kind.removesuffix(".weight")


def instruments_section(runs: Sequence[Measured]) -> str:
    """HTML of the section, nothing where no run was measured. plotly's script is in the page already."""
    if not runs:
        return ""
    told = "; ".join(f"{escape(run.name)}: seed {run.seed}" for run in runs)
    parts = [
        "<h2>What the updates did</h2>",
        f"<p>Measured with <code>--instruments</code>. {told}. What each quantity is: "
        "<code>optimizers/instruments.py</code>. A colour is a layer, a kind of line an entry.</p>",
        shown(curves_figure(runs), "instruments"),
    ]
    if dead := dead_figure(runs):
        parts += ["<h3>Neurons that are silent on the validation tokens</h3>", shown(dead, "dead")]
    if choices := neuron_choices(runs):
        parts += ["<h3>Every neuron over the steps</h3>", shown(heat_figure(runs, choices), "neurons")]
        parts += ["<h3>Neurons at three steps</h3>", shown(histogram_figure(runs, choices), "histograms")]
    return "\n".join(parts)


def shown(figure: go.Figure, name: str) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=PLOT))


def curves_figure(runs: Sequence[Measured]) -> go.Figure:
    """A panel for each kind of matrix; the menu changes the quantity of all of them."""
    names = sorted({name for run in runs for name, of_name in run.numbers.items() if "dead" not in of_name},
                   key=layer_and_kind)  # fmt: skip
    kinds = sorted({layer_and_kind(name)[1] for name in names})
    quantities = sorted({key for run in runs for name in names for key in run.numbers.get(name, {})})
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    plot = make_subplots(rows, columns, subplot_titles=kinds, horizontal_spacing=0.1, vertical_spacing=0.12)
    traces = [(e, run, name) for e, run in enumerate(runs) for name in names if name in run.numbers]
    first = FIRST if FIRST in quantities else quantities[0]
    legends: set[str] = set()
    for e, run, name in traces:
        layer, kind = layer_and_kind(name)
        label = f"{escape(run.name)}, layer {layer}"
        steps, values = points(run, name, first)
        place = kinds.index(kind)
        plot.add_scatter(
            x=steps, y=values, mode="lines", name=label, legendgroup=label, showlegend=label not in legends,
            line={"color": COLOURS[layer % len(COLOURS)], "dash": LINES[e % len(LINES)], "width": 1.6},
            hovertemplate=f"<b>{label}</b>, {escape(kind)}<br>step %{{x}}: %{{y:.5g}}<extra></extra>",
            row=place // columns + 1, col=place % columns + 1,
        )  # fmt: skip
        legends.add(label)
    buttons = []
    for quantity in quantities:
        of_traces = [points(run, name, quantity) for _, run, name in traces]
        shown_now = {"x": [steps for steps, _ in of_traces], "y": [heights for _, heights in of_traces]}
        buttons.append({"label": quantity.replace("_", " "), "method": "restyle", "args": [shown_now]})
    dress(plot, 260 * rows + 120, buttons, quantities.index(first))
    plot.update_xaxes(title_text="step", row=rows)
    return plot


def points(run: Measured, name: str, quantity: str) -> tuple[list[int], list[float]]:
    found = run.numbers.get(name, {}).get(quantity, [])
    return [step for step, _ in found], [float(f"{value:.5g}") for _, value in found]


def dead_figure(runs: Sequence[Measured]) -> go.Figure | None:
    """Units that are zero on every validation token (left), and those below 1% of the layer's median."""
    plot = make_subplots(1, 2, subplot_titles=("zero", "below 1% of the median"))
    layers = sorted({name for run in runs for name, of_name in run.numbers.items() if "dead" in of_name})
    if not layers:
        return None
    for e, run in enumerate(runs):
        for name in (name for name in layers if name in run.numbers):
            layer, _ = layer_and_kind(name)
            label = f"{escape(run.name)}, layer {layer}"
            for column, quantity in enumerate(("dead", "faint"), 1):
                steps, values = points(run, name, quantity)
                plot.add_scatter(
                    x=steps, y=values, mode="lines", name=label, legendgroup=label, showlegend=column == 1,
                    line={"color": COLOURS[layer % len(COLOURS)], "dash": LINES[e % len(LINES)]},
                    row=1, col=column,
                )  # fmt: skip
    dress(plot, 380, [], 0)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="units", rangemode="tozero", col=1)
    return plot


def neuron_choices(runs: Sequence[Measured]) -> list[tuple[str, str]]:
    """(name, what) that every run has by neuron; of the MLP where there is one, SHOWN at most."""
    common = set.intersection(*(set(run.neurons) for run in runs))
    wanted = [key for key in common if "mlp.fc" in key[0] or key[1] == "activation"] or list(common)
    order = list(WHATS)
    return sorted(wanted, key=lambda key: (order.index(key[1]), layer_and_kind(key[0])))[:SHOWN]


def heat_figure(runs: Sequence[Measured], choices: Sequence[tuple[str, str]]) -> go.Figure:
    """Neurons, sorted by their last value, over steps: a panel an entry, one colour scale for all."""
    plot = make_subplots(1, len(runs), subplot_titles=[escape(run.name) for run in runs], shared_yaxes=True)
    for i, choice in enumerate(choices):
        grids = [run.neurons[choice] for run in runs]
        highest = max(float(np.quantile(grid, 0.99)) for _, grid in grids)
        for column, (steps, grid) in enumerate(grids, 1):
            values = grid[np.argsort(grid[:, -1])]
            plot.add_heatmap(
                x=steps, z=[[float(f"{value:.4g}") for value in row] for row in values], zmin=0, zmax=highest,
                colorscale="Viridis", showscale=column == len(runs), visible=i == 0,
                hovertemplate="step %{x}, neuron %{y}: %{z}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    dress(plot, 460, choice_buttons(choices, len(runs)), 0)
    plot.update_xaxes(title_text="step")
    plot.update_yaxes(title_text="neuron, by its last value", col=1)
    return plot


def histogram_figure(runs: Sequence[Measured], choices: Sequence[tuple[str, str]]) -> go.Figure:
    """How many neurons have what value at the second measured step, in the middle and at the last."""
    titles = ("early", "middle", "last")
    plot = make_subplots(1, 3, subplot_titles=titles, shared_xaxes="all")
    for i, choice in enumerate(choices):
        lists = [run.neurons[choice][1] for run in runs]
        highest = max(float(grid.max()) for grid in lists) or 1.0
        edges = np.linspace(0, highest, 41)
        for e, (run, grid) in enumerate(zip(runs, lists, strict=True)):
            last = grid.shape[1] - 1
            for column, at in enumerate((min(1, last), last // 2, last), 1):
                counted = np.histogram(grid[:, at], edges)[0]
                plot.add_scatter(
                    x=[float(f"{x:.4g}") for x in edges[:-1]], y=counted.tolist(), line_shape="hv",
                    mode="lines", fill="tozeroy", name=escape(run.name), legendgroup=str(e),
                    showlegend=column == 1, visible=i == 0, line_color=COLOURS[e % len(COLOURS)],
                    row=1, col=column,
                )  # fmt: skip
    dress(plot, 400, choice_buttons(choices, 3 * len(runs)), 0)
    plot.update_yaxes(title_text="neurons", col=1)
    return plot


def choice_buttons(choices: Sequence[tuple[str, str]], traces: int) -> list[dict]:
    """A menu of which `traces` neighbours are seen."""
    buttons = []
    for i, (name, what) in enumerate(choices):
        seen = [i == j for j in range(len(choices)) for _ in range(traces)]
        label = f"{WHATS[what]}, {name.removesuffix('.weight')}"
        buttons.append({"label": escape(label), "method": "restyle", "args": [{"visible": seen}]})
    return buttons


def dress(plot: go.Figure, height: int, buttons: Sequence[dict], active: int) -> None:
    """The report's layout; a menu at the top left where there is something to choose."""
    place = {"x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "pad": {"b": 34}}
    menu = [{"buttons": list(buttons), "active": active, **place}] if buttons else []
    plot.update_annotations(font_size=13)
    plot.update_layout(
        template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 90, "b": 60},
        legend={"orientation": "h", "yanchor": "top", "y": -66 / (height - 150), "x": 0}, updatemenus=menu,
    )  # fmt: skip
