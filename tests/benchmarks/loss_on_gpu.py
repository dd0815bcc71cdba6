"""The head's loss on a GPU: its kernel by block and warps, and the whole by the rows that it takes at a time.

    python -m tests.benchmarks.loss_on_gpu

Milliseconds of 131,072 tokens, loss and gradient, of GPT-124M's head in bfloat16; the least of five. Beside
the kernel: a copy of the logits, which reads and writes each once.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import train_gpt
from optimizers.benchmark import seconds
from optimizers.softcap_kernel import softcap_kernel, softcapped_in_place

TOKENS, ROWS, WIDTH, VOCABULARY = 2**17, 2**13, 768, 50304
BLOCKS = ((4096, 8), (4096, 16), (4096, 32), (8192, 8), (8192, 16), (8192, 32), (16384, 16), (16384, 32))


def least(work: Callable[[], object]) -> float:
    """Milliseconds, after a first time that compiles."""
    work()
    return 1000 * min(seconds(work, "cuda") for _ in range(5))


def kernels(targets: Tensor) -> Iterator[str]:
    """The kernel's times for all tokens, a line for each block and number of warps."""
    logits = torch.randn(ROWS, VOCABULARY, device="cuda", dtype=torch.bfloat16)
    losses, copy, passes = torch.empty(ROWS, device="cuda"), torch.empty_like(logits), TOKENS // ROWS
    yield f"copy of the logits              {passes * least(partial(copy.copy_, logits)):7.2f} ms"
    for block, warps in BLOCKS:
        fixed = {"columns": VOCABULARY, "DIFFERENTIATE": True, "BLOCK": block, "num_warps": warps}
        launch = partial(softcap_kernel()[(ROWS,)], logits, targets, losses, VOCABULARY, **fixed)
        yield f"kernel, {block:6} columns, {warps:2} warps {passes * least(launch):7.2f} ms"


def wholes(targets: Tensor) -> Iterator[str]:
    """The loss's times and memory, a line for each number of rows whose logits are there at a time."""
    head = nn.Linear(WIDTH, VOCABULARY, device="cuda")
    x = torch.randn(TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for rows in (2**12, 2**13, 2**14, 2**15, 2**16):
        train_gpt.LOSS_ROWS = rows
        torch.cuda.reset_peak_memory_stats()
        ms = least(partial(train_gpt.summed_loss, head, x, targets, softcapped_in_place))
        peak = torch.cuda.max_memory_allocated() / 2**30
        yield f"whole, {rows:6} rows at a time   {ms:7.2f} ms, peak {peak:5.2f} GiB"


def main() -> int:
    if not torch.cuda.is_available():
        print("error: no GPU that torch can use", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    targets = torch.randint(VOCABULARY, (TOKENS,), device="cuda")
    for line in (*kernels(targets), *wholes(targets)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
