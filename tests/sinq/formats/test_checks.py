"""A value is made of the tensors that its format implies, or not at all."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sinq import (
    AdditiveTensor,
    CompressedLinear,
    CompressedWeight,
    Grid,
    QuantizedTensor,
    Rotated,
    Rotation,
    SparseOutliers,
)
from sinq.formats.packing import pack
from sinq.kernels.product import kernel_of
from tests.sinq.checkpoint.tampering import FORMATS, values

VALUES = values()
EXTREME = {torch.float16: float("nan"), torch.float32: float("inf")}


def wrong(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors with which no value may be made in the place of a right one."""
    yield "one row short", tensor[:-1]
    yield "nothing", tensor[:0]
    yield "a row more", torch.cat([tensor, tensor[-1:]])
    yield "one more dimension", tensor[None]
    yield "whole numbers", tensor.to(torch.int64)
    yield "float64", tensor.double()
    yield "truth values", tensor != 0
    if tensor.numel() > 1:
        yield "one number seen as many", tensor.reshape(-1)[:1].expand(tensor.numel()).reshape(tensor.shape)
        strided = torch.stack([tensor, tensor], -1)[..., 0]
        yield "gaps", strided
    if tensor.dtype in EXTREME:
        broken = tensor.clone()
        broken.view(-1)[-1] = EXTREME[tensor.dtype]
        yield "a number that is not finite", broken


def is_refused(value: CompressedWeight, tensors: dict[str, Tensor]) -> bool:
    try:
        value.with_tensors(tensors)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("name", FORMATS)
def test_no_value_has_another_tensor_than_the_format_implies(name: str) -> None:
    value = VALUES[name]
    state = value.state_dict()
    assert torch.equal(value.with_tensors(state).dequantize(), value.dequantize())
    for key, tensor in state.items():
        for what, other in wrong(tensor):
            assert is_refused(value, {key: other}), f"{key} with {what} made a value"
        rest = {other: state[other] for other in state if other != key}
        if key == "col_scale":  # not every method has it
            continue
        with pytest.raises(ValueError, match=r"missing|must have"):
            type(value).from_state(value.config(), rest)
    with pytest.raises(ValueError, match="unknown"):
        type(value).from_state(value.config(), state | {"more": torch.ones(1)})


@pytest.mark.parametrize("name", FORMATS)
def test_no_value_has_another_shape_than_the_tensors(name: str) -> None:
    value = VALUES[name]
    for shape in (
        [128, 128],
        [64, 64],
        [63, 128],
        [0, 128],
        [-64, -128],
        [64],
        [64, 128, 1],
        ["64", 128],
        [2**62, 2],
    ):
        config = copy.deepcopy(value.config())
        innermost = config
        while "inner" in innermost:
            innermost = innermost["inner"]["config"]
        innermost["shape"] = shape
        with pytest.raises(ValueError, match=r"."):
            type(value).from_state(config, value.state_dict())


@pytest.mark.parametrize(
    ("option", "number"),
    [
        ("bits", 8),
        ("bits", 2),
        ("bits", 7),
        ("bits", 4.0),
        ("bits", True),
        ("group_size", 8),
        ("group_size", 2**62),
        ("group_size", 0),
        ("tiling", 3),
        ("symmetric", True),
        ("symmetric", 1),
        ("levels", "__class__"),
        ("auxiliary_bits", 8),
        ("auxiliary_bits", 32),
        ("range_floor", float("nan")),
        ("range_floor", "0"),
        ("more", 1),
    ],
)
def test_no_value_has_another_grid_than_the_tensors(option: str, number: object) -> None:
    value = VALUES["sinq"]
    config = value.config()
    config["grid"][option] = number
    with pytest.raises(ValueError, match=r"."):
        QuantizedTensor.from_state(config, value.state_dict())


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("columns", lambda x: torch.full_like(x.int(), 65000).to(x.dtype), "columns are from 65000"),
        ("columns", lambda x: torch.full_like(x.int(), 128).to(x.dtype), "from 0 to 127"),
        ("row_starts", lambda x: x.flip(0), "must ascend"),
        ("row_starts", lambda x: x + 1, "must ascend"),
        ("row_starts", lambda x: torch.linspace(0, 2e9, len(x)).int(), "must ascend"),
        ("row_starts", lambda x: -x, "must ascend"),
    ],
)
def test_sparse_indices_are_in_the_matrix(key: str, change: object, message: str) -> None:
    value = VALUES["sparse"]
    with pytest.raises(ValueError, match=message):
        value.with_tensors({key: change(value.state_dict()[key])})  # type: ignore[operator]


def test_negative_columns_of_wide_matrices_are_refused() -> None:
    wide = torch.zeros(2, 1 << 17)
    wide[0, 5] = 1
    value = SparseOutliers.store(QuantizedTensor.round(wide, Grid()), wide, wide != 0)
    assert value.columns.dtype is torch.int32
    with pytest.raises(ValueError, match="columns are from -7"):
        value.with_tensors({"columns": torch.tensor([-7], dtype=torch.int32)})


def test_a_column_has_one_of_the_choices() -> None:
    value = VALUES["mixed"]
    index = torch.full((128,), 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="none of the 3 choices"):
        value.with_tensors({"bits": pack(index, 2)})
    with pytest.raises(ValueError, match=r"codes_\d is uint8"):
        value.with_tensors({"bits": pack(index * 0, 2)})
    for choices in ([], [1, 1, 2], [1, 2, 7], [1, 2, 3, 4, 5], ["1"], [True]):
        with pytest.raises(ValueError, match="choices"):
            type(value).from_state(value.config() | {"choices": choices}, value.state_dict())


def test_scales_are_finite_when_they_are_decoded() -> None:
    ranges = torch.full_like(VALUES["sinq3"].state_dict()["scale_range"], 200.0)
    with pytest.raises(ValueError, match="scale_range makes scales of"):
        VALUES["sinq3"].with_tensors({"scale_range": ranges})
    exponent = torch.tensor([127], dtype=torch.int8)
    for name in ("sinq", "additive8"):
        state = VALUES[name].state_dict() | {"scale_exponent": exponent}
        state["scale"] = torch.full_like(state["scale"], 6e4)
        with pytest.raises(ValueError, match="scale_exponent makes scales of"):
            type(VALUES[name]).from_state(VALUES[name].config(), state)


def test_tensors_are_on_one_device() -> None:
    state = VALUES["sinq"].state_dict()
    with pytest.raises(ValueError, match="several devices: cpu, meta"):
        VALUES["sinq"].with_tensors({"scale": state["scale"].to("meta")})


def test_a_rotation_fits_what_it_turns() -> None:
    inner = QuantizedTensor.round(torch.randn(4, 64), Grid(group_size=32))
    with pytest.raises(ValueError, match="a rotation of 128 inputs does not fit a matrix of 64"):
        Rotated(Rotation.random(128, 0), inner)


def test_a_weight_on_another_device_does_not_reach_a_compiled_kernel() -> None:
    choice = kernel_of(VALUES["sinq"].to("meta"), torch.device("cpu"))
    assert (choice.kernel, choice.refusals) == ("reference", ("the weight is on meta, not on cpu",))


def test_scales_of_a_byte_that_are_trained_are_multiplied_right() -> None:
    value = VALUES["sinq3"]
    wide = {key: value.state_dict()[key].float() for key in value.tunable()}
    layer, x = CompressedLinear(value.with_tensors(wide), None), torch.randn(2, 128)
    assert "being trained" in layer.choice.refusals[0]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ value.dequantize().T)


def test_a_packed_bit_takes_a_bit_of_memory() -> None:
    packed = pack(torch.ones(64, dtype=torch.uint8), 1)
    assert packed.untyped_storage().nbytes() == packed.nbytes == 8
    assert isinstance(VALUES["additive5"], AdditiveTensor)
