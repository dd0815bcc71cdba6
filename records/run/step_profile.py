"""Where the time of a step goes: --profile traces ten steady steps and sums them up by phase.

The profiler is torch's, handed in by records/observe.py. A phase ends where the next one begins.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

PHASES = {
    "data": "the batch that was read ahead, and the log of the step before",
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


class Profiler(Protocol):
    """torch.profiler.profile, as far as it is used."""

    def start(self) -> None: ...
    def step(self) -> None: ...
    def stop(self) -> None: ...
    def events(self) -> Iterable[Event]: ...
    def export_chrome_trace(self, path: str) -> None: ...


class StepProfile:
    """Observes a run for a profiler; behind the last traced step it writes the trace and says the table.

    record: torch.profiler.record_function. say: takes the table, once.
    """

    def __init__(
        self,
        profiler: Profiler,
        record: Callable[[str], AbstractContextManager[object]],
        trace: Path,
        say: Callable[[str], None],
    ) -> None:
        self.profiler, self.record, self.trace, self.say = profiler, record, trace, say
        self.phase: AbstractContextManager[object] | None = None
        self.steps = 0
        profiler.start()
        self._open("data")

    def begin(self, phase: str) -> None:
        """The phase before ends, this one begins; outside of a step nothing does."""
        if self.phase:
            self._open(phase)

    def waiting(self) -> None:
        """The gradients are made; the loop asks the device for their norm."""
        self.begin("wait")

    @contextmanager
    def updating(self, step: int) -> Iterator[None]:
        """Around the optimizers' part, which ends the step."""
        self.begin("optimizer")
        yield
        self._open("")
        self.steps += 1
        if self.steps < PROFILED:
            self.profiler.step()
            self._open("data")
        elif self.steps == PROFILED:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.trace))
            self.say("\n".join([*table(self.profiler.events()), f"trace: {self.trace}"]))

    @contextmanager
    def validating(self, step: int) -> Iterator[None]:
        """Around a validation, which is no step's."""
        inside = self.phase is not None
        self._open("")
        yield
        self._open("data" if inside else "")

    def _open(self, phase: str) -> None:
        if self.phase:
            self.phase.__exit__(None, None, None)
        self.phase = self.record(f"phase {phase}") if phase else None
        if self.phase:
            self.phase.__enter__()


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
