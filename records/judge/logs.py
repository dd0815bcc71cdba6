"""Read training logs: ours, the published ones, anybody's.

A log is a Python script, a line of 100 `=`, facts of the run, another such line, then the validation lines

    step:3175/3200 val_loss:3.27786 train_time:498.213s step_avg:157.07ms

of one or more runs. Published logs differ: no script, no lines of `=`, columns in between, training lines
without a loss, runs that start at step 125. What is in a log is data from strangers: it is read line by line
with bounded memory and never executed. A line is either read whole or named in `problems`; a value that
cannot be trusted is left out, never guessed.
"""

import gzip
import math
import re
import tomllib
import zlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from records import RecordError, printable

MAX_LINE = 1 << 16  # bytes; what is longer is no line of a log
MAX_SCRIPT = 1 << 20  # bytes; published scripts have 20-150 kB
MAX_FACTS = 2000  # lines, each cut at MAX_FACT characters
MAX_FACT = 4000
DECIMALS = 5  # of a loss, in the format
MAX_VALIDATIONS = 1_000_000  # of one file
MAX_PROBLEMS = 20  # named one by one; the rest is counted
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
SUFFIXES = (".txt", ".log")  # of a log's name, .gz behind it or not

_SEPARATOR = re.compile(rb"={80,}")
_SCRIPT_LINE = re.compile(rb"(?:import|from|def|class) +[A-Za-z_]")
_STEP_LINE = re.compile(r"step:(0|[1-9]\d{0,8})/(0|[1-9]\d{0,8})((?: +[A-Za-z_]\w{0,40}:[^\s:/]{1,40})*)")
_LOOKS_LIKE_VALIDATION = re.compile(rb"\d/\d+ +val_loss|\d val_loss:|^\s*step:\S* .*val_loss")
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
    """One validation line. `train_time` in seconds, `step_avg` in milliseconds, `raw_val_loss` that of the
    trained weights where a readout is judged; None where not printed.
    """

    step: int
    val_loss: float
    train_time: float | None
    step_avg: float | None
    raw_val_loss: float | None = None


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

    @cached_property
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
        files = sorted(file for file in path.iterdir() if is_log(file) and file.is_file())
        if not files:
            raise LogError(f"{path}: expected a folder with logs (*.txt, *.log), found none in it")
        return Entry(path.resolve().name, path, tuple(read_log(file) for file in files))
    return Entry(Path(path.name.removesuffix(".gz")).stem, path, (read_log(path),))


def is_log(path: Path) -> bool:
    """Whether a file is called as a log is."""
    return path.name.removesuffix(".gz").endswith(SUFFIXES)


def read_log(path: str | Path) -> Log:
    """Read one log in bounded memory. Raises LogError where the path is no readable file."""
    path = Path(path)
    if not path.exists():
        raise LogError(f"{path}: expected a log file or a folder of logs, found nothing there")
    if not path.is_file():
        raise LogError(f"{path}: expected a log file or a folder of logs, found something else")
    try:
        with path.open("rb") as packed:
            start = packed.read(4)
            packed.seek(0)
            if start[:2] in UTF16_MARKS or (start[::2] == b"\0\0") != (start[1::2] == b"\0\0"):
                reader = _Reader(path)
                reader.complain("the file is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)")
                return reader.log(None)
            with gzip.open(packed) if start[:2] == b"\x1f\x8b" else nullcontext(packed) as file:
                return _read(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LogError(f"{path}: a damaged .gz: {error}") from error
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path, file) -> Log:
    """The head of the file up to the first line of `=` is the script; without one all of it is data."""
    reader = _Reader(path)
    head, size, is_script, cut, number = [], 0, False, [], 0
    for number, line in enumerate(_lines(file), start=1):
        if line is None:
            cut.append(number)
        elif line.startswith(b"=") and _SEPARATOR.fullmatch(line.strip()):
            break
        else:
            is_script = is_script or _SCRIPT_LINE.match(line) is not None
            size += len(line)
            if size <= MAX_SCRIPT:
                head.append(line)
            elif not is_script:
                break
    else:
        if is_script:
            reader.complain("no line of = signs ends the script at its head")
        is_script = False
    script = None
    if is_script:
        script, problem = _script(head, size, cut)
        if problem:
            reader.complain(problem)
    else:
        file.seek(0)
    first = number + 1 if is_script else 1
    for number, line in enumerate(_lines(file), start=first):
        if line is None:
            reader.complain(f"line {number} is longer than {MAX_LINE} bytes: not read")
        elif b"val_loss" in line:
            reader.read_step(number, line)
            if reader.full:
                break
        elif line.startswith(b"="):
            reader.end_of_facts()
        elif not line.startswith(b"step:"):
            reader.read_fact(line)
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
    columns: int
    decimals: int | None
    validation: Validation


@dataclass
class _Draft:
    """A run as its lines say it, before they are held against each other."""

    seed: int | None
    rows: list[_Row] = field(default_factory=list)
    other_losses: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


@dataclass
class _Reader:
    """What has been read of one log so far."""

    path: Path
    facts: list[str] = field(default_factory=list)
    facts_over: bool = False
    drafts: list[_Draft] = field(default_factory=list)
    next_seed: int | None = None
    log_problems: list[str] = field(default_factory=list)
    problems: int = 0  # named and unnamed
    count: int = 0  # of validations
    decimals: Counter = field(default_factory=Counter)  # of all losses
    full: bool = False

    def complain(self, problem: str, draft: _Draft | None = None) -> None:
        self.problems += 1
        if self.problems <= MAX_PROBLEMS:
            (draft.problems if draft else self.log_problems).append(problem)

    def end_of_facts(self) -> None:
        self.facts_over = self.facts_over or bool(self.facts)

    def read_fact(self, line: bytes) -> None:
        wanted = not self.facts_over and not self.drafts and len(self.facts) < MAX_FACTS
        if wanted or b"seed" in line.lower():
            text = line.strip(b"\r\n").decode("utf-8", "replace")
            if match := _SEED.fullmatch(text.rstrip()):
                self.next_seed = int(match[1])
            if wanted:
                self.facts.append(text[:MAX_FACT])

    def read_step(self, number: int, line: bytes) -> None:
        whole = line.endswith(b"\n")
        # A terminal shows what follows the last carriage return: progress bars write over themselves.
        line = line.rstrip().rsplit(b"\r", 1)[-1]
        text = line.decode("utf-8", "replace")
        draft = self.drafts[-1] if self.drafts else None
        match = _STEP_LINE.fullmatch(text)
        columns = [column.split(":", 1) for column in match[3].split()] if match else []
        values = dict(columns)
        if match is None or "val_loss" not in values or len(values) < len(columns):
            if _LOOKS_LIKE_VALIDATION.search(line):
                self.complain(f"line {number} is no whole validation line: {_shown(text)}", draft)
            return
        loss = _LOSS.fullmatch(values["val_loss"])
        time = _SECONDS.fullmatch(values.get("train_time", "0s"))
        raw = _LOSS.fullmatch(values.get("raw_val_loss", ""))
        average = _MILLISECONDS.fullmatch(values.get("step_avg", "0ms"))
        step, total = int(match[1]), int(match[2])
        if not (loss and time and average) or step > total:
            what = "its step is beyond the last" if loss and time and average else "a number is damaged"
            self.complain(f"line {number} was not read, {what}: {_shown(text)}", draft)
            return
        # A file may end in the middle of a line: without a newline it is whole if it has all columns.
        if not (whole or "step_avg" in values or (draft and draft.rows[-1].columns == len(columns))):
            self.complain(f"line {number} was not read, the file ends in it: {_shown(text)}", draft)
            return
        validation = Validation(
            step,
            float(loss[0]),
            float(time[1]) if "train_time" in values else None,
            float(average[1]) if "step_avg" in values else None,
            float(raw[0]) if raw else None,
        )
        if draft is None or self.begins_run(step, draft):
            draft, self.next_seed = _Draft(self.next_seed), None
            self.drafts.append(draft)
        decimals = len(loss[1] or "") if math.isfinite(validation.val_loss) else None
        draft.rows.append(_Row(number, total, len(columns), decimals, validation))
        known = ("val_loss", "raw_val_loss")
        draft.other_losses |= {name for name in values if name.endswith("loss") and name not in known}
        self.count += 1
        if decimals is not None:
            self.decimals[decimals] += 1
        if self.count >= MAX_VALIDATIONS:
            self.complain(f"more than {MAX_VALIDATIONS} validations: read up to line {number} only")
            self.full = True

    def begins_run(self, step: int, draft: _Draft) -> bool:
        """Step 0, another seed, or the step again with which the run began, or one before it."""
        another_seed = self.next_seed is not None and self.next_seed != draft.seed
        first = draft.rows[0].validation.step
        return step == 0 or another_seed or step < first or (step == first and len(draft.rows) > 1)

    def validations(self, draft: _Draft, decimals: int) -> tuple[int, tuple[Validation, ...]]:
        """The run's total steps, and its validations, steps rising; rows that contradict left out."""
        total = Counter(row.total for row in draft.rows).most_common(1)[0][0]
        kept: dict[int, Validation] = {}
        contradicted: set[int] = set()
        last, clock = -1, 0.0
        for row in draft.rows:
            step, loss = row.validation.step, row.validation.val_loss
            if row.total != total:
                self.complain(f"line {row.line} says {row.total} steps, the run {total}: not used", draft)
            elif row.decimals not in (None, decimals):
                self.complain(f"line {row.line}: {row.decimals} decimals, others {decimals}: not used", draft)
            elif step in kept and kept[step].val_loss == loss:
                self.complain(f"line {row.line} repeats step {step}", draft)
            elif step in kept:
                self.complain(f"line {row.line} gives step {step} another loss: neither is used", draft)
                contradicted.add(step)
            elif step < last:
                self.complain(f"line {row.line}: step {step} after {last}: not used", draft)
            else:
                kept[step] = row.validation
                last = step
                if row.validation.train_time is not None and row.validation.train_time < clock:
                    self.complain(f"line {row.line}: train_time goes back, from {clock} s", draft)
                clock = row.validation.train_time or clock
        return total, tuple(v for step, v in kept.items() if step not in contradicted)

    def runs(self) -> tuple[Run, ...]:
        """All runs of which a validation is left, after everything else was read."""
        decimals = max(self.decimals, key=self.decimals.__getitem__, default=DECIMALS)
        if decimals != DECIMALS:
            self.complain(f"val_loss is printed with {decimals} decimals, not {DECIMALS}")
        runs: list[Run] = []
        for draft in self.drafts:
            total, validations = self.validations(draft, decimals)
            if validations:
                others, problems = tuple(sorted(draft.other_losses)), tuple(draft.problems)
                runs.append(Run(self.path, len(runs), draft.seed, total, validations, others, problems))
            else:
                self.log_problems += draft.problems
        if not runs:
            self.complain("no validation line (step:N/M val_loss:L ...) found")
        return tuple(runs)

    def log(self, script: str | None) -> Log:
        runs = self.runs()
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
            track=printable(found[1][:200]) if (found := _first(_TRACK, plain)) else None,
            date="-".join(found.groups()) if (found := _first(_DATE, plain)) else None,
            runs=runs,
            problems=tuple(self.log_problems),
        )

    def recipe(self) -> tuple[list[str], dict]:
        """The facts before the line `effective recipe:`, and the TOML after it."""
        if "effective recipe:" not in self.facts:
            return self.facts, {}
        at = self.facts.index("effective recipe:")
        try:
            table = tomllib.loads("\n".join(self.facts[at + 1 :]))
            if _depth(table) > 10:
                raise ValueError("tables nested more than 10 deep")
            return self.facts[:at], table
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            self.complain(f"the effective recipe is not TOML: {error}")
            return self.facts[:at], {}


def _depth(table: dict) -> int:
    """How deep tables stand in tables; counted without recursion, for strangers' recipes."""
    depth, level = 0, [table]
    while level:
        depth += 1
        level = [value for inner in level for value in inner.values() if isinstance(value, dict)]
    return depth


def _first(pattern: re.Pattern, facts: list[str]) -> re.Match | None:
    return next((match for fact in facts if (match := pattern.search(fact))), None)


def _device(facts: list[str]) -> str | None:
    """From `device: X`, `Running on device_name=X with ...` or `Running PyTorch ... on X with ...`."""
    for fact in facts:
        for marker in ("device: ", "device_name=", " on "):
            before, found, after = fact.partition(marker)
            if found and (not before or before.startswith("Running")):
                return printable(after.partition(" with world_size")[0].strip()[:200]) or None
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")
