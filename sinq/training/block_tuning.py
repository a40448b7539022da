"""Tuning of a block after its layers are compressed: codes stay, the numbers stored beside them are trained.

A compressed block has numbers that are not codes: codebooks and scales of its layers, gains of its norms,
biases. Adam trains them until the block's output is near that of the *dense* block on the same inputs. These
inputs went through the compressed blocks before it (AQLM, arXiv 2401.06118; the last step of most methods
below 3 bits).

    minimize  mean (block_q(X) − block_fp(X))²
    over      all tensors that `CompressedWeight.tunable` names, and parameters of one dimension

Training is in float32, one window at a time, with gradients summed over a batch. The last windows are held
out: after each epoch the loss on them is measured with numbers *as they are stored* (rounded to their stored
dtype), and the best numbers are kept. The start is a candidate, so on held-out windows a block is never worse
than before. With one window nothing is held out, and the loss is measured on the training window.
"""

from dataclasses import dataclass
from functools import partial

import torch

from sinq.common.options import SEED, check, number, several, whole
from sinq.model.blocks import HiddenStates
from sinq.model.walk import BlockView
from sinq.training.passes import passes
from sinq.training.trained_numbers import TrainedNumbers


@dataclass(frozen=True)
class TuningResult:
    """Mean squared errors on held-out windows before and after, and the epoch kept (0: the start)."""

    before: float
    after: float
    epoch: int


@dataclass(frozen=True)
class BlockTuning:
    """Options of tuning.

    Defaults are those of AQLM's published recipe, except the batch, which there is 32 windows of 4,096
    tokens.

    Raises:
        ValueError: an option is out of range.
    """

    epochs: int = 10
    """Greatest number of passes over the windows."""
    patience: int = 3
    """Number of passes without a better loss on the held-out windows after which training stops."""
    batch: int = 4
    """Number of windows per step."""
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    validation: float = 0.125
    """Share of the windows that is held out; at least one window is held out, and at least one is not."""
    seed: int = 0
    """Seed of the order of windows."""

    def __post_init__(self) -> None:
        check(
            self,
            "tuning",
            epochs=whole(1),
            patience=whole(1),
            batch=whole(1),
            learning_rate=number(above=0, most=1000),
            betas=several(number(least=0, below=1), length=2),
            validation=number(above=0, below=1),
            seed=SEED,
        )

    def tune(self, block: BlockView, targets: HiddenStates) -> TuningResult:
        """Train the numbers of a block, and replace its values and parameters; old ones are not written to.

        Args:
            targets: outputs of the dense block on `block.inputs`.
        """
        numbers = TrainedNumbers(block.module)
        training, held_out = self._split(len(block.inputs))
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(numbers.leaves, self.learning_rate, self.betas)
        kept = 0
        best = numbers.rounded()
        before = after = _stored_loss(block, targets, numbers, held_out)
        error = partial(_trained_error, block, targets, numbers)
        for epoch in passes(optimizer, error, training, self.epochs, self.batch, generator):
            loss = _stored_loss(block, targets, numbers, held_out)
            if loss < after:
                best, kept, after = numbers.rounded(), epoch, loss
            elif epoch - kept >= self.patience:
                break
        numbers.store(best)
        return TuningResult(before, after, kept)

    def _split(self, count: int) -> tuple[range, range]:
        """Return the windows to train on and the held-out ones; a single window is both."""
        held = min(max(1, round(self.validation * count)), count - 1)
        return range(count - held), range(count - held, count) if held else range(count)


def _stored_loss(block: BlockView, targets: HiddenStates, numbers: TrainedNumbers, windows: range) -> float:
    """Return the mean squared error on windows of the block as it would be stored."""
    with torch.no_grad(), numbers.computing([number.float() for number in numbers.rounded()]):
        return sum(_error(block, targets, index).item() for index in windows) / len(windows)


def _trained_error(
    block: BlockView, targets: HiddenStates, numbers: TrainedNumbers, index: int
) -> torch.Tensor:
    """Return the mean squared error on one window with numbers that are being trained."""
    with numbers.computing(numbers.leaves):
        return _error(block, targets, index)


def _error(block: BlockView, targets: HiddenStates, index: int) -> torch.Tensor:
    """Return the mean squared error on one window, computed in float32."""
    output = block.run(block.inputs[index], index, torch.float32)
    return torch.nn.functional.mse_loss(output, targets[index].to(output))
