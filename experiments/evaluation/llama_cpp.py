"""Perplexity of the exported model by llama.cpp, beside ours on the same windows.

The model is exported as GGUF into a folder that is thrown away, and llama.cpp reads each window in its own
code, from packed blocks to the head, with keys and values in float32. Its products round the inputs of
quantized matrices to 8 bits (32 numbers share a float16 scale); ours do not. So `rounded_nll` is our model
with the inputs of its compressed linear layers rounded in that way. Where blocks have no offset (Q4_0, Q8_0),
it is llama.cpp's number to float32; an offset is float16 in the file, which turns some of the roundings.
`difference` is llama.cpp's NLL minus ours, and `rounding` is what the rounding of inputs alone adds to ours.

Not covered: fused experts, whose inputs `rounded_nll` leaves as they are.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.engines import library
from experiments.engines.declarations import RELEASE
from experiments.engines.llama_cpp import LlamaCpp
from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from experiments.evaluation.text_pass import token_nll
from sinq import export
from sinq.common.options import check, whole
from sinq.export.gguf import FILE, Gguf
from sinq.export.gguf.architecture import Architecture
from sinq.export.source import Source
from sinq.model.linear import CompressedLinear

BLOCK = 32
"""Inputs that share a scale in llama.cpp."""


@dataclass(frozen=True)
class LlamaCppPerplexity(Evaluation):
    """Perplexity of the model as a GGUF file, by llama.cpp on the CPU."""

    name: ClassVar[str] = "llama_cpp"

    windows: int | None = 4
    """Number of windows, from the start of the text; null for all."""
    seqlen: int = 512
    """Tokens of a window; at most the model's context."""

    def __post_init__(self) -> None:
        check(self, "evaluation.llama_cpp", windows=whole(1), seqlen=whole(2))

    def content(self) -> dict[str, Any]:
        return {"llama_cpp": RELEASE}

    def check(self, context: EvaluationContext) -> None:
        library.folder()
        Architecture.of(context.loaded.model.config)
        self._windows(context)

    def _windows(self, context: EvaluationContext) -> Tensor:
        return context.windows("evaluation.llama_cpp", self.seqlen, self.windows)

    def measure(self, context: EvaluationContext) -> Measurement:
        chosen = self._windows(context)
        with tempfile.TemporaryDirectory() as scratch:
            file, stored = _exported(context, Path(scratch, "exported"))
            theirs, size = _read(file, chosen, context), file.stat().st_size
        ours = _ours(context, chosen)
        with rounded_inputs(context.model):
            rounded = _ours(context, chosen)
        samples = {"window_nll": theirs, "our_window_nll": ours, "rounded_window_nll": rounded}
        means = {name.replace("window_", ""): fmean(values) for name, values in samples.items()}
        facts = {
            "value": exp(means["nll"]),
            "difference": means["nll"] - means["our_nll"],
            "rounding": means["rounded_nll"] - means["our_nll"],
            "windows": len(chosen),
            "seqlen": chosen.shape[1],
            "file_nbytes": size,
            "release": RELEASE,
        }
        return Measurement(facts | means | stored, samples)


def _exported(context: EvaluationContext, folder: Path) -> tuple[Path, dict[str, float]]:
    """Write the model without its tokenizer, 2 and 3 bits too; return the file, and bits per weight there."""
    exporter, dtype = Gguf(low_bits=True), context.loaded.stored_dtype
    if context.is_dense:
        folder.mkdir()
        exporter.write(Source(context.model, dtype), folder)
        return folder / FILE, {}
    report = export(context.model, folder, exporter, dtype=dtype)
    return folder / FILE, {"bits_per_weight": report.bits_per_weight}


def _read(file: Path, chosen: Tensor, context: EvaluationContext) -> list[float]:
    """Return the mean NLL of every window by llama.cpp."""
    with LlamaCpp(file, torch.get_num_threads(), chosen.shape[1], exact=True) as engine:
        return [
            engine.nll(window) for window in context.progress(chosen, "perplexity, llama.cpp", len(chosen))
        ]


def _ours(context: EvaluationContext, chosen: Tensor) -> list[float]:
    """Return the mean NLL of every window by our model."""
    return [
        float(token_nll(context.model, each[None].to(context.device), chunked=False).mean())
        for each in chosen
    ]


@contextmanager
def rounded_inputs(model: nn.Module) -> Iterator[None]:
    """Round the inputs of compressed linear layers for a while, as llama.cpp's products do."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, CompressedLinear):
                handle = module.register_forward_pre_hook(_round_first)
                stack.callback(handle.remove)
        yield


def _round_first(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return to_bytes(inputs[0]), *inputs[1:]


def to_bytes(x: Tensor) -> Tensor:
    """Return x (…, in) rounded to whole multiples −127 … 127 of a float16 scale for each 32 inputs."""
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    codes = (blocks / step.where(step > 0, 1.0)).round()
    return (codes * step.half().float()).flatten(-2).to(x.dtype)
