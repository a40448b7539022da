"""Fast versions of functions: which one runs, and that all take the same arguments."""

import inspect
from importlib import import_module

import pytest
import torch
from torch import Tensor

from sinq import Kernel, using
from sinq.kernels import fast
from sinq.kernels.dispatch import Fast, imported

MODULES = (
    "sinq.kernels.quantize",
    "sinq.kernels.rotation",
    "baselines.gptq.method",
    "baselines.aqlm.method",
    "baselines.aqlm.kmeans",
    "baselines.aqlm.beam_search",
)
FUNCTIONS = {
    f"{m}.{name}": f for m in MODULES for name, f in vars(import_module(m)).items() if isinstance(f, Fast)
}


def doubled(x: Tensor, times: int = 1) -> Tensor:
    return x * 2**times


def has_few(x: Tensor, times: int = 1) -> bool:
    return times < 3


@fast(cpu=f"{__name__}:doubled", covers=has_few)
def slowly_doubled(x: Tensor, times: int = 1) -> Tensor:
    """Add x to itself again and again."""
    assert times != 1, "the definition ran"
    for _ in range(times):
        x = x + x
    return x


def test_a_call_runs_the_version_of_the_device() -> None:
    assert torch.equal(slowly_doubled(torch.ones(2)), torch.full((2,), 2.0))
    with using(Kernel.reference), pytest.raises(AssertionError, match="the definition ran"):
        slowly_doubled(torch.ones(2))
    with pytest.raises(AssertionError, match="the definition ran"):
        slowly_doubled(torch.ones(2, device="meta"))


def test_what_is_not_covered_is_computed_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(slowly_doubled.versions, Kernel.cpu, f"{__name__}:refused")
    assert torch.equal(slowly_doubled(torch.ones(2), times=3), torch.full((2,), 8.0))
    with pytest.raises(AttributeError, match="refused"):
        slowly_doubled(torch.ones(2), times=2)


def test_it_looks_like_its_definition() -> None:
    assert (slowly_doubled.__name__, slowly_doubled.__doc__) == (
        "slowly_doubled",
        "Add x to itself again and again.",
    )
    assert inspect.signature(slowly_doubled) == inspect.signature(slowly_doubled.definition)


def test_there_is_no_kernel_of_another_name() -> None:
    with pytest.raises(ValueError, match="'gpu' is not a valid Kernel"):
        fast(gpu="sinq.kernels.cpu.quantize:round_scaled")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_versions_take_what_their_definition_takes(name: str) -> None:
    parameters = inspect.signature(FUNCTIONS[name].definition).parameters.values()
    for kernel, path in FUNCTIONS[name].versions.items():
        if kernel is not Kernel.triton:  # Triton's interpreter is chosen when its kernels are imported
            found = inspect.signature(imported(path)).parameters.values()
            assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in parameters]


def test_all_functions_are_found() -> None:
    assert len(FUNCTIONS) == 11
