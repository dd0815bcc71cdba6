"""Where the time of a step goes: --profile traces ten steady steps and sums them up by phase.

A phase begins with a mark and ends with the next one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

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
SKIPPED, WARMED, TRACED = 5, 2, 10  # steps
PROFILED = SKIPPED + WARMED + TRACED


class Span(Protocol):
    """Microseconds."""

    start: float
    end: float


class Kernel(Protocol):
    """What a GPU did. duration: microseconds."""

    name: str
    duration: float


class Event(Protocol):
    """What torch's profiler keeps of an operation, and of the kernels that it started."""

    name: str
    time_range: Span
    kernels: Sequence[Kernel]


class StepProfile:
    """Marks the phases of each step for torch's profiler; behind the last traced step it writes and says.

    say: takes the table's lines, once.
    """

    def __init__(self, trace: Path, say: Callable[[str], None]) -> None:
        plan = schedule(wait=SKIPPED, warmup=WARMED, active=TRACED, repeat=1)
        self.profiler, self.trace, self.say = profile(schedule=plan), trace, say
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
            self.say("\n".join([*table(self.profiler.events()), f"trace: {self.trace}"]))


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


def phase_seconds(events: Iterable[Event]) -> dict[str, tuple[float, float]]:
    """Of each phase, and of the exchange beside them: seconds of the host, and of the kernels started in it.

    A kernel belongs to the phase in which any thread started it: backward runs in threads of its own.
    """
    events = list(events)
    spans = [(event.name.partition(" ")[2], event.time_range) for event in events if is_phase(event)]
    host, device = (dict.fromkeys([*PHASES, "exchange"], 0.0) for _ in range(2))
    for phase, span in spans:
        host[phase] += span.end - span.start
    for event in events:
        began = event.time_range.start
        phase = next((phase for phase, span in spans if span.start <= began < span.end), "")
        for kernel in event.kernels:
            device[phase] = device.get(phase, 0.0) + kernel.duration
            device["exchange"] += kernel.duration if EXCHANGE.search(kernel.name) else 0.0
        host["exchange"] += event.time_range.end - began if EXCHANGE.search(event.name) else 0.0
    return {name: (host[name] / 1e6, device[name] / 1e6) for name in host}


def is_phase(event: Event) -> bool:
    return event.name.startswith("phase ") and event.name[6:] in PHASES


def table(events: Iterable[Event]) -> Iterator[str]:
    """The milliseconds of a step by phase, in lines; without the GPU's column where there is none."""
    seconds = phase_seconds(events)
    gpu = any(device for _, device in seconds.values())
    total = sum(seconds[phase][0] for phase in PHASES)
    yield f"where a step went, mean of {TRACED}   {'host ms':>8}   share" + ("   GPU ms" if gpu else "")
    for name, (host, device) in seconds.items():
        told = PHASES.get(name, "of all these, beside them: what the processes sent")
        row = f"{name:<32}{1000 * host / TRACED:>8.2f}   {host / (total or 1):>5.0%}"
        yield row + (f"{1000 * device / TRACED:>9.2f}" if gpu else "") + f"   {told}"
