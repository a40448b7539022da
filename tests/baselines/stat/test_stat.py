"""STAT on small models: exact where it can be, better than its ablations, smaller by what was asked for."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinq
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.rtn import RTN
from baselines.stat import STAT
from baselines.stat.budget import Allocation, Depth
from baselines.stat.ranking import Correction, Selection, other_order, rank_heads, rank_neurons
from baselines.stat.sketch import SketchKind
from sinq import ActivationFormat, Activations, Calibration, CompressionReport, Context, Grid, NotApplicable
from sinq.model.edits import edits
from sinq.model.slicing import Kept, kept_groups, slice_block
from sinq.model.units import Units, find_units, macs_per_token, matrix_of
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.sliceable import ENCODERS, SLICEABLE, random_model

TOKENS = tiny_tokens(16, 48)
TEXT = Calibration(TOKENS)
DENSE = Dense()
NAMES = sorted(SLICEABLE)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS[:4]).logits
    return found


def compressed(model: nn.Module, **options: Any) -> CompressionReport:
    return STAT(DENSE, **options).compress(model, TEXT)


def macs(model: nn.Module, context: int = 0) -> int:
    return sum(macs_per_token(each, context) for each in find_units(model))


@pytest.mark.parametrize("name", NAMES)
def test_a_target_of_everything_changes_nothing(name: str) -> None:
    model, dense = random_model(name), random_model(name)
    report = compressed(model, target=1.0)
    assert torch.equal(logits(model), logits(dense))
    assert report.decisions["mac_ratio=1"] == 1


@pytest.mark.parametrize("context", [None, 0, 512])
@pytest.mark.parametrize("target", [0.9, 0.7, 0.4])
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "opt"])
def test_macs_are_what_was_asked_for(name: str, target: float, context: int | None) -> None:
    model, dense = random_model(name), random_model(name)
    report = compressed(model, target=target, context=context, whole_heads=False)
    attended = 48 if context is None else context
    ratio = macs(model, attended) / macs(dense, attended)
    assert ratio == pytest.approx(target, rel=0.01)
    assert f"mac_ratio={ratio:g}" in report.decisions
    parts = [part for part in report.parts if part.kind == "weight"]
    assert {part.name: part.shape for part in parts} == {
        f"{each.name}.{name}": tuple(matrix_of(each.layer(name)).shape)
        for each in find_units(model)
        for name in each.matrices
    }
    assert sum(part.dense_parameters for part in parts) == macs(dense)
    assert sum(part.parameters for part in parts) == macs(model)
    assert sum(part.nbytes for part in parts) == 4 * macs(model)


def with_redundant_neurons() -> Any:
    """8 of the 128 neurons of each block are multiples of others."""
    model = random_model("llama").double()
    for block in model.model.layers:
        for key, factor in (("gate_proj", 1.0), ("up_proj", -2.5)):
            layer = getattr(block.mlp, key)
            for parameter in layer.parameters():
                parameter[120:] = factor * parameter[:8]
    return model


def with_redundant_heads() -> Any:
    """The second kv head of each block says a mixture of what the channels of the first say."""
    model = random_model("qwen3").double()
    for block in model.model.layers:
        attention, width = block.self_attn, 16
        attention.q_proj.weight[2 * width :] = attention.q_proj.weight[: 2 * width]
        attention.k_proj.weight[width:] = attention.k_proj.weight[:width]
        attention.v_proj.weight[width:] = torch.randn(width, width).double() @ attention.v_proj.weight[:width]
    return model


NEURONS_GONE = (12288 + 3 * 64 * 120) / (12288 + 3 * 64 * 128)
HEADS_GONE = (6144 + 3 * 64 * 128) / (12288 + 3 * 64 * 128)


@pytest.mark.parametrize("kind", list(SketchKind))
@pytest.mark.parametrize(
    ("make", "target"), [(with_redundant_neurons, NEURONS_GONE), (with_redundant_heads, HEADS_GONE)]
)
def test_what_says_nothing_new_is_removed_and_costs_nothing(
    make: Any, target: float, kind: SketchKind
) -> None:
    dense, model, without = make(), make(), make()
    options = {"target": target, "context": 0, "sketch": kind, "sketch_rows": 300}
    compressed(model, **options)
    assert macs(model) / macs(dense) == pytest.approx(target)
    scale = logits(dense).abs().max()
    assert (logits(model) - logits(dense)).abs().max() < 1e-10 * scale
    compressed(without, **options, correction=Correction.none)
    assert (logits(without) - logits(dense)).abs().max() > 1e-3 * scale


def test_kept_rows_are_those_of_the_dense_model_bit_for_bit() -> None:
    dense, model = random_model("qwen2"), random_model("qwen2")
    compressed(model, target=0.6, context=0, whole_heads=False)
    for each, other in zip(find_units(model), find_units(dense), strict=True):
        for name in (*each.names.inputs, *each.names.up):
            kept, rows = matrix_of(each.layer(name)), matrix_of(other.layer(name))
            assert all((row == rows).all(1).any() for row in kept)


def seen_by(units: Units, name: str) -> Tensor:
    """What enters a layer for a text: 300 tokens whose channels explain each other in part."""
    columns = matrix_of(units.layer(name)).shape[1]
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(300, columns, generator=generator, dtype=torch.float64)
    return draw @ torch.randn(columns, columns, generator=generator, dtype=torch.float64) ** 3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_output_error_falls_with_each_unit_and_is_less_than_without_correction(name: str) -> None:
    units = find_units(random_model(name))[0]
    names = units.names
    for kind, layer in (("heads", names.output), ("neurons", names.down)):
        seen, weight = seen_by(units, layer), matrix_of(units.layer(layer)).double()
        ranking = (
            rank_heads(units, seen, None, None)
            if kind == "heads"
            else rank_neurons(units, seen, None, None, True)
        )
        last = float("inf")
        for kept in range(1, len(ranking.order) + 1, 1 if kind == "heads" else 9):
            errors = []
            for correction in (Correction.interpolation, Correction.none):
                columns, mixing = ranking.columns, ranking.mixing(kept, correction)
                change = seen[:, columns] - seen[:, columns[: len(mixing)]] @ mixing
                errors.append(torch.linalg.matrix_norm(change @ weight[:, columns].T).item())
            assert errors[0] <= errors[1] * (1 + 1e-9)
            if kind == "heads":
                assert errors[0] == pytest.approx(ranking.errors[kept].item(), rel=1e-6, abs=1e-6)
                assert errors[0] <= last * (1 + 1e-9)
            last = errors[0]


def test_a_refit_is_never_worse_on_its_text_and_the_same_without_a_sketch() -> None:
    units = find_units(random_model("llama"))[0]
    seen = seen_by(units, units.names.down)
    sketch = torch.randn(160, 300, generator=torch.Generator().manual_seed(2)).double() @ seen / 160**0.5
    rough, refit = (rank_neurons(units, sketch, full, None, True) for full in (None, seen))
    exact = rank_neurons(units, seen, None, None, True)
    assert torch.equal(rough.order, refit.order)
    for kept in (20, 60, 100):
        errors = []
        for ranking in (rough, refit):
            mixing = ranking.mixing(kept, Correction.refit)
            errors.append(
                torch.linalg.matrix_norm(
                    seen[:, ranking.order] - seen[:, ranking.order[:kept]] @ mixing
                ).item()
            )
        assert errors[1] <= errors[0]
    same = rank_neurons(units, seen, seen, exact.order, True)
    torch.testing.assert_close(
        same.mixing(60, Correction.refit), exact.mixing(60, Correction.interpolation), rtol=1e-6, atol=1e-8
    )


def test_dead_neurons_go_first_and_leave_finite_weights() -> None:
    model = random_model("llama")
    for block in model.model.layers:
        block.mlp.down_proj.weight[:, 5:9] = 0
        for parameter in block.mlp.up_proj.parameters():
            parameter[9:12] = 0
    dense = copy.deepcopy(model)
    target = (12288 + 3 * 64 * 121) / (12288 + 3 * 64 * 128)
    compressed(model, target=target, context=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert torch.allclose(logits(model), logits(dense), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_magnitudes_are_norms_of_all_weights_of_a_unit(name: str) -> None:
    units = find_units(random_model(name))[0]
    heads, neurons = other_order(units, Selection.magnitude, torch.Generator())
    assert heads is not None
    assert neurons is not None
    counts = units.counts
    without_head = [without(name, [head], []) for head in heads.tolist()]
    assert without_head == sorted(without_head)
    some = neurons[:: len(neurons) // 6].tolist()
    without_neuron = [without(name, [], [neuron]) for neuron in some]
    assert without_neuron == sorted(without_neuron)
    assert (len(without_head), len(neurons.unique())) == (counts.kv_heads, counts.neurons)


def without(name: str, heads: list[int], neurons: list[int]) -> float:
    """Sum of squares of all matrices of the first block without some units."""
    model = random_model(name)
    units = find_units(model)[0]
    counts = units.counts
    left = [head for head in range(counts.kv_heads) if head not in heads]
    slice_block(
        model,
        units,
        kept_groups(units, left, [each for each in range(counts.neurons) if each not in neurons]),
    )
    return sum(float(units.layer(name).weight.double().square().sum()) for name in units.matrices)


@pytest.mark.parametrize(
    "options",
    [
        {"selection": Selection.magnitude},
        {"selection": Selection.random, "seed": 1},
        {"correction": Correction.none},
        {"correction": Correction.refit},
        {"allocation": Allocation.uniform},
        {"depth": Depth.linear},
        {"depth": Depth.none},
        {"heads_after_neurons": True},
        {"weigh_columns": False},
        {"sketch": SketchKind.count},
        {"chunk": 16, "whole_heads": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_makes_another_model_of_the_same_size_twice_the_same(options: dict[str, Any]) -> None:
    plain, model, again = (random_model("llama") for _ in range(3))
    common = {"target": 0.7, "context": 0, "sketch_rows": 200}
    compressed(plain, **common)
    compressed(model, **common, **options)
    compressed(again, **common, **options)
    assert torch.equal(logits(model), logits(again))
    assert not torch.equal(logits(model), logits(plain))
    assert macs(model) == pytest.approx(macs(plain), rel=0.02)
    counts = [each.counts.neurons for each in find_units(model)]
    assert options.get("allocation") is None or counts[0] - counts[1] in (0, 1)
    assert all(count % options.get("chunk", 1) == 0 for count in counts)


def test_the_dense_model_it_shares_tensors_with_stays_as_it_was() -> None:
    dense = random_model("gpt2")
    model = copy.deepcopy(dense, {id(tensor): tensor for tensor in (*dense.parameters(), *dense.buffers())})
    before = logits(dense)
    compressed(model, target=0.6)
    assert torch.equal(logits(dense), before)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_is_quantized_saved_and_generates(name: str, tmp_path: Path) -> None:
    dense, model = random_model(name), random_model(name)
    method = STAT(RTN(Grid(bits=8, group_size=16)), target=0.7, chunk=16, whole_heads=False, context=0)
    report = method.compress(model, TEXT)
    weights = [part for part in report.parts if re.search(r"\.(layers?|h)\.", part.name)]
    assert sum(part.dense_parameters for part in weights) == macs(dense)
    assert {part.group_size for part in weights} == {16}
    assert report.method == "STAT, then RTN 8-bit g16"
    assert len(edits(model)) > len(weights)
    sinq.save(model, tmp_path)
    again = sinq.load(tmp_path)
    assert torch.equal(logits(again), logits(model))
    if name in ENCODERS:
        return
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    cached = again.generate(TOKENS[:1, :8], use_cache=True, **options)
    assert torch.equal(cached, again.generate(TOKENS[:1, :8], use_cache=False, **options))


def test_methods_that_need_text_and_rounded_inputs_follow() -> None:
    model = random_model("llama")
    method = STAT(GPTQ(RTN(Grid(bits=4, group_size=16))), target=0.8, chunk=16)
    report = Activations(method, ActivationFormat(bits=8)).compress(model, TEXT)
    assert len([part for part in report.parts if part.relative_error is not None]) == 14
    with pytest.raises(NotApplicable, match="it compresses none"):
        Activations(STAT(DENSE), ActivationFormat(bits=8))


def refused(message: str, model: nn.Module, method: STAT, text: Calibration | None = TEXT) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        method.compress(model, text)
    state = model.state_dict()
    assert edits(model) == ()
    for name, tensor in before.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_what_cannot_be_is_refused_before_the_model_changes() -> None:
    model = random_model("llama")
    refused("STAT ranks heads and neurons on calibration text", model, STAT(DENSE), None)
    refused("has 40 tokens, and a matrix has 128 columns", model, STAT(DENSE), Calibration(TOKENS[:1, :40]))
    refused("method.chunk=48 does not divide the 128 neurons", model, STAT(DENSE, chunk=48))
    refused("method.target=0.1 cannot be met", model, STAT(DENSE, target=0.1))
    quantized = RTN(Grid(bits=4, group_size=16))
    refused(
        "method.chunk=8 neurons, of which blocks keep multiples: group_size=16",
        model,
        STAT(quantized, chunk=8),
    )
    refused("Qwen3MoeDecoderLayer, whose heads and neurons are not known", tiny_model("moe"), STAT(DENSE))
    model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    refused("down_proj", model, STAT(DENSE))


def test_a_sliced_model_is_sliced_again_unless_its_units_have_different_sizes() -> None:
    model = tiny_model("qwen3-untied")
    units = find_units(model)[0]
    slice_block(model, units, kept_groups(units, [0], range(100)))
    compressed(model, target=0.8, context=0)
    assert macs(model) < 0.81 * (2 * 36864 - 6144 - 28 * 192)
    other = tiny_model("qwen3-untied")
    one_each = Kept(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.arange(128))
    slice_block(other, find_units(other)[1], one_each)
    with pytest.raises(NotApplicable, match="heads or neurons of some blocks have other sizes"):
        compressed(other, target=0.8)


@pytest.mark.parametrize("target", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(target: float) -> None:
    with pytest.raises(
        ValueError, match=r"method\.target=.* is not possible; it must be a number above 0 and at most 1"
    ):
        STAT(DENSE, target=target)


def test_context_is_what_counts_layers_left_dense() -> None:
    model = random_model("llama")
    report = STAT(RTN(Grid(bits=4, group_size=16)), target=0.8, chunk=16).compress(
        model, TEXT, Context(sinq.Layers(exclude=("lm_head", "mlp.*")))
    )
    dense = [part.name for part in report.parts if part.kind == "weight" and part.relative_error is None]
    assert len(dense) == 6
    assert all(".mlp." in name for name in dense)
