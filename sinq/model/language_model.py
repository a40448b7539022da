"""Kinds of language models: decoders predict the next token, encoders tokens that are masked.

An encoder (BERT, DistilBERT) reads its whole input, so its prediction for a place knows the tokens after it.
It has a probability for a token only where that token is hidden. transformers has a class of its own for each
kind, with its own head. A configuration decides which: some architectures (BERT) exist in both kinds.

Not covered: models of an encoder and a decoder, and encoders without a head for masked tokens.
"""

import enum
from typing import TYPE_CHECKING, Any

from sinq.common.errors import NotApplicable

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Predicts(enum.Enum):
    """Tokens that a model has probabilities for, in words."""

    next_token = "the next token"
    masked_tokens = "masked tokens"


def predicts(config: "PretrainedConfig") -> Predicts:
    """Return what the model of a configuration predicts.

    It is an encoder if transformers knows its architecture with a head for masked tokens, and neither an
    option nor the name of its class makes it a decoder.
    """
    from transformers.models.auto import modeling_auto as known

    kind: str = getattr(config, "model_type", "")
    decoder = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    causal = known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    named = causal is not None and causal in (config.architectures or ())
    masked = kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder and not named
    return Predicts.masked_tokens if masked else Predicts.next_token


def require_next_token(model: Any, what: str) -> None:
    """Raise `NotApplicable` if a transformers model predicts masked tokens.

    Args:
        what: a thing that only decoders have, for the message.
    """
    config = getattr(model, "config", None)
    if config is not None and predicts(config) is Predicts.masked_tokens:
        raise NotApplicable(
            f"{type(model).__name__} is an encoder, which predicts masked tokens and has no {what};"
            " use a method without it, or a causal language model"
        )


def auto_class(config: "PretrainedConfig") -> Any:
    """Return the class of transformers that makes the model of a configuration, with its head."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return AutoModelForMaskedLM if predicts(config) is Predicts.masked_tokens else AutoModelForCausalLM
