"""Names that transformers' `SinqConfig` imports to quantize: see `sinq/transformers/linear.py`."""

from sinq.transformers.linear import SINQLinear, sinq_base_quant_config

__all__ = ["SINQLinear", "sinq_base_quant_config"]
