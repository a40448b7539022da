"""Ray tasks that make the files of `stream`: two machines, of which one is lost, and a worker besides."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sinq
from sinq import Context, Grid
from tests.conftest import ROOT
from tests.sinq.checkpoint.streams import METHOD, UP, Fatal, assert_same, change, checkpoint, until

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install ray, in an environment of its own")


def test_without_a_cluster_it_says_how_to_begin_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        assert options == {"address": "auto"}
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConnectionError, match="begin one with ray start --head, or give a number"):
        sinq.stream(checkpoint(tmp_path / "dense"), tmp_path / "small", METHOD, workers="ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes on this machine, each with one processor."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def stored(folder: Path) -> dict[str, Any]:
    return sinq.stored_tensors(sinq.load(folder))


def test_a_lost_worker_and_a_lost_machine_cost_their_files_only(cluster: Any, tmp_path: Path) -> None:
    source, marker = checkpoint(tmp_path / "dense"), tmp_path / "marker"
    method = Fatal(Grid(4, 16), marker=str(marker), seconds=0.2)
    sinq.stream(source, tmp_path / "one", method)
    marker.touch()
    before = nodes()

    def lose(items: Iterable[Any], description: Any, total: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 1:
                cluster.remove_node(cluster.second, allow_graceful=False)
            yield item

    sinq.stream(source, tmp_path / "many", method, Context(progress=lose), workers="ray")
    assert (before, marker.exists()) == (2, False)
    until(lambda: nodes() == 1)  # the cluster notices by and by
    assert_same(stored(tmp_path / "many"), stored(tmp_path / "one"))
    assert not list((tmp_path / "many").glob(".*"))


def test_an_error_is_one_line_and_what_is_finished_stays(cluster: Any, tmp_path: Path) -> None:
    source, target = checkpoint(tmp_path / "dense"), tmp_path / "small"
    change(source, UP, torch.full((128, 64), float("nan")))
    with pytest.raises(
        ValueError, match=r"^layer model\.layers\.1\.mlp\.up_proj has NaN or Inf .*$"
    ) as error:
        sinq.stream(source, target, METHOD, workers="ray")
    assert "\n" not in str(error.value)
