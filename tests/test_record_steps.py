"""The matrix steps of the record's line against its scripts, with their options and schedules."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimizers.stage import named_step
from optimizers.stages.balanced import balanced
from tests.test_steps import GOLDEN, SHAPES, golden_gradient, golden_weight, noise, relative_error

Options = dict[str, Any]


def ramp(s: float, a: float, b: float) -> float:
    return min(max((s - a) / (b - a), 0.0), 1.0)


def trust(s: int) -> Options:
    """The trust gate's limits on attn.proj from record #16 on."""
    floor = 0.45 * (1 - ramp(s, 1375, 1625))
    return {"trust": True, "trust_floor": floor, "trust_cap": 0.85 if s < 1625 else 1.0}


SOAP = {"start": "diagonal", "eps_rule": "clamp"}
BY_SCHATTEN = {"norm": "schatten4", "lr": 0.0375, "weight_decay": 0.0, "neuron_beta2": None, "contra": 0.0}
RECORD_44 = BY_SCHATTEN | SOAP | {"refresh_every": 1, "update_floor": 0.3825, "radial_brake": 0.5}
RECORD_46 = RECORD_44 | {
    "update_floor": 0.0, "row_floor": 0.3825, "weight_decay": 0.025, "cautious": True, "decay_last": True,
}  # fmt: skip
ATTENTION_V = SOAP | {"denominator_floor": 0.55, "soap_part": 0.95}


def record_20(s: int) -> Options:
    contra, soft = 0.4 * (1 - ramp(s, 0, 2000)), min(0.8, ramp(s, 2500, 3010))
    blend = {"blend": soft or (-1.0 if contra else 0.0), "contra": contra, "soft_scale": "polar"}
    return BY_SCHATTEN | {"neuron_beta2": 0.95, "update_floor": 0.3825} | blend


def record_29(s: int) -> Options:
    return record_20(s) | {"radial_brake": 0.5}


def record_30(s: int) -> Options:
    aurora = {"iterations": 3, "beta": 0.25, "balance": "wide", "contra": 0.4 * (1 - ramp(s, 0, 2500))}
    return BY_SCHATTEN | {"update_floor": 0.3825, "radial_brake": 0.5} | aurora


@dataclass(frozen=True)
class Case:
    """Weights `{prefix}w{t}` of a golden file; options(s), s the loop step of update t, counted from 1."""

    file: str
    prefix: str
    step: str
    options: Callable[[int], Options]
    loop_steps: tuple[int, ...] = (0, 1, 2, 3)
    zero: bool = False


def record_16(s: int) -> Options:
    return SOAP | {"denominator_floor": 0.2} | trust(s)


def record_20_v(s: int) -> Options:
    return record_20(s) | ATTENTION_V


def record_32(s: int) -> Options:
    fade = (1.0, 1.0, 0.75, 0.25)[s]
    blend = min(0.8, ramp(s, 1, 3)) or ramp(s, 0, 2) - 1
    return record_20(0) | {"blend": blend, "anchor": fade}


def record_36(s: int) -> Options:
    return {"lr": 0.025, "weight_decay": 0.05, "begin": 2, "age": 58 - 32 * ramp(s, 2, 7)}


def muon_3060(s: int) -> Options:
    return {"lr": 0.025, "weight_decay": 0.1, "begin": 2, "late": ramp(s, 2, 7)}


def muonh_3010(s: int) -> Options:
    return {"lr": 0.03, "begin": 2, "reset_begin": 2, "late": ramp(s, 2, 7)}


def muonh_3065(s: int) -> Options:
    return {"lr": 0.03, "begin": 2, "averages": 6, "age": 50 - 28 * ramp(s, 2, 7)}


GATED = (0, 1500, 1624, 1625)
BLENDED = (0, 1000, 2600, 3000)
LATE = tuple(range(2600, 2613))
SOFT_SOAP = "soft_muon(precondition=soap)"
CASES = [
    Case("soap_muon_record44", "", "soap_muon", lambda s: RECORD_44),
    Case("soap_muon_record44", "zerocov_", "soap_muon", lambda s: RECORD_44 | {"start": "zero"}),
    Case("soap_muon_record44", "zerow_", "soap_muon", lambda s: RECORD_44, zero=True),
    Case("soap_muon_record44", "gated_", "soap_muon", lambda s: RECORD_44 | trust(s), GATED),
    Case("soap_muon_record44", "late_", "soap_muon", lambda s: RECORD_44, tuple(range(12))),
    Case("soap_muon_record46", "", "soap_muon", lambda s: RECORD_46),
    Case("soap_muon_record46", "zerow_", "soap_muon", lambda s: RECORD_46, zero=True),
    Case("soap_gated_record16", "", "soap_muon", record_16, GATED),
    Case("soap_gated_record16", "late_", "soap_muon", record_16, tuple(range(2000, 2013))),
    Case("soap_gated_record16", "mlp_", "soap_muon", lambda s: SOAP),
    Case("contra_soft_record20", "", "soft_muon", record_20, BLENDED),
    Case("contra_soft_record20", "v_", SOFT_SOAP, record_20_v, BLENDED),
    Case("contra_soft_record20", "v_late_", SOFT_SOAP, record_20_v, LATE),
    Case("contra_soft_record29", "", "soft_muon", record_29, BLENDED),
    Case("aurora_contra_record30", "", "aurora", record_30, (0, 1250, 2500, 2900)),
    Case(
        "aurora_contra_record30", "v_", "aurora(precondition=soap)",
        lambda s: record_30(s) | ATTENTION_V, (0, 1250, 2500, 2900),
    ),
    Case("soda_record32", "", "soft_muon(land=anchored)", record_32),
    Case("open_bimaxwell_muon", "", "muon(memory=bimaxwell)", record_36, (0, 1, 2, 3, 4, 5)),
    Case("open_kmaxwell_muon", "", "muon(memory=kmaxwell)", record_36, (0, 1, 2, 3, 4, 5)),
    Case("open_maxent_muon", "", "muon(memory=maxent)", muon_3060, (0, 1, 2, 3, 4, 5)),
    Case(
        "open_maxent_muonh", "", "muonh(memory=maxent, precondition=radial_reset)",
        muonh_3010, (0, 1, 2, 3, 4, 5),
    ),
    Case("open_kmaxwell_muonh", "", "muonh(memory=kmaxwell)", muonh_3065, (0, 1, 2, 3, 4, 5)),
]  # fmt: skip


def present(case: Case, shape: tuple[int, int]) -> list[int]:
    """The updates t whose weights the file has."""
    names, key = np.load(GOLDEN / f"{case.file}.npz").files, f"s7_{shape[0]}x{shape[1]}_{case.prefix}w"
    return [t for t in range(1, len(case.loop_steps) + 1) if f"{key}{t}" in names]


PAIRS = [(case, shape) for case in CASES for shape in SHAPES if present(case, shape)]


@pytest.mark.parametrize(
    ("case", "shape"), PAIRS, ids=[f"{case.file}-{case.prefix}{m}x{n}" for case, (m, n) in PAIRS]
)
def test_steps_equal_the_scripts(case, shape):
    expected, step = np.load(GOLDEN / f"{case.file}.npz"), named_step(case.step)
    weight, state = golden_weight(shape, torch.float64) * (not case.zero), {}
    for t, s in enumerate(case.loop_steps, 1):
        known = step.row.hyperparameters
        options = {name: value for name, value in case.options(s).items() if name in known}
        step(weight, golden_gradient(shape, t, torch.float64), state, **options)
        if t in present(case, shape):
            key = f"s7_{shape[0]}x{shape[1]}_{case.prefix}w{t}"
            assert relative_error(weight, expected[key]) < 1e-8, t


def test_no_case_of_the_line_is_left_out():
    described = json.loads((Path(GOLDEN) / "index_lineage.json").read_text())["cases"]
    assert set(described) <= {case.file for case in CASES}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("s", "temper"), [(1375, 0.0), (2700, 0.025), (2800, 0.05)])
def test_tempered_directions_equal_record_38(s, temper, shape):
    expected = np.load(GOLDEN / "tempered_polar_record38.npz")[f"s7_{shape[0]}x{shape[1]}_step{s}"]
    options = {"norm": "schatten4", "balance": "wide", "iterations": 3, "beta": 0.25, "temper": temper}
    contra = 0.4 * max(0, 1 - s / 2750)
    U = balanced(golden_gradient(shape, 1, torch.float64), **options, contra=contra)
    assert relative_error(max(1, shape[0] / shape[1]) ** 0.5 * U, expected) < 1e-8


COMPILED = [
    ("muonh(memory=maxent, precondition=radial_reset)", {"begin": 3, "reset_begin": 3}, {"late": 0.5}),
    (
        "soap_muon",
        RECORD_46 | trust(0) | {"refresh_every": 2},
        {"trust_floor": 0.4, "trust_cap": 0.8, "momentum": 0.9},
    ),
    ("soft_muon", record_29(0), {"blend": -0.5}),
    ("soft_muon(land=anchored)", record_20(0), {"anchor": 0.5}),
    ("aurora", record_30(0) | {"temper": 0.1}, {"contra": 0.2, "radial_brake": 0.4, "update_floor": 0.3}),
    ("muon(memory=bimaxwell)", {"begin": 3}, {"momentum": 0.9}),
    ("muon(memory=kmaxwell)", {"begin": 3}, {"age": 40.0}),
]


@pytest.mark.parametrize(("name", "options", "moved"), COMPILED, ids=[name for name, *_ in COMPILED])
def test_the_lines_steps_compile_whole_and_not_again_over_a_schedule(name, options, moved):
    torch.compiler.reset()
    step = named_step(name)
    compiled = torch.compile(step, fullgraph=True, backend="eager", dynamic=False)
    known = step.row.hyperparameters
    fixed = {key: value for key, value in (options | {"polar_steps": 2}).items() if key in known}
    weight, twin, state, twin_state = noise(4, 8), noise(4, 8), {}, {}

    def both(t: int) -> None:
        values = {key: torch.tensor(value * (1 - 0.01 * t)).double() for key, value in moved.items()}
        told = {"refresh": t % 2 == 1} if "refresh_every" in known else {}
        for W, own, function in ((weight, state, compiled), (twin, twin_state, step)):
            function(W, noise(4, 8, seed=t), own, **fixed | values, **told)

    for t in (1, 2, 3):  # the state is made; with and without a refresh
        both(t)
    with torch.compiler.set_stance("fail_on_recompile"):
        for t in range(4, 9):
            both(t)
    torch.testing.assert_close(weight, twin, rtol=0, atol=1e-9)
