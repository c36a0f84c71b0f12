"""Law 7: a GPU run never trains on a CPU silently. Driver, GPU and torch's kernels for it are checked first of all."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.errors import NoUsableGPU

ALLOW_CPU = "give --allow-cpu to train on the CPU, slowly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where the network is trained: torch's name of it and its name in words."""

    torch_name: str
    name: str


def choose(allow_cpu: bool) -> Device:
    """The GPU, or with `allow_cpu` the CPU where no GPU is usable. Raises NoUsableGPU."""
    try:
        return usable_gpu()
    except NoUsableGPU:
        if not allow_cpu:
            raise
        return Device(torch_name="cpu", name=f"CPU, {usable_cores()} cores, {torch.get_num_threads()} threads")


def usable_gpu() -> Device:
    """The first GPU, after a kernel has run on it. Raises NoUsableGPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        raise NoUsableGPU(
            f"This torch ({torch.__version__} on {platform.machine()}) is built without GPU support",
            f"Install the ordinary torch and torchvision packages, or {ALLOW_CPU}",
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        capability = torch.cuda.get_device_capability(0)
        name = torch.cuda.get_device_name(0)
    except RuntimeError as error:  # torch's first sentence says which: no driver, driver too old, or no GPU
        reason = str(error).split(". ")[0].splitlines()[0]
        next_step = f"Check `nvidia-smi` on this machine, or {ALLOW_CPU}"
        raise NoUsableGPU(f"No GPU can be used here: {reason}", next_step) from error
    built_for = torch.cuda.get_arch_list()
    if torch.version.cuda and not has_kernels(capability, built_for):
        architecture = "sm_{}{}".format(*capability)
        raise NoUsableGPU(
            f"torch {torch.__version__} has no kernels for {name} ({architecture}), only for {', '.join(built_for)}",
            f"Use a GPU that it has kernels for, install a torch built with {architecture}, or {ALLOW_CPU}",
        )
    try:
        works = torch.ones(8, device="cuda").sum().item() == 8
    except RuntimeError as error:
        raise NoUsableGPU(f"{name} fails a first kernel: {error}", f"Restart the machine, or {ALLOW_CPU}") from error
    if not works:
        raise NoUsableGPU(f"{name} adds up eight ones wrongly", "Use another machine: this GPU is broken")
    return Device(torch_name="cuda", name=name)


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether code built for these architectures runs on a GPU of this compute capability.

    Binary code (sm_75) runs on the same major version from that minor on; PTX (compute_75) is compiled by the driver
    for any later GPU; a trailing letter (sm_90a) binds to exactly that one. CUDA C++ Programming Guide, "Binary
    Compatibility" and "PTX Compatibility".
    """
    for built in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", built)
        if match is None:
            continue
        version, exact = (int(match[2]), int(match[3])), bool(match[4])
        if capability == version:
            return True
        later = capability > version
        if not exact and later and (match[1] == "compute" or capability[0] == version[0]):
            return True
    return False


def usable_cores() -> int:
    """The processor cores that this process may use, which in a container can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS
