"""Options of a run: model, text, method and evaluations. Built by Hydra from `conf/`, or by hand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from experiments.data.file import TextFile
from experiments.data.text import Text
from experiments.evaluation import Evaluation
from experiments.models.source import ModelSource
from experiments.runs.calibration import CalibrationSource, CalibrationText, NoCalibration
from sinq import Kernel, Layers, Method, chosen, using


@dataclass(frozen=True)
class Run:
    """Options of a run. The results folder is not one of them (see `pipeline.Execution`).

    Raises:
        ValueError: the device is not known or not there; the kernel cannot run on it; one file of one's own
            evaluates and calibrates.
    """

    model: ModelSource
    text: Text
    method: Method
    evaluation: Mapping[str, Evaluation]
    layers: Layers = field(default_factory=Layers)
    calibration: CalibrationSource = field(default_factory=NoCalibration)
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto takes CUDA where there is one."""
    kernel: Kernel = Kernel.auto
    """Implementation of the fast functions; auto takes the one that suits the device."""
    stream: bool = False
    """Quantize the checkpoint file by file (`sinq/checkpoint/stream.py`), and evaluate the loaded result."""
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
            chosen(device)  # refuses a kernel that cannot run on the device
        if self.method.needs_calibration:
            _refuse_same_file(self.text, self.calibration)

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


def _refuse_same_file(text: Text, calibration: CalibrationSource) -> None:
    """Raise `ValueError` if one file, which has no parts, would evaluate and calibrate."""
    other = calibration.text if isinstance(calibration, CalibrationText) else None
    if not (isinstance(text, TextFile) and isinstance(other, TextFile)):
        return
    if text.evaluation().fingerprint == other.calibration().fingerprint:
        raise ValueError(
            f"text.path={text.path} and calibration.text.path={other.path} are the same text: a method must"
            " not see what it is evaluated on; calibrate on another file, or on calibration=wikitext2 or sotu"
        )
