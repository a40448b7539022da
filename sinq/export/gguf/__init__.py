"""GGUF, the file of llama.cpp and of what is built on it: a model with its tokenizer and chat template in one
file.

exporter.py      the format, its options, and what it refuses; refit.py: `gguf_q4_k`
contents.py      the tensors of a file
blocks.py        matrices as blocks of 32 weights; k_quants.py: as super-blocks of 256
architecture.py  names, keys and orders of rows, by kind of model
tokenizer.py     the tokenizer as keys
container.py     the bytes of the file
"""

from sinq.export.gguf.exporter import FILE, Gguf
from sinq.export.gguf.refit import GgufQ4K

__all__ = ["FILE", "Gguf", "GgufQ4K"]
