"""Every YAML file composes and builds; every mistake is an error that names the option."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from baselines.awq import AWQ
from baselines.dense import Dense
from baselines.gptq import GPTQ, ActOrder
from baselines.hadamard import Hadamard, ResidualHadamard
from baselines.prefixquant import Prefix
from baselines.rtn import RTN
from experiments.common.errors import USER_ERRORS, explain
from experiments.config.build import build, by_name, method_classes, register
from experiments.runs.calibration import CalibrationText, NoCalibration
from experiments.runs.identity import identity, options, run_id
from experiments.runs.pipeline import label
from experiments.runs.run import Run
from experiments.runs.text_free import RandomTokens, SelfGenerated
from sinq import (
    SINQ,
    ActivationFormat,
    Activations,
    Grid,
    KeyValueFormat,
    KeyValues,
    Levels,
    NotApplicable,
    PreSINQ,
    Sinkhorn,
    StateFormat,
)
from sinq.kernels.integer import Products
from tests.conftest import ROOT

CONF = ROOT / "conf"
# tables are no part of a run's configuration
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "tables")
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder in which the test model seems to be."""
    (tmp_path / "models/stories260k").mkdir(parents=True)
    monkeypatch.setenv("SINQ_DATA", str(tmp_path))


@cache
def composed(*overrides: str) -> DictConfig:
    """A configuration, composed once for all tests that look at it; they build it and change nothing."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def built(*overrides: str) -> Run:
    return build(composed(*overrides))


EXTRA = {
    ("activation", "a8_static"): ["calibration=sotu"],
    ("activation", "a4_static"): ["calibration=sotu"],
    ("model", "hub"): ["model.path=some/model"],
    ("method", "sinq_nf3"): ["bits=3"],
    ("text", "file"): ["text.path=some.txt"],
    ("calibration", "file"): ["calibration.text.path=some.txt"],
}
"""What an option cannot do without."""


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_yaml_composes_and_builds(group: str, name: str) -> None:
    extra = EXTRA.get((group, name), [])
    config = composed(f"{group}={name}", *extra)
    assert isinstance(build(config), Run)
    assert OmegaConf.select(config, group) is not None


def test_every_method_class_has_a_yaml() -> None:
    """A YAML of its own, or one whose inner method it is."""
    methods = [
        built(f"method={name}", *EXTRA.get((group, name), [])).method
        for group, name in OPTIONS
        if group == "method"
    ]
    methods += [method.inner for method in methods if hasattr(method, "inner")]
    of_activations = built("activation=a8_token").method  # its options are a group of their own
    assert {type(method) for method in (*methods, of_activations)} == set(method_classes())


def test_two_classes_of_one_name_are_an_error_that_names_both() -> None:
    twin = type("RTN", (RTN,), {"__module__": "elsewhere"})
    with pytest.raises(
        TypeError, match=r"the name RTN, .*: baselines\.rtn\.RTN and elsewhere\.RTN; rename one"
    ):
        by_name((RTN, SINQ, twin))
    assert by_name((RTN, SINQ, RTN)) == {"RTN": RTN, "SINQ": SINQ}


def test_the_presets_are_what_they_say() -> None:
    assert built().method == SINQ(Grid(bits=4, group_size=64), Sinkhorn(16, 0.7, 2.0, -0.3, 10.0))
    release = built("method=sinq_release").method
    assert isinstance(release, SINQ)
    assert (release.kurtosis_gate, release.grid.auxiliary_bits, release.grid.range_floor) == (5.0, 8, 1e-4)
    assert not release.sinkhorn.relative_floors
    assert built("method=none").method == Dense()


def test_options_that_cut_across_reach_the_parts() -> None:
    run = built(
        "bits=3",
        "group_size=32",
        "on_misfit=skip",
        "calibration=sotu",
        "seed=7",
        "layers.exclude=[lm_head,down_proj]",
    )
    assert isinstance(run.method, SINQ)
    assert (run.method.grid.bits, run.method.grid.group_size) == (3, 32)
    assert (run.layers.on_misfit.name, list(run.layers.exclude)) == ("skip", ["lm_head", "down_proj"])
    assert run.calibration.seed == 7  # type: ignore[attr-defined]


def test_calibrated_is_an_axis_across_methods() -> None:
    grid = Grid(bits=3)
    asinq = AWQ(SINQ(grid), norm=1, weight_term=False, clip=False)
    assert built("bits=3", "method=asinq").method == asinq
    assert built("bits=3", "method=sinq", "calibrated=true").method == asinq
    assert built("bits=3", "method=asinq", "calibrated=false").method == SINQ(grid)
    assert (
        built("bits=3", "method=rtn", "calibrated=true").method
        == built("bits=3", "method=awq").method
        == AWQ(RTN(grid))
    )
    assert built("bits=3", "method=hadamard", "method@method.inner=gptq").method == Hadamard(
        GPTQ(RTN(grid), act_order=ActOrder.full)
    )
    with pytest.raises(NotApplicable, match="calibrated=false is not possible: GPTQ works from the Hessian"):
        built("method=gptq", "calibrated=false")


def test_a_method_may_name_the_calibration_it_is_meant_for() -> None:
    """`sinq_free` samples its own tokens unless another source is given; other methods are not touched."""
    free = built("method=sinq_free", "bits=3")
    assert (free.calibration, free.choices["calibration"]) == (SelfGenerated(), "self_generated")
    assert free.method.needs_calibration
    assert built("method=sinq_free", "seed=3").calibration == SelfGenerated(seed=3)
    assert built("calibration=random_tokens", "method=sinq_free").calibration == RandomTokens()
    assert isinstance(built("method=sinq_free", "calibration=sotu").calibration, CalibrationText)
    assert built("method=sinq_refined_gptq").calibration == NoCalibration()


def test_activations_are_rounded_around_any_method() -> None:
    plain, rounded = built("method=gptq", "bits=3"), built("method=gptq", "bits=3", "activation=a4_token")
    assert built("method=gptq", "bits=3", "activation.bits=16").method == plain.method
    assert rounded.method == Activations(plain.method, ActivationFormat(4))
    assert rounded.choices["activation"] == "a4_token"
    assert label(rounded) == "gptq W3A4, weights g64"
    assert (
        label(built("method=smoothquant", "bits=8", "activation=a8_token")) == "smoothquant W8A8, weights g64"
    )
    with pytest.raises(NotApplicable, match="A8 is not possible with Dense"):
        built("method=none", "activation=a8_token")


def test_keys_and_values_are_rounded_around_any_method() -> None:
    plain, both = built("method=none"), built("method=sinq", "activation=a4_token", "kv=kv4")
    four = KeyValueFormat(StateFormat(4), StateFormat(4))
    assert built("method=none", "kv=kv4").method == KeyValues(plain.method, four)
    assert both.method == KeyValues(built("activation=a4_token").method, four)
    assert label(both) == "sinq W4A4, weights g64 KV4"
    assert label(built("method=none", "kv=kivi2")) == "none K2 channel g32 V2 g32, last 128 dense"
    assert built("kv=kv4", "kv.keys.bits=16", "kv.values.bits=16").method == built().method


def test_prefixquant_names_the_formats_it_is_meant_for() -> None:
    found = built("method=prefixquant", "calibration=sotu")
    assert (found.choices["activation"], found.choices["kv"]) == ("a4_searched", "kv4_searched")
    assert label(found) == "prefixquant W4A4 static, searched, weights g64 KV4 static, searched by attention"
    other = built("method=prefixquant", "activation=a8_token", "kv=none", "calibration=sotu").method
    assert isinstance(other, Activations)
    assert isinstance(other.inner, Prefix)
    inside = built("method=quarot", "method@method.inner=prefixquant", "calibration=sotu").method
    assert isinstance(inside, KeyValues)
    assert inside.kv.keys.search


def test_products_of_integers_are_chosen_beside_the_activations() -> None:
    simulated, integer, bits = (built("activation=a8_token", f"products={each.name}") for each in Products)
    assert built("activation=a8_token").method == simulated.method
    assert integer.method == replace(simulated.method, products=Products.integer)
    assert bits.method == replace(simulated.method, products=Products.bitplanes)
    assert len({run_id(identity(each)) for each in (simulated, integer, bits)}) == 3
    assert "products" not in json.dumps(identity(simulated))
    assert options(simulated)["method"]["products"] == "simulated"
    with pytest.raises(NotApplicable, match="products=integer is not possible with activations of 16 bits"):
        built("products=integer")


@pytest.mark.parametrize(
    ("method", "kind"), [("hadamard", Hadamard), ("hadamard_fused", ResidualHadamard), ("presinq", PreSINQ)]
)
def test_the_inner_method_is_chosen_on_the_command_line(method: str, kind: type) -> None:
    assert built(f"method={method}", "bits=3").method == kind(RTN(Grid(3)))
    assert built(f"method={method}", "bits=3", "method@method.inner=sinq").method == kind(SINQ(Grid(3)))


def test_quarot_is_all_rotations_around_any_method_of_layers() -> None:
    rotated = {"values": True, "down": True, "output": True}
    assert built("method=quarot", "bits=3").method == ResidualHadamard(RTN(Grid(3)), **rotated)
    gptq = built("method=gptq", "bits=4").method
    found = built("method=quarot", "method@method.inner=gptq", "activation=a4_token")
    assert found.method == Activations(ResidualHadamard(gptq, **rotated), ActivationFormat(4))
    assert built("method=hadamard", "method.only=[down_proj]").method == Hadamard(RTN(), only=("down_proj",))
    with pytest.raises(InstantiationException, match=r"Hadamard rotates layer by layer; inner=Dense"):
        built("method=quarot", "method@method.inner=none")
    tuned = built("method=quarot", "method@method.inner=aqlm").method
    assert isinstance(tuned.compressor.inner, Hadamard)


def test_the_methods_of_bitsandbytes_have_no_zero_points() -> None:
    assert built("method=rtn_nf4").method == RTN(Grid(4, 64, levels=Levels.nf4, symmetric=True))
    assert built("method=fp4").method == RTN(Grid(4, 64, levels=Levels.fp4, symmetric=True))


def test_options_of_a_method_are_set_by_name() -> None:
    method: Any = built(
        "method.grid.levels=nf4", "method.sinkhorn.iterations=8", "method.kurtosis_gate=4"
    ).method
    assert (method.grid.levels, method.sinkhorn.iterations, method.kurtosis_gate) == (Levels.nf4, 8, 4.0)


def test_an_evaluation_can_be_left_out() -> None:
    assert set(built("~evaluation.latency").evaluation) == {"perplexity", "layer_error", "size", "memory"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bits=7", "bits=7 is not possible; it must be one of (2, 3, 4, 5, 6, 8)"),
        ("bits=four", "bits: Value 'four' of type 'str' could not be converted to Integer"),
        ("bitz=4", "there is no option bitz; there are: "),
        ("method.grid.bitz=4", "there is no option method.grid.bitz; there are: bits, group_size"),
        (
            "method.sinkhorn.early_stop=perhaps",
            "method.sinkhorn.early_stop: Value 'perhaps' is not a valid bool (type str)",
        ),
        (
            "method.grid.levels=nf5",
            "method.grid.levels: Invalid value 'nf5', expected one of [uniform, nf4, nf3, fp4]",
        ),
        (
            "method=sink",
            "method=sink does not exist; choose one of abq, abq_cpu, aqlm, aqlm_1x16",
        ),
        ("on_misfit=ignore", "on_misfit: Invalid value 'ignore', expected one of [error, shrink, skip]"),
        (
            "evaluation.perplexity.windows=0",
            "evaluation.perplexity.windows=0 is not possible; it must be a whole number from 1 to ",
        ),
        ("model=hub", "model.path is missing; give a hub id (Qwen/Qwen3-1.7B) or a local folder"),
        ("device=tpu9", "device=tpu9 is not a device known here; use auto, cpu, cuda or cuda:<number>"),
        ("bits=[", "override 'bits=[' cannot be read: "),
    ],
)
def test_a_mistake_is_explained_in_a_line(override: str, message: str) -> None:
    with pytest.raises(USER_ERRORS) as caught:
        built(override)
    explained = explain(caught.value)
    assert explained.startswith(message)
    assert explained.count("\n") <= 1


def test_missing_data_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SINQ_DATA")
    with pytest.raises(USER_ERRORS) as caught:
        built("model=stories260k")
    assert explain(caught.value) == (
        "models/stories260k is not part of this project, "
        "and the environment variable SINQ_DATA names no folder"
    )
