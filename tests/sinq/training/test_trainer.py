"""The small trainer: AdamW written out, resuming bit for bit, and losses that are not finite."""

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sinq.training import trainer
from sinq.training.batches import Windows
from sinq.training.schedule import Schedule, share_of_rate
from sinq.training.trainer import NotFiniteError, Precision, Trainer, Training
from tests.forked import fork

CPU = torch.device("cpu")
TARGET = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DATA = torch.randn(20, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Regression:
    """A least-squares problem in float64, whose parts are rows of numbers."""

    def __init__(self, dropout: float = 0.0) -> None:
        self.weight = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        self.dropout = dropout

    def loss(self, part: Tensor) -> Tensor:
        inputs = torch.nn.functional.dropout(part, self.dropout)
        return (inputs @ self.weight - part @ TARGET).square().mean()

    def trainer(self, options: Training, **more: object) -> Trainer:
        batches = Windows(DATA, options.batch, options.at_once, options.seed)
        return Trainer(options, self.loss, {"weight": self.weight}, batches, CPU, **more)  # type: ignore[arg-type]


def written_out(options: Training) -> Tensor:
    """AdamW after all steps, from the formulas of arXiv 1711.05101, with gradients in closed form."""
    weight = torch.zeros(6, dtype=torch.float64)
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    batches = Windows(DATA, options.batch, options.batch, options.seed)
    beta1, beta2 = options.betas
    for step in range(options.steps):
        (x,) = batches(step)
        gradient = 2 * x.T @ (x @ weight - x @ TARGET) / len(x)
        if options.clip is not None and gradient.norm() > options.clip:
            gradient = gradient * (options.clip / (gradient.norm() + 1e-6))
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        rate = options.rate(step)
        weight = weight * (1 - rate * options.weight_decay)
        corrected = (second / (1 - beta2 ** (step + 1))).sqrt() + 1e-8
        weight = weight - rate * first / (1 - beta1 ** (step + 1)) / corrected
    return weight


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("schedule", list(Schedule))
def test_updates_are_those_of_adamw(clip: float | None, schedule: Schedule) -> None:
    options = Training(
        7, 4, 2, 0.05, schedule, warm_up=0.3, betas=(0.8, 0.95), weight_decay=0.1, clip=clip, seed=3
    )
    problem = Regression()
    log = problem.trainer(options).run()
    torch.testing.assert_close(problem.weight.detach(), written_out(options), rtol=1e-9, atol=1e-12)
    assert log.tokens == [4 * 6] * 7
    assert log.losses[-1] < log.losses[0]


def test_parameters_have_shares_of_the_rate_of_their_own() -> None:
    options = Training(4, 4, 4, 0.05, weight_decay=0.1, clip=None)
    problem, slow = Regression(), Regression()
    problem.trainer(options).run()
    slow.trainer(replace(options, learning_rate=0.1), shares={"weight": 0.5}).run()
    assert torch.equal(slow.weight, problem.weight)
    both = {"a": torch.zeros(6, dtype=torch.float64, requires_grad=True)}
    both["b"] = both["a"].detach().clone().requires_grad_()
    batches = Windows(DATA, 4, 4, 0)

    def loss(part: Tensor) -> Tensor:
        return sum((part @ each - part @ TARGET).square().mean() for each in both.values())  # type: ignore[return-value]

    Trainer(options, loss, both, batches, CPU, shares={"b": 2.0}).run()
    assert torch.equal(both["a"], problem.weight)
    assert not torch.equal(both["b"], both["a"])


def test_measures_of_each_step_are_in_the_log_and_survive_a_resumption() -> None:
    counted = iter(range(100))
    store: dict[str, dict[str, Tensor]] = {}
    options = Training(5, 4, 4)
    log = Regression().trainer(options, measures=lambda: {"n": float(next(counted))}, store=store).run()
    assert log.measures == {"n": [0.0, 1.0, 2.0, 3.0, 4.0]}
    assert log.as_row()["n_first"] == 0.0
    assert log.as_row()["n_last"] == 4.0
    again = Regression().trainer(options, measures=lambda: {"n": -1.0}, store=store).run()
    assert again.measures == log.measures


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_parts_of_a_batch_add_up_to_the_whole(at_once: int) -> None:
    whole, parts = Regression(), Regression()
    whole.trainer(Training(5, 8, 8, 0.1)).run()
    parts.trainer(Training(5, 8, at_once, 0.1)).run()
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-12, atol=1e-14)


@given(steps=st.integers(1, 50), warm_up=st.integers(0, 50), schedule=st.sampled_from(Schedule))
def test_rates_rise_then_fall_and_stay_positive(steps: int, warm_up: int, schedule: Schedule) -> None:
    warm_up = min(warm_up, steps)
    shares = [share_of_rate(schedule, step, steps, warm_up) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    assert shares[:warm_up] == sorted(shares[:warm_up])
    assert shares[warm_up:] == sorted(shares[warm_up:], reverse=True)
    assert steps == warm_up or shares[warm_up] == 1


@settings(max_examples=20)
@given(windows=st.integers(1, 12), batch=st.integers(1, 12), seed=st.integers(0, 9))
def test_an_epoch_has_every_window_once(windows: int, batch: int, seed: int) -> None:
    tokens = torch.arange(windows)[:, None]
    if windows < batch:
        with pytest.raises(ValueError, match=f"{windows} windows of 1 tokens, too few to train in batches"):
            Windows(tokens, batch, 1, seed)
        return
    batches = Windows(tokens, batch, 1, seed)
    drawn = [int(part) for step in range(2 * windows) for part in batches(step)]
    for epoch in range(2 * batch):
        assert sorted(drawn[epoch * windows : (epoch + 1) * windows]) == list(range(windows))


def test_random_numbers_depend_on_the_step_and_leave_the_global_ones_alone() -> None:
    options = Training(6, 4, 2, 0.1)
    torch.manual_seed(7)
    one = Regression(dropout=0.5)
    one.trainer(options).run()
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(8)
    two, other, none = Regression(0.5), Regression(0.5), Regression()
    two.trainer(options).run()
    none.trainer(options).run()
    other.trainer(Training(6, 4, 2, 0.1, seed=1)).run()
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, none.weight)
    assert not torch.equal(one.weight, other.weight)


class Counting:
    """A companion whose state is the number of updates it has seen."""

    def __init__(self) -> None:
        self.seen = torch.zeros(1)
        self.norms: list[float] = []

    def before_update(self, step: int) -> None:
        assert int(self.seen) == step
        self.seen = self.seen + 1

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]


class Folder:
    """A store of files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __contains__(self, name: object) -> bool:
        return (self.path / str(name)).exists()

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return load_file(self.path / name)

    def __setitem__(self, name: str, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, self.path / "unfinished")
        os.replace(self.path / "unfinished", self.path / name)


LONG = Training(9, 4, 2, 0.1, warm_up=0.2)


def train_until_killed(folder: Path) -> None:
    def killed(items: Iterable[int], description: object, total: int) -> Iterator[int]:
        for item in items:
            if item == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    trainer.SAVE_SECONDS = 0.0
    problem = Regression(dropout=0.3)
    problem.trainer(LONG, companion=Counting(), store=Folder(folder), progress=killed).run()


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    states = tmp_path / "states"
    states.mkdir()
    assert fork(tmp_path, train_until_killed, states).done() == -signal.SIGKILL
    steps: list[int] = []

    def watched(items: Iterable[int], description: object, total: int) -> Iterator[int]:
        for item in items:
            steps.append(item)
            yield item

    resumed, companion, straight = Regression(0.3), Counting(), Regression(0.3)
    log = resumed.trainer(LONG, companion=companion, store=Folder(states), progress=watched).run()
    reference = straight.trainer(LONG).run()
    assert steps == [5, 6, 7, 8]
    assert torch.equal(resumed.weight, straight.weight)
    assert log.losses == reference.losses
    assert int(companion.seen) == 9


def test_other_options_do_not_go_on_from_a_state() -> None:
    store: dict[str, dict[str, Tensor]] = {}
    Regression().trainer(Training(3, 4, 2, 0.1), store=store).run()
    other = Regression()
    other.trainer(Training(3, 4, 2, 0.2), store=store).run()
    straight = Regression()
    straight.trainer(Training(3, 4, 2, 0.2)).run()
    assert torch.equal(other.weight, straight.weight)
    assert len(store) == 2


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_it_reaches_the_weights(where: str) -> None:
    good = Regression()
    good.trainer(Training(3, 4, 4, 0.1, schedule=Schedule.constant)).run()
    bad, calls, store = Regression(), iter(range(10)), {}

    def loss(part: Tensor) -> Tensor:
        value = Regression.loss(bad, part)
        if next(calls) < 3:
            return value
        return value * float("nan") if where == "loss" else value + (bad.weight * 0).sqrt().sum()

    made = bad.trainer(Training(9, 4, 4, 0.1, schedule=Schedule.constant), store=store)
    made.loss = loss
    what = "loss" if where == "loss" else "norm of the gradients"
    with pytest.raises(NotFiniteError, match=f"the {what} is nan in step 4 of 9; the state after 3 steps"):
        made.run()
    assert torch.equal(bad.weight, good.weight)
    (state,) = store.values()
    assert torch.equal(state["parameter/weight"], good.weight)
    assert len(state["log/losses"]) == 3


def test_mixed_precision_multiplies_in_bfloat16() -> None:
    seen: list[torch.dtype] = []
    weight = torch.ones(6, 6, requires_grad=True)

    def loss(part: Tensor) -> Tensor:
        product = part.float() @ weight
        seen.append(product.dtype)
        return product.float().square().mean()

    for precision in Precision:
        options = Training(1, 4, 4, precision=precision)
        Trainer(options, loss, {"weight": weight}, Windows(DATA, 4, 4, 0), CPU).run()
    assert seen == [torch.float32, torch.float32, torch.bfloat16]
    assert weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "training.steps=0 is not possible; it must be a whole number from 1"),
        ({"learning_rate": float("nan")}, "training.learning_rate=nan"),
        ({"batch": 8, "at_once": 3}, "training.at_once=3 is not possible; it must divide training.batch=8"),
        ({"clip": 0.0}, "training.clip=0.0 is not possible; it must be a number above 0, or null"),
        ({"warm_up": 1.5}, "training.warm_up=1.5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**options)  # type: ignore[arg-type]
