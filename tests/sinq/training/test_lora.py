"""LoRA: adapters that change nothing at first, gradients of A and B alone, and merging."""

import pytest
import torch
from torch import nn

from baselines.rtn import RTN
from sinq import Grid, find_targets
from sinq.calibration.gradients import next_token_loss
from sinq.model.recomputing import recomputing
from sinq.training.batches import Windows
from sinq.training.lora import LoRA, LoRALinear, adapted, dense_weight, merge, trained
from sinq.training.trainer import Trainer, Training
from tests.conftest import tiny_model, tiny_tokens

TOKENS = tiny_tokens(4)
KINDS = ("llama", "qwen3-tied", "gpt2", "opt")
CPU = torch.device("cpu")


def names_of(model: nn.Module) -> list[str]:
    return [target.name for target in find_targets(model)]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing_and_merged_ones_compute_the_same(kind: str) -> None:
    model = tiny_model(kind)
    before = logits(model)
    tensors = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    with adapted(model, names_of(model), LoRA(4, dropout=0.3), 0) as adapters:
        model.eval()
        assert torch.equal(logits(model), before)
        for adapter in adapters.values():
            torch.nn.init.normal_(adapter.b, std=0.05)
        changed = logits(model)
        reference = {name: each.effective() for name, each in adapters.items()}
    assert torch.equal(logits(model), before)
    merge(model, adapters)
    torch.testing.assert_close(logits(model), changed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, before, atol=1e-3)
    for name, weight in reference.items():
        assert torch.equal(dense_weight(model.get_submodule(name)), weight)
    assert all(torch.equal(parameter, copy) for parameter, copy in tensors.values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_gradients_to_a_and_b_alone(kind: str) -> None:
    model = tiny_model(kind)
    with adapted(model, names_of(model), LoRA(4), 0) as adapters:
        options = Training(8, 2, 1, 1e-2)
        batches = Windows(TOKENS, 2, 1, 0)
        log = Trainer(
            options, lambda part: next_token_loss(model, part), trained(adapters), batches, CPU
        ).run()
        assert all(parameter.grad is not None for parameter in trained(adapters).values())
        frozen = set(model.parameters()) - set(trained(adapters).values())
        assert frozen
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert log.losses[-1] < log.losses[0]


def test_gradients_are_those_of_the_dense_product() -> None:
    """gA = s·Bᵀ·G and gB = s·G·Aᵀ, with G by autograd on a dense copy."""
    torch.manual_seed(0)
    base = nn.Linear(10, 6).double().requires_grad_(False)
    adapter = LoRALinear(base, LoRA(3, 6.0, 0.0), torch.Generator().manual_seed(0)).double()
    nn.init.normal_(adapter.b)
    x = torch.randn(7, 10, dtype=torch.float64)
    weight = (base.weight + 2 * adapter.b @ adapter.a).detach().requires_grad_()
    (x @ weight.T + base.bias).tanh().sum().backward()
    adapter(x).tanh().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(adapter.a.grad, 2 * adapter.b.detach().T @ weight.grad)
    torch.testing.assert_close(adapter.b.grad, 2 * weight.grad @ adapter.a.detach().T)
    assert base.weight.grad is None


def test_a_mask_of_inputs_is_a_zero_in_the_columns() -> None:
    adapter = LoRALinear(nn.Linear(10, 6), LoRA(3, dropout=0.0), torch.Generator().manual_seed(0))
    nn.init.normal_(adapter.b)
    adapter.input_mask = (torch.arange(10) % 3 > 0).float()
    x = torch.randn(7, 10)
    expected = x @ (adapter.effective() * adapter.input_mask).T + adapter.base.bias
    torch.testing.assert_close(adapter(x), expected)


def test_a_compressed_base_is_trained_beside() -> None:
    model = tiny_model("llama")
    RTN(Grid(bits=4, group_size=32)).compress(model)
    names = [f"model.layers.{k}.mlp.down_proj" for k in range(2)]
    with adapted(model, names, LoRA(4), 0) as adapters:
        model.eval()
        before = next_token_loss(model, TOKENS)
        before.backward()
        assert all(adapter.b.grad.abs().sum() > 0 for adapter in adapters.values())
    assert torch.isfinite(before)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_weights(kind: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = tiny_model(kind)
        with adapted(model, names_of(model), LoRA(4, dropout=0.2), 0) as adapters:
            options = Training(3, 2, 2, 1e-2)
            arguments = options, lambda part, m=model: next_token_loss(m, part), trained(adapters)
            made = Trainer(*arguments, Windows(TOKENS, 2, 2, 0), CPU)
            if checkpointing:
                with recomputing(model):
                    made.run()
            else:
                made.run()
        results.append([each.effective() for each in adapters.values()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"lora.{next(iter(options))}="):
        LoRA(**options)  # type: ignore[arg-type]
