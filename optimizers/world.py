"""The processes of a run: which of them this one is, on which device, and how they agree."""

import os
import platform
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from socket import gethostname
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Found = TypeVar("Found")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class WorldError(ValueError):
    """The processes cannot work together, or one of them has failed. The message is for the user.

    where: " (rank 3, host x)" if all processes end because of one.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Wait until every process and its device are done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.size > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, found: Found) -> Found:
        """What the first process has found."""
        box = [found]
        if self.size > 1:
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def agreed(self, find: Callable[[], Found], errors: tuple[type[Exception], ...]) -> Found:
        """What `find` gives here. If it fails with one of `errors` in one process, all raise WorldError."""
        told = None
        try:
            found = find()
        except errors as error:
            told = str(error), f" (rank {self.rank}, host {gethostname()})" if self.size > 1 else ""
        everyone = [told]
        if self.size > 1:
            dist.all_gather_object(everyone := [None] * self.size, told)
        for failure in everyone:
            if failure:
                raise WorldError(*failure)
        return found


def join_world() -> World:
    """The processes that torchrun has started, or this one alone without a process group.

    Raises WorldError where the environment says nonsense, or not 1, 2, 4 or 8 processes.
    """
    keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")  # of torchrun, or alone
    told = dict(zip(keys, ("0", "1", "0", "1"), strict=True)) | os.environ
    values = [told[key].split(",")[0] for key in keys]  # "4,2" are the threads of nested regions
    if not all(value.isdecimal() for value in values) or values[3] == "0":
        raise WorldError(f"{', '.join(keys)} are {', '.join(values)}; expected whole numbers, or unset them.")
    rank, size, local, threads = map(int, values)
    if size not in (1, 2, 4, 8):
        told_size = f"{size} processes do not divide 8"
        raise WorldError(f"{told_size}; use 1, 2, 4 or 8 (--nproc, CUDA_VISIBLE_DEVICES).")
    if size > 1 and "MASTER_ADDR" not in os.environ:
        raise WorldError(f"WORLD_SIZE is {size}, MASTER_ADDR is not set: unset both, or use --nproc {size}.")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # what is float32 is meant to be
    else:  # more threads collapse when other work runs
        torch.set_num_threads(threads)
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, device_id=device if cuda else None)
    return World(rank, size, device)


def gone_process(error: RuntimeError) -> str:
    """What to tell of an error that says the exchange between processes broke off; raises any other."""
    if not re.search("gloo|NCCL|Connection (closed|reset)", str(error)):
        raise error
    where, why = f"rank {os.environ.get('RANK')}, host {gethostname()}", str(error).splitlines()[0][:120]
    return (f"error ({where}): the exchange broke off, another process or its node is gone ({why}). "
            "--resume goes on from the last checkpoint, if there is one.")  # fmt: skip


def has_gpu(checked: bool = True) -> bool:
    """Whether torch has a GPU. If `checked`, raises WorldError where there is one that torch cannot use."""
    if checked and not torch.cuda.is_available() and (driver := nvidia_driver()):
        torch_is = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        raise WorldError(
            f"{torch_is} cannot use the NVIDIA GPU of this machine, driver {driver}. Update it "
            "or install a torch made for it (pytorch.org); --track nano trains on the CPU."
        )
    return torch.cuda.is_available()


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver; None without one, or where CUDA_VISIBLE_DEVICES hides every GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not NVIDIA_DRIVER.exists():
        return None
    found = re.search(r"\d+\.\d[\d.]*", NVIDIA_DRIVER.read_text())
    return found[0] if found else "of unknown version"


def device_name(device: torch.device) -> str:
    """The GPU's name; else the model of this machine's processor, as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def distributed(model: nn.Module, world: World) -> nn.Module:
    """The model, its gradients averaged over the processes in the buffers in which they travel."""
    if world.size == 1:
        return model
    known = signature(DistributedDataParallel).parameters  # of torch 2.13 on
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    buffers: dict[str, Any] = {sync: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **buffers)
