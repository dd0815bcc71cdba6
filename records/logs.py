"""Read training logs: ours, the published ones, anybody's.

A log is a Python script, a line of 100 `=`, facts of the run, another such line, then the validation lines

    step:3175/3200 val_loss:3.27786 train_time:498.213s step_avg:157.07ms

of one or more runs. Published logs differ: no script, no lines of `=`, columns in between, training lines
without a loss, runs that start at step 125. What is in a log is data from strangers: it is read line by line
with bounded memory and never executed. A line is either read whole or named in `problems`; a value that
cannot be trusted is left out, never guessed.
"""

import math
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from records import RecordError

MAX_LINE = 1 << 16  # bytes; what is longer is no line of a log
MAX_SCRIPT = 1 << 20  # bytes; published scripts have 20-150 kB
MAX_FACTS = 2000  # lines, each cut at MAX_FACT characters
MAX_FACT = 4000
MAX_VALIDATIONS = 1_000_000  # of one file
MAX_PROBLEMS = 20  # named one by one; the rest is counted
SUFFIXES = (".txt", ".log")

_SEPARATOR = re.compile(rb"={80,}")
_SCRIPT_LINE = re.compile(rb"(?:import|from|def|class) +[A-Za-z_]")
_STEP_LINE = re.compile(r"step:(0|[1-9]\d{0,8})/(0|[1-9]\d{0,8})((?: +[A-Za-z_]\w{0,40}:[^\s:]{1,40})*)")
_LOOKS_LIKE_VALIDATION = re.compile(rb"\d/\d+ +val_loss|\d val_loss:|^\s*step:\S* .*val_?loss")
_LOSS = re.compile(r"\d{1,7}(?:\.(\d{1,17}))?|nan|-?inf")
_SECONDS = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)s")
_MILLISECONDS = re.compile(r"(\d{1,12}(?:\.\d{1,12})?|nan|inf)ms")
_SEED = re.compile(r"(?:.*\s)?seed\s*[:=]\s*(\d{1,18})", re.IGNORECASE)
_WORLD_SIZE = re.compile(r"world_size\s*[:=]?\s*(\d{1,6})")
_TRACK = re.compile(r"^track: *(\S{1,100})$")
_DATE = re.compile(r"(?:id: *|timestamp=|date: *)(20\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")


class LogError(RecordError):
    """A path that holds no log: what was expected, what was found, what to do."""


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation line. `train_time` in seconds, `step_avg` in milliseconds; None where not printed."""

    step: int
    val_loss: float
    train_time: float | None
    step_avg: float | None


@dataclass(frozen=True)
class Run:
    """One training: its validations in the order of their steps, each step once."""

    path: Path
    index: int  # within the file, from 0
    seed: int | None
    total_steps: int
    validations: tuple[Validation, ...]
    other_losses: tuple[str, ...] = ()  # names of further loss columns, e.g. ema_val_loss
    problems: tuple[str, ...] = ()

    @property
    def curve(self) -> dict[int, float]:
        """Step -> validation loss."""
        return {validation.step: validation.val_loss for validation in self.validations}

    @property
    def name(self) -> str:
        """Names the run to a reader: file name and place in the file."""
        return f"{self.path.name}, run {self.index + 1}"


@dataclass(frozen=True)
class Log:
    """One file. `recipe`: the effective recipe it states ({} where it states none); `date`: YYYY-MM-DD."""

    path: Path
    script: str | None
    facts: tuple[str, ...]
    recipe: dict
    device: str | None
    world_size: int | None
    track: str | None
    date: str | None
    runs: tuple[Run, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is judged together: the logs of one file or of one folder."""

    name: str
    path: Path
    logs: tuple[Log, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for log in self.logs for run in log.runs)

    @property
    def problems(self) -> tuple[str, ...]:
        """Complaints of the logs and of their runs, each beginning with the file's name."""
        return tuple(
            f"{log.path.name}: {problem}"
            for log in self.logs
            for problem in (*log.problems, *(p for run in log.runs for p in run.problems))
        )


def read_entry(path: str | Path) -> Entry:
    """Read a log file, or every *.txt and *.log of a folder (not of its subfolders), as one entry.

    Raises LogError where the path does not exist or the folder holds no such file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise LogError(f"{path}: expected a folder with logs (*.txt, *.log), found none in it")
        return Entry(path.resolve().name, path, tuple(read_log(file) for file in files))
    return Entry(path.stem, path, (read_log(path),))


def read_log(path: str | Path) -> Log:
    """Read one log in bounded memory. Raises LogError where the path is no readable file."""
    path = Path(path)
    if not path.exists():
        raise LogError(f"{path}: expected a log file or a folder of logs, found nothing there")
    if not path.is_file():
        raise LogError(f"{path}: expected a log file or a folder of logs, found something else")
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path, file) -> Log:
    head: list[bytes] | None = []  # the lines before the first separator, until that is found
    head_size, is_script, script = 0, False, None
    reader = _Reader(path)
    cut = []  # numbers of over-long lines
    for number, line in enumerate(_lines(file), start=1):
        if reader.full:
            break
        if line is None:
            cut.append(number)
        elif _SEPARATOR.fullmatch(line.strip()):
            if head is not None and is_script:
                reader = _Reader(path)  # what the script itself says, in a docstring perhaps, is no data
                script, problem = _script(head, head_size, cut)
                if problem:
                    reader.complain(problem)
            head = None
            reader.end_of_facts()
        else:
            if head is not None:
                head_size += len(line)
                is_script = is_script or _SCRIPT_LINE.match(line) is not None
                if head_size <= MAX_SCRIPT:
                    head.append(line)
            reader.read(number, line)
    if head is not None and is_script:
        reader.complain("no line of = signs ends the script at its head")
    for number in cut:
        reader.complain(f"line {number} is longer than {MAX_LINE} bytes: not read")
    return reader.log(script)


def _lines(file):
    """The lines of a binary file; None in place of one that is longer than MAX_LINE."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line


def _script(head: list[bytes], size: int, cut: list[int]) -> tuple[str | None, str | None]:
    """The script, whole, or None and why not."""
    if size > MAX_SCRIPT:
        return None, f"the script is longer than {MAX_SCRIPT} bytes: not read"
    if cut:
        return None, f"line {cut[0]} of the script is longer than {MAX_LINE} bytes: the script was not read"
    try:
        return b"".join(head).decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        return None, f"the script is not UTF-8 (byte {error.start}): not read"


@dataclass(slots=True)
class _Row:
    line: int
    total: int
    decimals: int | None
    validation: Validation


@dataclass
class _Reader:
    """What has been read of one log so far."""

    path: Path
    facts: list[str] = field(default_factory=list)
    facts_over: bool = False
    log_problems: list[str] = field(default_factory=list)
    problems: int = 0  # named and unnamed
    runs: list[Run] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)  # of the run being read
    run_problems: list[str] = field(default_factory=list)
    run_seed: int | None = None
    other_losses: dict[str, None] = field(default_factory=dict)
    next_seed: int | None = None
    validations: int = 0
    full: bool = False

    def complain(self, problem: str, of_run: bool = False) -> None:
        self.problems += 1
        if self.problems <= MAX_PROBLEMS:
            (self.run_problems if of_run else self.log_problems).append(problem)

    def end_of_facts(self) -> None:
        self.facts_over = self.facts_over or bool(self.facts)

    def read(self, number: int, line: bytes) -> None:
        # A terminal shows what follows the last carriage return: progress bars write over themselves.
        line = line.rstrip().rsplit(b"\r", 1)[-1]
        if b"val_loss" in line or line.startswith(b"step:"):
            self.read_step(number, line)
        elif line and (b"seed" in line or b"SEED" in line or b"Seed" in line or not self.facts_over):
            text = line.decode("utf-8", "replace")
            if match := _SEED.fullmatch(text):
                self.next_seed = int(match[1])
            if not self.facts_over and not self.runs and not self.rows and len(self.facts) < MAX_FACTS:
                self.facts.append(text[:MAX_FACT])

    def read_step(self, number: int, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        match = _STEP_LINE.fullmatch(text)
        columns = [column.split(":", 1) for column in match[3].split()] if match else []
        values = dict(columns)
        if "val_loss" not in values or len(values) < len(columns):
            if _LOOKS_LIKE_VALIDATION.search(line):
                self.complain(f"line {number} is no whole validation line: {_shown(text)}", bool(self.rows))
            return
        loss = _LOSS.fullmatch(values["val_loss"])
        time = _SECONDS.fullmatch(values.get("train_time", "0s"))
        average = _MILLISECONDS.fullmatch(values.get("step_avg", "0ms"))
        step, total = int(match[1]), int(match[2])
        if not (loss and time and average) or step > total:
            what = "its step is beyond the last" if loss and time and average else "a number is damaged"
            self.complain(f"line {number} was not read, {what}: {_shown(text)}", bool(self.rows))
            return
        validation = Validation(
            step,
            float(loss[0]),
            float(time[1]) if "train_time" in values else None,
            float(average[1]) if "step_avg" in values else None,
        )
        if self.rows and self.begins_run(step):
            self.end_run()
        if not self.rows:
            self.run_seed, self.next_seed = self.next_seed, None
        decimals = len(loss[1] or "") if math.isfinite(validation.val_loss) else None
        self.rows.append(_Row(number, total, decimals, validation))
        self.other_losses |= {name: None for name in values if name.endswith("loss") and name != "val_loss"}
        self.validations += 1
        if self.validations >= MAX_VALIDATIONS:
            self.complain(f"more than {MAX_VALIDATIONS} validations: read up to line {number} only")
            self.full = True

    def begins_run(self, step: int) -> bool:
        """Step 0, a step no later than the run's first one, or another seed."""
        another_seed = self.next_seed is not None and self.next_seed != self.run_seed
        return step == 0 or another_seed or step < self.rows[0].validation.step

    def end_run(self) -> None:
        """Make a Run of the rows: steps in order, each once; rows that contradict the others left out."""
        total = Counter(row.total for row in self.rows).most_common(1)[0][0]
        places = Counter(row.decimals for row in self.rows if row.decimals is not None).most_common(1)
        kept: dict[int, Validation] = {}
        contradicted: set[int] = set()
        for row in self.rows:
            validation = row.validation
            step = validation.step
            if row.total != total:
                self.complain(f"line {row.line} says {row.total} steps, the run {total}: not used", True)
            elif row.decimals is not None and row.decimals != places[0][0]:
                self.complain(
                    f"line {row.line}: {row.decimals} decimals, others {places[0][0]}: not used", True
                )
            elif step in kept and kept[step].val_loss == validation.val_loss:
                self.complain(f"line {row.line} repeats step {step}", True)
            elif step in kept:
                self.complain(f"line {row.line} gives step {step} another loss: neither is used", True)
                contradicted.add(step)
            elif kept and step < max(kept):
                self.complain(f"line {row.line}: step {step} after {max(kept)}: not used", True)
            else:
                kept[step] = validation
        validations = tuple(kept[step] for step in sorted(kept) if step not in contradicted)
        if validations:
            run = Run(
                self.path, len(self.runs), self.run_seed, total, validations,
                tuple(self.other_losses), tuple(self.run_problems),
            )  # fmt: skip
            self.runs.append(run)
        else:
            self.log_problems += self.run_problems
        self.rows, self.run_problems, self.other_losses = [], [], {}

    def log(self, script: str | None) -> Log:
        if self.rows:
            self.end_run()
        if not self.runs:
            self.complain("no validation line (step:N/M val_loss:L ...) found")
        plain, recipe = self.recipe()
        if self.problems > MAX_PROBLEMS:
            self.log_problems.append(f"and {self.problems - MAX_PROBLEMS} more complaints")
        return Log(
            path=self.path,
            script=script,
            facts=tuple(self.facts),
            recipe=recipe,
            device=_device(plain),
            world_size=int(found[1]) if (found := _first(_WORLD_SIZE, plain)) else None,
            track=_plain(found[1]) if (found := _first(_TRACK, plain)) else None,
            date="-".join(found.groups()) if (found := _first(_DATE, plain)) else None,
            runs=tuple(self.runs),
            problems=tuple(self.log_problems),
        )

    def recipe(self) -> tuple[list[str], dict]:
        """The facts before the line `effective recipe:`, and the TOML after it."""
        if "effective recipe:" not in self.facts:
            return self.facts, {}
        at = self.facts.index("effective recipe:")
        try:
            return self.facts[:at], tomllib.loads("\n".join(self.facts[at + 1 :]))
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            self.complain(f"the effective recipe is not TOML: {error}")
            return self.facts[:at], {}


def _first(pattern: re.Pattern, facts: list[str]) -> re.Match | None:
    return next((match for fact in facts if (match := pattern.search(fact))), None)


def _device(facts: list[str]) -> str | None:
    """From `device: X`, `Running on device_name=X with ...` or `Running PyTorch ... on X with ...`."""
    for fact in facts:
        for marker in ("device: ", "device_name=", " on "):
            before, found, after = fact.partition(marker)
            if found and (not before or before.startswith("Running")):
                return _plain(after.partition(" with world_size")[0].strip()) or None
    return None


def _plain(text: str) -> str:
    """Safe on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")
