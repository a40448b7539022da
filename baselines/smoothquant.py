"""SmoothQuant (arXiv 2211.10438): outliers of activations move into the weights before both are rounded.

Few channels of activations are much larger than the others and take the range of a scale for themselves;
weights are even. So each channel j of a layer's inputs is divided by

    s_j = max|x_j|^α / max|W_j|^(1−α)          max|W_j|: over all matrices that read the channel

and column j of the matrices multiplied by it. The division is folded into the layer before: the norm's gain
(as published, for q k v and gate up), or as options the rows of up for down, and those of v for o. The
model's function stays. Maxima of weights, and s, are floored at 1e-5, as in the authors' code.

`inner` rounds the weights; inputs are rounded by `Activations` around all of it. The authors round weights in
whole matrices or rows, here each group of a row has a scale. Their α is 0.5; for Llama 0.8 to 0.9.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sinq import Calibration, Context, Method, NotApplicable, Site, SiteKind, collect
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import check, number
from sinq.methods.rewriting import Rewriting
from sinq.model.decoder import Block, ParameterRef, decoder
from sinq.model.folding import columns_by_head, fold_into_norm, fold_into_up, fold_into_values

FLOOR = 1e-5
"""Smallest maximum of weights, and smallest s."""


class Peaks:
    """The largest magnitude of each channel of a module's inputs."""

    kind = SiteKind.inputs

    def __init__(self) -> None:
        self.largest: Tensor | None = None
        """float32 (in,); None before the first inputs."""

    def update(self, inputs: Tensor) -> None:
        """Take note of inputs, (..., in)."""
        peaks = inputs.reshape(-1, inputs.shape[-1]).abs().amax(0).float()
        self.largest = peaks if self.largest is None else torch.maximum(self.largest, peaks)


@dataclass(frozen=True)
class SmoothQuant(Rewriting):
    """Smoothing of activations around `inner`.

    Raises:
        ValueError: an option is out of its range.
    """

    name: ClassVar[str] = "smoothquant"

    inner: Method
    alpha: float = 0.5
    """Migration strength: 0 evens out the weights, 1 the activations."""
    down: bool = False
    """Smooth the inputs of down too."""
    output: bool = False
    """Smooth the inputs of o too."""

    def __post_init__(self) -> None:
        check(self, "method", alpha=number(least=0, most=1))

    @property
    def needs_calibration(self) -> bool:
        return True

    def rewrite(self, model: nn.Module, calibration: Calibration | None, context: Context) -> None:
        """Smooth all blocks, by maxima of the dense model.

        Raises:
            NotApplicable: there is no text; the architecture is not known; down is of fused experts.
            ValueError: an input is not finite.
        """
        if calibration is None:
            raise NotApplicable(f"SmoothQuant needs calibration text; {PASS_CALIBRATION}")
        blocks, device = decoder(model).blocks, context.device_for(model)
        peaks = self._peaks(model, blocks, calibration, context)
        for block in context.progress(blocks, "smoothing", len(blocks)):
            self._smooth(block, peaks, device)

    def _peaks(
        self, model: nn.Module, blocks: tuple[Block, ...], calibration: Calibration, context: Context
    ) -> dict[nn.Module, Tensor]:
        """Return the largest magnitudes of the inputs of each module that is smoothed."""
        names = {module: name for name, module in model.named_modules()}
        seen = {names[part.module]: Peaks() for block in blocks for part in self._smoothed(block)}
        watched = {Site(SiteKind.inputs, name): each for name, each in seen.items()}
        collect(model, watched, calibration.tokens, context)
        return {module: _finite(seen[name].largest, name) for module, name in names.items() if name in seen}

    def _smoothed(self, block: Block) -> Iterator[ParameterRef]:
        """Yield a matrix for each input that is smoothed."""
        for norm in block.norms:
            yield norm.matrices[0]
        if self.output:
            yield block.output
        for gated in block.gated if self.down else ():
            if gated.down.name != "weight":
                raise NotApplicable(
                    "method.down=true is not possible with fused experts, whose inputs of down do not show;"
                    " use method.down=false"
                )
            yield gated.down

    def _smooth(self, block: Block, peaks: dict[nn.Module, Tensor], device: torch.device) -> None:
        for norm in block.norms:
            largest = torch.stack([_column_peaks(matrix.read(device)) for matrix in norm.matrices]).amax(0)
            fold_into_norm(norm, 1 / self.factor(peaks[norm.matrices[0].module].to(device), largest), device)
        if self.output:
            by_head = columns_by_head(block, device)
            inputs = peaks[block.output.module].to(device).reshape(by_head.shape[1:]).amax(1)
            factor = self.factor(inputs, by_head.abs().amax((0, 2)))
            fold_into_values(block, 1 / factor.flatten(), device)
        for gated in block.gated if self.down else ():
            largest = _column_peaks(gated.down.read(device))
            fold_into_up(gated, 1 / self.factor(peaks[gated.down.module].to(device), largest), device)

    def factor(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Return s of channels from the largest magnitudes of inputs and weights, of one shape."""
        weighed = weights.clamp_min(FLOOR) ** (1 - self.alpha)
        return (inputs**self.alpha / weighed).clamp_min(FLOOR)


def _column_peaks(matrix: Tensor) -> Tensor:
    """Return the largest magnitude of each column of matrices (…, out, in), (in,)."""
    return matrix.flatten(0, -2).abs().amax(0)


def _finite(peaks: Tensor | None, name: str) -> Tensor:
    """Return peaks that were seen; raise `ValueError` where they are none or not finite."""
    if peaks is None or not peaks.isfinite().all():
        raise ValueError(f"{name}: its inputs are {'never seen' if peaks is None else 'not finite'}")
    return peaks
