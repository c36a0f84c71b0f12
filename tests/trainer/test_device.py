import pytest

from trainer.device import has_kernels

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
