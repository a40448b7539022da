"""Report of the registers, spilled bytes and shared memory of the compiled Triton kernels. Needs no device.

    python -m sinq.kernels.triton.compile_report                    all kernels, about a minute
    python -m sinq.kernels.triton.compile_report --only balance     those with "balance" in their name

A spill is a register that did not fit and goes through memory: bytes written and read back, summed over the
kernel's code. The shapes are those of a large layer (groups of 64). A kernel that compiles here may still be
slow; only a device can tell.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime import JITFunction

from sinq.kernels.triton.dequantize import ZERO_CONSTANT, ZERO_STORED, dequantize_block
from sinq.kernels.triton.integer import blocks as integer_blocks
from sinq.kernels.triton.integer import multiply_integers
from sinq.kernels.triton.linear import ROWS_OF_KERNEL, ROWS_WARPS, rows_form, vector_form
from sinq.kernels.triton.quantize import BALANCE_EACH, BALANCE_ELEMENTS, ROUND_EACH, ROUND_ELEMENTS, warps_for
from sinq.kernels.triton.rotation import butterflies
from sinq.kernels.triton.rotation import form as rotation_form
from sinq.kernels.triton.round import round_groups
from sinq.kernels.triton.rows import multiply_rows
from sinq.kernels.triton.sinkhorn import balance
from sinq.kernels.triton.vector import multiply_vector

TARGETS = (80, 90)
"""Compute capabilities: A100, and H100 or H200."""
GROUP = 64
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
ALIGNED = ("height", "columns", "rows")
"""Integer arguments that are multiples of 16 in these shapes, as all pointers are."""


@dataclass(frozen=True)
class Case:
    """A kernel and the specialization that it is compiled for."""

    name: str
    kernel: Any
    types: dict[str, str]
    """Type of each argument, in Triton's notation, by its name."""
    constants: dict[str, Any]
    """Value of each constant by its name; an argument without a type or a value is passed as None."""
    warps: int


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel: registers and spilled bytes of a thread, shared bytes of a program."""

    kernel: str
    capability: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    cubin_bytes: int


def compiled(case: Case, capability: int) -> CompiledKernel:
    """Return the compiled kernel for a compute capability.

    Raises:
        ValueError: TRITON_INTERPRET is set, so that there is nothing to compile.
    """
    if not isinstance(case.kernel, JITFunction):
        raise ValueError(f"{case.name} is interpreted: unset TRITON_INTERPRET")
    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    constants = {name: case.constants.get(name) for name in names if name not in case.types}
    pointers = {name for name in names if signature[name].startswith("*")}
    aligned = pointers | {name for name in ALIGNED if name in case.types}
    divisible = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(names) if name in aligned}
    source = ASTSource(case.kernel, signature, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": case.warps})


def resources(case: Case, capability: int) -> Resources:
    """Compile a kernel and return the resources that ptxas reports.

    Raises:
        ValueError: TRITON_INTERPRET is set.
        RuntimeError: ptxas does not assemble the kernel.
    """
    kernel = compiled(case, capability)
    log = assemble(kernel.asm["ptx"], capability)
    spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill", log))
    registers = max(int(count) for count in re.findall(r"Used (\d+) registers", log))
    shared, size = kernel.metadata.shared, len(kernel.asm["cubin"])
    return Resources(case.name, capability, registers, spilled, shared, size)


def assemble(ptx: str, capability: int) -> str:
    """Assemble a program and return what ptxas prints about it.

    Raises:
        RuntimeError: the program does not assemble; the error has the output of ptxas.
    """
    target = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)[0]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [get_ptxas(capability).path, "-v", f"-arch={target}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ptxas for {target}: {done.stdout}{done.stderr}")
    return done.stderr


def cases() -> Iterator[Case]:
    """Yield every kernel as launched for a large layer, at all numbers of bits where these matter."""
    for dtype in (torch.bfloat16, torch.float32):
        yield _balance(dtype)
    for bits in (2, 3, 4, 5, 6, 8):
        yield _round(bits)
    for bits in (2, 3, 4, 5, 6, 8):
        yield linear_case(bits, torch.bfloat16, batch=1)
        yield linear_case(bits, torch.bfloat16, batch=ROWS_OF_KERNEL)
    for dtype in (torch.float16, torch.float32):
        yield linear_case(4, dtype, batch=1)
        yield linear_case(4, dtype, batch=ROWS_OF_KERNEL)
    yield linear_case(4, torch.bfloat16, batch=1, symmetric=True)
    yield linear_case(4, torch.bfloat16, batch=None)
    for size, length in ((128, 128), (1536, 128), (4096, 4096), (14336, 512), (16384, 16384)):
        yield rotation_case(size, length)
    for bits in (4, 8):
        for tokens in (16, 512):
            yield integer_case(bits, tokens)
    yield integer_case(4, 512, asymmetric=True)
    yield integer_case(3, 512, asymmetric=True)
    yield integer_case(2, 16, planes=8)
    yield integer_case(4, 16, planes=4)


def linear_case(bits: int, dtype: torch.dtype, batch: int | None, symmetric: bool = False) -> Case:
    """Return the case of the product with `batch` rows of x, or of writing the matrix where `batch` is None.

    The layer has 4096 in-features, float16 scales and zeros, and column scales.
    """
    pointer = POINTERS[dtype]
    types = {"codes": "*i32", "scale": "*fp16", "col_scale": "*fp16", "out": pointer, "rows": "i32"}
    if not symmetric:
        types["zero"] = "*fp16"
    constants = {
        "WORDS_PER_ROW": 512,
        "GROUP_WORDS": GROUP // 8,
        "BITS": bits,
        "ZERO": (ZERO_CONSTANT if symmetric else ZERO_STORED).value,
    }
    name = f"{bits} bits, {str(dtype).removeprefix('torch.')}"
    if batch is None:
        constants |= {"BLOCK_ROWS": 32, "BLOCK_WORDS": 16}
        return Case(f"dequantize {name}", dequantize_block, types, constants, warps=4)
    name = f"linear {name}, batch {batch}{', symmetric' if symmetric else ''}"
    if batch == 1:
        form, warps = vector_form((4096, 4096), bits, GROUP, constants["ZERO"])
        return Case(name, multiply_vector, types | {"x": pointer}, form, warps)
    x = torch.empty(batch, 4096, dtype=dtype, device="meta")
    form = rows_form(4096, x, bits, GROUP, constants["ZERO"])
    form |= {"OPERAND": tl.dtype(pointer.removeprefix("*"))}
    types = {name: kind for name, kind in types.items() if name != "col_scale"}
    types |= {"x": pointer, "batch": "i32", "out": "*fp32" if form["SPLITS"] > 1 else pointer}
    return Case(name, multiply_rows, types, form, ROWS_WARPS)


def rotation_case(size: int, length: int) -> Case:
    """Return the case of the butterflies of rows of a size, in segments of a length."""
    types = {"rows": "*bf16", "signs": "*u8", "out": "*fp32", "segments": "i32", "unit": "fp32"}
    block, warps = rotation_form(length)
    sizes = {"SIZE": size, "LENGTH": length, "PASSES": length.bit_length() - 1, "BLOCK": block, "BACK": False}
    return Case(f"rotation of {size} in segments of {length}", butterflies, types, sizes, warps)


def integer_case(bits: int, tokens: int, asymmetric: bool = False, planes: int = 0) -> Case:
    """Return the case of the product with rounded inputs, which have one scale for each token.

    The layer is that of `linear_case`, without column scales.

    Args:
        planes: bits of the inputs, which are counted; 0 for bytes.
    """
    types = {"x": "*i8", "input_scale": "*fp32", "codes": "*i32", "scale": "*fp16", "zero": "*fp16"}
    types |= {"out": "*bf16", "tokens": "i32", "rows": "i32"}
    if asymmetric:
        types["input_zero"] = "*fp32"
    form, warps = integer_blocks(tokens, 4096, GROUP, 4096, planes)
    kind = f"bit planes {bits} × {planes}" if planes else f"integers {bits} bits"
    name = f"{kind}, batch {tokens}{', asymmetric' if asymmetric else ''}"
    return Case(name, multiply_integers, types, form | {"BITS": bits, "ZERO": ZERO_STORED.value}, warps)


def _balance(dtype: torch.dtype) -> Case:
    vectors = {
        "scratch": "*fp32",
        "shared": "*fp64",
        "arrived": "*i32",
        "row_scale": "*fp32",
        "col_scale": "*fp32",
    }
    numbers = dict.fromkeys(("step_min", "step_max", "log_min", "log_max", "std_min", "std_max"), "fp32")
    types = {"weight": POINTERS[dtype], "height": "i32", "columns": "i32", "iterations": "i32"}
    sizes = {
        "WIDTH": GROUP,
        "PADDED_WIDTH": GROUP,
        "BLOCK_ROWS": BALANCE_ELEMENTS // GROUP,
        "EARLY_STOP": True,
        "RELATIVE": True,
    }
    name = f"balance {str(dtype).removeprefix('torch.')}"
    return Case(name, balance, types | vectors | numbers, sizes, warps_for(BALANCE_ELEMENTS, BALANCE_EACH))


def _round(bits: int) -> Case:
    unit = {1: "*u8", 2: "*i16", 4: "*i32", 8: "*i64"}[bits & -bits]
    vectors = dict.fromkeys(("row_scale", "col_scale", "scale", "zero"), "*fp32")
    limits = dict.fromkeys(("range_floor", "smallest", "largest"), "fp32")
    lengths = dict.fromkeys(("rows", "columns", "tile_rows"), "i32")
    sizes = {
        "BITS": bits,
        "GROUP": GROUP,
        "WORDS": GROUP // 8,
        "BLOCK_ROWS": ROUND_ELEMENTS // GROUP,
        "PACK": True,
    }
    types = {"weight": "*bf16", "packed": unit} | vectors | limits | lengths
    return Case(f"round {bits} bits", round_groups, types, sizes, warps_for(ROUND_ELEMENTS, ROUND_EACH))


def main() -> None:
    """Print the table of resources of the cases on all targets."""
    parser = argparse.ArgumentParser(
        prog="python -m sinq.kernels.triton.compile_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="WORDS", default="", help="kernels with these words in their name")
    only = parser.parse_args().only
    chosen = [case for case in cases() if only in case.name]
    if not chosen:
        parser.error(f"--only {only!r} is in no name; names are like {next(iter(cases())).name!r}")
    print(f"{'kernel':42} {'target':>6} {'registers':>9} {'spilled B':>9} {'shared B':>8}")
    for case in chosen:
        for capability in TARGETS:
            found = resources(case, capability)
            needs = f"{found.registers:9} {found.spill_bytes:9} {found.shared_bytes:8}"
            print(f"{found.kernel:42} {f'sm_{capability}':>6} {needs}")


if __name__ == "__main__":
    main()
