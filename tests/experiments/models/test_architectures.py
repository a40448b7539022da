"""Transformers that are trained here: their sizes, their functions, and that they read no later token."""

import pytest
import torch
from torch.nn import functional

from experiments.models.architectures import MLP, Transformer
from experiments.models.source import reads_ahead
from sinq.model.blocks import find_blocks

SMALL = {"layers": 2, "width": 32, "heads": 2, "neurons": 48}


@pytest.mark.parametrize("mlp", MLP)
def test_a_model_has_the_sizes_asked_for(mlp: MLP) -> None:
    model = Transformer(**SMALL, mlp=mlp).model(300, 64)
    blocks = find_blocks(model)
    assert len(blocks) == 2
    assert model.get_input_embeddings().weight.shape == (300, 32)
    assert model.get_output_embeddings().weight.shape == (300, 32)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert model.config.max_position_embeddings == 64
    hidden = blocks[0].mlp.up_proj if mlp is MLP.gated else blocks[0].fc1
    assert hidden.weight.shape == (48, 32)
    assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    assert not reads_ahead(model.eval())


@pytest.mark.parametrize(
    ("mlp", "function"),
    [(MLP.gelu, functional.gelu), (MLP.relu, functional.relu), (MLP.linear, lambda x: x)],
)
def test_the_function_of_the_mlp_is_the_one_asked_for(mlp: MLP, function: object) -> None:
    block = find_blocks(Transformer(**SMALL, mlp=mlp).model(300, 64))[0]
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(block.activation_fn(x), function(x))  # type: ignore[operator]


@pytest.mark.parametrize("mlp", MLP)
def test_a_loss_at_random_is_that_of_uniform_tokens(mlp: MLP) -> None:
    torch.manual_seed(0)
    architecture = Transformer(**SMALL, mlp=mlp)
    loss = architecture.loss(architecture.model(300, 64), torch.randint(300, (4, 64)))
    assert abs(loss.item() - torch.tensor(300.0).log().item()) < 0.1


def test_norms_stand_after_each_part_if_asked_for() -> None:
    """The states after a block of post-norms have mean 0 and variance 1."""
    for post_norm in (False, True):
        torch.manual_seed(0)
        model = Transformer(**SMALL, mlp=MLP.relu, post_norm=post_norm).model(300, 64).eval()
        states = model(torch.arange(20)[None], output_hidden_states=True).hidden_states[1]
        is_normed = torch.allclose(states.var(-1, unbiased=False), torch.ones(1, 20), atol=1e-2)
        assert is_normed is post_norm


def test_dropout_is_of_training_alone() -> None:
    torch.manual_seed(0)
    model = Transformer(**SMALL, mlp=MLP.relu, dropout=0.3).model(300, 64)
    ids = torch.arange(20)[None]
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


def test_labels_say_what_differs() -> None:
    assert Transformer().label == "decoder1"
    assert Transformer(mlp=MLP.relu, post_norm=True).label == "decoder1-relu-post"
    assert Transformer(layers=3, mlp=MLP.relu).label == "decoder3-relu"


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.architecture.heads=3 is not possible with width=256"):
        Transformer(heads=3)
    with pytest.raises(ValueError, match=r"model\.architecture.layers=0 is not possible"):
        Transformer(layers=0)


@pytest.mark.parametrize("option", [{"post_norm": True}, {"dropout": 0.2}])
def test_a_llama_has_no_norms_after_and_no_dropout(option: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"=(true|0\.2) is not possible with mlp=gated, .*choose mlp=gelu"):
        Transformer(**option)
