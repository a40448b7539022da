"""Formats of other projects, known by the `quantization_config` of a configuration."""

from pathlib import Path
from typing import Any

from sinq.checkpoint.configuration import CONFIG
from sinq.checkpoint.foreign.awq import AWQGemm
from sinq.checkpoint.foreign.base import ForeignFormat
from sinq.checkpoint.foreign.compressed_tensors import CompressedTensors
from sinq.checkpoint.foreign.gptq import GPTQ
from sinq.checkpoint.foreign.official_sinq import SIDECAR, OfficialSINQ
from sinq.common.inside import exists, regular_file
from sinq.common.reading import entry, read_json

FORMATS: dict[str, type[ForeignFormat]] = {
    "sinq": OfficialSINQ,
    "compressed-tensors": CompressedTensors,
    "gptq": GPTQ,
    "awq": AWQGemm,
}
"""By the `quant_method` that a configuration states."""
STATED = "quantization_config"


def stated_quantization(folder: Path) -> dict[str, Any] | None:
    """Return the `quantization_config` of a folder, or None where it states none.

    The official SINQ package writes none; its sidecar states what it is.

    Raises:
        ValueError: the configuration is no object, or states something else there.
    """
    if not exists(folder, CONFIG):
        return None
    path = regular_file(folder, CONFIG)
    content = read_json(path)
    if not isinstance(content, dict) or content.get(STATED) is None:
        return {"quant_method": "sinq"} if exists(folder, SIDECAR) else None
    try:
        return entry(content, STATED, dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def stated_format(folder: Path) -> ForeignFormat:
    """Return the format in which the matrices of a folder are stored.

    Raises:
        ValueError: the configuration states none, one that is not read, or options that are not read.
    """
    options = stated_quantization(folder)
    if options is None:
        raise ValueError(f"{folder} states no {STATED} in its {CONFIG}, so it holds no quantized matrices")
    try:
        kind = entry(options, "quant_method", str).lower()
        if kind not in FORMATS:
            raise ValueError(f"quant_method is {kind}; {', '.join(FORMATS)} are read")
        return FORMATS[kind].stated(folder, options)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {STATED}: {error}") from error
