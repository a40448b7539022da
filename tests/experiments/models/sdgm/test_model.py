"""The model: generation is the whole pass, work is linear, files and compression are as usual."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from experiments.models.pretrained import load_pretrained
from experiments.models.sdgm.architecture import Coefficients, SpectralDictionary
from experiments.models.sdgm.pointer import Head
from sinq import SINQ, Grid, load, save
from tests.experiments.models.sdgm.tiny import FOUR, ONE, VARIANTS, ids_of, model_of

BOTH = pytest.mark.parametrize("architecture", [ONE, FOUR], ids=["one", "four"])
EVERY = pytest.mark.parametrize(
    "architecture", [ONE, FOUR, *VARIANTS.values()], ids=["one", "four", *VARIANTS]
)
pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients() -> "object":
    with torch.no_grad():
        yield


def test_coefficients_are_a_left_padded_convolution() -> None:
    mixing = model_of(ONE).model.layers[0].mixing
    x = torch.randn(2, 9, 16)
    kernel = mixing.to_coefficients.weight.view(6, 3, 16).transpose(1, 2)
    scores = functional.conv1d(functional.pad(x.transpose(1, 2), (2, 0)), kernel, mixing.to_coefficients.bias)
    assert torch.allclose(mixing.coefficients(x), scores.transpose(1, 2).softmax(-1), atol=1e-6)
    mixing = model_of(replace(ONE, coefficients=Coefficients.softplus)).model.layers[0].mixing
    assert torch.allclose(mixing.coefficients(x), functional.softplus(scores.transpose(1, 2)), atol=1e-5)


@EVERY
@pytest.mark.parametrize("prompt", [1, 2, 7])
def test_token_by_token_is_the_whole_pass(architecture: SpectralDictionary, prompt: int) -> None:
    model, ids = model_of(architecture, torch.float64), ids_of(2, 64)
    whole = model(ids).logits
    assert model(ids).cache is None
    output = model(ids[:, :prompt], use_cache=True)
    found = [output.logits]
    for cut in (*range(prompt, 40), 50, 51):  # one by one, and several tokens in between
        first = found and sum(each.shape[1] for each in found)
        output = model(ids[:, first : cut + 1], cache=output.cache, use_cache=True)
        found.append(output.logits)
    assert torch.allclose(torch.cat(found, 1), whole[:, :52], atol=1e-8)
    assert output.cache.position == 52
    assert output.cache.hidden.shape == (2, 4, 16)


@EVERY
@pytest.mark.parametrize("kept", [1, 4, 7, 23, 24, 99])
def test_logits_of_the_last_tokens_are_those_of_the_whole_pass(
    architecture: SpectralDictionary, kept: int
) -> None:
    model, ids = model_of(architecture), ids_of(2, 24)
    found = model(ids, logits_to_keep=kept).logits
    assert found.shape == (2, min(kept, 24), 40)
    assert torch.allclose(found, model(ids).logits[:, -kept:], atol=1e-5)


@EVERY
def test_generate_is_greedy_search_by_hand(architecture: SpectralDictionary) -> None:
    model, ids = model_of(architecture), ids_of(2, 6)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    found = model.generate(ids, **options)
    for _ in range(20):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)
    assert torch.equal(model.generate(ids_of(2, 6), **options, use_cache=False), ids)


def test_beams_keep_their_states() -> None:
    model = model_of(FOUR)
    options = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    with_state = model.generate(ids_of(2, 6), **options)
    assert torch.equal(with_state, model.generate(ids_of(2, 6), **options, use_cache=False))


@EVERY
def test_a_folder_loads_as_it_was(architecture: SpectralDictionary, tmp_path: Path) -> None:
    model, ids = model_of(architecture), ids_of(2, 30)
    model.save_pretrained(tmp_path / "model")
    config, loaded = load_pretrained(str(tmp_path / "model"), None, torch.float32)
    assert config.model_type == "sdgm"
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


@EVERY
def test_its_linear_layers_are_quantized_saved_and_loaded(
    architecture: SpectralDictionary, tmp_path: Path
) -> None:
    model, ids = model_of(architecture), ids_of(2, 30)
    dense = model(ids).logits
    report = SINQ(Grid(bits=8, group_size=8)).compress(model)
    names = {part.name for part in report.parts}
    assert "model.layers.0.mixing.to_coefficients" in names
    assert ("model.context.query" in names) is (architecture.head is not Head.mean)
    found = model(ids).logits
    assert 0 < (found - dense).abs().max() < 0.5
    save(model, tmp_path / "compressed")
    assert torch.allclose(load(tmp_path / "compressed")(ids).logits, found, atol=1e-5)


@EVERY
def test_bfloat16_gives_nearly_the_same_and_probabilities_that_sum_to_1(
    architecture: SpectralDictionary,
) -> None:
    ids = ids_of(2, 32)
    found = model_of(architecture, torch.bfloat16)
    assert torch.allclose(found(ids).logits.exp().sum(-1), torch.ones(2, 32), atol=1e-4)
    difference = found(ids).logits.exp() - model_of(architecture)(ids).logits.exp()
    assert difference.abs().sum(-1).mean() / 2 < 0.1
    assert architecture.loss(found, ids).isfinite()


def test_labels_give_the_mean_loss_of_the_next_token() -> None:
    model, ids = model_of(ONE), ids_of(2, 30)
    output = model(ids, labels=ids)
    expected = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.allclose(output.loss, expected)


def test_what_the_model_cannot_read_is_refused() -> None:
    model = model_of(ONE)
    with pytest.raises(ValueError, match=r"an input of 65 tokens is longer than the model's 64"):
        model(ids_of(1, 65))
    state = model(ids_of(1, 60), use_cache=True).cache
    with pytest.raises(ValueError, match=r"an input of 65 tokens is longer"):
        model(ids_of(1, 5), cache=state)
    with pytest.raises(ValueError, match="reads no padding"):
        model(ids_of(1, 3), attention_mask=torch.tensor([[0, 1, 1]]))


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers=2 is not possible without residual connections"):
        SpectralDictionary(layers=2)
    with pytest.raises(ValueError, match=r"stft_window=32 is longer than model\.seqlen=16"):
        SpectralDictionary().model(40, 16)
    with pytest.raises(ValueError, match=r"stft_weight=-1 is not possible"):
        SpectralDictionary(stft_weight=-1)


@EVERY
def test_work_grows_with_the_length_of_a_text_and_not_faster(architecture: SpectralDictionary) -> None:
    """Products are counted, not timed: twice as many for twice the tokens."""
    model = architecture.model(40, 1024)
    work = []
    for tokens in (256, 512, 1024):
        with FlopCounterMode(display=False) as counted:
            model(ids_of(1, tokens))
        work.append(counted.get_total_flops())
    assert 1.99 < work[1] / work[0] < 2.02
    assert 1.99 < work[2] / work[1] < 2.02


def test_a_head_without_copying_is_the_generator_alone() -> None:
    """The log-probabilities are those of a plain softmax, whatever the window holds."""
    for name in ("generator", "mean"):
        model, ids = model_of(VARIANTS[name]), ids_of(2, 30)
        expected = model.lm_head(model.model(ids).last_hidden_state).log_softmax(-1)
        assert torch.equal(model(ids).logits, expected)
        assert model.model.context.gate is None


def test_a_mean_is_that_of_the_window() -> None:
    model, ids = model_of(VARIANTS["mean"]), ids_of(1, 12)
    hidden, context = model.model(ids).last_hidden_state.split(16, dim=-1)
    for t in range(12):
        assert torch.allclose(context[0, t], hidden[0, max(0, t - 4) : t + 1].mean(0), atol=1e-5)


def test_a_model_begins_without_modulation() -> None:
    torch.manual_seed(0)
    model, ids = VARIANTS["modulated"].model(40, 64).eval(), ids_of(1, 12)
    before = model(ids).logits
    assert torch.equal(model.model.layers[0].mixing.modulation(3, 5), torch.ones(5, 6))
    model.model.layers[0].mixing.modulation.outer += 1
    assert not torch.allclose(model(ids).logits, before)
