"""What must hold for a model of any architecture, measured on a tiny random one.

Compressed at 8 bits it predicts nearly what the dense model does; saved and loaded, or streamed from a
checkpoint, it is the same bit for bit; every linear layer is compressed or named; statistics taken block by
block are those of plain hooks. Or there is one clear refusal before anything is changed.
"""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import sinq
from baselines.rtn import RTN
from sinq import Calibration, CompressionReport, Context, Grid, Layers, NotApplicable, OnMisfit, stream
from sinq.model.targets import linear_places, output_head
from tests.sinq.architectures.tiny import tiny, tokens
from tests.sinq.recorders import Recorder

METHOD = RTN(Grid(bits=8, group_size=16))
NLL_TOLERANCE = 0.01
"""Share of the dense model's NLL: weights of size 1 saturate a softmax, so differences may be large."""


@dataclass
class Outcome:
    """What was seen of one architecture: a row of the table."""

    layers: int = 0
    left_dense: dict[str, str] = field(default_factory=dict)
    calibration: str = ""
    reload: str = "bit for bit"
    stream: str = "bit for bit"


def check(name: str) -> Outcome:
    """Check an architecture; what does not hold is an AssertionError."""
    outcome, ids, dense = Outcome(), tokens(), tiny(name)
    expected, head = logits(dense, ids), output_head(dense)
    head_name = next((key for key, module in dense.named_modules() if module is head), None)
    exclude = experts_of_unknown_layout(dense, outcome)
    layers = Layers(exclude, OnMisfit.skip)
    model = tiny(name)
    report = METHOD.compress(model, context=Context(layers))
    outcome.layers = len(report.parts)
    outcome.left_dense |= report.left_dense | dict.fromkeys(report.skipped, "the format does not fit")
    every_linear_layer_is_named(model, outcome, head_name, exclude)
    found = logits(model, ids)
    difference = abs(nll(found, ids) - nll(expected, ids))
    assert difference < NLL_TOLERANCE * nll(expected, ids), f"NLL moves by {difference:.4f}"
    outcome.reload = after_reload(model, ids, found)
    outcome.stream = after_stream(dense, model, ids, found, layers)
    outcome.calibration = calibrated(name, exclude)
    return outcome


def refused(error: Exception) -> str:
    """The first sentence of a refusal, without folders, for the table."""
    line = re.sub(r"/\S*/(\w+)", r"\1", str(error).splitlines()[0])
    return f"refused: {re.split(r': missing|; use|: module', line)[0]}"


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits


def nll(values: Tensor, ids: Tensor) -> float:
    """Mean negative log-likelihood of each next token."""
    return nn.functional.cross_entropy(values[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).item()


def experts_of_unknown_layout(dense: PreTrainedModel, outcome: Outcome) -> tuple[str, ...]:
    """Exclude what the refusal says, as a user would."""
    exclude: tuple[str, ...] = ("lm_head",)
    while True:
        try:
            sinq.find_targets(dense, exclude)
        except ValueError as error:
            _, found, advice = str(error).partition("leave it dense with layers.exclude=['")
            if not found:
                raise
            exclude = (*exclude, advice.rstrip("']"))
            outcome.left_dense[str(error).split()[0]] = "excluded: experts of unknown layout"
        else:
            return exclude


def every_linear_layer_is_named(
    model: nn.Module, outcome: Outcome, head: str | None, exclude: tuple[str, ...]
) -> None:
    for target in linear_places(model):
        known = {head, *outcome.left_dense}
        excluded = any(target.name.endswith(f".{pattern}") for pattern in exclude)
        assert known & set(target.names) or excluded, f"{target.name} stays dense and nothing says so"
    for key, module in model.named_modules():
        dense = isinstance(module, nn.Linear | Conv1D)
        assert not dense or any(module in target.modules for target in linear_places(model)), key


def after_reload(model: PreTrainedModel, ids: Tensor, expected: Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            sinq.save(model, folder)
        except ValueError as error:
            return refused(error)
        same_model(sinq.load(folder), model, ids, expected)
    return "bit for bit"


def same_model(loaded: nn.Module, model: nn.Module, ids: Tensor, expected: Tensor) -> None:
    """All tensors are equal bit for bit; logits to the last digit, since mapped files are not aligned."""
    tensors = loaded.state_dict()
    assert tensors.keys() == model.state_dict().keys()
    wrong = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, tensors[key])]
    assert not wrong, f"read from disk, {wrong[:3]} differ"
    off = (logits(loaded, ids) - expected).norm() / expected.norm()
    assert off < 1e-6, f"read from disk, the model computes something else, by {off:.1e}"


def after_stream(
    dense: PreTrainedModel, model: nn.Module, ids: Tensor, expected: Tensor, layers: Layers
) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        dense.save_pretrained(source)
        try:
            stream(source, target, METHOD, Context(layers))
        except ValueError as error:
            return refused(error)
        same_model(sinq.load(target), model, ids, expected)
    return "bit for bit"


def calibrated(name: str, exclude: tuple[str, ...]) -> str:
    """Compare statistics of the dense model with plain hooks, and run the sequential loop to the end."""
    model, ids, store = tiny(name), tokens(3), {}
    fused = tuple(target.name for target in linear_places(model) if target.parameter is not None)
    excluded = tuple(
        target for target in fused if hasattr(model.get_submodule(target.rpartition(".")[0]), "is_transposed")
    )
    layers = Context(Layers((*exclude, *excluded), OnMisfit.skip))
    method = Recorder(Grid(bits=8, group_size=16))
    try:
        method.compress(model, Calibration(ids, sequential=False, store=store), layers)
    except NotApplicable as error:
        return refused(error)
    names = [key.rpartition(".")[0] for key in store]
    sums = hooked(tiny(name), names, ids)
    for key, sum_ in sums.items():
        found = store[f"{key}.Hessian"]["sum"].double()
        wrong = (found - sum_).norm() / sum_.norm().clamp_min(1e-30)
        assert wrong < 1e-3, f"the Hessian of {key} is wrong by {wrong:.1%}"
    model = tiny(name)
    report: CompressionReport = method.compress(model, Calibration(ids), layers)
    assert report.parts
    assert logits(model, ids).isfinite().all()
    return f"as plain hooks ({len(sums)} inputs)"


@torch.no_grad()
def hooked(model: nn.Module, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """XᵀX of each layer's inputs over all windows, of every module that has its weight, float64."""
    sums: dict[str, Tensor] = {}

    def see(name: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.T @ x

        return hook

    for target in linear_places(model):
        if target.name in names:
            for module in target.modules:
                module.register_forward_pre_hook(see(target.name))
    for window in ids:
        model(window[None], use_cache=False)
    return sums
