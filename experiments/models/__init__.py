"""Where models come from."""

from experiments.models.source import (
    DType,
    LoadedModel,
    ModelSource,
    Pretrained,
    SmolLM2,
    load,
    sparing_clone,
)

__all__ = ["DType", "LoadedModel", "ModelSource", "Pretrained", "SmolLM2", "load", "sparing_clone"]
