"""The name that transformers' `SinqConfig` imports to save models: see `sinq/transformers/pretrained.py`."""

from sinq.transformers.pretrained import replace_methods as patch_hf_pretrained_io

__all__ = ["patch_hf_pretrained_io"]
