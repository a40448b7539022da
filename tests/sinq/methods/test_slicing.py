"""A pipeline of methods: one report of parts, labels of both, and a refusal before anything is removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from baselines.dense import Dense
from baselines.prefixquant import Prefix
from baselines.rtn import RTN
from sinq import (
    ActivationFormat,
    Activations,
    Calibration,
    Decision,
    Grid,
    KeyValueFormat,
    KeyValues,
    Method,
    NotApplicable,
    PreSINQ,
    StateFormat,
)
from sinq.common.timing import Clock
from sinq.methods.slicing import Removed, Slicing
from sinq.model.context import Context
from sinq.model.edits import edits
from sinq.model.key_value_edits import RoundKeyValues
from sinq.model.slicing import kept_groups, slice_block
from sinq.model.units import Units, units_of
from tests.conftest import tiny_model, tiny_tokens

QUANTIZED = RTN(Grid(bits=4, group_size=32))


@dataclass(frozen=True)
class FirstUnits(Slicing):
    """A toy: the first head and the first neurons of each block, and no text."""

    name: ClassVar[str] = "toy_first_units"

    then: Method
    chunk: int = 32

    @property
    def needs_calibration(self) -> bool:
        return self.then.needs_calibration

    def remove(
        self,
        model: nn.Module,
        units: Sequence[Units],
        calibration: Calibration | None,
        context: Context,
        clock: Clock,
    ) -> Removed:
        for each in units:
            slice_block(model, each, kept_groups(each, [0], range(self.chunk)))
        return Removed((Decision("neurons", len(units) * self.chunk, chosen=True),))


def test_parts_are_joined_by_name_against_the_dense_model() -> None:
    report = FirstUnits(QUANTIZED).compress(tiny_model("qwen3-untied"))
    parts = {part.name: part for part in report.parts}
    assert len(parts) == len(report.parts) == 15
    down = parts["model.layers.1.mlp.down_proj"]
    assert (down.dense_parameters, down.parameters, down.shape) == (64 * 128, 64 * 32, (64, 32))
    assert down.relative_error is not None
    assert down.nbytes == 64 * 32 // 2 + 64 * 4
    assert report.decisions["neurons=64"] == 1
    assert report.bits_per_weight == pytest.approx(5)
    assert 0 < sum(part.seconds for part in report.parts) <= report.seconds_quantize * (1 + 1e-9)


def test_without_another_method_layers_stay_dense() -> None:
    report = FirstUnits(Dense()).compress(tiny_model("qwen3-untied"))
    assert report.bits_per_weight == 32
    assert report.relative_error_mean is None
    assert report.method == "FirstUnits"


def test_labels_name_both() -> None:
    method = FirstUnits(QUANTIZED)
    assert (method.label, method.format) == ("FirstUnits, then RTN 4-bit g32", QUANTIZED.grid)
    assert FirstUnits(Dense()).format is None


def test_inputs_of_what_is_left_are_rounded_only_where_layers_are_compressed() -> None:
    with pytest.raises(NotApplicable, match="FirstUnits: inputs of compressed layers"):
        Activations(FirstUnits(Dense()), ActivationFormat())
    with pytest.raises(NotApplicable, match="Prefix: inputs of compressed layers"):
        Activations(Prefix(Dense()), ActivationFormat())
    report = Activations(FirstUnits(QUANTIZED), ActivationFormat()).compress(tiny_model("qwen3-untied"))
    assert report.method.startswith("FirstUnits W4A8")


@pytest.mark.parametrize("then", [QUANTIZED, PreSINQ(QUANTIZED)])
def test_the_second_method_refuses_before_the_first_begins(then: Any) -> None:
    model = tiny_model("qwen3-untied")
    with pytest.raises(
        NotApplicable, match=r"method.chunk=16 neurons, of which blocks keep multiples: group_size=32"
    ):
        FirstUnits(then, chunk=16).compress(model)
    assert edits(model) == ()
    assert torch.equal(model.lm_head.weight, tiny_model("qwen3-untied").lm_head.weight)


def test_slicings_follow_each_other() -> None:
    model = tiny_model("qwen3-untied")
    report = FirstUnits(FirstUnits(QUANTIZED), chunk=64).compress(model)
    assert model.model.layers[0].mlp.up_proj.weight.value.shape == (32, 64)
    assert sum(part.dense_parameters for part in report.parts) == 2 * (3 * 64 * 64 + 3 * 64 * 128)
    assert model(tiny_tokens()).logits.isfinite().all()


def test_keys_and_values_are_rounded_for_the_heads_that_are_left() -> None:
    model = tiny_model("qwen3-untied")
    kv = KeyValueFormat(StateFormat(4, group_size=16), StateFormat(4, group_size=16))
    KeyValues(FirstUnits(QUANTIZED), kv).compress(model)
    rounded = [change for change in edits(model) if isinstance(change, RoundKeyValues)]
    assert [change.heads for change in rounded] == [1, 1]


def test_a_prefix_comes_after_slicing() -> None:
    with pytest.raises(NotApplicable, match=r"what follows in toy_first_units"):
        Prefix(FirstUnits(Dense()))
    model = tiny_model("qwen3-untied")
    FirstUnits(Prefix(QUANTIZED, tokens=(1,))).compress(model)
    assert model(tiny_tokens()).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"layers\.0 rounds or prefixes keys and values already"):
        slice_block(model, find_dense_units(model), kept_groups(find_dense_units(model), [0], [0]))


def find_dense_units(model: nn.Module) -> Units:
    """Units of the first block, whose layers are made dense again."""
    other = tiny_model("qwen3-untied")
    for name in units_of("", other.model.layers[0]).matrices:  # type: ignore[union-attr]
        model.set_submodule(f"model.layers.0.{name}", other.get_submodule(f"model.layers.0.{name}"))
    return units_of("model.layers.0", model.get_submodule("model.layers.0"))
