import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.abq import ABQ
from baselines.aqlm import AQLM
from baselines.awq import AWQ
from baselines.dense import Cast, Dense
from baselines.gptq import GPTQ, ActOrder
from baselines.gwq import GWQ
from baselines.hadamard import Hadamard, ResidualHadamard
from baselines.hqq import HQQ
from baselines.loraprune import LoRAPrune
from baselines.mgptq import MGPTQ
from baselines.mixed import Mixed
from baselines.omniquant import OmniQuant
from baselines.prefixquant import Prefix
from baselines.rtn import RTN
from baselines.smoothquant import SmoothQuant
from baselines.spikellm import SpikeLLM
from baselines.stat import STAT
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import Latency, Perplexity, Size
from experiments.models.source import DType, Pretrained, SmolLM2
from experiments.runs.calibration import CalibrationText
from experiments.runs.identity import identity, run_id
from experiments.runs.run import Run
from sinq import (
    SINQ,
    ActivationFormat,
    Activations,
    Grid,
    HalfQuadratic,
    Kernel,
    KeyValueFormat,
    KeyValues,
    Layers,
    Levels,
    Method,
    OnMisfit,
    PreSINQ,
    SINQRefined,
    StateFormat,
    Tuned,
)
from tests.conftest import ROOT
from tests.sinq.recorders import Recorder


@pytest.fixture
def run(tiny_folder: Path) -> Run:
    return Run(
        Pretrained(path=str(tiny_folder)),
        StateOfTheUnion(),
        SINQ(),
        {"perplexity": Perplexity()},
        device="cpu",
    )


def name(run: Run, **changes: Any) -> str:
    return run_id(identity(replace(run, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": SINQ(Grid(bits=3))},
        {"method": RTN()},
        {"method": Dense()},
        {"text": StateOfTheUnion(evaluate_from=2010)},
        {"evaluation": {"perplexity": Perplexity(windows=3)}},
        {"layers": Layers(on_misfit=OnMisfit.skip)},
        {"kernel": Kernel.reference},
        {"stream": True},
    ],
)
def test_what_can_change_a_number_changes_the_id(run: Run, changes: dict[str, Any]) -> None:
    assert name(run, **changes) != name(run)


def test_the_number_format_changes_the_id(run: Run) -> None:
    assert name(run, model=replace(run.model, dtype=DType.bfloat16)) != name(run)
    assert name(run, model=replace(run.model, dtype=DType.float32)) == name(run)  # what auto means on a CPU


def test_what_cannot_change_a_number_does_not(run: Run, tiny_folder: Path) -> None:
    before = name(run)
    assert name(run, choices={"method": "sinq"}) == before
    assert name(run, calibration=CalibrationText(StateOfTheUnion())) == before
    assert name(run, method=Dense()) == name(run, method=Dense(), layers=Layers(exclude=("*",)))
    assert name(run, method=Dense()) == name(run, method=Dense(), kernel=Kernel.reference)
    elsewhere = tiny_folder.parent / "elsewhere" / tiny_folder.name
    elsewhere.parent.mkdir()
    tiny_folder.rename(elsewhere)
    assert name(run, model=Pretrained(path=str(elsewhere))) == before


def test_the_dense_model_is_the_same_streamed_or_not(run: Run) -> None:
    assert name(run, method=Dense(), stream=True) == name(run, method=Dense())


def test_calibration_counts_where_it_is_used(run: Run) -> None:
    calibrated = [
        name(run, method=Recorder(), calibration=CalibrationText(StateOfTheUnion(), seed=seed))
        for seed in (0, 1)
    ]
    assert calibrated[0] != calibrated[1]


def test_other_weights_are_another_model(run: Run, tiny_folder: Path) -> None:
    before = name(run)
    content = bytearray((tiny_folder / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (tiny_folder / "model.safetensors").write_bytes(content)
    assert name(run) != before


def test_kernels_are_checked_at_once(run: Run) -> None:
    with pytest.raises(ValueError, match="kernel=triton cannot run on cpu"):
        replace(run, kernel=Kernel.triton)


def test_devices_are_checked_at_once(run: Run) -> None:
    with pytest.raises(ValueError, match="device=gpu is not a device known here; use auto, cpu, cuda"):
        replace(run, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device=cuda: torch sees no CUDA device here"):
            replace(run, device="cuda")


RUN_IDS = ROOT / "tests/frozen/run_ids.json"


def known_runs() -> dict[str, Run]:
    """Runs whose ids are kept in a file: every method, and one option of each other part."""
    text, quality = StateOfTheUnion(), {"perplexity": Perplexity(windows=16), "size": Size()}
    plain = Run(SmolLM2(), text, SINQ(), quality, device="cpu")
    calibrated = replace(plain, calibration=CalibrationText(text, samples=8))
    methods: dict[str, Method] = {
        "sinq": SINQ(), "sinq 3-bit": SINQ(Grid(bits=3, group_size=32)),
        "sinq nf4": SINQ(Grid(levels=Levels.nf4)), "sinq hqq": SINQ(refinement=HalfQuadratic()),
        "sinq_refined": SINQRefined(), "presinq": PreSINQ(RTN()), "rtn": RTN(), "hqq": HQQ(),
        "gptq": GPTQ(RTN(), act_order=ActOrder.full), "awq": AWQ(RTN()), "gwq": GWQ(), "mgptq": MGPTQ(),
        "mixed": Mixed(SINQ()),
        "hadamard": Hadamard(GPTQ(RTN())), "residual hadamard": ResidualHadamard(RTN()), "dense": Dense(),
        "quarot": ResidualHadamard(RTN(), values=True, down=True, output=True),
        "hadamard of down": Hadamard(RTN(), only=("down_proj",)),
        "aqlm": Tuned(AQLM()), "aqlm untuned": AQLM(), "smoothquant": SmoothQuant(RTN()),
        "omniquant": OmniQuant(), "abq": ABQ(), "abq five levels": ABQ(Grid(bits=3), levels=5),
        "activations": Activations(SINQ(), ActivationFormat()),
        "key values": KeyValues(SINQ(), KeyValueFormat(StateFormat(4), StateFormat(4))),
        "prefix": Prefix(RTN()), "stat": STAT(RTN()), "loraprune": LoRAPrune(RTN()),
        "spikellm": SpikeLLM(RTN()), "cast": Cast(),
    }  # fmt: skip
    runs = {
        name: replace(calibrated if method.needs_calibration else plain, method=method)
        for name, method in methods.items()
    }
    runs |= {
        "layers": replace(plain, layers=Layers(on_misfit=OnMisfit.shrink)),
        "kernel": replace(plain, kernel=Kernel.reference),
        "stream": replace(plain, stream=True),
        "dtype": replace(plain, model=SmolLM2(dtype=DType.bfloat16)),
        "text": replace(plain, text=StateOfTheUnion(evaluate_from=2010)),
        "evaluation": replace(plain, evaluation={"latency": Latency()}),
    }
    return runs


def test_run_ids_stay_as_they_are() -> None:
    """New neutral options change no id.

    Where numbers change on purpose, a `version` is raised and the file written anew.
    """
    found = {key: run_id(identity(each)) for key, each in known_runs().items()}
    assert found == json.loads(RUN_IDS.read_text())
    assert len(set(found.values())) == len(found)


def test_raising_a_version_changes_the_ids_of_its_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {key: run_id(identity(each)) for key, each in known_runs().items()}
    monkeypatch.setattr(SINQ, "version", 2)
    changed = {key for key, each in known_runs().items() if run_id(identity(each)) != before[key]}
    assert changed == {
        key
        for key, each in known_runs().items()
        if isinstance(getattr(each.method, "inner", each.method), SINQ)
    }
