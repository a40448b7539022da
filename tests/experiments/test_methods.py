"""Every method of `conf/method/` on a small model: repeatable, saved and loaded bit for bit.

The dense model stays untouched.
"""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

import sinq
from experiments.config.build import build, register
from experiments.models.source import sparing_clone
from sinq import Calibration, CompressionReport, Context, Layers, Method, find_targets
from tests.conftest import ROOT, tiny_model, tiny_tokens

DENSE = ("none", "bf16", "prefix", "stat", "loraprune", "loraprune_cpu", "sea", "sea_cpu")
"""Presets that compress no layer; what slices, or changes attention, has tests of its own."""
NAMES = sorted(file.stem for file in (ROOT / "conf/method").glob("*.yaml") if file.stem not in DENSE)
SMALL_CODEBOOKS = ("format={codebooks: 4, bits_per_codebook: 4, group: 4}", "rounds=2", "steps=5")
UNTUNED = [f"method.{option}" for option in SMALL_CODEBOOKS]
TUNED = [*(f"method.inner.{option}" for option in SMALL_CODEBOOKS), "method.tuning.epochs=1"]
CODED = ("aqlm", "aqlm_1x16", "aqlm_cpu", "aqlm_untuned")
LONG = (*CODED, "mgptq")
"""Presets that train for long: one matrix of each shape, of one block, shows what the others would."""
BLOCK = Layers(exclude=("lm_head", "model.layers.1.*", "k_proj", "v_proj", "o_proj", "up_proj"))
GROUPS = "group_size=32"
EXTRA = {
    "sinq_nf3": [GROUPS, "bits=3"],
    "mgptq": [GROUPS, "bits=3"],
    "mixed": [GROUPS, "budget.bits_per_weight=5"],
}
LEARNING = ("omniquant", "omniquant_cpu", "omniquant_w4a4", "abq", "abq_cpu")
EXTRA |= {name: [GROUPS, "method.epochs=1"] for name in LEARNING}
EXTRA |= {"spikellm": [GROUPS, "method.inner.epochs=1"]}
EXTRA |= {"spikellm_ternary": ["method.inner.format.group_size=32"]}
EXTRA |= {"prefixquant_tuned": [GROUPS, "method.inner.tuning.epochs=1"]}
# codebooks of published size dwarf a small layer
EXTRA |= {"aqlm_untuned": UNTUNED, **dict.fromkeys(CODED[:3], TUNED)}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def method(name: str) -> Method:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [f"method={name}", *EXTRA.get(name, [GROUPS])]
        config = compose("config", words, return_hydra_config=True)
    return build(config).method


Compressed = tuple[nn.Module, CompressionReport]


@pytest.fixture(scope="module")
def layers(name: str) -> Layers:
    """What of the model is compressed."""
    return BLOCK if name in LONG else Layers()


@pytest.fixture(scope="module")
def compressed(method: Method, layers: Layers) -> Compressed:
    """A model for all tests to look at: compressing is what they cost."""
    model = tiny_model("qwen3-tied")
    return model, method.compress(model, Calibration(tiny_tokens(3)), Context(layers))


@pytest.fixture(scope="module")
def sharing(method: Method, layers: Layers) -> tuple[nn.Module, nn.Module, Tensor]:
    """Compress a model that shares its tensors with a dense one; return both and the dense logits before."""
    dense = tiny_model("qwen3-tied")
    model, before = sparing_clone(dense), dense(tiny_tokens(3)).logits
    method.compress(model, Calibration(tiny_tokens(3)), Context(layers))
    return model, dense, before


def test_it_is_the_same_every_time_and_after_a_reload(
    compressed: Compressed, sharing: tuple[nn.Module, nn.Module, Tensor], layers: Layers, tmp_path: Path
) -> None:
    tokens, (model, report), (again, _, _) = tiny_tokens(3), compressed, sharing
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert (
        len([part for part in report.parts if part.kind == "weight" and part.name != "lm_head"])
        == len(find_targets(tiny_model("qwen3-tied"), layers.exclude))
        == (3 if layers is BLOCK else 14)
    )
    assert report.seconds_quantize > 0
    sinq.save(model, tmp_path)
    assert torch.equal(sinq.load(tmp_path)(tokens).logits, model(tokens).logits)


def test_it_stores_what_its_bits_say_and_is_near_the_dense_model(name: str, compressed: Compressed) -> None:
    tokens, dense, (model, report) = tiny_tokens(3), tiny_model("qwen3-tied"), compressed
    weights = sum(layer.dense_parameters for layer in report.parts)
    assert 3 < 8 * sum(layer.nbytes for layer in report.parts) / weights < 6
    error = torch.linalg.vector_norm(model(tokens).logits - dense(tokens).logits) / torch.linalg.vector_norm(
        dense(tokens).logits
    )
    coarse = name.startswith("prefixquant") or name == "spikellm_ternary"  # 4 bits of inputs; few levels
    assert 0 < error < (0.5 if coarse else 0.3)


def test_the_dense_model_it_shares_tensors_with_stays_as_it_was(
    sharing: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    _, dense, before = sharing
    assert torch.equal(dense(tiny_tokens(3)).logits, before)
