"""The loss's Triton kernel beside the trainer's own loss, in Triton's interpreter and as a GPU's code."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizers import softcap_kernel
from train_gpt import main, softcapped

ROOT = Path(__file__).resolve().parents[1]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="torch for CPUs comes without Triton"
)
COMPARE = """
import torch
from optimizers.softcap_kernel import softcapped_in_place
from train_gpt import softcapped
generator = torch.Generator().manual_seed(0)
for rows, columns, scale in ((3, 5000, 10.0), (4, 4096, 1.0), (2, 257, 60.0)):
    logits = scale * torch.randn(rows, columns, generator=generator)
    logits[0, 7] = 200.0  # p is nearly 1, where exp - 1 cancels
    targets = torch.tensor([7, 0, 256, 100])[:rows]
    loss, gradient = softcapped(logits, targets, True)
    only, nothing = softcapped_in_place(logits.clone(), targets, False)
    own, made = softcapped_in_place(logits.clone(), targets, True)
    assert nothing is None and abs(only / loss - 1) < 1e-5 and own == only, (own, loss)
    worst = ((made - gradient).abs() / (gradient.abs() + 1e-3 * gradient.abs().max())).max()
    assert worst < 1e-5, (columns, worst)
    half = softcapped_in_place(logits.bfloat16(), targets, True)[1]
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), softcapped(logits.bfloat16().float(), targets, True)[1], atol=4e-3)
print("agree")
"""
ASSEMBLE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from optimizers.softcap_kernel import COLUMNS, WARPS, softcap_kernel
kinds = {"z": "*bf16", "targets": "*i64", "losses": "*fp32", "stride": "i32"}
fixed = {"columns": 50304, "DIFFERENTIATE": True, "BLOCK": COLUMNS}
for capability in (80, 90):
    source = ASTSource(softcap_kernel(), kinds | dict.fromkeys(fixed, "constexpr"), fixed)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    assert len(made.asm["cubin"]) > 1000 and "bf16" in made.asm["ttir"]
print("assembled")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)


@needs_triton
def test_the_kernel_computes_the_loss_and_its_gradient():
    made = run(COMPARE, TRITON_INTERPRET="1")
    assert made.stdout.split() == ["agree"], made.stderr[-2000:]


@needs_triton
def test_the_kernel_assembles_for_gpus(tmp_path):
    made = run(ASSEMBLE, TRITON_CACHE_DIR=str(tmp_path))
    assert made.stdout.split() == ["assembled"], made.stderr[-2000:]


def test_training_on_a_cpu_never_makes_the_kernel(small_track, tmp_path):
    main(["--steps", "2", "--data", str(small_track), "--out", str(tmp_path)])
    assert softcap_kernel.softcap_kernel.cache_info().currsize == 0


@pytest.mark.parametrize(("off", "kept"), [(0.0, True), (0.1, False)])
def test_a_kernel_that_differs_on_the_gpu_is_left_out(monkeypatch, capsys, off, kept):
    """The CPU stands for the GPU, the loss itself for the kernel, its gradient off or not."""

    def kernel(logits: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, gradient = softcapped(logits.float(), *rest)
        return loss, gradient + off

    differs, gpu = softcap_kernel.differs, torch.device("cuda", 0)
    monkeypatch.setattr(softcap_kernel, "differs", lambda loss, device: differs(loss, torch.device("cpu")))
    monkeypatch.setattr(softcap_kernel, "softcapped_in_place", kernel)
    assert (softcap_kernel.fast_softcapped(softcapped, gpu) is kernel) == kept
    assert ("is left out" in capsys.readouterr().err) != kept
