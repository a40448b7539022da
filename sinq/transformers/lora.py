"""Low-rank adapters of peft on compressed layers.

    config = adaptable(peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    model = peft.get_peft_model(model, config)

peft knows `nn.Linear` and refuses other layers by name; `adaptable` tells a configuration that ours take the
same adapter, x ↦ x Ŵᵀ + s · x Aᵀ Bᵀ. Gradients flow to A and B, and through Ŵ to earlier layers; codes and
scales stay. A saved adapter is a plain one of peft: `PeftModel.from_pretrained(model, folder, config=
adaptable(LoraConfig.from_pretrained(folder)))`.

An adapter cannot be merged into codes. `sinq.training` has its own adapters, which are merged before a method
rounds.
"""

from typing import Any, NoReturn

from peft import LoraConfig
from peft.tuners.lora import Linear

from sinq.model.linear import CompressedLinear


class AdaptedLinear(Linear):
    """A compressed layer with an adapter beside it."""

    def merge(self, *given: Any, **options: Any) -> NoReturn:
        """Raise `ValueError`: codes have no room for an adapter."""
        raise ValueError(
            "an adapter cannot be merged into compressed weights; keep it beside them, or merge it into the"
            " dense model and compress that"
        )


def adaptable(config: LoraConfig) -> LoraConfig:
    """Return a configuration, changed such that its adapters fit compressed layers too."""
    config._register_custom_module({CompressedLinear: AdaptedLinear})
    return config
