"""The fineweb track's model on a GPU that is not there: shapes, precisions, devices without numbers.

    python -m tests.fake_cuda SHIM eager STEP...        the model's gradients, two updates with each step
    python -m tests.fake_cuda SHIM recipes FILE...      six updates with each recipe, and how many
    python -m tests.fake_cuda SHIM compiled RECIPE...   three updates; graphs after the second and the last
    python -m tests.fake_cuda SHIM faults NAME...       the same of models with a planted fault, or the error

SHIM is tests/fake_cuda.cpp, built: see tests/test_fake_cuda.py, which reads what this prints, a line each.
"""

import ctypes
import functools
import itertools
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

ctypes.CDLL(sys.argv[1])  # before torch asks for its devices

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode  # noqa: E402
from torch.optim import Optimizer  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import train_gpt  # noqa: E402
from optimizers import MatrixOptimizer  # noqa: E402
from records.run.effective import parse_recipe  # noqa: E402
from records.run.recipe import Recipe, toml_lines  # noqa: E402
from records.run.stretch import stretched  # noqa: E402
from records.run.track import shipped_tracks  # noqa: E402
from train_gpt import AROUND, GPT, STEPS, World, apply_update, build_optimizers, compute_gradients  # noqa: E402

UPDATES = 6  # of a recipe, stretched
FINEWEB = shipped_tracks()["fineweb"]
ALONE = World(0, 1, torch.device("cuda", 0))
ATEN = torch.ops.aten
PRODUCTS = {ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default}
TAKE_NUMBERS = {"add", "sub", "rsub", "mul", "div", "pow", "lerp", "lt", "gt", "where"}  # of the CPU
BACKEND = {"backend": "aot_eager", "fullgraph": True, "dynamic": False}


def make_model(layers: int = 2, compiled: bool = False) -> GPT:
    """As train_gpt.make_model on a GPU, its weights uninitialised."""
    with torch.device("cuda"):
        model = GPT(FINEWEB.vocab_size, layers, FINEWEB.model_dim, FINEWEB.head_dim, FINEWEB.context)
    model.embed.weight = nn.Parameter(model.embed.weight.to(torch.bfloat16))
    if compiled:
        model.softcapped = torch.compile(train_gpt.softcapped, **BACKEND)
        for block in model.blocks:
            block.compile(**BACKEND)
    return model


def make_tokens(rows: int = 1) -> Tensor:
    return torch.zeros(rows, FINEWEB.context, dtype=torch.int64, device="cuda")


def updates(model: GPT, recipe: Recipe, optimizers: list[Optimizer], steps: range) -> list[int]:
    """The graphs that were compiled after each update."""
    tokens, graphs = make_tokens(recipe.micro_batches()), []
    for step in steps:
        train_gpt.set_learning_rates(optimizers, recipe, step)
        compute_gradients(model, optimizers, (tokens, tokens), 1, ALONE)
        apply_update(optimizers)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return graphs


def recipe_of(step: str) -> Recipe:
    text = f'train_steps = 9\n[matrix]\nstep = "{step}"\n[lookahead]\nstrength = 0.5\n'
    return parse_recipe(text, step, {"fineweb": FINEWEB}, STEPS, track="fineweb")


class AsOnAGpu(TorchDispatchMode):
    """Fails what a GPU refuses and the shapes of fake tensors alone let pass.

    Matrix products of two precisions; a number on the CPU, as planned hyperparameters are, where an operation
    takes none.
    """

    def __torch_dispatch__(
        self, func: Any, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if func in PRODUCTS and len({tensor.dtype for tensor in given}) > 1:
            raise RuntimeError(f"{func} of {[tensor.dtype for tensor in given]}")
        devices = {tensor.device.type for tensor in given}
        if len(devices) > 1 and func.overloadpacket.__name__.rstrip("_") not in TAKE_NUMBERS:
            raise RuntimeError(f"{func} of tensors on {[tensor.device.type for tensor in given]}")
        return func(*args, **(kwargs or {}))


def angles_on_the_cpu(model: GPT) -> None:
    model.angles = torch.zeros(model.angles.shape, dtype=torch.float64)


def a_branch_on_a_value(model: GPT) -> None:
    block = model.blocks[0]
    forward = block.forward
    block.forward = lambda x, cos, sin: forward(x, cos, sin) if x.sum() > 0 else x


def weights_of_another_precision(model: GPT) -> None:
    linear = model.blocks[0].mlp.fc
    linear.forward = lambda x: nn.functional.linear(x, linear.weight, linear.bias)


def a_number_that_changes(model: GPT) -> None:
    """From the third update on."""
    block, calls = model.blocks[0], itertools.count()
    forward = block.norm1.forward
    block.norm1.forward = lambda x: forward(x) * block.scale

    def count(*_: object) -> None:
        block.scale = 1.0 + max(next(calls) - 1, 0)

    model.register_forward_pre_hook(count)


FAULTS: dict[str, Callable[[GPT], None]] = {
    "angles_on_the_cpu": angles_on_the_cpu,
    "a_branch_on_a_value": a_branch_on_a_value,
    "weights_of_another_precision": weights_of_another_precision,
    "a_number_that_changes": a_number_that_changes,
}


def step_each(names: list[str]) -> None:
    """Two updates of the hidden matrices with each step function, with gradients that the model has made."""
    model, tokens = make_model(), make_tokens()
    train_gpt.forward_backward(model, (tokens, tokens), 1, ALONE)
    for name in names:
        optimizer = MatrixOptimizer([p for p in model.blocks.parameters() if p.ndim > 1], name, compile=False)
        optimizer.step()
        optimizer.step()
        print(name, flush=True)


def train_each(paths: list[str]) -> None:
    """Six updates with each recipe, stretched to that length; how many were made before it read a number."""
    for path in paths:
        text = "\n".join(toml_lines(stretched(tomllib.loads(Path(path).read_text()), UPDATES)))
        recipe = parse_recipe(text, Path(path).stem, shipped_tracks(), STEPS, arounds=AROUND)
        model, made = make_model(), 0
        optimizers = build_optimizers(model, recipe, False)
        with suppress(DataDependentOutputException):  # there are no numbers on this GPU
            for step in range(UPDATES):
                updates(model, recipe, optimizers, range(step, step + 1))
                made += 1
        print(path, made, flush=True)


def updates_with_fault(name: str) -> str:
    """Graphs after the second and the third update, or the error that the fault makes, on one line."""
    model, clash = make_model(compiled=name != "weights_of_another_precision"), AsOnAGpu()
    FAULTS[name](model)
    try:
        with nullcontext() if model.blocks[0]._compiled_call_impl else clash:  # a mode keeps from compiling
            recipe = recipe_of("nora")
            graphs = updates(model, recipe, build_optimizers(model, recipe, False), range(3))
    except Exception as error:  # whatever the fault makes
        return " ".join(str(error).split())
    return f"{graphs[1]} {graphs[-1]}"


def faults_of(names: list[str]) -> None:
    """What each planted fault makes."""
    for name in names:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        print(name, updates_with_fault(name), flush=True)


def compile_each(names: list[str]) -> None:
    """Three updates with each recipe or step function, compiled."""
    for name in names:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        recipe = recipe_of(name) if name in STEPS else train_gpt.load_recipe(name, track=FINEWEB)
        model = make_model(compiled=True)
        graphs = updates(model, recipe, build_optimizers(model, recipe), range(3))
        print(name, graphs[1], graphs[-1], flush=True)


EAGER = {"eager": step_each, "recipes": train_each}
COMPILED = {"compiled": compile_each, "faults": faults_of}  # a mode keeps from compiling


def main(what: str, names: list[str]) -> None:
    train_gpt.initialise = lambda *_, **__: None  # it draws on the CPU
    torch.compile = functools.partial(
        torch.compile, backend="aot_eager"
    )  # for MatrixOptimizer: no Triton here
    with FakeTensorMode(), AsOnAGpu() if what in EAGER else nullcontext():
        (EAGER | COMPILED)[what](names)


if __name__ == "__main__":
    main(sys.argv[2], sys.argv[3:])
