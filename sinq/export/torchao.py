"""torchao's `Int4Tensor`, which has a scale for each input: SINQ as it is, without folding.

    _weight_qdata           int8 (out, in / 2)       code − 8, the first of a pair in the low nibble
    _weight_scale           bfloat16 (in / group, out)
    _weight_zero_point      bfloat16 (in / group, out)   W = q · scale + zero_point, (8 − zero) · scale here
    _weight_act_pre_scale   bfloat16 (in,)           multiplies the inputs: the column scale

Types and shapes are JSON in the metadata of the safetensors files, for all parameters in each file. The
product is a CUDA kernel (package mslk) that computes in bfloat16, so that is the only dtype.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinq.export.base import (
    first,
    refuse_bits,
    refuse_columns,
    refuse_groups,
    refuse_levels,
    refuse_scales,
    short,
)
from sinq.export.huggingface import Described, FolderExporter, refuse_experts, refuse_mixed
from sinq.export.source import Source
from sinq.export.view import MatrixView, Refusal

GROUPS = (32, 64, 128, 256)
CENTRE = 8


@dataclass(frozen=True)
class TorchAO(FolderExporter):
    """Folder for transformers with torchao."""

    name: ClassVar[str] = "torchao"
    read_by: ClassVar[str] = "transformers with torchao"
    carries_columns: ClassVar[bool] = True

    def check_model(self, source: Source) -> Refusal | None:
        if source.dtype is not torch.bfloat16:
            return Refusal(
                f"its dtype is {short(source.dtype)}, and the kernel multiplies bfloat16",
                "use dtype=bfloat16",
            )
        return first(refuse_experts(source), refuse_mixed(source))

    def check(self, view: MatrixView, dtype: torch.dtype) -> Refusal | None:
        tiles = 0 if view.col_scale is None else len(view.col_scale)
        return first(
            refuse_columns(view) if tiles > 1 else None,
            refuse_levels(view),
            refuse_bits(view, (4,)),
            refuse_groups(view, GROUPS),
            refuse_scales(view, dtype),
        )

    def tensors(self, view: MatrixView, dtype: torch.dtype) -> dict[str, Tensor]:
        signed = view.codes ^ CENTRE  # the low four bits of code − 8
        stored = {
            "qdata": (signed[:, 0::2] | (signed[:, 1::2] << 4)).view(torch.int8),
            "scale": view.scale.T.to(dtype),
            "zero_point": ((CENTRE - view.zero) * view.scale).T.to(dtype),
        }
        if view.col_scale is not None:
            stored["act_pre_scale"] = view.col_scale[0].to(dtype)
        return {f"{view.name}._weight_{key}": tensor for key, tensor in stored.items()}

    def metadata(self, source: Source) -> dict[str, str]:
        parameters = {name: {"_type": "Tensor"} for name in source.tensors}
        parameters |= {f"{name}.weight": _described(source, name) for name in source.matrices}
        texts = {name: json.dumps(each) for name, each in parameters.items()}
        return {"format": "pt", **texts, "tensor_names": json.dumps(list(texts))}

    def description(
        self, layers: Sequence[Described], dense: Sequence[str], source: Source
    ) -> dict[str, Any]:
        options = {
            "group_size": layers[0].group_size,
            "set_inductor_config": True,
            "int4_packing_format": {"_type": "Int4PackingFormat", "_data": "PLAIN"},
            "int4_choose_qparams_algorithm": {"_type": "Int4ChooseQParamsAlgorithm", "_data": "TINYGEMM"},
        }
        return {
            "quantization_config": {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": options}},
                "modules_to_not_convert": list(dense),
                "include_input_output_embeddings": False,
                "untie_embedding_weights": False,
            }
        }


def _described(source: Source, name: str) -> dict[str, Any]:
    """Return the type of a matrix as torchao's metadata has it."""
    view = source.view(name)
    scaled = ["act_pre_scale"] if view.col_scale is not None else []
    return {
        "_type": "Int4Tensor",
        "_data": {
            "activation_dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
            "block_size": [1, view.group_size],
            "shape": list(view.shape),
        },
        "_tensor_data_names": [*scaled, "qdata", "scale", "zero_point"],
    }
