"""What transformers' `SinqConfig` imports to save models: see `sinq/transformers/saving.py`."""

from sinq.transformers.saving import write_edits_too as patch_hf_pretrained_io

__all__ = ["patch_hf_pretrained_io"]
