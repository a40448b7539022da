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

from baselines.dense import Dense
from sinq import Calibration, KeyValueFormat, KeyValues, NotApplicable
from sinq.calibration.gradients import next_token_loss
from sinq.formats.key_values import StateFormat
from sinq.model.attention_forms.form import query_shapes
from sinq.model.language_model import Predicts, auto_class, predicts
from tests.conftest import CONFIGS, tiny_tokens
from tests.sinq.sliceable import ENCODERS, random_model

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


@pytest.mark.parametrize("name", ENCODERS)
def test_what_only_decoders_have_is_refused_for_encoders(name: str) -> None:
    model = random_model(name)
    with pytest.raises(NotApplicable, match="is an encoder, which predicts masked tokens and has no loss of"):
        next_token_loss(model, tiny_tokens())
    with pytest.raises(NotApplicable, match="has no causal attention"):
        query_shapes(model)
    rounded = KeyValues(Dense(), KeyValueFormat(StateFormat(4), StateFormat(4)))
    with pytest.raises(NotApplicable, match="has no causal attention"):
        rounded.compress(model, Calibration(tiny_tokens()))
