"""compressed-tensors `pack-quantized`, the format of vLLM, SGLang and transformers' own integration.

    weight_packed      int32 (out, ⌈in · bits / 32⌉)           codes, a stream per row
    weight_scale       (out, in / group)                       W = (code − zero_point) · scale
    weight_zero_point  int32 (⌈out · bits / 32⌉, in / group)   a stream per column; none if all are centred
    weight_shape       int64 (2,)

Zeros must be whole numbers from 0 to 2^bits − 1. The library holds codes signed and adds 2^(bits − 1) when
it packs, so words hold our codes. Since version 0.17 codes of 3, 5 and 6 bits cross words, as they do here;
older readers expect spare bits.

Layers of different bits or groups are different `config_groups`. A layer whose zeros are all centred is
written without them, which every engine reads. transformers reads asymmetric layers only with
`CompressedTensorsConfig(dequantize=True)`, and then takes the first group for all layers: mixed bits must be
symmetric for it. Engines multiply 4 bits, and 8 bits without zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinq.export.base import (
    first,
    refuse_columns,
    refuse_levels,
    refuse_scales,
    refuse_zeros,
)
from sinq.export.huggingface import Described, FolderExporter
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal
from sinq.export.words import int32_words


@dataclass(frozen=True)
class CompressedTensors(FolderExporter):
    """Folder for vLLM, SGLang and transformers with compressed-tensors ≥ 0.17."""

    name: ClassVar[str] = "compressed_tensors"
    read_by: ClassVar[str] = "vLLM, SGLang, transformers with compressed-tensors"

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        return first(
            refuse_columns(view), refuse_levels(view), refuse_zeros(view), refuse_scales(view, dtype)
        )

    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        name = view.name
        stored = {
            f"{name}.weight_packed": int32_words(view.codes, view.bits),
            f"{name}.weight_scale": view.scale.to(dtype),
            f"{name}.weight_shape": torch.tensor(view.shape, dtype=torch.int64),
        }
        if not view.centred:
            zeros = int32_words(view.zero.T.to(torch.uint8).contiguous(), view.bits).T
            stored[f"{name}.weight_zero_point"] = zeros
        return stored

    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        groups: dict[tuple[int, int, bool], list[str]] = {}
        for layer in layers:
            groups.setdefault((layer.bits, layer.group_size, layer.centred), []).append(layer.name)
        return {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "global_compression_ratio": None,
                "kv_cache_scheme": None,
                "ignore": list(dense),
                "config_groups": {
                    f"group_{number}": _group(*key, ["Linear"] if len(groups) == 1 else names)
                    for number, (key, names) in enumerate(groups.items())
                },
            }
        }


def _group(bits: int, group_size: int, symmetric: bool, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
        "weights": {
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "group",
            "group_size": group_size,
            "dynamic": False,
        },
    }
