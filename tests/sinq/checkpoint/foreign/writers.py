"""Checkpoints in formats of other projects, written bit by bit: slow, and in no way that the readers use.

A code is put into its word by adding it at its bit; words are Python's whole numbers. Matrices are random
codes, scales and zeros; what they stand for is computed in float64 from the formula of each format.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sinq.model.targets import find_targets

Stored = dict[str, Tensor]


@dataclass
class Matrix:
    """A matrix (rows, columns) in groups: codes, scales and zeros as arrays, and what they stand for."""

    rows: int
    columns: int
    bits: int
    group: int
    seed: int
    symmetric: bool = False
    scale_dtype: torch.dtype = torch.float16
    codes: np.ndarray = field(init=False)
    scale: Tensor = field(init=False)
    zero: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        groups = self.columns // self.group
        self.codes = draw.integers(0, 1 << self.bits, (self.rows, self.columns))
        self.scale = torch.tensor(draw.uniform(0.01, 0.1, (self.rows, groups))).to(self.scale_dtype)
        self.zero = draw.integers(1, 1 << self.bits, (self.rows, groups))
        if self.symmetric:
            self.zero[:] = 1 << (self.bits - 1)

    @property
    def dense(self) -> Tensor:
        """The matrix, float64."""
        zero, scale = (
            torch.as_tensor(part).double().repeat_interleave(self.group, 1)
            for part in (self.zero, self.scale)
        )
        return (torch.as_tensor(self.codes).double() - zero) * scale


def stream(codes: Any, bits: int) -> list[int]:
    """Return words of 32 bits of one row of codes, without gaps, the lowest bit first."""
    whole = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    return [signed(whole >> (32 * word) & 0xFFFFFFFF) for word in range(-(-len(codes) * bits // 32))]


def spaced(codes: Any, bits: int) -> list[int]:
    """Return words of 32 bits of one row of codes, 32 // bits in each."""
    per = 32 // bits
    parts = [codes[start : start + per] for start in range(0, len(codes), per)]
    return [signed(sum(int(code) << (bits * place) for place, code in enumerate(part))) for part in parts]


def signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def words(rows: Any, bits: int, layout: Callable[[Any, int], list[int]] = stream) -> Tensor:
    """Return rows of codes as int32 (rows, words)."""
    return torch.tensor([layout(row, bits) for row in rows], dtype=torch.int32)


def gptq(matrix: Matrix, version: int = 2) -> Stored:
    stored = matrix.zero if version == 2 else (matrix.zero - 1) % (1 << matrix.bits)
    return {
        "qweight": words(matrix.codes, matrix.bits).T,
        "qzeros": words(stored.T, matrix.bits),
        "scales": matrix.scale.T,
        "g_idx": torch.arange(matrix.columns, dtype=torch.int32) // matrix.group,
    }


AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output whose code is the first, second … of a word."""


def awq(matrix: Matrix) -> Stored:
    def packed(by_input: np.ndarray) -> Tensor:
        shuffled = by_input.reshape(len(by_input), -1, 8)[:, :, AWQ_OUTPUTS].reshape(by_input.shape)
        return words(shuffled, 4)

    return {
        "qweight": packed(matrix.codes.T),
        "qzeros": packed(matrix.zero.T),
        "scales": matrix.scale.T,
    }


def compressed_tensors(matrix: Matrix, layout: Callable[[Any, int], list[int]] = stream) -> Stored:
    zero = {} if matrix.symmetric else {"weight_zero_point": words(matrix.zero.T, matrix.bits, layout).T}
    return zero | {
        "weight_packed": words(matrix.codes, matrix.bits, layout),
        "weight_scale": matrix.scale,
        "weight_shape": torch.tensor([matrix.rows, matrix.columns]),
    }


PARTS = {2: (4, 8), 3: (10, 32), 4: (2, 8), 5: (6, 32), 6: (5, 32), 8: (1, 8)}
"""Codes in a word of the official package, and the bits of the word."""
PACKINGS = {2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 5: "5bit_32", 6: "6bit_32", 8: "8bit_u8"}


def official(matrix: Matrix) -> Stored:
    """W_q, and auxiliaries that are not rounded; the column scales are 1."""
    parts, width = PARTS[matrix.bits]
    rows = matrix.codes.reshape(-1, matrix.group)
    step = -(-len(rows) // parts)
    padded = np.zeros((step * parts, matrix.group), dtype=np.int64)
    padded[: len(rows)] = rows
    packed = sum(
        padded[part * step : (part + 1) * step] << (matrix.bits * (parts - 1 - part)) for part in range(parts)
    )
    return {
        "W_q": torch.tensor(packed).to(torch.uint8 if width == 8 else torch.int32),
        "meta.scale": matrix.scale.reshape(-1, 1),
        "meta.zero": torch.tensor(matrix.zero).to(matrix.scale_dtype).reshape(-1, 1),
        "meta.scale2": torch.ones(1, matrix.columns, dtype=matrix.scale_dtype),
    }


def sidecar(matrix: Matrix) -> dict[str, Any]:
    return {
        "meta": {
            "nbits": matrix.bits,
            "group_size": matrix.group,
            "shape": [matrix.rows, matrix.columns],
            "packing": PACKINGS[matrix.bits],
            "method": "sinq",
            "view_as_float": False,
            "awq_scale": None,
        }
    }


def ct_config(bits: int, group: int, symmetric: bool = False) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group",
        "group_size": group,
    }
    groups = {"group_0": {"targets": ["Linear"], "input_activations": None, "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


@dataclass(frozen=True)
class Kind:
    """A format to write: the tensors of a matrix, and the configuration that states it."""

    store: Callable[[Matrix], Stored]
    config: dict[str, Any]
    bits: int = 4
    group: int = 32
    symmetric: bool = False


KINDS = {
    "gptq": Kind(lambda m: gptq(m, 1), {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq_v2": Kind(
        gptq, {"quant_method": "gptq", "bits": 3, "group_size": 32, "checkpoint_format": "gptq_v2"}, bits=3
    ),
    "awq": Kind(
        awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": True}
    ),
    "compressed": Kind(compressed_tensors, ct_config(4, 32)),
    "compressed6": Kind(compressed_tensors, ct_config(6, 64, True), bits=6, group=64, symmetric=True),
    "official": Kind(official, {"quant_method": "sinq", "nbits": 4, "group_size": 32, "method": "sinq"}),
    "official3": Kind(
        official, {"quant_method": "sinq", "nbits": 3, "group_size": 32, "method": "sinq"}, bits=3
    ),
}

CONFIG = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write(folder: Path, kind: Kind, model: nn.Module | None = None) -> dict[str, Matrix]:
    """Write a quantized checkpoint of a model; return the matrix of each layer."""
    torch.manual_seed(0)
    model = model or LlamaForCausalLM(LlamaConfig(**CONFIG))
    names = [target.name for target in find_targets(model)]
    matrices, tensors = {}, {}
    for seed, name in enumerate(names):
        rows, columns = model.get_submodule(name).weight.shape
        matrices[name] = Matrix(rows, columns, kind.bits, kind.group, seed, kind.symmetric)
        tensors |= {f"{name}.{key}": tensor for key, tensor in kind.store(matrices[name]).items()}
    dense = model.state_dict()
    tensors |= {key: dense[key] for key in dense if key.removesuffix(".weight") not in matrices}
    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"quantization_config": kind.config}))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    if kind.store is official:
        described = {name: sidecar(matrix) for name, matrix in matrices.items()}
        (folder / "model.safetensors.index.json.meta.json").write_text(json.dumps(described))
    return matrices
