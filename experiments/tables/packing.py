"""Bytes of a run's model in the SINQ paper's packing, so that sizes are compared like with like.

The paper's sizes follow from its code's format, and not from ours:

- codes of b bits are packed ⌊32/b⌋ to a 32-bit word: 3 bits take 3.2, 5 take 5.33, 6 take 6.4; 2, 4 and 8 as
  many as here;
- the absmax of a group of NF4 and FP4 (bitsandbytes) is float32, here float16;
- everything else is as here: scales and zeros in float16 or, with 8-bit auxiliaries, in 2.125 bytes a group;
  embeddings and head are dense, a shared one once.

That holds for round-to-nearest, HQQ and SINQ, also inside Hadamard, PreSINQ and A-SINQ. How the paper's GPTQ
and AWQ pack is not known: their sizes are not compared.
"""

from typing import Any

from experiments.results.paths import get_path
from experiments.results.record import Row

GRIDDED = ("rtn", "hqq", "sinq")
"""Methods whose packing in the paper is known."""
WRAPPERS = ("hadamard", "residual_hadamard", "presinq", "awq")
"""Methods that leave the packing to the method inside; for `awq` that is known around SINQ only (A-SINQ)."""
WORD, ABSMAX_BYTES = 32, 4
"""Bits of a word of packed codes; bytes of an absmax."""


def nbytes(row: Row) -> tuple[float | None, str]:
    """Return the bytes of a row's model in the paper's packing; None and the reason where it is not known."""
    method, around = _inside(row["options"]["method"])
    size, name = row["metrics"]["size"], method["name"]
    if not {"dense_weights", "weights_left_dense"} <= size.keys():
        return None, "the row does not say how many weights are compressed"
    if size["weights_left_dense"] == size["dense_weights"]:
        return float(size["model_nbytes"]), ""
    if name not in GRIDDED or not set(around) <= set(WRAPPERS) or ("awq" in around and name != "sinq"):
        return None, f"the paper's packing of {' around '.join([*around, name])} is not known"
    shrunk = [
        kind for kind in get_path(row["metrics"], "compression.decisions") or {} if "group_size" in kind
    ]
    if shrunk and _absmax_bits(method["grid"]):
        return None, f"groups of several sizes have other numbers of absmax: {', '.join(shrunk)}"
    codes = size["dense_weights"] - size["weights_left_dense"]
    more = _code_bits(method["grid"]) + _absmax_bits(method["grid"])
    return size["model_nbytes"] + codes * more / 8, ""


def _inside(method: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the innermost method, and the names of those around it."""
    around = []
    while method.get("inner") is not None:
        around.append(method["name"])
        method = method["inner"]
    return method, around


def _code_bits(grid: dict[str, Any]) -> float:
    """Return the bits per weight that the paper's codes take beyond ours."""
    return WORD / (WORD // grid["bits"]) - grid["bits"]


def _absmax_bits(grid: dict[str, Any]) -> float:
    """Return the bits per weight that the paper's absmax takes beyond ours; 0 where a grid has none."""
    if not grid["symmetric"] or grid["levels"] == "uniform":
        return 0.0
    return (8 * ABSMAX_BYTES - grid["auxiliary_bits"]) / grid["group_size"]
