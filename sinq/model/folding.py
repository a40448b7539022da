"""Column scales moved into the layer before, exactly (`decoder.py` has the connections).

Each function divides the columns of some matrices by a positive scale, and multiplies what feeds them.
"""

import torch
from torch import Tensor

from sinq.model.decoder import Block, Gated, Norm, ParameterRef, with_bias


def fold_into_norm(norm: Norm, scale: Tensor, device: torch.device) -> None:
    """Divide the columns of all matrices that read a norm by `scale` (in,), and multiply its gain."""
    for reader in norm.readers:
        reader.write(reader.read(device) / scale)
    norm.gain.write(norm.gain.read(device) * scale)


def fold_into_up(gated: Gated, scale: Tensor, device: torch.device) -> None:
    """Divide the columns of down by `scale` (…, in), one for each expert, and multiply the rows of up."""
    gated.down.write(gated.down.read(device) / scale.unsqueeze(-2))
    for parameter in with_bias(gated.up):
        _scale_rows(parameter, scale, device)


def fold_into_values(block: Block, scale: Tensor, device: torch.device) -> None:
    """Divide the columns of o by `scale` (kv heads · width,), and multiply the rows of v.

    Query heads of one kv head average the same values, so that their columns of o have the same scales.
    """
    by_head = columns_by_head(block, device)
    divided = by_head / scale.reshape(by_head.shape[1], 1, -1)
    block.output.write(divided.flatten(1))
    for parameter in with_bias(block.value):
        _scale_rows(parameter, scale, device)


def columns_by_head(block: Block, device: torch.device) -> Tensor:
    """Return the matrix of o as (hidden, kv heads, query heads of one kv head, width)."""
    weight, width = block.output.read(device), block.head_width
    heads = len(block.value.read(device)) // width
    return weight.reshape(len(weight), heads, -1, width)


def _scale_rows(parameter: ParameterRef, scale: Tensor, device: torch.device) -> None:
    """Multiply the last rows of a weight (…, out, in), or of a bias (out,), by scale (…, rows)."""
    values = parameter.read(device).clone()
    rows = scale.shape[-1]
    if parameter.name == "bias":
        values[-rows:] *= scale
    else:
        values[..., -rows:, :] *= scale.unsqueeze(-1)
    parameter.write(values)
