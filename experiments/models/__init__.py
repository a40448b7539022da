"""Sources of models, and loaded models."""

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
