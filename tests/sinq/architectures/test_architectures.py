"""Every decoder architecture of transformers as a tiny random model: `check.py`, and a table in the docs.

Each is a test of its own, so that a failure names it. A few, of different kinds, are in the short suite.
"""

import pytest
from huggingface_hub.errors import StrictDataclassError

from tests.sinq.architectures.table import row, stored
from tests.sinq.architectures.tiny import ARCHITECTURES, UNBUILT, VOCABULARY, tiny, tokens

SHORT = (
    "falcon",  # a subclass of Linear that computes the same
    "gemma3n_text",  # arguments that differ by window, keys and values of earlier layers
    "gpt_neo",  # blocks that return tuples
    "gpt2",  # Conv1D
    "hunyuan_v1_moe",  # routers as linear layers
    "mamba",  # code that reads a layer's weight
    "phimoe",  # a router that is a subclass of Linear
    "qwen2_moe",  # a gate with one output
    "zamba",  # blocks that share their weights
    "zaya",  # an output of one block is an argument of a later one
)


def agrees(name: str) -> None:
    found, known = row(name), stored()
    assert found == known.get(name), (
        f"docs/architectures.md differs; write it with {name} again if this is right"
    )


@pytest.mark.parametrize("name", SHORT)
def test_a_few_architectures(name: str) -> None:
    agrees(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in (*SHORT, *UNBUILT)])
def test_every_architecture(name: str) -> None:
    agrees(name)


@pytest.mark.parametrize("name", UNBUILT)
def test_what_is_not_tried_cannot_be(name: str) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError, ImportError, StrictDataclassError)):
        assert tiny(name)(tokens(), use_cache=False).logits.shape[-1] == VOCABULARY


def test_the_table_has_every_architecture() -> None:
    assert set(stored()) == set(ARCHITECTURES)
