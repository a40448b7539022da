"""Rows of a training in the order of its steps; seeds share a key, and names tell what differs."""

from experiments.results.trajectories import step_of, trajectories
from tests.experiments.checkpoints import checkpoint, course
from tests.experiments.rows import finished


def test_rows_are_put_in_order_and_trainings_apart() -> None:
    rows = course({250: 1.0, 0: 2.0, 1000: 1.5}) + course({0: 3.0, 5: 2.0, 9: 1.0}, rate=0.2)
    first, second = trajectories([*rows, finished("none"), finished("sinq")])
    assert first.curve("attention_entropy.mean") == {0: 2.0, 250: 1.0, 1000: 1.5}
    assert list(first.rows) == [0, 250, 1000]
    assert second.layers("attention_entropy.entropy") == {
        "model.decoder.layers.0.self_attn": {0: 3.0, 5: 2.0, 9: 1.0}
    }
    assert (first.name, second.name) == ("decoder1, learning rate 0.1", "decoder1, learning rate 0.2")
    assert first.key != second.key


def test_seeds_share_a_key() -> None:
    rows = course({0: 2.0, 1: 1.0, 2: 1.5}) + course({0: 2.0, 1: 1.0, 2: 1.4}, seed=1)
    first, second = trajectories(rows)
    assert first.key == second.key
    assert (first.name, second.name) == ("decoder1, seed 0", "decoder1, seed 1")


def test_few_steps_and_other_measurements_are_no_trajectory() -> None:
    assert trajectories(course({0: 2.0, 1: 1.0})) == []
    other = checkpoint(2)
    other["identity"]["text"] = {"name": "another"}
    assert trajectories([*course({0: 2.0, 1: 1.0}), other]) == []


def test_a_revision_of_the_hub_tells_its_step() -> None:
    row = finished("none")
    assert step_of(row) is None
    row["identity"]["model"] |= {"name": "EleutherAI/pythia-70m", "revision": "step3000", "commit": "a"}
    assert step_of(row) == 3000
    rows = []
    for step in (0, 1000, 3000):
        each = finished("none")
        each["identity"]["model"] |= {"name": "p", "revision": f"step{step}", "commit": str(step)}
        rows.append(each)
    (found,) = trajectories(rows)
    assert (found.name, list(found.rows)) == ("p", [0, 1000, 3000])
