"""bitsandbytes NF4: codes of the NF4 table, and the largest magnitude of each block.

    weight                                 uint8 (out · in / 2, 1)       the first of two codes in high bits
    weight.absmax                          float32 (out · in / group,)   W = table[code] · absmax
    weight.quant_map                       float32 (16,)                 the table
    weight.quant_state.bitsandbytes__nf4   uint8                         JSON: block size, dtype, shape

Only symmetric NF4 fits (`grid.levels=nf4`, `grid.symmetric=true`). Double quantization is not written.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinq.export.base import first, refuse_columns, refuse_groups, short
from sinq.export.huggingface import Described, FolderExporter, refuse_experts
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal
from sinq.formats.grid import Levels

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class BitsAndBytesNF4(FolderExporter):
    """Folder for transformers with bitsandbytes."""

    name: ClassVar[str] = "bnb_nf4"
    read_by: ClassVar[str] = "transformers with bitsandbytes"

    def check_model(self, source: Source) -> Refusal | None:
        return refuse_experts(source)

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        if view.grid.levels is not Levels.nf4 or not view.grid.symmetric:
            return Refusal(
                f"it is {view.grid.label}, and the format has symmetric NF4 alone",
                "use grid.levels=nf4 and grid.symmetric=true",
            )
        return first(refuse_columns(view), refuse_groups(view, BLOCKS))

    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        name, pairs = f"{view.name}.weight", view.codes.reshape(-1, 2)
        state = {
            "quant_type": "nf4",
            "blocksize": view.group_size,
            "dtype": short(dtype),
            "shape": list(view.shape),
        }
        return {
            name: ((pairs[:, 0] << 4) | pairs[:, 1])[:, None],
            f"{name}.absmax": view.scale.flatten(),
            f"{name}.quant_map": torch.tensor(Levels.nf4.value),
            f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(
                list(json.dumps(state).encode()), dtype=torch.uint8
            ),
        }

    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        return {
            "quantization_config": {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "load_in_8bit": False,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": False,
                "bnb_4bit_quant_storage": "uint8",
                "bnb_4bit_compute_dtype": short(source.dtype),
                "llm_int8_skip_modules": list(dense),
            }
        }
