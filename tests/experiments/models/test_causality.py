"""No token of any architecture or attention here depends on a later one, nor on the texts beside its own.

One test for all of them: a new architecture is a line of `MODELS`. Each entry makes a model of transformers
in evaluation mode, of at least `VOCABULARY` tokens and `LENGTH` positions.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.rtn import RTN
from baselines.sea.method import SEA, Form
from experiments.models.architectures import MLP, Transformer
from experiments.models.source import reads_ahead
from sinq import Grid, KeyValueFormat, KeyValues
from sinq.formats.key_values import StateFormat
from sinq.model.attention_forms.form import query_shapes
from tests.conftest import tiny_model
from tests.experiments.models.sdgm.tiny import FOUR, ONE, VARIANTS, model_of

VOCABULARY, LENGTH = 40, 40
SMALL = {"layers": 2, "width": 32, "heads": 2, "neurons": 48}


def transformer(**options: Any) -> Any:
    """A transformer that is trained here, with weights large enough to matter."""
    torch.manual_seed(0)
    model = Transformer(**SMALL, **options).model(VOCABULARY, 64).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def rounded_cache() -> Any:
    """A Llama whose keys and values are rounded on their way to attention."""
    model = tiny_model("llama")
    KeyValues(
        RTN(Grid(bits=8, group_size=8)), KeyValueFormat(StateFormat(bits=8), StateFormat(bits=8))
    ).compress(model)
    return model


def attending(form: Form) -> Any:
    """A Llama whose attention is of another form, as SEA starts to train it."""
    model: Any = tiny_model("llama").requires_grad_(False)
    method = SEA(form=form, keys=6, blocks=8, tokens=64, fraction=4.0, gate_bias=1.0)
    method._replace(model, query_shapes(model))
    return model


MODELS: dict[str, Callable[[], Any]] = {
    **{f"transformer, {mlp.name}": lambda mlp=mlp: transformer(mlp=mlp) for mlp in MLP},
    "transformer, post-norm": lambda: transformer(mlp=MLP.relu, post_norm=True),
    "sdgm1": lambda: model_of(ONE),
    "sdgm4": lambda: model_of(FOUR),
    **{f"sdgm, {name}": lambda each=each: model_of(each) for name, each in VARIANTS.items()},
    "rounded keys and values": rounded_cache,
    **{f"attention, {form.name}": lambda form=form: attending(form) for form in Form},
}
EVERY = pytest.mark.parametrize("name", MODELS)


def ids_of(batch: int) -> Tensor:
    # Not 0: a Llama's padding, whose queries see all keys alike, so that none are the highest.
    return torch.randint(1, VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(0))


@EVERY
@torch.no_grad()
def test_a_changed_token_changes_no_logits_before_it(name: str) -> None:
    model, ids = MODELS[name](), ids_of(1)
    before = model(ids).logits
    for changed in range(LENGTH):
        other = ids.clone()
        other[0, changed] = ids[0, changed] % (VOCABULARY - 1) + 1
        differs = (model(other).logits - before).abs().amax(-1)[0]
        assert differs[:changed].max() < 1e-6 if changed else True
        assert differs[changed] > 1e-4
    assert not reads_ahead(model)


@EVERY
@torch.no_grad()
def test_logits_are_the_same_in_a_longer_text_and_in_a_batch(name: str) -> None:
    model, ids = MODELS[name](), ids_of(3)
    whole = model(ids).logits
    for length in (1, 7, 16, LENGTH - 1):
        assert torch.allclose(model(ids[:, :length]).logits, whole[:, :length], atol=1e-5)
    for text in range(3):
        assert torch.allclose(model(ids[text : text + 1]).logits, whole[text : text + 1], atol=1e-5)
