"""Size: bytes of real tensors, the ones a checkpoint would hold.

`bits_per_weight` is over the compressed matrices alone, everything stored for them included; `model_nbytes` is the whole model, with
embeddings and norms in the number format of the original checkpoint, shared tensors once.
"""

from dataclasses import dataclass

from experiments.evaluation.base import Evaluation, Measurement, Subject
from sinq import find_targets, stored_tensors


@dataclass(frozen=True)
class Size(Evaluation):
    """Bytes and bits per weight."""

    def measure(self, subject: Subject) -> Measurement:
        stored = subject.loaded.stored_dtype
        whole = sum(tensor.nbytes for tensor in stored_tensors(subject.model, stored).values())
        dense_whole = sum(tensor.nbytes for tensor in stored_tensors(subject.loaded.model, stored).values())
        if subject.is_dense:
            targets = find_targets(subject.model)
            weights = sum(matrix.numel() for target in targets for matrix in target.matrices().values())
            linear = weights * stored.itemsize
        else:
            weights = sum(layer.out_features * layer.in_features for layer in subject.report.layers)
            linear = sum(layer.nbytes for layer in subject.report.layers)
        return Measurement(
            {
                "bits_per_weight": 8 * linear / weights,
                "nbytes": linear,
                "weights": weights,
                "model_nbytes": whole,
                "dense_model_nbytes": dense_whole,
                "model_ratio": dense_whole / whole,
            }
        )
