"""The step `files`: saving on one device and loading on the other, streaming, compressing by blocks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

import sinq
from baselines.gptq import GPTQ
from baselines.rtn import RTN
from experiments.bench.gpu.check import Check, Setting, at_most, attempted
from experiments.bench.gpu.kernels import relative_error
from experiments.bench.gpu.models import QWEN3_0_6B, qwen3
from experiments.common.meters import peak_memory
from sinq import SINQ, Calibration, Context, Grid

STEP = "files"
GRID = Grid(bits=4, group_size=64)
CPU = torch.device("cpu")
LAYERS, VOCABULARY = 4, 8192


def checks(setting: Setting) -> Iterator[Check]:
    """Yield checks of files that cross devices, and of a model whose blocks visit the device."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        yield from attempted(
            STEP, "save on the device, load on both", partial(_saved, setting, folder / "a", setting.device)
        )
        yield from attempted(
            STEP, "save on the CPU, load on both", partial(_saved, setting, folder / "b", CPU)
        )
        yield from attempted(STEP, "stream to the device", partial(_streamed, setting, folder))
        for name, method in (("SINQ", SINQ(GRID)), ("GPTQ", GPTQ(RTN(GRID)))):
            yield from attempted(STEP, f"{name} by blocks", partial(_by_blocks, setting, name, method))


def _model(setting: Setting, device: torch.device) -> PreTrainedModel:
    return qwen3(setting, QWEN3_0_6B, LAYERS, VOCABULARY).to(device)  # type: ignore[arg-type]


@torch.no_grad()
def _logits(model: PreTrainedModel, device: torch.device) -> torch.Tensor:
    tokens = torch.randint(500, (1, 64), generator=torch.Generator().manual_seed(0))
    return model.to(device)(tokens.to(device)).logits.float()  # type: ignore[arg-type]


def _saved(setting: Setting, folder: Path, device: torch.device) -> list[Check]:
    model = _model(setting, device)
    SINQ(GRID).compress(model)
    sinq.save(model, folder)
    expected = _logits(model, device)
    return [
        at_most(
            STEP,
            f"saved on {device}, loaded on {other}: logits",
            relative_error(_logits(sinq.load(folder), other), expected),
            2e-2,
        )
        for other in (CPU, setting.device)
    ]


def _streamed(setting: Setting, folder: Path) -> Check:
    model = _model(setting, setting.device)
    model.save_pretrained(folder / "dense")
    sinq.stream(folder / "dense", folder / "streamed", SINQ(GRID), Context(device=setting.device))
    SINQ(GRID).compress(model)
    error = relative_error(
        _logits(sinq.load(folder / "streamed"), setting.device), _logits(model, setting.device)
    )
    return at_most(STEP, "streamed on the device: logits beside compress", error, 0.0)


def _by_blocks(setting: Setting, name: str, method: sinq.Method) -> list[Check]:
    """Return checks of a model on the CPU whose blocks visit the device: logits, and peak memory."""
    tokens = torch.randint(500, (4, 256), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tokens) if method.needs_calibration else None
    visiting, resident = _model(setting, CPU), _model(setting, setting.device)
    whole = sum(parameter.nbytes for parameter in visiting.parameters())
    with peak_memory(setting.device) as peak:
        method.compress(visiting, calibration, Context(device=setting.device))
    method.compress(resident, calibration)
    error = relative_error(_logits(visiting, setting.device), _logits(resident, setting.device))
    found = [at_most(STEP, f"{name} by blocks: logits beside a resident model", error, 2e-2)]
    return [
        *found,
        Check(STEP, f"{name} by blocks: peak over the model's bytes", peak.increase_bytes / whole, "×"),
    ]
