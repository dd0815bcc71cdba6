"""--profile: a trace of ten steps, and where their time went."""

import gzip
import json
import re

import train_gpt
from optimizers.step_profile import PHASES, TRACED, phase_seconds, table, unmarked
from tests.refusal import refusal_of


def event(name: str, start: float, end: float, cat: str = "cpu_op", correlation: int | None = None) -> dict:
    """What a trace says of an operation, a launch or a kernel."""
    return {"name": name, "ts": start, "dur": end - start, "cat": cat, "args": {"correlation": correlation}}


def kernel(name: str, launched: float, start: float, end: float, number: int) -> list[dict]:
    """A kernel, and its launch before it."""
    launch = event("cudaLaunchKernel", launched, launched + 1, "cuda_runtime", number)
    return [launch, event(name, start, end, "kernel", number)]


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


def test_a_kernel_counts_where_it_was_launched_and_the_exchange_apart():
    phases = [
        event("phase optimizer", 100, 130, "user_annotation"),
        event("phase backward", 0, 100, "user_annotation"),
        event("phase backward", 0, 400, "gpu_user_annotation"),  # the same on the GPU's clock
    ]
    kernels = [
        *kernel("sm90_gemm", 40, 90, 160, 1),  # of autograd's own thread; runs on into the next phase
        *kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 60, 160, 185, 2),
        *kernel("elementwise", 110, 200, 205, 3),
        *kernel("sm90_gemm", 200, 210, 213, 4),  # of a validation
        event("aten::mm", 39, 42),
        event("gloo:all_reduce", 90, 120),
        {"name": "process_name", "ph": "M"},
    ]
    seconds = {
        name: tuple(round(1e6 * part) for part in both)
        for name, both in phase_seconds(phases + kernels).items()
    }
    assert seconds["backward"] == (100, 95) and seconds["optimizer"] == (30, 5)
    assert seconds["exchange"] == (30, 25) and seconds["forward"] == (0, 0)
    assert "GPU ms" in next(table(phases + kernels)) and "GPU ms" not in next(table(phases))


def test_what_is_not_profiled_is_not_marked(small_track, tmp_path, monkeypatch):
    """The loop then calls a function that does nothing, and the model has no hooks."""
    marks = []
    monkeypatch.setattr(train_gpt, "unmarked", marks.append)
    monkeypatch.setattr(train_gpt, "marks", None)
    train_gpt.main(["--steps", "2", "--data", str(small_track), "--out", str(tmp_path)])
    assert marks == 2 * ["data", "wait", "optimizer", ""] and unmarked("data") is None
