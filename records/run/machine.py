"""What the machine offers a run: its compilers, its memory, the peak speed of its GPU."""

import math
import os
import shutil

from records.run import RunError
from records.run.track import Track

# Dense bf16 FLOP/s from the makers' data sheets, by torch's name of the GPU; a slice of one has another name.
PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}


def peak_share(track: Track, weights: int, devices: int, name: str) -> float:
    """What one token per second takes of the peak of so many devices; 0 where that is not known. A token
    costs 6 FLOPs a weight, and those of causal attention.
    """
    flops = 6 * (weights + track.num_layers * track.context * track.model_dim)
    return flops / (devices * PEAK_FLOPS.get(name, math.inf))


def compiles(asked: bool | None, on_gpu: bool) -> bool:
    """Whether to compile: as asked, else on a GPU. Raises RunError where there is no compiler for it."""
    asked = on_gpu if asked is None else asked
    if asked and not find_compiler(on_gpu):
        compiler = "C compiler (gcc, clang or $CC)" if on_gpu else "C++ compiler (g++, clang++ or $CXX)"
        raise RunError(f"compiling needs a {compiler}, there is none. Install one, or run with --no-compile.")
    return asked


def find_compiler(for_gpu: bool) -> str | None:
    """Path of the compiler that torch.compile would use: Triton a C one, Inductor on a CPU a C++ one."""
    variable, *names = ("CC", "gcc", "clang") if for_gpu else ("CXX", "g++", "clang++")
    return next(filter(None, map(shutil.which, [os.environ.get(variable, ""), *names])), None)


def choose_micro_batch(
    track: Track, processes: int, asked: int | None, compiled: bool, loss_rows: int,
    memory: tuple[int, int] | None, parts: int = 1,
) -> int:  # fmt: skip
    """Rows of one forward and backward pass: as asked, else the most that the memory holds (CPU: 1 GiB).

    memory: free and total bytes of the GPU; None on a CPU. parts: above 1, the number of passes that the
    recipe wants for a global batch. Raises RunError for rows that do not divide, and for another number.
    """
    rows, rest = divmod(track.batch_tokens, track.context * processes)
    if rest:
        raise RunError(f"{processes} processes do not divide {track.batch_tokens // track.context} rows.")
    if asked is not None and (asked < 1 or rows % asked):
        raise RunError(f"--micro-batch {asked} does not divide the {rows} rows of a process.")
    if parts > 1:
        wanted, rest = divmod(rows * processes, parts)
        if rest or parts % processes or asked not in (None, wanted):
            raise RunError(
                f"the recipe wants {parts} micro-batches of a batch of {rows * processes} rows: expected "
                f"processes that divide {parts}, and --micro-batch {wanted} or none."
            )
        return wanted
    fixed, token = memory_needed(track, compiled, loss_rows)
    held = min(0.85 * memory[1], memory[0]) - fixed if memory else 2**30
    fitting = (m for m in range(rows, 1, -1) if rows % m == 0 and m * track.context * token <= held)
    return asked or next(fitting, 1)


def memory_needed(track: Track, compiled: bool, loss_rows: int) -> tuple[int, int]:
    """Bytes that a training on a GPU takes at most: in any case, and for each token of a micro-batch.

    In any case: weights, their gradients, the states, `loss_rows` rows of logits. For a token: what backward
    needs of each block (saved tensors in bfloat16: 36 bytes a number compiled, 56 eager), and of one more.
    """
    weights = track.num_layers * (4 + 2 * track.mlp_ratio) * track.model_dim**2
    weights += 2 * track.vocab_size * track.model_dim
    a_logit, a_number = (6, 40) if compiled else (22, 58)
    fixed = 32 * weights + a_logit * loss_rows * track.vocab_size
    return fixed, a_number * track.model_dim * (track.num_layers + 1)
