"""Size: bytes of real tensors, the ones a checkpoint would hold.

`nbytes` and `bits_per_weight` are over all linear layers (the output head only if it is compressed): everything stored for the
compressed ones, and those left dense in the number format of the original checkpoint. `model_nbytes` is the whole model, embeddings
and norms included, shared tensors once.
"""

from dataclasses import dataclass
from typing import ClassVar

from experiments.evaluation.base import Evaluation, Measurement, Subject
from sinq import stored_tensors
from sinq.model.targets import linear_places, output_head


@dataclass(frozen=True)
class Size(Evaluation):
    """Bytes and bits per weight."""

    name: ClassVar[str] = "size"

    def measure(self, subject: Subject) -> Measurement:
        stored = subject.loaded.stored_dtype
        whole = sum(tensor.nbytes for tensor in stored_tensors(subject.model, stored).values())
        dense_whole = sum(tensor.nbytes for tensor in stored_tensors(subject.loaded.model, stored).values())
        head = output_head(subject.model)
        left_dense = sum(place.numel for place in linear_places(subject.model) if place.module is not head)
        weights = left_dense + sum(layer.out_features * layer.in_features for layer in subject.report.layers)
        linear = left_dense * stored.itemsize + sum(layer.nbytes for layer in subject.report.layers)
        return Measurement(
            {
                "bits_per_weight": 8 * linear / weights,
                "nbytes": linear,
                "weights": weights,
                "weights_left_dense": left_dense,
                "model_nbytes": whole,
                "dense_model_nbytes": dense_whole,
                "model_ratio": dense_whole / whole,
            }
        )
