from pathlib import Path

import pytest

from trainer.device import bf16_supported, fp16_supported, has_bf16, has_kernels, serving

TORCH_2_15 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("gpu", "capability", "built_for", "expected"),
    [
        ("T4", (7, 5), TORCH_2_15, True),
        ("L4, binary of the same major version", (8, 9), TORCH_2_15, True),
        ("H200", (9, 0), TORCH_2_15, True),
        ("K80 of p2.xlarge", (3, 7), TORCH_2_15, False),
        ("V100", (7, 0), TORCH_2_15, False),
        ("newer than any binary", (13, 0), TORCH_2_15, False),
        ("newer, compiled from PTX", (13, 0), [*TORCH_2_15, "compute_120"], True),
        ("older than the PTX", (3, 7), ["compute_50"], False),
        ("a binary for one GPU only", (9, 1), ["sm_90a"], False),
        ("a name from the future", (9, 0), ["gfx942"], False),
    ],
)
def test_a_gpu_is_usable_only_with_kernels_for_it(
    gpu: str, capability: tuple[int, int], built_for: list[str], expected: bool
) -> None:
    assert has_kernels(capability, built_for) is expected


@pytest.mark.parametrize(
    ("gpu", "capability", "sentence"),
    [
        (
            "K80",
            (3, 7),
            "2.7.1 from https://download.pytorch.org/whl/cu118, and that too has been seen to fail on a K80",
        ),
        ("K40", (3, 5), "1.12.1 from https://download.pytorch.org/whl/cu102, too old for this trainer: use another"),
        ("M60 of g3", (5, 2), "2.14 from https://download.pytorch.org/whl/cu126: install it, or use another GPU"),
        ("V100 of p3", (7, 0), "2.14 from https://download.pytorch.org/whl/cu126: install it, or use another GPU"),
        ("M2090", (2, 0), "No torch that this trainer runs on ever had kernels for it: use another GPU"),
        ("newer than this torch", (13, 0), "Install the newest torch and torchvision, use another GPU"),
    ],
)
def test_a_refused_gpu_is_told_the_torch_that_would_serve_it(
    gpu: str, capability: tuple[int, int], sentence: str
) -> None:
    assert sentence in serving(capability)


@pytest.mark.parametrize(
    ("processor", "cpuinfo", "expected"),
    [
        ("Zen 4", "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("Sapphire Rapids", "flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Graviton 3", "processor\t: 0\nFeatures\t: fp asimd sve i8mm bf16 rng\n", True),
        ("Skylake", "flags\t\t: fpu avx2 avx512f avx512bw\n", False),
        ("a mention outside the features", "model name\t: avx512_bf16\nflags\t\t: fpu\n", False),
        ("nothing said", "processor\t: 0\n", False),
    ],
)
def test_bf16_needs_a_processor_that_has_it(processor: str, cpuinfo: str, expected: bool) -> None:
    assert has_bf16(cpuinfo) is expected


def test_this_processor_is_asked_and_computes_in_fp16_on_no_account() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    assert bf16_supported("cpu") is (cpuinfo.exists() and has_bf16(cpuinfo.read_text()))
    assert fp16_supported("cpu") is False
