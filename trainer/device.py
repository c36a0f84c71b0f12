"""Law 7: a GPU run never trains on a CPU silently. Driver, GPU and torch's kernels for it are checked first of all."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import NoUsableGPU

ALLOW_CPU = "give --allow-cpu to train on the CPU, slowly"

# The last official torch with kernels for GPUs that today's has none for: the capabilities, the release, its wheels.
LAST_TORCH = (
    ((3, 5), (3, 5), "1.12.1", "cu102"),
    ((3, 7), (3, 7), "2.7.1", "cu118"),
    ((5, 0), (7, 2), "2.14", "cu126"),
)
OLDEST_TORCH = (2, 7)  # that this trainer runs on


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
            f"{serving(capability)}, or {ALLOW_CPU}",
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


def serving(capability: tuple[int, int]) -> str:
    """What to do about a GPU of this compute capability that this torch has no kernels for.

    sm_35: github.com/moi90/pytorch_compute_capabilities, read from the binaries. sm_37: CUDA 11.8 was the last toolkit
    for it in PyTorch's RELEASE.md (2.7), and 2.8 dropped that (pytorch #147383); a K80's owner had an error from
    2.7.1+cu118 all the same (nelson-liu/pytorch-manylinux-binaries #13). sm_50 to sm_72: CUDA 12.6, which 2.15 drops
    (pytorch #190385).
    """
    for first, last, release, wheels in LAST_TORCH:
        if not first <= capability <= last:
            continue
        served = f"The last torch with kernels for it was {release} from https://download.pytorch.org/whl/{wheels}"
        if tuple(map(int, release.split(".")[:2])) < OLDEST_TORCH:
            return f"{served}, too old for this trainer: use another GPU"
        if capability == (3, 7):
            return f"{served}, and that too has been seen to fail on a K80: better use another GPU"
        return f"{served}: install it, or use another GPU"
    if capability < (3, 5):
        return "No torch that this trainer runs on ever had kernels for it: use another GPU"
    return "Install the newest torch and torchvision, use another GPU"


def bf16_supported(torch_name: str) -> bool:
    """Whether the device computes in bfloat16 itself; emulated, it is slower than fp32."""
    if torch_name.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        return has_bf16(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:  # macOS and Windows do not say: unknown counts as no
        return False


def fp16_supported(torch_name: str) -> bool:
    """Whether the device is faster in fp16 than in fp32: a GPU with tensor cores, which came with capability 7.0."""
    return torch_name.startswith("cuda") and (
        torch.version.hip is not None or torch.cuda.get_device_capability(torch_name) >= (7, 0)
    )


def has_bf16(cpuinfo: str) -> bool:
    """Whether Linux's list of a processor's features has bfloat16 arithmetic: AVX-512 or AMX on x86, BF16 on ARM."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return match is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(match[1].split())


def usable_cores() -> int:
    """The processor cores that this process may use, which in a container can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS
