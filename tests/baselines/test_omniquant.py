"""OmniQuant: exact transformations, rounding against the paper's formulas, and what training gains."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from baselines.hadamard import Hadamard, ResidualHadamard
from baselines.omniquant import OmniQuant
from baselines.omniquant.clipping import Clipping
from baselines.omniquant.trainer import BlockTrainer
from baselines.omniquant.transformation import Transformation, smoothed, transformation
from baselines.rtn import RTN
from baselines.smoothquant import SmoothQuant
from sinq import ActivationFormat, Activations, Calibration, Context, Grid, Layers, NotApplicable, Tuned, walk
from sinq.formats.activations import Per
from sinq.formats.grid import Levels
from sinq.formats.scalar import QuantizedTensor
from sinq.methods.coded_inputs import CodedInputs
from sinq.model.activations import ActivationQuantizer
from sinq.model.decoder import decoder
from sinq.model.edits import edits
from sinq.model.linear import CompressedLinear
from sinq.training.substitution import computing_with
from tests.baselines.inputs import with_outliers
from tests.conftest import tiny_model

TOKENS = torch.arange(4 * 24).reshape(4, 24) * 7 % 90
TEXT = Calibration(TOKENS)
GRID = Grid(bits=2, group_size=32, auxiliary_bits=32)
SHORT = OmniQuant(GRID, epochs=6, clipping_rate=0.1, relative_loss=True)
A4 = ActivationFormat(4, symmetric=False)
STATIC = ActivationFormat(4, Per.tensor, static=True)
FORMATS = (
    A4,
    ActivationFormat(4),
    ActivationFormat(4, group_size=8),
    ActivationFormat(8, Per.tensor, symmetric=False, clip_ratio=0.9),
)
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
}


def grouped(architecture: str) -> Any:
    """A model with grouped queries, whose biases and gains are not those of a fresh one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[architecture])).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
        elif "norm" in name:
            parameter.uniform_(0.5, 2)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def started(block: Any) -> Transformation:
    """A transformation whose peaks are all 1."""
    ones = {module: torch.ones(module.in_features) for module in smoothed(block, True)}  # type: ignore[arg-type]
    return transformation(block, ones, 0.5, True, torch.device("cpu"))


def randomized(block: Any) -> Transformation:
    """A transformation of random s."""
    found = started(block)
    for s in found.leaves:
        s.uniform_(0.25, 4)
    return found


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_transformation_keeps_the_function_in_float64(architecture: str) -> None:
    """Effects are applied in float64: with grouped queries, rotary embeddings, biases, norms of heads."""
    model = grouped(architecture).double()
    before = logits(model)
    for block in decoder(model).blocks:
        for fold in randomized(block).folds:
            for effect in fold.effects:
                module, name = effect.parameter.module, effect.parameter.name
                changed = effect.applied(getattr(module, name), fold.s.double())
                assert not torch.equal(changed, getattr(module, name))
                setattr(module, name, nn.Parameter(changed, requires_grad=False))
    torch.testing.assert_close(logits(model), before, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_block_computes_the_same_with_transformed_tensors(architecture: str) -> None:
    model = grouped(architecture)
    expected = logits(model)
    block = decoder(model).blocks[1]
    tensors = randomized(block).tensors(torch.device("cpu"))
    with computing_with(model.model.layers[1], tensors):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), expected)
    # norms and readers, v o, up down, q k: nothing is left out
    names = {name for name, p in model.model.layers[1].named_parameters() if p.ndim == 2}
    assert len([ref for ref in tensors if ref.name == "weight"]) >= len(names)


def test_an_untied_pair_of_queries_and_keys_would_change_the_function() -> None:
    """The test above can fail: s that differs within a rotary pair, as in ABQ-LLM's code."""
    model = grouped("llama").double()
    before = logits(model)
    attention = model.model.layers[0].self_attn
    s = torch.rand(2, 1, 16, dtype=torch.float64) + 0.5
    for layer, factor in ((attention.q_proj, 1 / s), (attention.k_proj, s)):
        rows = factor.expand(2, len(layer.weight) // 32, 16).reshape(-1)
        layer.weight.mul_(rows[:, None])
        layer.bias.mul_(rows)
    assert (logits(model) - before).abs().max() > 1e-6


def test_the_start_is_that_of_the_formula() -> None:
    model = grouped("llama")
    block = decoder(model).blocks[0]
    peaks = {module: torch.rand(module.in_features) + 0.1 for module in smoothed(block, True)}  # type: ignore[arg-type]
    found = transformation(block, peaks, 0.75, True, torch.device("cpu"))
    mlp = model.model.layers[0].mlp
    weights = torch.maximum(mlp.gate_proj.weight.abs().amax(0), mlp.up_proj.weight.abs().amax(0))
    expected = peaks[mlp.gate_proj] ** 0.75 / weights**0.25
    torch.testing.assert_close(found.folds[1].s, expected)
    down = peaks[mlp.down_proj] ** 0.75 / mlp.down_proj.weight.abs().amax(0) ** 0.25
    torch.testing.assert_close(found.folds[4].s, down)


def reference(weight: np.ndarray, low: np.ndarray, high: np.ndarray, top: int) -> np.ndarray:
    """The card's formulas in float64, for one group of each row."""
    lowest = weight.min(1) / (1 + np.exp(-low))
    highest = weight.max(1) / (1 + np.exp(-high))
    scale = (highest - lowest) / top
    zero = np.round(-lowest / scale)
    codes = np.clip(np.round(weight / scale[:, None] + zero[:, None]), 0, top)
    found: np.ndarray = (codes - zero[:, None]) * scale[:, None]
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]), st.integers(0, 3))
def test_rounding_is_that_of_the_formulas(seed: int, bits: int, fewer: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 32, generator=generator)
    logits = torch.randn(2, 6, 1, generator=generator)
    top = max(2, 2**bits - 1 - fewer)
    clipping = Clipping(Grid(bits, 32, auxiliary_bits=32), top, logits)
    ends = (part[:, 0].double().numpy() for part in logits)
    expected = reference(weight.double().numpy(), *ends, top)
    found = clipping.rounded(weight)
    # a weight in the middle between two codes may go to either
    steps = (found.numpy() - expected) / clipping.scales(weight)[0].numpy()
    assert (np.abs(steps) < 1.01).all()
    assert (np.abs(steps) < 1e-3).mean() > 0.98
    torch.testing.assert_close(clipping.store(weight).dequantize(), found)


@pytest.mark.parametrize("symmetric", [False, True])
def test_whole_ranges_are_round_to_nearest(symmetric: bool) -> None:
    weight = torch.randn(16, 64)
    grid = replace(GRID, symmetric=symmetric)
    clipping = Clipping(grid, 3)
    expected = QuantizedTensor.round(weight, grid)
    assert torch.equal(clipping.store(weight).codes(), expected.codes())
    torch.testing.assert_close(clipping.rounded(weight), expected.dequantize())


def test_gradients_of_clipping_are_those_of_the_scale() -> None:
    """∂ŵ/∂scale is code − zero where w is cut, and code − zero − w/scale elsewhere."""
    weight = torch.randn(5, 32)
    clipping = Clipping(GRID, 3, torch.randn(2, 5, 1).requires_grad_())
    pull = torch.randn(5, 32)
    (clipping.rounded(weight) * pull).sum().backward()
    scale, zero = (part.detach()[..., 0, None] for part in clipping.scales(weight) if part is not None)
    place = weight / scale + zero
    inside = (place.round() >= 0) & (place.round() <= 3)
    slope = place.round().clamp(0, 3) - zero - torch.where(inside, weight / scale, 0)
    by_scale = (slope * pull).sum(1)
    assert clipping.logits is not None
    assert clipping.logits.grad is not None
    share = clipping.logits.detach().sigmoid()[..., 0]
    expected = by_scale / 3 * share[1] * (1 - share[1]) * weight.amax(1)
    torch.testing.assert_close(clipping.logits.grad[1, :, 0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_inputs_are_rounded_as_they_will_be(format: ActivationFormat) -> None:
    x = torch.randn(2, 5, 32, requires_grad=True)
    found = ActivationQuantizer(format).through(x)
    torch.testing.assert_close(found, ActivationQuantizer(format)(x.detach()))
    (found * torch.randn(x.shape)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_gradient_of_rounded_inputs_reaches_the_scale() -> None:
    x = torch.tensor([[0.3, -0.2, 1.0, 0.55]], requires_grad=True)
    ActivationQuantizer(ActivationFormat(3)).through(x).sum().backward()
    assert x.grad is not None
    assert not torch.allclose(x.grad, torch.ones(1, 4))
    assert torch.allclose(x.grad[0, :2], torch.ones(2))  # not the largest: straight through


def error(method: Any, model: Any) -> float:
    """Error of the logits of a compressed model, relative to the dense one's."""
    expected = logits(model)
    method.compress(model, TEXT)
    return ((logits(model) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("method", [SHORT, replace(SHORT, down=True), replace(SHORT, transformation=False)])
def test_it_loses_less_than_rounding_to_nearest(method: OmniQuant) -> None:
    rounded = Activations(RTN(GRID), A4), Activations(method, A4)
    assert error(method, with_outliers("llama")) < 0.9 * error(RTN(GRID), with_outliers("llama"))
    nearest, learned = (error(each, with_outliers("llama")) for each in rounded)
    assert learned < 0.9 * nearest


@pytest.mark.parametrize("inputs", [None, A4])
@pytest.mark.parametrize("method", [SHORT, replace(SHORT, down=True), replace(SHORT, clipping=False)])
def test_what_is_trained_is_what_is_stored(method: OmniQuant, inputs: ActivationFormat | None) -> None:
    """The last loss is the error of the first block as it is stored, its rounded inputs included."""
    losses: list[float] = []

    class Watching(BlockTrainer):
        def _train(self, student: Any) -> tuple[float, float]:
            found = super()._train(student)
            losses.append(found[1])
            return found

    class Watched(OmniQuant):
        name = f"test_watched_{method.down}_{method.clipping}_{inputs}"

        def trainer(self, blocks: Any, context: Context) -> BlockTrainer:
            return Watching(self, blocks, context.inputs)

    model = tiny_model("llama")
    before = hidden_states(model)[1]
    watched = Watched(**{field.name: getattr(method, field.name) for field in fields(method)})
    (watched if inputs is None else Activations(watched, inputs)).compress(model, TEXT)
    expected = (hidden_states(model)[1] - before).square().mean().item()
    assert losses[0] == pytest.approx(expected, rel=1e-3)


def hidden_states(model: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found: tuple[Tensor, ...] = model(TOKENS, output_hidden_states=True).hidden_states
    return found


def test_rounded_inputs_are_one_edit_for_each_layer() -> None:
    model = tiny_model("llama")
    Activations(SHORT, A4).compress(model, TEXT)
    layers = [m for m in model.modules() if isinstance(m, CompressedLinear)]
    assert all(layer.inputs is not None for layer in layers)
    assert sum(type(each).__name__ == "RoundInputs" for each in edits(model)) == len(layers) == 14


def test_nothing_is_left_of_rounded_inputs_without_them_around() -> None:
    model = tiny_model("llama")
    SHORT.compress(model, TEXT, Context(inputs=CodedInputs(A4)))
    assert not any(isinstance(m, ActivationQuantizer) for m in model.modules())


def test_targets_are_what_dense_blocks_make_of_dense_inputs() -> None:
    seen: list[Tensor] = []

    class Watching(BlockTrainer):
        def observe(self, block: Any) -> Any:
            found = super().observe(block)
            assert self.dense is not None
            seen.append(torch.cat(list(self.dense)))
            return found

    class Watched(OmniQuant):
        name = "test_watched"

        def trainer(self, blocks: Any, context: Context) -> BlockTrainer:
            return Watching(self, blocks, context.inputs)

    model = tiny_model("llama")
    expected = hidden_states(model)
    Watched(GRID, epochs=1).compress(model, TEXT)
    torch.testing.assert_close(seen[0], expected[1], rtol=1e-4, atol=1e-4)
    assert len(seen) == 2


def test_without_steps_it_is_rounding_with_the_first_clipping() -> None:
    """σ(4) of the range of each group, of the dense weight."""
    model, dense = tiny_model("llama"), tiny_model("llama")
    OmniQuant(GRID, transformation=False, epochs=1, clipping_rate=1e-12).compress(model, TEXT)
    weight = dense.model.layers[1].mlp.up_proj.weight
    expected = Clipping(GRID, 3).learned(weight).store(weight)
    found = model.model.layers[1].mlp.up_proj.weight.value
    assert (found.codes() == expected.codes()).float().mean() > 0.999
    torch.testing.assert_close(found.scale(), expected.scale())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_again_and_says_what_it_gained(dtype: torch.dtype) -> None:
    reports, states = [], []
    for _ in range(2):
        model = tiny_model("qwen3-tied").to(dtype)
        reports.append(SHORT.compress(model, TEXT))
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert len(reports[0].parts) == 14
    assert all(0 < part.decided["block_trained"] < 1 for part in reports[0].parts)


def test_excluded_layers_are_transformed_and_not_rounded() -> None:
    model = tiny_model("llama")
    before = model.model.layers[0].self_attn.k_proj.weight.clone()
    SHORT.compress(model, TEXT, Context(Layers(exclude=("lm_head", "k_proj"))))
    after = model.model.layers[0].self_attn.k_proj.weight
    assert after.shape == before.shape
    assert not torch.equal(after, before)
    assert isinstance(model.model.layers[0].self_attn.q_proj, CompressedLinear)


def test_a_relative_loss_does_not_depend_on_the_unit() -> None:
    """Outputs of a block that are 2⁻⁷ as large: codes are the same with a relative loss, and not without."""
    kept = {}
    for relative in (False, True):
        values = []
        for unit in (1.0, 2.0**-7):
            model: Any = tiny_model("llama")
            model.model.embed_tokens.weight.mul_(unit)
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(unit)
                layer.mlp.down_proj.weight.mul_(unit)
                for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                    norm.variance_epsilon = 1e-6 * unit**2
            replace(SHORT, transformation=False, relative_loss=relative).compress(model, TEXT)
            values.append(model.model.layers[0].mlp.up_proj.weight.value.scale())
        kept[relative] = (values[0] / values[1] - 1).abs().mean().item()
    assert kept[True] < 0.1 * kept[False]


def test_any_architecture_without_transformation() -> None:
    method = replace(SHORT, transformation=False)
    assert error(method, tiny_model("gpt2")) < error(RTN(GRID), tiny_model("gpt2"))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "method", "calibration", "message"),
    [
        ("llama", SHORT, None, "OmniQuant learns from calibration text"),
        ("opt", SHORT, TEXT, "OPTForCausalLM is not an architecture"),
        ("moe", SHORT, TEXT, "Qwen3MoeForCausalLM has experts"),
        ("moe", replace(SHORT, transformation=False), TEXT, "fused experts, which OmniQuant does not train"),
        ("llama", SHORT, Calibration(TOKENS, sequential=False), "calibration.sequential=false"),
        (
            "llama",
            Activations(SHORT, STATIC),
            TEXT,
            "activation.static",
        ),
    ],
)
def test_refusals_leave_the_model(
    architecture: str, method: Any, calibration: Calibration | None, message: str
) -> None:
    model = tiny_model(architecture)
    with unchanged(model), pytest.raises(NotApplicable, match=message):
        method.compress(model, calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"method\.alpha=1\.5"),
        ({"epochs": 0}, r"method\.epochs=0"),
        ({"batch": 0}, r"method\.batch=0"),
        ({"clipping_rate": 0.0}, r"method\.clipping_rate=0"),
        ({"transformation_rate": float("nan")}, r"method\.transformation_rate=nan"),
        ({"grid": Grid(4, levels=Levels.nf4)}, r"grid\.levels=nf4"),
        ({"clipping": False, "transformation": False}, "nothing would be learned"),
    ],
)
def test_options_that_are_not_possible_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OmniQuant(**options)


def test_outputs_that_overflow_name_the_block() -> None:
    model = tiny_model("llama")
    for parameter in model.model.layers[1].mlp.parameters():
        parameter.mul_(1e14)
    with pytest.raises(ValueError, match=r"block 1: the loss is .* before training.*model\.dtype=float32"):
        SHORT.compress(model, TEXT)


@pytest.mark.parametrize("outer", [Tuned, Hadamard])
def test_a_method_that_would_leave_out_the_training_refuses_it(outer: Any) -> None:
    with pytest.raises(NotApplicable, match="inner=OmniQuant"):
        outer(SHORT)
    model = tiny_model("llama")
    plan = SHORT.plan(model, TEXT, Context())
    block = next(iter(walk(model, TOKENS, Context(), plan.steps)))
    with pytest.raises(NotApplicable, match="cannot be inside a method that does"):
        SHORT.compress_block(block)


@pytest.mark.parametrize("outer", [SmoothQuant, ResidualHadamard])
def test_it_is_inside_methods_of_whole_models(outer: Any) -> None:
    report = Activations(outer(replace(SHORT, epochs=1)), A4).compress(tiny_model("llama"), TEXT)
    assert all(part.decided["block_trained"] > 0 for part in report.parts)


def test_divergence_names_the_block_and_the_rates() -> None:
    class Diverging(BlockTrainer):
        def loss(self, student: Any, window: int) -> Tensor:
            found = super().loss(student, window)
            moved = (student.layers[0].clipping.logits - 4).abs().max() > 0.5
            return found * torch.inf if moved else found

    class Diverges(OmniQuant):
        name = "test_diverges"

        def trainer(self, blocks: Any, context: Context) -> BlockTrainer:
            return Diverging(self, blocks, None)

    with pytest.raises(ValueError, match=r"block 0 has diverged.*lower method\.transformation_rate"):
        Diverges(GRID, epochs=6, clipping_rate=0.1, relative_loss=True).compress(tiny_model("llama"), TEXT)
