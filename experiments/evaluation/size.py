"""Size: bytes of the tensors that a checkpoint would hold.

`nbytes` and `bits_per_weight` are over all linear layers (the output head only if it is compressed):
everything stored for compressed layers, and dense layers in the number format of the original checkpoint.
`bits_per_weight` is per weight that is present, `bits_per_dense_weight` per weight of the dense model: they
differ where a method removes weights. `model_nbytes` is the whole model, embeddings and norms included,
shared tensors once. `kv_bytes_per_token` is what attention keeps of a token, counted on real tensors; it is
left out where a model keeps no growing cache.
"""

from dataclasses import dataclass
from typing import ClassVar

from experiments.evaluation.base import Evaluation, EvaluationContext, Measurement
from sinq import stored_tensors
from sinq.model.cache_size import cache_nbytes_per_token
from sinq.model.language_model import Predicts
from sinq.model.targets import linear_places, output_head


def _whole(context: EvaluationContext) -> tuple[int, int]:
    """Return the bytes of the whole model and of the dense one; of a foreign checkpoint, as it is stored."""
    loaded = context.loaded
    if loaded.foreign is not None:
        return loaded.foreign.nbytes, loaded.foreign.dense_nbytes
    models = context.model, loaded.model
    whole, dense = (stored_tensors(model, loaded.stored_dtype).values() for model in models)
    return sum(tensor.nbytes for tensor in whole), sum(tensor.nbytes for tensor in dense)


@dataclass(frozen=True)
class Size(Evaluation):
    """Bytes and bits per weight."""

    name: ClassVar[str] = "size"
    predicts: ClassVar[Predicts | None] = None

    def measure(self, context: EvaluationContext) -> Measurement:
        stored = context.loaded.stored_dtype
        whole, dense_whole = _whole(context)
        head = output_head(context.model)
        dense = {
            target.name: target.numel for target in linear_places(context.model) if target.module is not head
        }
        parts = [part for part in context.report.parts if part.dense_parameters]  # a prefix has none
        compressed = [part for part in parts if part.name not in dense]  # others are smaller, and dense
        left_dense = sum(dense.values())
        weights = left_dense + sum(part.parameters for part in compressed)
        dense_weights = weights + sum(part.dense_parameters - part.parameters for part in parts)
        linear = left_dense * stored.itemsize + sum(part.nbytes for part in compressed)
        kv_bytes = cache_nbytes_per_token(context.model, stored)
        return Measurement(
            {
                "bits_per_weight": 8 * linear / weights,
                "bits_per_dense_weight": 8 * linear / dense_weights,
                "nbytes": linear,
                "weights": weights,
                "dense_weights": dense_weights,
                "weights_left_dense": left_dense,
                "model_nbytes": whole,
                "dense_model_nbytes": dense_whole,
                "model_ratio": dense_whole / whole,
            }
            | ({} if kv_bytes is None else {"kv_bytes_per_token": kv_bytes})
        )
