"""One run: a model, a text, a method and what to measure. Built by Hydra from `conf/`, or by hand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from experiments.data.text import Text
from experiments.evaluation import Evaluation
from experiments.models.source import ModelSource
from experiments.runs.calibration import CalibrationSource, NoCalibration
from sinq import Kernel, Layers, Method, chosen, using


@dataclass(frozen=True)
class Run:
    """What is to be measured. Where the result goes is not part of it (see `pipeline.execute`)."""

    model: ModelSource
    text: Text
    method: Method
    evaluation: Mapping[str, Evaluation]
    layers: Layers = field(default_factory=Layers)
    calibration: CalibrationSource = field(default_factory=NoCalibration)
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes CUDA where there is one."""
    kernel: Kernel = Kernel.auto
    """Which implementation of the fast functions runs; auto takes what suits the device."""
    stream: bool = False
    """Quantize the checkpoint file to file (`sinq/checkpoint/stream.py`), and evaluate what is loaded from there."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Names the user chose parts by (method: sinq_release), for tables; not part of the run's identity."""

    def __post_init__(self) -> None:
        device, count = self.torch_device, torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= count:
            raise ValueError(
                f"device={self.device}: torch sees {count or 'no'} CUDA device here; use device=cpu"
                + " or a lower number" * bool(count)
            )
        with using(self.kernel):
            chosen(device)  # refuses one that cannot run there

    @property
    def torch_device(self) -> torch.device:
        """The device, with `auto` decided."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(
                f"device={self.device} is not a device known here; use auto, cpu, cuda or cuda:<number>"
            )
        return torch.device(self.device)
