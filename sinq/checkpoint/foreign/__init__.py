"""Checkpoints that other projects quantized, read into values of ours without another rounding.

`formats.py` knows a checkpoint by the `quantization_config` of its `config.json`; each format has one module,
which decodes the stored tensors of a matrix to `Parts` (`parts.py`): codes, scales, zeros. `reader.py` makes
a model of them, with the edits and tensors that `sinq.save` would have written, and a report of its sizes.
"""
