"""The Triton kernels compile for CUDA devices without one: to machine code, by the assembler in triton."""

import os
from importlib.util import find_spec

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1",
        reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled",
    ),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    "name",
    [
        "balance bfloat16",
        "round 3 bits",
        "linear 3 bits, bfloat16, batch 1",
        "linear 4 bits, bfloat16, batch 16",
        "rotation of 1536 in segments of 128",
        "integers 4 bits, batch 16",
        "integers 3 bits, batch 512, asymmetric",
        "bit planes 2 × 8, batch 16",
    ],
)
def test_a_kernel_assembles_within_a_devices_means(name: str, capability: int) -> None:
    from sinq.kernels.triton.compile_report import cases, resources

    case = next(case for case in cases() if case.name == name)
    found = resources(case, capability)
    assert found.cubin_bytes > 0
    assert 0 < found.registers * 32 * case.warps <= 65536  # of a multiprocessor, for one program
    assert found.shared_bytes <= 48 * 1024
    # blocks half as large, without spills, were slower on an H200
    assert found.spill_bytes <= (1024 if name.startswith("balance") else 64)


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_are_multiplied_by_tensor_cores(bits: int) -> None:
    from sinq.kernels.triton.compile_report import compiled, integer_case

    assert "s32.s8.s8.s32" in compiled(integer_case(bits, 512), 80).asm["ptx"]


def test_bits_are_counted_by_the_processor() -> None:
    from sinq.kernels.triton.compile_report import compiled, integer_case

    ptx = compiled(integer_case(2, 16, planes=8), 80).asm["ptx"]
    assert "popc.b32" in ptx
    assert "mma" not in ptx


def test_writing_the_matrix_assembles() -> None:
    from sinq.kernels.triton.compile_report import linear_case, resources

    assert resources(linear_case(4, torch.float16, batch=None), 80).spill_bytes == 0


def test_a_kernel_that_does_not_assemble_is_an_error() -> None:
    from sinq.kernels.triton.compile_report import assemble

    with pytest.raises(RuntimeError, match="ptxas for sm_80"):
        assemble(".version 8.0\n.target sm_80\n.address_size 64\nnonsense", 80)
