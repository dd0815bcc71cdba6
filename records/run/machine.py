"""What the machine offers a run: its NVIDIA driver, its compilers, the peak speed of its GPU."""

import os
import re
import shutil
from pathlib import Path

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

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


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver; None without one, or where CUDA_VISIBLE_DEVICES hides every GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not NVIDIA_DRIVER.exists():
        return None
    found = re.search(r"\d+\.\d[\d.]*", NVIDIA_DRIVER.read_text())
    return found[0] if found else "of unknown version"


def find_compiler(for_gpu: bool) -> str | None:
    """Path of the compiler that torch.compile would use: Triton a C one, Inductor on a CPU a C++ one."""
    variable, *names = ("CC", "gcc", "clang") if for_gpu else ("CXX", "g++", "clang++")
    return next(filter(None, map(shutil.which, [os.environ.get(variable, ""), *names])), None)
