"""The official `sinq` package at work: a program that is run in a process of its own, for it has our name.

python official_package.py make FOLDER       quantize a small model in many ways; save each, and its matrices
python official_package.py read FOLDER …     load folders, and save the logits that each gives
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["SINQ_AUTO_PATCH"] = "0"
sys.path.insert(0, os.environ["SINQ_OFFICIAL"])

import torch
from safetensors.torch import save_file
from sinq.patch_model import AutoSINQHFModel  # type: ignore[import-not-found]
from sinq.sinqlinear import sinq_base_quant_config  # type: ignore[import-not-found]
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
WAYS = [
    *((bits, 64, "1D", "sinq") for bits in (2, 3, 4, 5, 6, 8)),
    *((bits, 32, "2D", "sinq") for bits in (3, 4)),
    (4, 64, "1D", "sinq_noz"),
    (4, 64, "1D", "sinq_noz_quantAux"),
    (4, 64, "1D", "hqq"),
    (4, 64, "1D", "dual"),
    (4, 64, "1D", "sinq_nf4"),
    (3, 64, "1D", "sinq_nf3_quantAux"),
    (4, 32, "2D", "sinq_nf4"),
]


def make(folder: Path) -> None:
    for bits, group, tiling, method in WAYS:
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
        options = sinq_base_quant_config(nbits=bits, group_size=group, tiling_mode=tiling, method=method)
        AutoSINQHFModel.quantize_model(
            model, tokenizer=None, quant_config=options, compute_dtype=torch.float32, device="cpu"
        )
        out = folder / f"{bits}-{group}-{tiling}-{method}"
        AutoSINQHFModel.save_quantized_safetensors(model, None, str(out), write_tokenizer=False)
        layers = {name: part for name, part in model.named_modules() if hasattr(part, "W_q")}
        matrices = {name: part.dequantize().float().contiguous() for name, part in layers.items()}
        save_file(matrices, folder / f"{out.name}.expected")


def read(folders: list[Path]) -> None:
    for folder in folders:
        model = AutoSINQHFModel.from_quantized_safetensors(
            str(folder), compute_dtype=torch.float32, device="cpu"
        )
        with torch.no_grad():
            logits = model(torch.arange(32)[None] * 3 % 96).logits
        save_file({"logits": logits.float().contiguous()}, folder.with_suffix(".expected"))


if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[2:]]
    make(paths[0]) if sys.argv[1] == "make" else read(paths)
