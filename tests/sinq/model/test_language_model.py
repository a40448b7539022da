"""A configuration decides whether its model predicts the next token or masked ones."""

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    PretrainedConfig,
    RobertaConfig,
)

from sinq.model.language_model import Predicts, auto_class, predicts
from tests.conftest import CONFIGS

MASKED, NEXT = Predicts.masked_tokens, Predicts.next_token


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_decoders_predict_the_next_token(name: str) -> None:
    assert predicts(CONFIGS[name]) is NEXT
    assert auto_class(CONFIGS[name]) is AutoModelForCausalLM


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DistilBertConfig(), MASKED),
        (BertConfig(), MASKED),
        (BertConfig(architectures=["BertModel"]), MASKED),
        (BertConfig(architectures=["BertForMaskedLM"]), MASKED),
        (BertConfig(architectures=["BertLMHeadModel"]), NEXT),
        (BertConfig(is_decoder=True), NEXT),
        (RobertaConfig(), MASKED),
        (RobertaConfig(architectures=["RobertaForCausalLM"], is_decoder=True), NEXT),
        (BartConfig(), NEXT),
        (GPT2Config(), NEXT),
    ],
)
def test_architectures_of_both_kinds_say_which_one_they_are(
    config: PretrainedConfig, expected: Predicts
) -> None:
    assert predicts(config) is expected
    assert auto_class(config) is (AutoModelForMaskedLM if expected is MASKED else AutoModelForCausalLM)
