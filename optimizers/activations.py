"""What a layer is fed: the covariance of its inputs, or each unit's size, summed up in the forward pass."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class InputCovariance:
    """Mean of x x^T over the inputs x of a linear layer, [blocks, d, d], of chosen forward passes.

        covariance = InputCovariance(model.proj, every=16)
        covariance.start(); loss = model(x, y); ...; mean = covariance.mean()

    layer: its `weight` is [outputs, blocks * d]; the inputs are cut into `blocks` runs of d neighbours, each
        with a matrix of its own.
    every: of the rows of a forward pass (batch and time flattened) the first counts, and every so many on.
    Where the layer is not called as a module: fed_by, the module whose output the inputs are, or within, the
        module that is called with them.
    Adds up in the weight's precision. A forward pass that nobody asked for costs one look at a flag, and one
    more graph where the layer is compiled; make this before the first pass, because compiled layers see no
    hook that comes later.
    """

    def __init__(
        self, layer: nn.Module, blocks: int = 1, every: int = 1,
        fed_by: nn.Module | None = None, within: nn.Module | None = None,
    ) -> None:  # fmt: skip
        weight = layer.weight
        assert isinstance(weight, Tensor)
        d = weight.shape[1] // blocks
        self.every, self.collecting, self.heard = every, False, False
        self.total = weight.new_zeros((blocks, d, d), requires_grad=False)
        self.rows = weight.new_zeros((), requires_grad=False)
        if fed_by is None:
            (within or layer).register_forward_pre_hook(self.add)
        else:
            fed_by.register_forward_hook(lambda module, inputs, output: self.add(layer, (output,)))

    @torch.no_grad()
    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """The hook: x x^T of one forward pass."""
        if not self.collecting:
            return
        blocks, d, _ = self.total.shape
        x = inputs[0].detach().flatten(0, -2)[:: self.every].to(self.total.dtype)
        x = x.unflatten(-1, (blocks, d)).transpose(0, 1)
        self.total.add_(x.mT @ x)
        self.rows.add_(x.shape[1])

    def start(self) -> None:
        """Forget what was added, and add from now on."""
        self.total.zero_()
        self.rows.zero_()
        self.collecting = True

    def mean(self) -> Tensor:
        """The mean [blocks, d, d] since `start`, over all ranks (a collective). Adding ends.

        Raises RuntimeError, the first time, where nothing was heard: the layer is not called as a module.
        """
        self.collecting = False
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.total)
            dist.all_reduce(self.rows)
        if not self.heard and not self.rows.item():  # the one wait for the device
            raise RuntimeError(
                "expected a layer that is called as a module, heard none of its inputs; name the module that"
                " is called for it (input_newton's joint, head_kfac's fed_by)"
            )
        self.heard = True
        return self.total / self.rows.clamp(min=1)


class UnitSquares:
    """Sums of squares over tokens of the units that a layer is fed, [units] float64, of chosen passes.

        squares = UnitSquares(block.mlp.proj)
        squares.start(); model(x, y); ...; norms = squares.stop().sqrt()

    Of several ranks each has the sums of its own tokens. Compiled layers see no hook that comes later: make
    this before the first pass, as InputCovariance, of the model that warms up as well.
    """

    def __init__(self, layer: nn.Module) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.collecting = False
        self.total = weight.new_zeros(weight.shape[1], dtype=torch.float64, requires_grad=False)
        layer.register_forward_pre_hook(self.add)

    @torch.no_grad()
    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """The hook: the squares of one forward pass."""
        if self.collecting:
            self.total.add_(inputs[0].detach().flatten(0, -2).float().square().sum(0))

    def start(self) -> None:
        """Forget what was added, and add from now on."""
        self.total.zero_()
        self.collecting = True

    def stop(self) -> Tensor:
        """The sums since `start`."""
        self.collecting = False
        return self.total.clone()
