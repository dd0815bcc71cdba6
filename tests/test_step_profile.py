"""--profile: a trace of ten steps, and where their time went."""

import gzip
import json
import re
from dataclasses import dataclass, field
from types import SimpleNamespace

import train_gpt
from optimizers.step_profile import PHASES, TRACED, phase_seconds, table, unmarked
from tests.refusal import refusal_of


@dataclass
class Event:
    """What the profiler would keep of an operation."""

    name: str
    start: float
    end: float
    kernels: list[SimpleNamespace] = field(default_factory=list)

    @property
    def time_range(self) -> "Event":
        return self


def kernel(name: str, duration: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, duration=duration)


def test_a_traced_run_leaves_a_trace_and_says_where_the_time_went(small_track, tmp_path, capsys):
    options = ["--recipe", "nora", "--steps", "20", "--data", str(small_track), "--out", str(tmp_path)]
    train_gpt.main([*options, "--profile"])
    (path,) = tmp_path.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {phase: names.count(f"phase {phase}") for phase in PHASES} == dict.fromkeys(PHASES, TRACED)
    told = capsys.readouterr().out
    shares = [int(re.search(rf"^{phase} .*?(\d+)%", told, re.M)[1]) for phase in PHASES]
    assert 97 <= sum(shares) <= 103 and f"trace: {path}" in told
    (log,) = tmp_path.glob("*.txt")
    assert "step:20/20 val_loss:" in log.read_text()


def test_too_few_steps_to_trace_are_refused(small_track, tmp_path):
    options = ["--steps", "16", "--profile", "--data", str(small_track), "--out", str(tmp_path)]
    told = refusal_of(lambda: train_gpt.main(options))
    assert "--profile needs 17 steps, 16 are left" in told and not list(tmp_path.glob("*.txt"))


def test_a_kernel_counts_where_it_was_started_and_the_exchange_apart():
    events = [
        Event("phase backward", 0, 100),
        Event("phase optimizer", 100, 130),
        Event("aten::mm", 40, 41, [kernel("sm90_gemm", 70)]),  # of autograd's own thread
        Event("c10d::allreduce_", 60, 61, [kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 25)]),
        Event("aten::lerp_", 110, 111, [kernel("elementwise", 5)]),
        Event("gloo:all_reduce", 90, 120),
        Event("aten::mm", 200, 201, [kernel("sm90_gemm", 3)]),  # of a validation
    ]
    seconds = {
        name: tuple(round(1e6 * part) for part in both) for name, both in phase_seconds(events).items()
    }
    assert seconds["backward"] == (100, 95) and seconds["optimizer"] == (30, 5)
    assert seconds["exchange"] == (30, 25) and seconds["forward"] == (0, 0)
    assert "GPU ms" in next(table(events)) and "GPU ms" not in next(table(events[:2]))


def test_what_is_not_profiled_is_not_marked(small_track, tmp_path, monkeypatch):
    """The loop then calls a function that does nothing, and the model has no hooks."""
    marks = []
    monkeypatch.setattr(train_gpt, "unmarked", marks.append)
    monkeypatch.setattr(train_gpt, "marks", None)
    train_gpt.main(["--steps", "2", "--data", str(small_track), "--out", str(tmp_path)])
    assert marks == 2 * ["data", "wait", "optimizer", ""] and unmarked("data") is None
