"""An update is a row of stages; a method of the field is a named row with its defaults.

    memory        G -> u     what is kept of past gradients
    precondition  u -> D     other axes, other sizes
    direction     D -> U     what the step does with singular values or rows
    normalise     U -> U     one size for neurons or entries
    scale         W -> c     the update is c U: its size by the matrix's shape
    land          W, cU -> W decay, floor, radius, step

A stage is a function. Its positional arguments name what it takes of W (weight [..., m, n]: m outputs = rows,
n inputs = columns), G (gradient), u, D, U (of W's shape), t (the matrix's count of steps, from 1, [..., 1,
1]), seed (the matrix's own number for random draws, int64), refresh (whether the step ends with what is due
every `refresh_every` steps: true or false where the caller counts steps on the host, None where t has to say
it) and state (a dict of tensors with W's leading dimensions). Its keyword arguments are its hyperparameters,
each annotated with its range and meaning: said there and nowhere else. All but `land` return a tensor of
their own or one they were given, and change nothing but the state; `land` changes W. A direction may give
(U, c) with c [..., m, 1], so that rows are divided where the step is taken: a pass over the matrix less.
"""

import difflib
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, TypeVar

import torch
from torch import Tensor

State = dict[str, Tensor]
Scalar = float | Tensor  # a hyperparameter that a schedule may move: a 0-d tensor does not recompile

LearningRate = Annotated[Scalar, "[0, inf)", "learning rate"]
WeightDecay = Annotated[Scalar, "[0, inf)", "W <- W (1 - lr weight_decay)"]
Momentum = Annotated[Scalar, "[0, 1)", "what the average of gradients keeps of its past"]
Nesterov = Annotated[bool, "", "mix the present gradient in once more"]
Norm = Annotated[
    str,
    "frobenius | schatten4",
    "a matrix's size: polar iterations and contra pushes start from it, others keep it",
]

# What each kind of stage gives: its result takes these names, until a later stage gives them anew.
GIVES = {"memory": ("u", "D", "U"), "precondition": ("D", "U"), "direction": ("U",), "normalise": ("U",)}
KINDS = ("memory", "precondition", "direction", "normalise", "scale", "land")
REQUIRED = inspect.Parameter.empty


class Step(Protocol):
    """step(weight, grad, state, *, lr, **hyperparameters) -> None; `row`: what it is made of.

    A row that takes `refresh` (see above) takes it as a keyword too.
    """

    __name__: str
    row: "Row"

    def __call__(self, weight: Tensor, grad: Tensor, state: State, **hyperparameters: Any) -> None: ...


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword of a stage. `within`: an interval "[0, 1)", choices "a | b", or "" where the type says
    all.
    """

    name: str
    default: Any
    type: Any
    within: str
    meaning: str

    def check(self, value: object, where: str) -> None:
        """Raises TypeError for a value of another kind, ValueError for one out of range; a tensor passes."""
        if isinstance(value, Tensor) or (value is None and type(None) in self.kinds):
            return
        if tuple in self.kinds and isinstance(value, list | tuple):
            if len(value) != len(self.default):
                raise ValueError(f"{where}: {self.name} is {value!r}; expected {len(self.default)} numbers")
            for number in value:
                Hyperparameter(self.name, 0.0, float, self.within, "").check(number, where)
            return
        kind = float if type(value) is int and float in self.kinds else type(value)
        if kind not in self.kinds:
            raise TypeError(f"{where}: {self.name} is {value!r}; expected {self.expected}")
        low, high = self.bounds
        inside = value in self.choices or not self.choices
        if not inside or (isinstance(value, int | float) and not low <= value <= high):
            raise ValueError(f"{where}: {self.name} is {value!r}; expected {self.expected}")

    @functools.cached_property
    def kinds(self) -> tuple[type, ...]:
        """The plain types a value may have, without Tensor."""
        if typing.get_origin(self.type) is tuple:
            return (tuple,)
        return tuple(part for part in typing.get_args(self.type) or (self.type,) if part is not Tensor)

    @functools.cached_property
    def choices(self) -> tuple[str, ...]:
        return tuple(self.within.split(" | ")) if str in self.kinds and self.within else ()

    @functools.cached_property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest float of the interval; of "" and of choices, of all finite ones."""
        match = re.fullmatch(
            r"([\[(])([^,]+), ([^,]+)([\])])", "(-inf, inf)" if self.choices else self.within
        )
        low, high = (float(match[2]), float(match[3])) if match else (-math.inf, math.inf)
        low = math.nextafter(low, math.inf) if not match or match[1] == "(" else low
        return low, math.nextafter(high, -math.inf) if not match or match[4] == ")" else high

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
        words |= {tuple: "numbers", type(None): "nothing (off)"}
        told = " or ".join(words[kind] for kind in self.kinds)
        return f"{told} in {self.within}" if self.within else told


# --------------------------------------------------------------------------------------------------
# Stages


@dataclass(frozen=True)
class Stage:
    """A stage: its kind, the name a recipe gives it, its function and what that takes.

    by_rows: whether it treats every row by itself; `unless` names hyperparameters that end this when on.
    """

    kind: str
    name: str
    function: Callable[..., Any]
    takes: tuple[str, ...]
    hyperparameters: tuple[Hyperparameter, ...]
    by_rows: bool
    unless: tuple[str, ...]


Calls = list[tuple[Stage, dict[str, Any]]]  # stages with the values of their hyperparameters
STAGES: dict[str, dict[str, Stage]] = {kind: {} for kind in KINDS}
STEPS: dict[str, Step] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def stage(
    kind: str, name: str = "", *, by_rows: bool = False, unless: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Decorator: registers a function as a stage, by its own name or by `name`; the function stays itself."""

    def register(function: Function) -> Function:
        takes, keywords = arguments(function)
        called = name or function.__name__
        STAGES[kind][called] = Stage(kind, called, function, takes, keywords, by_rows, unless)
        return function

    return register


def arguments(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[Hyperparameter, ...]]:
    """The names of a function's positional arguments, and its keywords with what their annotations say."""
    takes, keywords = [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            takes.append(parameter.name)
            continue
        annotation, within, meaning = parameter.annotation, "", ""
        if typing.get_origin(annotation) is Annotated:
            annotation, within, meaning = typing.get_args(annotation)
        annotation = Scalar if annotation is REQUIRED else annotation
        keywords.append(Hyperparameter(parameter.name, parameter.default, annotation, within, meaning))
    return tuple(takes), tuple(keywords)


# --------------------------------------------------------------------------------------------------
# Rows of stages


@dataclass(frozen=True)
class Row:
    """What a step function is made of.

    stages: in the order of KINDS, none twice; empty for a method that is no row of stages.
    keywords: for every stage, the names that its hyperparameters have in the row.
    hyperparameters: all of the row, by the name they have in it, with the method's defaults.
    """

    name: str
    stages: tuple[Stage, ...]
    keywords: tuple[tuple[str, ...], ...]
    hyperparameters: dict[str, Hyperparameter]

    def stage(self, kind: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.kind == kind), None)

    def takes(self, name: str) -> bool:
        return any(name in stage.takes for stage in self.stages)

    def exchanged(self, stages: Mapping[str, str]) -> "Row":
        """The row with other stages, see `exchanged`."""
        return exchanged(named_step(self.name), stages).row if stages else self

    def check(self, given: Iterable[str]) -> None:
        """Raises TypeError for a name that is no hyperparameter, with the nearest that is."""
        for name in given:
            if name not in self.hyperparameters:
                known = ", ".join(self.hyperparameters)
                told_apart = [own for own in self.hyperparameters if own.endswith(f"_{name}")]
                apart = f"; did you mean {' or '.join(map(repr, told_apart))}?"
                hint = apart if len(told_apart) > 1 else nearest(name, self.hyperparameters)
                raise TypeError(f"{self.name} has no hyperparameter {name!r}{hint}; known: {known}")


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def method(*functions: Callable[..., Any], **defaults: Any) -> Callable[[Callable[[], None]], Step]:
    """Decorator: the step function that is a row of stages; the decorated function gives name and docstring.

    defaults: values of hyperparameters where the method's differ from the stages'.
    """
    by_function = {stage.function: stage for of_kind in STAGES.values() for stage in of_kind.values()}

    def declare(declaration: Callable[[], None]) -> Step:
        stages = tuple(with_defaults(by_function[function], defaults) for function in functions)
        unused = defaults.keys() - {keyword.name for stage in stages for keyword in stage.hyperparameters}
        assert not unused, f"{declaration.__name__}: no stage has {unused}"
        step = step_of_row(declaration.__name__, stages, declaration.__doc__)
        step.__module__ = declaration.__module__
        STEPS[declaration.__name__] = step
        return step

    return declare


def with_defaults(stage: Stage, defaults: Mapping[str, Any]) -> Stage:
    """The stage with other defaults of its hyperparameters."""
    own = (replace(key, default=defaults.get(key.name, key.default)) for key in stage.hyperparameters)
    return replace(stage, hyperparameters=tuple(own))


def step_function(function: Callable[..., None]) -> Step:
    """Decorator: a step function that is no row of stages, its arguments checked, without autograd."""
    step = checked(row_of_function(function), function, function.__doc__)
    step.__module__ = function.__module__
    STEPS[function.__name__] = step
    return step


def row_of_function(function: Callable[..., None]) -> Row:
    """The row of a step function; of any other, one without stages, with its keyword arguments."""
    known = getattr(function, "row", None)
    return known or Row(function.__name__, (), (), {key.name: key for key in arguments(function)[1]})


def step_of_row(name: str, stages: tuple[Stage, ...], doc: str | None) -> Step:
    """The step function of a row of stages.

    Hyperparameters that two stages describe alike are one. Where two stages mean different things by one
    name, each takes that of its kind in front: `precondition_beta2`.
    """
    stages = tuple(sorted(stages, key=lambda stage: KINDS.index(stage.kind)))
    meanings: dict[str, set[str]] = {}
    for stage in stages:
        for keyword in stage.hyperparameters:
            meanings.setdefault(keyword.name, set()).add(keyword.meaning)
    of_row: dict[str, Hyperparameter] = {}
    names: list[tuple[str, ...]] = []
    for stage in stages:
        clash = [len(meanings[keyword.name]) > 1 for keyword in stage.hyperparameters]
        own = [replace(key, name=f"{stage.kind}_{key.name}" if clashes else key.name)
               for key, clashes in zip(stage.hyperparameters, clash, strict=True)]  # fmt: skip
        of_row |= {keyword.name: keyword for keyword in own}
        names.append(tuple(keyword.name for keyword in own))
    first = {key: of_row[key] for key in ("lr", "weight_decay") if key in of_row}  # what readers look for
    row = Row(name, stages, tuple(names), first | of_row)
    return checked(row, functools.partial(update, row), doc)


def exchanged(step: Step, stages: Mapping[str, str]) -> Step:
    """The step function with other stages: {"precondition": "soap"}; "none" leaves a stage out.

    Its name says so, "aurora(precondition=soap)", and `named_step` finds it by that name. Raises ValueError
    for an unknown stage, for a method that is no row of stages, and for a row without `land`.
    """
    if not stages:
        return step
    base = STEPS.get(step.row.name.partition("(")[0], step)
    own = {stage.kind: stage.name for stage in base.row.stages}
    now = {stage.kind: stage.name for stage in step.row.stages}
    wanted = {kind: (now | dict(stages)).get(kind, "none") for kind in KINDS}
    changed = {kind: name for kind, name in wanted.items() if name != own.get(kind, "none")}
    if not base.row.stages:
        raise ValueError(f"{base.row.name} is not a row of stages; expected a method that is, such as muon")
    return row_of(base.row.name, tuple(changed.items()))


@functools.cache
def row_of(base_name: str, changed: tuple[tuple[str, str], ...]) -> Step:
    base = STEPS[base_name]
    if not changed:
        return base
    stages = {stage.kind: stage for stage in base.row.stages}
    for kind, name in changed:
        if name == "none" and kind == "land":
            raise ValueError("land = 'none' would leave the weights where they are; expected a way to land")
        if name != "none" and name not in STAGES[kind]:
            known = ", ".join(sorted(STAGES[kind]))
            raise ValueError(f"unknown {kind} {name!r}{nearest(name, STAGES[kind])}; known: {known}, none")
        stages.pop(kind, None)
        if name != "none":
            stages[kind] = STAGES[kind][name]
    told = ", ".join(f"{kind}={name}" for kind, name in changed)
    stages["land"] = with_defaults(stages["land"], {"lr": base.row.hyperparameters["lr"].default})
    return step_of_row(f"{base_name}({told})", tuple(stages.values()), base.__doc__)


def named_step(name: str) -> Step:
    """The step function "muon" or "aurora(precondition=soap)". Raises ValueError for an unknown name."""
    base, found, rest = name.partition("(")
    if base not in STEPS:
        raise ValueError(f"unknown step {base!r}{nearest(base, STEPS)}; known: {', '.join(sorted(STEPS))}")
    pairs = [part.partition("=") for part in rest.rstrip(")").split(", ")] if found else []
    return exchanged(STEPS[base], {kind: stage for kind, _, stage in pairs})


# --------------------------------------------------------------------------------------------------
# One update


def checked(row: Row, function: Callable[..., None], doc: str | None) -> Step:
    """The function as a step: arguments checked, the gradient in the weight's dtype, without autograd.

    Raises TypeError for a hyperparameter the row does not know (naming it, the nearest known one and all
    known ones) or of another kind, ValueError for one out of range and for shapes that do not fit.
    """
    parameters = row.hyperparameters
    defaults = {name: value.default for name, value in parameters.items() if value.default is not REQUIRED}

    def step(
        weight: Tensor, grad: Tensor, state: State, *, refresh: bool | None = None, **hyperparameters: Any
    ) -> None:
        row.check(hyperparameters)
        if not torch.compiler.is_compiling():
            for name, value in hyperparameters.items():
                parameters[name].check(value, row.name)
        if weight.ndim < 2 or weight.shape != grad.shape:
            raise ValueError(
                f"{row.name} expects a weight [..., m, n] and a gradient of the same shape; "
                f"found {tuple(weight.shape)} and {tuple(grad.shape)}"
            )
        told = {"refresh": refresh} if row.takes("refresh") else {}
        with torch.no_grad():
            function(weight, grad.to(weight.dtype), state, **{**defaults, **hyperparameters, **told})

    keyword = inspect.Parameter.KEYWORD_ONLY
    step.__name__, step.__qualname__, step.__doc__ = row.name, row.name, doc
    step.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *list(inspect.signature(step).parameters.values())[:3],
            *(inspect.Parameter(p.name, keyword, default=p.default) for p in parameters.values()),
        ]
    )
    step.row = row  # type: ignore[attr-defined]
    return typing.cast(Step, step)


def update(
    row: Row, weight: Tensor, grad: Tensor, state: State, refresh: bool | None = None, **values: Any
) -> None:
    """One update of a row of stages. Where every stage treats rows by themselves, block by block of rows."""
    shaped = row.stage("scale")
    scale = shaped.function(weight) if shaped else 1.0
    calls = calls_of(row.stages, row.keywords, values)
    apart = all(stage.by_rows and all(is_off(own[name]) for name in stage.unless) for stage, own in calls)
    if apart and state and all(tensor.shape[-2] == weight.shape[-2] for tensor in state.values()):
        for W, G, *held in row_blocks(weight, grad, *state.values()):
            views = dict(zip(state, held, strict=True))
            pass_through(calls, given_at_first(calls, W, G, views, refresh), scale)
    else:
        pass_through(calls, given_at_first(calls, weight, grad, state, refresh), scale)


def calls_of(
    stages: tuple[Stage, ...], keywords: tuple[tuple[str, ...], ...], values: Mapping[str, Any]
) -> Calls:
    """The stages with what their hyperparameters are in a row; the scale is reckoned apart."""
    return [
        (stage, {key.name: values[name] for key, name in zip(stage.hyperparameters, names, strict=True)})
        for stage, names in zip(stages, keywords, strict=True)
        if stage.kind != "scale"
    ]


def given_at_first(calls: Calls, W: Tensor, G: Tensor, state: State, refresh: bool | None) -> dict[str, Any]:
    """What the first stage of a row may take; every step passes here once. The update is c U."""
    given: dict[str, Any] = {"W": W, "G": G, "u": G, "D": G, "U": G, "c": 1.0, "state": state}
    given["refresh"] = refresh
    if any("t" in stage.takes for stage, _ in calls):
        given["t"] = count_step(state, W)
    if any("seed" in stage.takes for stage, _ in calls):
        given["seed"] = matrix_seed(state, W)
    return given


def pass_through(calls: Calls, given: dict[str, Any], scale: float) -> None:
    """Calls the stages on what they take of `given`, which keeps what they give.

    A stage that does not take c gets U multiplied out.
    """
    for stage, own in calls:
        if stage.kind == "land" and scale != 1:
            given["c"] = given["c"] * scale
        if "U" in stage.takes and "c" not in stage.takes:
            given["U"], given["c"] = multiplied(given["U"], given["c"]), 1.0
        result = stage.function(*[given[name] for name in stage.takes], **own)
        if type(result) is tuple:
            result, given["c"] = result
        for name in GIVES.get(stage.kind, ()):
            given[name] = result


def multiplied(U: Tensor, c: Scalar) -> Tensor:
    """c U, and U itself where c is the number 1."""
    return U if not isinstance(c, Tensor) and c == 1 else c * U


@functools.cache
def halves(step: Step) -> tuple[Callable[..., None], Callable[..., None]]:
    """A row in two, for who changes the direction in between: (direct, land), called as the step is.

    direct(weight, grad, ...) puts the direction where `weight` was, which has to be a copy; land(weight,
    direction, ...) takes it in the gradient's place. Raises ValueError where the landing needs more.
    """
    row = step.row
    landing = row.stage("land")
    if landing is None or not {"W", "U", "c", "state", "t"}.issuperset(landing.takes):
        raise ValueError(f"{row.name} cannot be coupled; expected a row whose land stage takes W and U only")
    shaped = row.stage("scale")

    def direct(
        weight: Tensor, grad: Tensor, state: State, *, refresh: bool | None = None, **values: Any
    ) -> None:
        calls = calls_of(row.stages, row.keywords, values)
        given = given_at_first(calls, weight, grad, state, refresh)
        pass_through(calls[:-1], given, 1.0)
        scale = shaped.function(weight) if shaped else 1.0
        weight.copy_(multiplied(given["U"], given["c"] * scale))

    def land(weight: Tensor, direction: Tensor, state: State, **values: Any) -> None:
        given = {"W": weight, "U": direction, "c": 1.0, "state": state, "t": state.get("step")}
        pass_through(calls_of(row.stages[-1:], row.keywords[-1:], values), given, 1.0)

    return direct, land


def buffer(state: State, name: str, weight: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """state[name], made of zeros at the first call: the weight's shape or [leading dimensions, *shape]."""
    if name not in state:
        state[name] = weight.new_zeros(weight.shape if shape is None else (*weight.shape[:-2], *shape))
    return state[name]


def count_step(state: State, weight: Tensor) -> Tensor:
    """t = 1, 2, ... [..., 1, 1], one count a matrix, kept as a tensor so that counting does not recompile."""
    return buffer(state, "step", weight, (1, 1)).add_(1)


def matrix_seed(state: State, weight: Tensor) -> Tensor:
    """The matrix's own number [..., 1, 1] for random draws (int64): MatrixOptimizer's, else 0."""
    if "seed" not in state:
        state["seed"] = weight.new_zeros((*weight.shape[:-2], 1, 1), dtype=torch.int64)
    return state["seed"]


def is_off(strength: Scalar | None) -> bool:
    """Whether an option is switched off: None or the plain number 0. A tensor is on, whatever its value."""
    return not isinstance(strength, Tensor) and not strength


# An optimizer without matrix products lives on memory traffic: blocks of rows of this size stay in a thread's
# own cache from one operation to the next; with smaller ones the cost of Python calls takes over.
ROW_BLOCK_ELEMENTS = 2**18


def row_blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors [..., m, n] side by side in blocks of rows, as views. Compiled or not on CPU: one block."""
    X = tensors[0]
    if X.device.type != "cpu" or torch.compiler.is_compiling():
        return [tensors]
    rows = max(1, torch.get_num_threads() * ROW_BLOCK_ELEMENTS * X.shape[-2] // X.numel())
    return zip(*(T.split(rows, dim=-2) for T in tensors), strict=True)
