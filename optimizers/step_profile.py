"""Where the time of a step goes: --profile traces ten steady steps and sums them up by phase.

A phase begins with a mark and ends with the next one.
"""

import gzip
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.profiler import profile, record_function, schedule

PHASES = {
    "data": "the batch that was read ahead",
    "forward": "the loss",
    "backward": "the gradients, and their exchange where that is not hidden",
    "wait": "for the loss and the gradient's norm of all processes",
    "optimizer": "the update, and the exchange of what it made",
}
EXCHANGE = re.compile(r"^(gloo|nccl):|nccl.*Kernel", re.IGNORECASE)  # of an operation or a GPU's kernel
LAUNCHES, KERNELS = ("cuda_runtime", "cuda_driver"), ("kernel", "gpu_memcpy", "gpu_memset")
SKIPPED, WARMED, TRACED = 5, 2, 10  # steps
PROFILED = SKIPPED + WARMED + TRACED


class StepProfile:
    """Marks the phases of each step for torch's profiler; behind the last traced step it writes and says.

    say: takes the table's lines, once.
    """

    def __init__(self, trace: Path, say: Callable[[str], None]) -> None:
        plan = schedule(wait=SKIPPED, warmup=WARMED, active=TRACED, repeat=1)
        self.profiler, self.trace, self.say = profile(schedule=plan, acc_events=True), trace, say
        self.open: record_function | None = None
        self.steps = 0
        self.profiler.start()

    def mark(self, phase: str) -> None:
        """The phase before ends, this one begins; an empty one ends the step.

        A forward pass in no step is a validation's, and not counted.
        """
        if phase in ("forward", "backward") and not self.open:
            return
        if self.open:
            self.open.__exit__(None, None, None)
            self.open = None
        if phase and self.steps < PROFILED:
            self.open = record_function(f"phase {phase}")
            self.open.__enter__()
        if not phase:
            self._count()

    def _count(self) -> None:
        self.steps += 1
        if self.steps < PROFILED:
            self.profiler.step()
        elif self.steps == PROFILED:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.trace))
            events = json.loads(gzip.decompress(self.trace.read_bytes()))["traceEvents"]
            self.say("\n".join([*table(events), f"trace: {self.trace}"]))


class ProfileError(ValueError):
    """A run is too short to be profiled."""


def marks(net: nn.Module, trace: Path, say: Callable[[str], None], steps: int) -> Callable[[str], None]:
    """What marks the phases of the steps of `net`: its calls mark forward and backward themselves.

    Raises ProfileError where fewer `steps` are left than a profile takes.
    """
    if steps < PROFILED:
        raise ProfileError(f"--profile needs {PROFILED} steps, {steps} are left. Train more or leave it out.")
    mark = StepProfile(trace, say).mark
    net.register_forward_pre_hook(lambda *_: mark("forward"))
    net.register_forward_hook(lambda *_: mark("backward"))
    return mark


def unmarked(phase: str) -> None:
    """What marks a phase where nothing is profiled."""


def phase_seconds(events: Iterable[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Of each phase, and of the exchange beside them: seconds of the host, and of the kernels started in it.

    events: a trace's, in microseconds. A kernel belongs to the phase in which any thread launched it:
    backward runs in threads of its own.
    """
    events = [event for event in events if "dur" in event]
    spans = sorted((event["ts"], event["ts"] + event["dur"], event["name"][6:])
                   for event in events if is_phase(event))  # fmt: skip
    host, device = (dict.fromkeys([*PHASES, "exchange"], 0.0) for _ in range(2))
    for began, ended, phase in spans:
        host[phase] += ended - began
    launched = {event["args"]["correlation"]: event["ts"] for event in events
                if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})}  # fmt: skip
    for event in events:
        exchanges = bool(EXCHANGE.search(event["name"]))
        if event.get("cat") == "cpu_op" and exchanges:
            host["exchange"] += event["dur"]
        if event.get("cat") in KERNELS:
            at = launched.get(event["args"].get("correlation"), -1.0)
            began, ended, phase = spans[max(bisect_right(spans, at, key=lambda span: span[0]) - 1, 0)]
            device[phase] += event["dur"] if began <= at < ended else 0.0
            device["exchange"] += event["dur"] if exchanges else 0.0
    return {name: (host[name] / 1e6, device[name] / 1e6) for name in host}


def is_phase(event: dict[str, Any]) -> bool:
    return event.get("cat") == "user_annotation" and event["name"][6:] in PHASES


def table(events: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The milliseconds of a step by phase, in lines; without the GPU's column where there is none."""
    seconds = phase_seconds(events)
    gpu = any(device for _, device in seconds.values())
    total = sum(seconds[phase][0] for phase in PHASES)
    yield f"where a step went, mean of {TRACED}   {'host ms':>8}   share" + ("   GPU ms" if gpu else "")
    for name, (host, device) in seconds.items():
        told = PHASES.get(name, "of all these, beside them: what the processes sent")
        row = f"{name:<32}{1000 * host / TRACED:>8.2f}   {host / (total or 1):>5.0%}"
        yield row + (f"{1000 * device / TRACED:>9.2f}" if gpu else "") + f"   {told}"
