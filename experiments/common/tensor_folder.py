"""Tensors in the cache: a store (`sinq.common.tensor_store.TensorStore`) of one safetensors file per name."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from experiments.common.cache import Entry, key
from experiments.common.paths import cache_dir


@dataclass(frozen=True)
class TensorFolder:
    """A folder of the cache as a store of tensors; each file is atomic, and checked before it is read."""

    kind: str
    """Path of the folder in the cache, whose last part says what the tensors were made from."""

    def _entry(self, name: object) -> Entry:
        return Entry(self.kind, f"{name}.safetensors")

    def __contains__(self, name: object) -> bool:
        return self._entry(name).intact

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        return load_file(self._entry(name).path)

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self._entry(name).write(as_bytes(dict(tensors)))

    def clear(self) -> None:
        """Remove all tensors."""
        shutil.rmtree(cache_dir() / self.kind, ignore_errors=True)


def training_states(name: str) -> TensorFolder:
    """Return the store of the states of a training, by what is trained, such as a run's id."""
    return TensorFolder(f"training/{key(trained=name)}")
