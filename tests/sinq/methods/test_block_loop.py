"""The block loop with calibration, on toy methods that record what they are given."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sinq import (
    SINQ,
    Calibration,
    Context,
    Grid,
    Kernel,
    LayerMethod,
    Layers,
    QuantizedTensor,
    find_targets,
    using,
)
from sinq.calibration.statistics import Hessian
from sinq.model.blocks import find_blocks
from tests.conftest import tiny_model, tiny_tokens
from tests.sinq.recorders import MeanRecorder, Recorder


@pytest.fixture(autouse=True)
def nothing_to_warm_up() -> Iterator[None]:
    """Methods are called once per layer, then: no kernel is compiled."""
    with using(Kernel.reference):
        yield


def inputs_of(model: nn.Module, name: str, tokens: Tensor) -> Tensor:
    """All inputs of a layer over all windows, (tokens, in), by a hook on an ordinary forward pass."""
    caught: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: caught.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    for window in tokens:
        model(window[None])
    hook.remove()
    return torch.cat(caught)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # eager attention is causal by its mask alone
@pytest.mark.parametrize("architecture", ["llama", "qwen3-tied", "gpt2", "opt"])
def test_statistics_are_those_of_the_inputs_behind_compressed_blocks(
    architecture: str, attention: str
) -> None:
    tokens, model, method = tiny_tokens(3), tiny_model(architecture), Recorder()
    model.set_attn_implementation(attention)
    report = method.compress(model, Calibration(tokens))
    blocks = next(name for name, module in model.named_modules() if module is find_blocks(model))
    in_blocks = [layer.name for layer in report.parts if layer.name.startswith(blocks)]
    for name, statistic in zip(in_blocks, method.seen, strict=False):
        # The loop should have shown this layer a model with earlier blocks compressed and its block not yet.
        partly, block = tiny_model(architecture), name.removeprefix(f"{blocks}.").split(".")[0]
        earlier = [other for other in in_blocks if other.removeprefix(f"{blocks}.").split(".")[0] < block]
        if earlier:
            names = [target.name for target in find_targets(partly)]
            Rounding().compress(
                partly,
                context=Context(
                    Layers(exclude=("lm_head", *(other for other in names if other not in earlier)))
                ),
            )
        x = inputs_of(partly, name, tokens).double()
        assert statistic.tokens == tokens.numel()
        torch.testing.assert_close(statistic.matrix(), x.T @ x / len(x), rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Rounding(LayerMethod):
    """What `Recorder` does to weights, without calibration."""

    grid: Grid = Grid(bits=2, group_size=32)

    def quantize(self, weight: Tensor, statistic: None = None) -> QuantizedTensor:
        return QuantizedTensor.round(weight, self.grid)


def test_a_calibrated_loop_compresses_like_a_free_one_where_statistics_are_ignored() -> None:
    tokens, calibrated, free = tiny_tokens(), tiny_model("llama"), tiny_model("llama")
    report = Recorder().compress(calibrated, Calibration(tokens))
    Rounding().compress(free)
    assert torch.equal(calibrated(tokens).logits, free(tokens).logits)
    assert report.seconds_statistics > 0


def test_layers_outside_the_blocks_come_last_with_statistics_of_the_compressed_model() -> None:
    tokens, model, method = tiny_tokens(), tiny_model("llama"), MeanRecorder()
    report = method.compress(model, Calibration(tokens), Context(Layers(exclude=())))
    assert report.parts[-1].name == "lm_head"
    expected = inputs_of(model, "lm_head", tokens).abs().mean(0)
    torch.testing.assert_close(method.seen[-1].mean_magnitude(), expected)  # type: ignore[attr-defined]


def test_hooks_and_stand_ins_are_gone_afterwards() -> None:
    model = tiny_model("llama")
    Recorder().compress(model, Calibration(tiny_tokens()))
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


def test_half_precision_inputs_do_not_overflow_a_hessian() -> None:
    hessian = Hessian(4, torch.device("cpu"))
    hessian.update(torch.full((2, 3, 4), 1000.0, dtype=torch.float16))
    assert torch.equal(hessian.matrix(), torch.full((4, 4), 1e6, dtype=torch.float64))


def test_a_method_that_needs_statistics_says_so() -> None:
    with pytest.raises(ValueError, match="Recorder needs calibration text: it works from the Hessian"):
        Recorder().compress(tiny_model("llama"))
    with pytest.raises(ValueError, match=r"fused experts \(model\.layers\.0\.mlp\.experts"):
        Recorder().compress(tiny_model("moe"), Calibration(tiny_tokens()))


def test_progress_sees_every_layer() -> None:
    calls = []

    def watch(items: Any, description: str, total: int) -> Any:
        calls.append((description, total, len(list(items))))
        return items

    SINQ(Grid(bits=8, group_size=32)).compress(tiny_model("llama"), context=Context(progress=watch))
    assert calls == [("quantizing layers", 14, 14)]


@pytest.mark.parametrize("tiling", [1, 2])
@pytest.mark.parametrize("calibrated", [True, False])
def test_compiling_is_reported_apart_and_changes_nothing(tiling: int, calibrated: bool) -> None:
    method = (Recorder if calibrated else SINQ)(Grid(group_size=32, tiling=tiling))
    model, other = tiny_model("llama"), tiny_model("llama")
    calibration = Calibration(tiny_tokens(2)) if calibrated else None
    assert method.compress(model, calibration).seconds_compile == 0
    with using(Kernel.auto):
        report = method.compress(other, calibration)
    assert report.seconds_compile > 0
    assert len(report.parts) == 14
