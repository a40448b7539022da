"""Models that are trained here from random weights, with every checkpoint of their training.

    python run.py model=decoder1                     the model at the end of its training
    python run.py -m model=decoder1 model.step=0,250,500,1000

All that decides the weights is an option: architecture, text (its calibration part), the tokenizer (byte
pairs or words) that is learned on it, windows, training, seed and kind of device. A training is carried out
once, under the cache; one that was killed goes on. Its checkpoints are folders as the hub has them, and
loaded anywhere.

Perplexities of models with different tokenizers are not comparable, and no table sets them side by side:
compare models of one `text`, one `vocabulary` and one kind of `tokens`. A row has all three, in `recipe`, and
a fingerprint of the weights, since sums on another machine are rounded differently.

Not covered: a validation text during training, training on several devices.
"""

import enum
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.cache import Entry, key
from experiments.common.console import bar
from experiments.common.tensor_folder import training_states
from experiments.data.text import Text, tokenize, windows
from experiments.models.architectures import Architecture
from experiments.models.learned_tokenizer import Tokens, learned_tokenizer
from experiments.models.made import made_once
from experiments.models.source import ModelSource, fingerprint, hash_of_tokenizer
from experiments.models.training_log import write_log
from sinq.common.named import described
from sinq.common.options import check, whole
from sinq.common.tensor_store import TensorStore
from sinq.training.batches import Windows
from sinq.training.log import TrainingLog
from sinq.training.schedule import Schedule
from sinq.training.trainer import NoCompanion, Precision, Trainer, Training

log = logging.getLogger(__name__)

FEW = 12
"""Checkpoints that a message lists one by one."""
TRAINING = Training(
    steps=1000,
    batch=8,
    at_once=8,
    learning_rate=1e-3,
    schedule=Schedule.cosine,
    warm_up=0.05,
    weight_decay=0.01,
    precision=Precision.float32,
)


class TrainingDevice(enum.Enum):
    """Kind of device that trains. It is part of the recipe: sums are rounded differently."""

    cpu = "cpu"
    cuda = "cuda"

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            ValueError: this machine has none of that kind.
        """
        if self is TrainingDevice.cuda and not torch.cuda.is_available():
            raise ValueError(
                "model.train_on=cuda is not possible: this machine has no CUDA device, and the model is not"
                " made yet; train it where one is, or choose model.train_on=cpu (its presets have no _gpu)"
            )
        return torch.device(self.value)


@dataclass(frozen=True, kw_only=True)
class Trained(ModelSource):
    """A model trained here.

    Raises:
        ValueError: an option is out of range, or the training has no checkpoint of that step.
    """

    architecture: Architecture
    text: Text
    """Its calibration part is the training text."""
    vocabulary: int = 4096
    """Tokens of the tokenizer."""
    tokens: Tokens = Tokens.byte_pairs
    """Kind of the tokens."""
    seqlen: int = 256
    """Tokens of a window, and the longest input of the model."""
    training: Training = TRAINING
    train_on: TrainingDevice = TrainingDevice.cpu
    checkpoint_every: int = 250
    """Steps between two checkpoints; there is also one of the random weights and one at the end."""
    step: int | None = None
    """The checkpoint to use, by the number of updates before it; null for the end of the training."""

    def __post_init__(self) -> None:
        check(
            self,
            "model",
            vocabulary=whole(self.tokens.fewest, 2**18),
            seqlen=whole(2, 2**20),
            checkpoint_every=whole(1),
        )
        if self.step is not None and self.step not in self.checkpoints:
            raise ValueError(
                f"model.step={self.step} is not possible: the training keeps the steps"
                f" {_listed(self.checkpoints)}; choose one, or another model.checkpoint_every"
            )

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Return the steps of all checkpoints, ascending."""
        return (*range(0, self.training.steps, self.checkpoint_every), self.training.steps)

    @property
    def chosen(self) -> int:
        """Return the step of the checkpoint to use."""
        return self.training.steps if self.step is None else self.step

    def location(self) -> tuple[str, str | None]:
        return str(self.trajectory() / str(self.chosen)), None

    def asked(self) -> dict[str, str | None]:
        text, label = self.text.identity("calibration"), self.architecture.label
        return {
            "name": label if self.chosen == self.training.steps else f"{label} step {self.chosen}",
            "step": str(self.chosen),
            "text": f"{text['name']} calibration {text['fingerprint']}",
            "tokenizer": f"{self.tokens.label}, {self.vocabulary}, of the text",
            "recipe": self.recipe(),
        }

    def identity(self) -> dict[str, str | None]:
        return self.asked() | {"fingerprint": fingerprint(Path(self.location()[0]))}

    def recipe(self) -> str:
        """Return everything that decides the trajectory, as JSON."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        decide = {name: value for name, value in options.items() if name not in ("dtype", "step", "text")}
        if self.tokens is Tokens.byte_pairs:
            del decide["tokens"]  # not an option when the first models were made, which stay valid
        text = self.text.identity("calibration")
        return json.dumps(described(decide, defaults=True) | {"text": text}, sort_keys=True)

    def trajectory(self) -> Path:
        """Return the folder with a model's folder for each checkpoint, made on first use."""
        return made_once(self._entry, self._make)

    @property
    def is_made(self) -> bool:
        return self._entry.intact

    @property
    def _entry(self) -> Entry:
        return Entry("trained", f"{self.architecture.label}-{key(recipe=self.recipe())[:8]}")

    def _make(self, path: Path, scratch: Path) -> None:
        device = self.train_on.torch_device()
        passage = self.text.calibration()
        tokenizer = learned_tokenizer(passage, self.vocabulary, self.tokens)
        tokens = tokenize(passage, tokenizer, hash_of_tokenizer(tokenizer))
        with torch.random.fork_rng([]):
            torch.manual_seed(self.training.seed)
            model: Any = self.architecture.model(self.vocabulary, self.seqlen)
        model.to(device)
        parameters = dict(model.named_parameters())
        size = sum(parameter.numel() for parameter in parameters.values())
        log.info(
            "training model=%s: %s parameters, %s steps; only the first time",
            self.architecture.label, f"{size:,}", self.training.steps,
        )  # fmt: skip
        states = training_states(self.recipe())
        done = self._train(model, parameters, windows(tokens, self.seqlen).to(device), states)
        for step in self.checkpoints:
            _put(parameters, states[_name(step)])
            model.save_pretrained(path / str(step))
            tokenizer.save_pretrained(path / str(step))
        write_log(path / "training.csv", done)
        states.clear()
        log.info("trained model=%s: %s", self.architecture.label, done.summary)

    def _train(
        self, model: Any, parameters: Mapping[str, Tensor], tokens: Tensor, states: TensorStore
    ) -> TrainingLog:
        """Train a model on windows (windows, seqlen) of its device; keep its checkpoints among the states."""
        options = self.training
        done = Trainer(
            options,
            partial(self.architecture.loss, model.train()),
            parameters,
            Windows(tokens, options.batch, options.at_once, options.seed),
            tokens.device,
            Checkpoints(frozenset(self.checkpoints), parameters, states),
            states,
            bar,
        ).run()
        states[_name(options.steps)] = _copied(parameters)
        return done


@dataclass(eq=False)
class Checkpoints(NoCompanion):
    """A companion of a training that keeps the parameters of some steps.

    They are stored before the state that goes on after them, so a training that goes on lacks none.
    """

    steps: frozenset[int]
    parameters: Mapping[str, Tensor]
    store: TensorStore

    def before_update(self, step: int) -> None:
        if step in self.steps:
            self.store[_name(step)] = _copied(self.parameters)


def _name(step: int) -> str:
    return f"checkpoint-{step}"


def _copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}


@torch.no_grad()
def _put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _listed(steps: tuple[int, ...]) -> str:
    """Return steps for a message: all of a few; of many, equally far apart, the first and the last."""
    if len(steps) <= FEW:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:3]))}, … {', '.join(map(str, steps[-2:]))}"
