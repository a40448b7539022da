"""Calibration without any text: random tokens, or tokens that the model samples itself.

Statistics of a layer's inputs need tokens, but not necessarily a text. `RandomTokens` are drawn uniformly
from the vocabulary. `SelfGenerated` tokens are drawn from the model's own probabilities, after a random first
token: what a model writes is nearer to what it reads than noise is (LLM-QAT, arXiv 2305.17888, tunes on such
text). Either is a function of the model, the options and the seed; no text is opened.

Special tokens (of beginning, end, padding) are left out of both; but a model that needs the token of
beginning before every text (Gemma) gets it by `bos=each`, and writes after it. Sampled tokens are kept in the
cache.
"""

from abc import abstractmethod
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from experiments.common.cache import Entry, key
from experiments.data.bos import Bos, bos_id
from experiments.data.draw import Drawn
from experiments.evaluation.sampling import sample
from experiments.models.source import LoadedModel, sparing_clone
from experiments.runs.calibration import CalibrationSource, calibration_on, fitting, require_memory
from sinq import SINQ, Calibration, Context, Grid, Layers, OnMisfit
from sinq.common.named import described
from sinq.common.options import SEED, check, number, one_of, whole
from sinq.common.progress import Progress, silent
from sinq.formats.grid import BITS
from sinq.model.language_model import Predicts


@dataclass(frozen=True)
class TextFree(CalibrationSource):
    """Windows of tokens that no text gives.

    Raises:
        ValueError: an option is out of its range. Later: the model has fewer than two tokens to draw from.
    """

    samples: int = 32
    """Number of windows."""
    seqlen: int = 256
    """Tokens of a window; at most the model's context."""
    seed: int = 0
    sequential: bool = True
    """Take each block's statistics behind the compressed previous blocks.

    False: take them from the dense model, and keep them in the cache.
    """
    bos: Bos = Bos.first
    """`each`: every window begins with the token of beginning. `first`: none does."""

    def __post_init__(self) -> None:
        check(self, "calibration", samples=whole(1), seqlen=whole(1), seed=SEED)

    def load(self, loaded: LoadedModel, progress: Progress = silent) -> Calibration:
        allowed, seqlen = vocabulary(loaded), fitting(self.seqlen, loaded)
        require_memory(self.samples, seqlen, loaded)
        tokens = self.tokens(loaded, allowed, seqlen, progress)
        facts = {
            "windows": len(tokens),
            "seqlen": tokens.shape[1],
            "distinct_tokens": tokens.numel(),
            "vocabulary": len(tokens.unique()),
            **({"bos": "each window"} if self.bos is Bos.each else {}),
        }
        return calibration_on(Drawn(tokens, facts), loaded, self.sequential)

    @abstractmethod
    def tokens(self, loaded: LoadedModel, allowed: Tensor, seqlen: int, progress: Progress) -> Tensor:
        """Return the windows, int64 (samples, seqlen), of allowed ids, (vocabulary,), and BOS."""

    def beginnings(self, loaded: LoadedModel, allowed: Tensor, generator: torch.Generator) -> Tensor:
        """Return the first token of each window, int64 (samples,): an allowed id by chance, or BOS."""
        if self.bos is Bos.each:
            return torch.full((self.samples,), bos_id(loaded.tokenizer, "calibration.bos"))
        return allowed[torch.randint(len(allowed), (self.samples,), generator=generator)]

    def identity(self) -> dict[str, Any]:
        return described(self)


@dataclass(frozen=True)
class RandomTokens(TextFree):
    """Token ids drawn uniformly from the vocabulary."""

    name: ClassVar[str] = "random_tokens"

    def tokens(self, loaded: LoadedModel, allowed: Tensor, seqlen: int, progress: Progress) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = allowed[torch.randint(len(allowed), (self.samples, seqlen), generator=generator)]
        if self.bos is Bos.each:
            drawn[:, 0] = self.beginnings(loaded, allowed, generator)
        return drawn


@dataclass(frozen=True)
class SelfGenerated(TextFree):
    """Texts that the model samples from its own probabilities, each after a random first token, or after BOS.

    Raises:
        ValueError: an option is out of its range. Later: the model repeats one token.
    """

    name: ClassVar[str] = "self_generated"
    version: ClassVar[int] = 2  # 2: one number decides each token, so that no text depends on those beside it

    temperature: float = 1.0
    """Logits are divided by it: below 1 the text is more predictable, above 1 more random."""
    batch: int = 32
    """Texts that are sampled side by side: faster, and the same texts but for rounding."""
    quantized_bits: int | None = None
    """Sample from the model quantized with SINQ to these bits, which reads fewer bytes. null: as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self,
            "calibration",
            temperature=number(above=0, most=100),
            batch=whole(1),
            quantized_bits=one_of(None, *BITS),
        )

    def tokens(self, loaded: LoadedModel, allowed: Tensor, seqlen: int, progress: Progress) -> Tensor:
        if loaded.predicts is not Predicts.next_token:
            raise ValueError(
                f"calibration=self_generated needs a model that writes, and {type(loaded.model).__name__}"
                f" predicts {loaded.predicts.value}; use a text, or calibration=random_tokens"
            )
        entry = self._entry(loaded, seqlen)
        if not entry.intact:
            array = BytesIO()
            np.save(array, self._sampled(loaded, allowed, seqlen, progress).numpy().astype(np.int32))
            entry.write(array.getvalue())
        tokens = torch.from_numpy(np.load(entry.path)).long()
        _refuse_repetition(tokens)
        return tokens

    def _entry(self, loaded: LoadedModel, seqlen: int) -> Entry:
        model = {**loaded.identity, "commit": loaded.commit, "dtype": str(loaded.model.dtype)}
        device = loaded.model.device.type
        made_from = key(calibration=described(self, defaults=True), model=model, device=device, seqlen=seqlen)
        return Entry("sampled", f"{made_from}.npy")

    def _sampled(self, loaded: LoadedModel, allowed: Tensor, seqlen: int, progress: Progress) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        first = self.beginnings(loaded, allowed, generator).split(self.batch)
        uniform = torch.rand(self.samples, seqlen - 1, generator=generator, dtype=torch.float64)
        model = loaded.model if self.quantized_bits is None else self._quantized(loaded)
        parts = zip(first, uniform.split(self.batch), strict=True)
        drawn = [sample(model, *part, allowed, self.temperature, progress) for part in parts]
        return torch.cat(drawn)

    def _quantized(self, loaded: LoadedModel) -> Any:
        model: Any = sparing_clone(loaded.model)
        assert self.quantized_bits is not None
        context = Context(Layers(on_misfit=OnMisfit.shrink), loaded.model.device)
        SINQ(Grid(bits=self.quantized_bits)).compress(model, context=context)
        return model


def vocabulary(loaded: LoadedModel) -> Tensor:
    """Return the ids that text-free tokens are drawn from, int64: all but special ones.

    Raises:
        ValueError: there are fewer than two.
    """
    embeddings: Any = loaded.model.get_input_embeddings()
    known = min(len(loaded.tokenizer), len(embeddings.weight))
    special = set(loaded.tokenizer.all_special_ids)
    ids = torch.tensor([number for number in range(known) if number not in special], dtype=torch.long)
    if len(ids) < 2:
        raise ValueError(
            f"tokens cannot be drawn without a text: the model's vocabulary of {known} has {len(ids)} that"
            " is not special; use calibration=wikitext2, sotu or file"
        )
    return ids


def _refuse_repetition(tokens: Tensor) -> None:
    """Raise `ValueError` if a sampled text, (windows, seqlen), is one token, again and again."""
    if tokens.shape[1] > 1 and len(tokens[:, 1:].unique()) == 1:
        raise ValueError(
            f"the model sampled one token, {int(tokens[0, 1])}, again and again: no statistics can be had of"
            " that; raise calibration.temperature, or use calibration=random_tokens"
        )
