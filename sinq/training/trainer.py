"""A small trainer: AdamW on any loss, parameters and batches, for compression that trains and small models.

    log = Trainer(Training(steps=100), loss, parameters, Windows(tokens, 8, 1, seed=0), device).run()

Each step sums the gradients of the parts of its batch, clips their norm, and updates. What it computes
depends on the step alone: the batch is a function of it (`batches.py`), and random numbers (dropout) are
seeded by it. So a training is the same at every run on one machine, and one that was killed goes on from its
last saved state to the same weights, bit for bit on a CPU.

Parameters stay in their own dtype. With `Precision.bfloat16` matrix products are in bfloat16 (autocast),
which needs no scaling of the loss; float16, which does, is left out.

A loss or gradients that are not finite stop the training before they reach the parameters, which keep their
last good values and are saved; the message says where.

Parameters may have shares of the learning rate of their own (`shares`); all other options are the same for
all. Not covered: several devices, early stopping.
"""

import enum
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sinq.common.options import SEED, check, number, several, whole
from sinq.common.progress import Progress, silent
from sinq.common.tensor_store import TensorStore
from sinq.common.timing import timed
from sinq.training.accumulation import accumulate
from sinq.training.batches import Batches, seed_of
from sinq.training.log import TrainingLog
from sinq.training.saved_state import COMPANION, gathered, group_of, name_of_state, put_back
from sinq.training.schedule import Schedule, share_of_rate

SAVE_SECONDS = 60.0
"""Seconds between two saved states; a killed training loses so much work at most."""


class NotFiniteError(ValueError):
    """A loss or a gradient is NaN or infinite; the message says in which step."""


class Precision(enum.Enum):
    """Number format of matrix products. auto: bfloat16 on an accelerator that has it, else float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"

    def is_mixed(self, device: torch.device) -> bool:
        """Return whether products are in bfloat16 on a device."""
        if self is Precision.auto:
            return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return self is Precision.bfloat16


@dataclass(frozen=True)
class Training:
    """Options of a training.

    Raises:
        ValueError: an option is out of range, or `at_once` does not divide `batch`.
    """

    steps: int = 100
    """Number of updates."""
    batch: int = 8
    """Windows of text per update."""
    at_once: int = 1
    """Windows that go through the model at once; gradients of a batch are sums over its parts."""
    learning_rate: float = 1e-4
    schedule: Schedule = Schedule.cosine
    """Course of the learning rate after the warm-up."""
    warm_up: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    """Largest norm of all gradients together; null for no bound."""
    precision: Precision = Precision.auto
    gradient_checkpointing: bool = False
    """Keep only the inputs of each block on the way forwards: less memory, a second forward pass."""
    seed: int = 0
    """Seed of the order of windows, of new parameters and of dropout."""

    def __post_init__(self) -> None:
        check(
            self,
            "training",
            steps=whole(1),
            batch=whole(1),
            at_once=whole(1),
            learning_rate=number(above=0, most=1000),
            warm_up=number(least=0, most=1),
            betas=several(number(least=0, below=1), length=2),
            weight_decay=number(least=0),
            clip=number(above=0),
            seed=SEED,
        )
        object.__setattr__(self, "betas", tuple(self.betas))  # a list, where a file gave it: not hashable
        if self.batch % self.at_once:
            raise ValueError(
                f"training.at_once={self.at_once} is not possible; it must divide training.batch={self.batch}"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm_up = round(self.warm_up * self.steps)
        return self.learning_rate * share_of_rate(self.schedule, step, self.steps, warm_up)


class Companion(Protocol):
    """Something that looks at clipped gradients, and has a state that belongs to the training's."""

    def before_update(self, step: int) -> None:
        """Look at the gradients of a step, which are clipped, before parameters change."""

    def state(self) -> Mapping[str, Tensor]:
        """Return the state after the present step."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put a state of before back."""


class NoCompanion:
    """A companion that does nothing."""

    def before_update(self, step: int) -> None:
        pass

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        pass


@dataclass(eq=False)
class Trainer:
    """A training of given parameters; `run` carries it out."""

    options: Training
    loss: Callable[[Tensor], Tensor]
    """Mean loss of a part of a batch, a scalar."""
    parameters: Mapping[str, Tensor]
    """Leaves to train, by names that are the same at every run."""
    batches: Batches
    device: torch.device
    companion: Companion = field(default_factory=NoCompanion)
    store: TensorStore | None = None
    """Store of the state, in which a training with the same options finds it again."""
    progress: Progress = silent
    shares: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rate by name of parameter; 1 for those that are not named."""
    measures: Callable[[], Mapping[str, float]] = dict
    """Other numbers of the step that is over, for the log: the same names in every step."""

    def run(self) -> TrainingLog:
        """Train to the last step, from the beginning or from the stored state.

        Raises:
            NotFiniteError: a loss or a gradient is not finite; parameters and store have the state before.
        """
        optimizer = self._optimizer()
        log = self._resumed(optimizer)
        saved = time.monotonic()
        todo = range(log.steps, self.options.steps)
        for step in self.progress(todo, lambda: _words(log), len(todo)):
            try:
                self._step(step, optimizer, log)
            except NotFiniteError:
                self._save(optimizer, log)
                raise
            if step == todo[-1] or time.monotonic() - saved >= SAVE_SECONDS:
                self._save(optimizer, log)
                saved = time.monotonic()
        return log

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        betas = (options.betas[0], options.betas[1])
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(self.shares.get(name, 1.0), []).append(parameter)
        named = [{"params": parameters, "share": share} for share, parameters in groups.items()]
        return torch.optim.AdamW(named, options.learning_rate, betas, weight_decay=options.weight_decay)

    def _resumed(self, optimizer: torch.optim.Optimizer) -> TrainingLog:
        name = name_of_state(self.options, self.parameters)
        if self.store is None or name not in self.store:
            return TrainingLog()
        state = self.store[name]
        self.companion.restore(group_of(state, COMPANION))
        return put_back(state, self.parameters, optimizer)

    def _save(self, optimizer: torch.optim.Optimizer, log: TrainingLog) -> None:
        if self.store is not None:
            name = name_of_state(self.options, self.parameters)
            self.store[name] = gathered(self.parameters, optimizer, self.companion.state(), log)

    def _step(self, step: int, optimizer: torch.optim.Optimizer, log: TrainingLog) -> None:
        parts = self.batches(step)
        seeded = _seeded(self.options.seed, step, self.device)
        with timed(self.device) as clock, torch.enable_grad(), seeded, _in_fixed_order(self.device):
            optimizer.zero_grad(set_to_none=True)
            loss = accumulate(self._mixed_loss, parts)
            self._require_finite(loss, "loss", step)
            norm = self._clip()
            self._require_finite(norm, "norm of the gradients", step)
            self.companion.before_update(step)
            for group in optimizer.param_groups:
                group["lr"] = self.options.rate(step) * group["share"]
            optimizer.step()
        log.add(loss, norm, sum(part.numel() for part in parts), clock.seconds, self.measures())

    def _mixed_loss(self, part: Tensor) -> Tensor:
        mixed = self.options.precision.is_mixed(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            return self.loss(part)

    @torch.no_grad()
    def _clip(self) -> float:
        """Bound the norm of all gradients together; return the norm before."""
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.parameters.values() if p.grad is not None)
        if self.options.clip is not None and norm.isfinite():
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.options.clip, norm)
        return norm.item()

    def _require_finite(self, value: float, what: str, step: int) -> None:
        if not -float("inf") < value < float("inf"):
            raise NotFiniteError(
                f"training stopped: the {what} is {value} in step {step + 1} of {self.options.steps};"
                f" the state after {step} steps is kept; try a lower training.learning_rate"
            )


def _words(log: TrainingLog) -> str:
    return f"training, loss {log.losses[-1]:.3f}" if log.losses else "training"


@contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers that depend on seed and step alone, and give the generators back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(seed, step))
        yield


@contextmanager
def _in_fixed_order(device: torch.device) -> Iterator[None]:
    """Let sums on an accelerator have a fixed order where torch has such a kernel; on a CPU they do."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
