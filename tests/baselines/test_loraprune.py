"""LoRAPrune: the algebra of its estimate, masks against slices, and what is never differentiated."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from baselines.loraprune import method
from baselines.loraprune.importance import (
    Criterion,
    Power,
    element_importance,
    estimated_gradient,
    product_share,
    shared_out,
)
from baselines.loraprune.pruner import Pruner, groups_of
from baselines.loraprune.schedule import Course, Sparsity
from sinq import SINQ, Calibration, Context, Grid, NotApplicable, load, save
from sinq.calibration.gradients import next_token_loss
from sinq.model.edits import edits
from sinq.model.units import find_units
from sinq.training import trainer
from sinq.training.lora import LoRA, LoRALinear, adapted
from sinq.training.trainer import NotFiniteError, Training
from tests.baselines.small_loraprune import KINDS, SHORT, TEXT, StopError, quick, sharing
from tests.conftest import SHARED, needs_data, tiny_model, tiny_tokens


def adapter_with_gradients(
    outs: int = 6, ins: int = 9, rank: int = 3, scale: float = 2.0, seed: int = 0
) -> tuple[LoRALinear, Tensor]:
    """An adapter in float64 behind one backward pass, and the gradient of its effective weight."""
    torch.manual_seed(seed)
    base = nn.Linear(ins, outs).double().requires_grad_(False)
    made = LoRALinear(base, LoRA(rank, scale * rank, 0.0), torch.Generator().manual_seed(seed)).double()
    nn.init.normal_(made.b)
    x = torch.randn(7, ins, dtype=torch.float64)
    weight = (base.weight + scale * made.b @ made.a).detach().requires_grad_()
    (x @ weight.T + base.bias).tanh().square().sum().backward()
    made(x).tanh().square().sum().backward()
    assert weight.grad is not None
    return made, weight.grad


def parts(made: LoRALinear) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert made.a.grad is not None
    assert made.b.grad is not None
    return made.a.detach(), made.b.detach(), made.a.grad, made.b.grad


@given(seed=st.integers(0, 20), eta=st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_the_estimate_is_three_terms_of_the_true_gradient(seed: int, eta: float) -> None:
    made, true = adapter_with_gradients(seed=seed)
    a, b, s = made.a.detach(), made.b.detach(), made.options.scale
    terms = s * true @ a.T @ a + s * b @ b.T @ true - eta * s**2 * (true @ a.T) @ (b.T @ true)
    torch.testing.assert_close(estimated_gradient(*parts(made), eta), terms, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 20), eta=st.floats(1e-3, 2))
@settings(max_examples=20, deadline=None)
def test_the_estimate_is_the_difference_of_the_product_in_one_step(seed: int, eta: float) -> None:
    a, b, grad_a, grad_b = parts(adapter_with_gradients(seed=seed)[0])
    difference = (b @ a - (b - eta * grad_b) @ (a - eta * grad_a)) / eta
    torch.testing.assert_close(
        estimated_gradient(a, b, grad_a, grad_b, eta), difference, rtol=1e-8, atol=1e-8
    )


def test_with_an_orthonormal_a_and_b_0_the_estimate_is_the_gradient() -> None:
    torch.manual_seed(0)
    a, true = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0], torch.randn(6, 9).double()
    b, s = torch.zeros(6, 9).double(), 2.0
    found = estimated_gradient(a, b, s * b.T @ true, s * true @ a.T, 1.0)
    torch.testing.assert_close(found, s * true, rtol=1e-12, atol=1e-12)


def test_the_mean_over_new_adapters_is_a_multiple_of_the_gradient() -> None:
    """E[AᵀA] = r/(3i)·I for A uniform in ±1/√i, so E[Ĝ] = s·r/(3i)·G at B = 0."""
    outs, ins, rank, draws, s = 4, 8, 2, 1000, 2.0
    true = torch.randn(outs, ins, generator=torch.Generator().manual_seed(0))
    generator, total = torch.Generator().manual_seed(1), torch.zeros(outs, ins)
    for _ in range(draws):
        made = LoRALinear(nn.Linear(ins, outs), LoRA(rank, s * rank), generator)
        a, b = made.a.detach(), made.b.detach()
        total += estimated_gradient(a, b, s * b.T @ true, s * true @ a.T, 1.0)
    expected = s * rank / (3 * ins) * true
    assert (total / draws - expected).norm() < 0.1 * expected.norm()


def test_the_share_of_the_product_is_that_of_the_matrices() -> None:
    a, _, grad_a, grad_b = parts(adapter_with_gradients()[0])
    expected = (grad_b @ grad_a).norm() / (grad_b @ a).norm()
    assert product_share(a, grad_a, grad_b) == pytest.approx(expected.item(), rel=1e-9)
    assert product_share(a, grad_a, torch.zeros_like(grad_b)) == 0


@pytest.mark.parametrize("power", list(Power))
@pytest.mark.parametrize("criterion", list(Criterion))
def test_importance_is_written_out(criterion: Criterion, power: Power) -> None:
    made, true = adapter_with_gradients()
    made.base.weight.grad = true.clone()
    weight = made.base.weight.double() + 2 * made.b @ made.a
    factor = {
        Criterion.lora: estimated_gradient(*parts(made), 0.5),
        Criterion.grad: true,
        Criterion.magnitude: torch.ones_like(true),
    }[criterion]
    expected = (factor * weight).abs() ** (1 if power is Power.absolute else 2)
    found = element_importance(made, criterion, power, 0.5)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_groups_share_a_norm_of_1() -> None:
    found = shared_out(torch.arange(6.0), 3)
    assert torch.allclose(found, torch.tensor([1.0, 5.0, 9.0]) / 107**0.5)
    assert torch.equal(shared_out(torch.zeros(6), 3), torch.zeros(3))


@contextmanager
def masked(kind: str) -> Iterator[tuple[Any, Pruner]]:
    """A model whose adapters are not 0 and whose masks are half zeros."""
    model = tiny_model(kind)
    units = find_units(model)
    groups = [each for one in units for each in groups_of(one, 1)]
    layers = [f"{each.name}.{name}" for each in units for name in each.matrices]
    with adapted(model, layers, LoRA(4), 0) as adapters:
        yield model, Pruner(groups, adapters, Sparsity(0.5), 10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sliced_and_merged_model_is_the_masked_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(kind), tiny_tokens(2, 20)
    seen: dict[str, Tensor] = {}
    merged = method.merge

    def watch(model: nn.Module, adapters: dict[str, LoRALinear]) -> None:
        for name, adapter in adapters.items():  # once more as in the training, in evaluation mode
            model.set_submodule(name, adapter.eval())
        with torch.no_grad():
            seen["masked"] = model(ids, use_cache=False).logits  # type: ignore[operator]
        for name, adapter in adapters.items():
            model.set_submodule(name, adapter.base)
        merged(model, adapters)

    monkeypatch.setattr(method, "merge", watch)
    before = model(ids).logits
    report = quick(0.5).compress(model, TEXT)
    with torch.no_grad():
        sliced = model(ids).logits
    torch.testing.assert_close(sliced, seen["masked"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sliced, before, atol=1e-2)
    assert {len(part.shape or ()) for part in report.parts} == {0, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_head_is_as_if_its_queries_keys_and_values_were_0(kind: str) -> None:
    """The mask of the paper, on the outputs of q, k, v, gate and up."""
    ids = tiny_tokens(2, 20)
    with masked(kind) as (model, pruner), torch.no_grad():
        for adapter in pruner._adapters.values():
            nn.init.normal_(adapter.b, std=0.1)
        model.eval()
        generator = torch.Generator().manual_seed(0)
        for each in pruner.groups:
            pruner.scores[each.name] = torch.rand(each.count, generator=generator)
            pruner._mask(each, each.count // 2)
        by_inputs = model(ids, use_cache=False).logits
        hooks = []
        for each in pruner.groups:
            pruner._adapters[each.reader].input_mask = None
            mask = pruner.masks[each.name]
            for span in each.spans:
                if span.rows:
                    hooks.append(pruner._adapters[span.layer].register_forward_hook(masking(span, mask)))
        by_outputs = model(ids, use_cache=False).logits
    torch.testing.assert_close(by_inputs, by_outputs, rtol=1e-4, atol=1e-5)


def masking(span: Any, mask: Tensor) -> Any:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        width = (span.stop - span.start) // len(mask)
        output[..., span.start : span.stop] *= mask.repeat_interleave(width)
        return output

    return hook


@pytest.mark.parametrize("criterion", [Criterion.lora, Criterion.magnitude])
def test_no_frozen_weight_ever_has_a_gradient(criterion: Criterion, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    shared = sharing(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    looked = []

    def look(self: Pruner, step: int) -> None:
        looked.append(step)
        adapters = {id(parameter) for each in self._adapters.values() for parameter in (each.a, each.b)}
        for parameter in shared.parameters():
            if id(parameter) not in adapters:
                assert parameter.grad is None
                assert not parameter.requires_grad
        original(self, step)

    original = Pruner.before_update
    monkeypatch.setattr(Pruner, "before_update", look)
    quick(criterion=criterion).compress(shared, TEXT)
    assert looked == list(range(SHORT.steps))
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_weights_own_gradient_is_read_and_forgotten() -> None:
    model = tiny_model("llama")
    shared = sharing(model)
    quick(criterion=Criterion.grad).compress(shared, TEXT)
    assert all(p.grad is None and not p.requires_grad for p in (*model.parameters(), *shared.parameters()))


def test_masks_only_grow_and_follow_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    original = Pruner.before_update

    def look(self: Pruner, step: int) -> None:
        original(self, step)
        seen.append({name: mask.clone() for name, mask in self.masks.items()})

    monkeypatch.setattr(Pruner, "before_update", look)
    made = quick(0.5, training=Training(steps=20, batch=4, at_once=4, learning_rate=1e-2))
    made.compress(tiny_model("qwen3-tied"), TEXT)
    for step, masks in enumerate(seen):
        for name, mask in masks.items():
            count = len(mask)
            assert int((mask == 0).sum()) == int(made.sparsity.at(step, 20) * count)
            if step:
                assert bool((mask <= seen[step - 1][name]).all())
    assert sum(int((mask == 0).sum()) for mask in seen[-1].values()) == 2 * (1 + 64)


def test_counts_and_parameters_are_those_predicted() -> None:
    model = tiny_model("qwen3-tied")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    report = quick(0.5, keep_last=1).compress(model, TEXT)
    first, last = find_units(model)
    assert (first.counts.heads, first.counts.kv_heads, first.counts.neurons) == (2, 1, 64)
    assert all(
        parameter.shape == shapes[name]
        for name, parameter in model.named_parameters()
        if name.startswith(f"{last.name}.")
    )
    heads, neurons = 64 * 16 * (4 + 2 * 2 + 4), 64 * 128 * 3
    left = (heads + neurons) // 2 + heads + neurons
    summary = {decision.name: decision.value for decision in report.parts[-1].decisions}
    assert summary["parameter_ratio"] == pytest.approx(left / (2 * (heads + neurons)), abs=1e-6)
    assert sum(part.parameters for part in report.parts) == left
    assert sum(part.dense_parameters for part in report.parts) == 2 * (heads + neurons)
    assert report.training is not None
    assert report.training.as_row()["tokens"] == SHORT.steps * SHORT.batch * 24


def test_a_head_that_says_nothing_and_a_dead_neuron_go_first() -> None:
    model = tiny_model("llama")
    for each in find_units(model):
        output, value = each.layer("self_attn.o_proj"), each.layer("self_attn.v_proj")
        output.weight[:, 16:32] = 0
        value.weight[16:32] = 0
        each.layer("mlp.down_proj").weight[:, 5] = 0
        each.layer("mlp.up_proj").weight[5] = 0
    kept = {}
    original = Pruner.kept

    class Watching(Pruner):
        def kept(self, groups: Any) -> Tensor:
            kept[groups.name] = original(self, groups)
            return kept[groups.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "Pruner", Watching)
        training = Training(steps=8, batch=4, at_once=4, learning_rate=1e-4)
        quick(0.25, training=training).compress(model, TEXT)
    for name, index in kept.items():
        assert (1 if name.endswith("heads") else 5) not in index.tolist()


def test_without_sparsity_it_is_lora_alone() -> None:
    model, lora = tiny_model("llama"), tiny_model("llama")
    report = quick(0.0).compress(model, TEXT)
    names = [f"{each.name}.{name}" for each in find_units(lora) for name in each.matrices]
    with adapted(lora, names, LoRA(4), 0) as adapters:
        log = trainer.Trainer(
            SHORT,
            lambda part: next_token_loss(lora, part),
            method.trained(adapters),
            method.Windows(TEXT.tokens, 4, 2, 0),
            torch.device("cpu"),
        ).run()
    method.merge(lora, adapters)
    assert report.training is not None
    assert report.training.losses == log.losses
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), lora.parameters(), strict=True))
    assert sum(part.parameters for part in report.parts) == sum(
        part.dense_parameters for part in report.parts
    )


def test_an_interrupted_run_goes_on_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    states: dict[str, dict[str, Tensor]] = {}

    def interrupt(items: Iterable[Any], description: Any, total: int) -> Iterator[Any]:
        for count, item in enumerate(items):
            if count == 6:
                raise StopError
            yield item

    made, straight, resumed = quick(), tiny_model("qwen3-tied"), tiny_model("qwen3-tied")
    reference = made.compress(straight, TEXT)
    with pytest.raises(StopError):
        made.compress(tiny_model("qwen3-tied"), TEXT, Context(progress=interrupt, states=states))
    report = made.compress(resumed, TEXT, Context(states=states))
    assert report.training is not None
    assert reference.training is not None
    assert report.training.losses == reference.training.losses
    pairs = zip(resumed.named_parameters(), straight.named_parameters(), strict=True)
    assert all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in pairs)


def test_a_sliced_model_is_saved_loaded_and_generates(tmp_path: Any) -> None:
    model = tiny_model("qwen3-tied")
    quick(0.5, keep_last=1).compress(model, TEXT)
    save(model, tmp_path)
    again = load(tmp_path)
    ids = tiny_tokens(1, 8)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
        one, two = (each.generate(ids, max_new_tokens=5, do_sample=False) for each in (model, again))
    assert torch.equal(one, two)
    assert len(edits(again)) == 1


def test_what_is_left_can_be_quantized() -> None:
    model = tiny_model("llama")
    report = quick(0.5, then=SINQ(Grid(bits=4, group_size=16)), chunk=16).compress(model, TEXT)
    assert report.method == "LoRAPrune, then SINQ 4-bit g16"
    assert {part.group_size for part in report.parts[:-1]} == {16}
    assert report.training is not None


@given(
    step=st.integers(0, 99),
    ratio=st.floats(0, 0.99),
    warm_up=st.floats(0, 0.4),
    cool_down=st.floats(0, 0.4),
)
def test_the_schedule_is_the_cubic_one(step: int, ratio: float, warm_up: float, cool_down: float) -> None:
    made = Sparsity(ratio, warm_up=warm_up, cool_down=cool_down)
    found = made.at(step, 100)
    if step <= 100 * warm_up:
        assert found == 0
    elif step > 100 * (1 - cool_down):
        assert found == ratio
    else:
        left = 1 - (step - 100 * warm_up) / (100 - 100 * (warm_up + cool_down))
        assert found == pytest.approx(ratio - ratio * left**3, abs=1e-9)
    assert made.at(step, 100) <= made.at(step + 1, 100) + 1e-12 <= ratio + 1e-9


def test_masks_change_when_the_schedule_says() -> None:
    code = Sparsity(0.5)
    assert [s for s in range(100) if code.update(s, 100) is not None] == [20, 30, 40, 50, 60, 70, 80]
    exact = Sparsity(0.5, last_update=True)
    assert [s for s in range(100) if exact.update(s, 100) is not None] == [20, 30, 40, 50, 60, 70, 80, 90]
    assert exact.update(90, 100) == 0.5
    assert exact.update(7, 8) == 0.5  # too few steps for a cool-down
    once = Sparsity(0.5, Course.at_once)
    assert [s for s in range(100) if once.update(s, 100) is not None] == [11]
    assert not [s for s in range(100) if Sparsity(0.0).update(s, 100) is not None]


@needs_data
def test_the_estimate_agrees_with_the_gradient_more_than_chance_does() -> None:
    """Figure 4 of the paper compares the two orders; the shares are printed (pytest -s)."""
    folder = str(SHARED / "data/models/stories260k")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (SHARED / "data/wikitext2/wiki.test.raw").read_text()
    ids = tokenizer(text[:20000], verbose=False).input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    tokens = torch.tensor(ids)[:4096].reshape(-1, 64)
    one, other = (scored(model, tokens, each) for each in (Criterion.lora, Criterion.grad))
    for share in (0.05, 0.1, 0.2, 0.5):
        mean = sum(overlap(one[name], other[name], share) for name in one) / len(one)
        print(f"{share:.0%} of the neurons: {mean:.0%} are the same")
        assert mean > 1.4 * share


def scored(model: Any, tokens: Tensor, criterion: Criterion) -> dict[str, Tensor]:
    """Scores of the neurons of a model after 20 steps."""
    units = find_units(model)
    groups = [groups_of(each, 1)[1] for each in units]
    layers = [f"{each.name}.{name}" for each in units for name in each.matrices]
    options = Training(steps=20, batch=8, at_once=8, learning_rate=1e-3)
    with adapted(model, layers, LoRA(8), 0) as adapters:
        pruner = Pruner(groups, adapters, Sparsity(0.5), options.steps, criterion)
        if criterion is Criterion.grad:
            for adapter in adapters.values():
                adapter.differentiate_base()
        trainer.Trainer(
            options,
            lambda part: next_token_loss(model, part),
            method.trained(adapters),
            method.Windows(tokens, 8, 8, 0),
            torch.device("cpu"),
            companion=pruner,
        ).run()
    return pruner.scores


def overlap(one: Tensor, other: Tensor, share: float) -> float:
    """The share of the lowest of one that are among the lowest of the other."""
    lowest = [set(score.argsort()[: int(share * len(score))].tolist()) for score in (one, other)]
    return len(lowest[0] & lowest[1]) / len(lowest[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ratio": 1.0},
            "method.sparsity.ratio=1.0 is not possible; it must be a number at least 0 and below 1",
        ),
        ({"warm_up": 0.6, "cool_down": 0.4}, "leave no steps to prune in"),
        ({"every": 0}, "method.sparsity.every=0"),
    ],
)
def test_a_schedule_that_is_not_possible_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sparsity(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "method.decay=1.0"),
        ({"keep_last": -1}, "method.keep_last=-1"),
        ({"eta": float("nan")}, "method.eta=nan"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(**options)


def test_models_and_texts_it_cannot_work_with_are_refused() -> None:
    with pytest.raises(NotApplicable, match="trains on text"):
        quick().compress(tiny_model("llama"))
    with pytest.raises(NotApplicable, match="heads and neurons are not known"):
        quick().compress(tiny_model("moe"), TEXT)
    with pytest.raises(ValueError, match="the text has 2 windows of 24 tokens, too few to train"):
        quick().compress(tiny_model("llama"), Calibration(TEXT.tokens[:2]))
    with pytest.raises(NotApplicable, match="leave none of the 2 blocks to prune"):
        quick(keep_last=2).compress(tiny_model("llama"), TEXT)
    with pytest.raises(NotApplicable, match=r"method\.chunk=48 does not divide the 128 neurons"):
        quick(chunk=48).compress(tiny_model("llama"), TEXT)


def test_a_training_that_diverges_says_where_and_leaves_the_dense_model() -> None:
    model = tiny_model("llama")
    model.lm_head.weight.mul_(float("inf"))
    before = [type(module) for module in model.modules()]
    with pytest.raises((NotFiniteError, ValueError)):
        quick().compress(model, TEXT)
    assert [type(module) for module in model.modules()] == before
