"""Loading through transformers, which fills what a checkpoint lacks with random numbers and says so in a log.

A model that is measured has all of its tensors from its files, and the files have no others. transformers
reports this, after its rules for names, ties, and tensors that an architecture declares ignorable. Local
files are read by the rule of `sinq.stream` before memory is taken. Refusals have the words of `stream`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

import experiments.models.sdgm.model  # noqa: F401 - registers the architecture
from experiments.models.refusals import cannot_be_loaded
from sinq.checkpoint.huggingface import require_fit
from sinq.checkpoint.weight_files import INDEX, TENSORS, unfit
from sinq.common.inside import exists
from sinq.common.library_errors import library_errors
from sinq.model.language_model import auto_class


def load_pretrained(path: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, PreTrainedModel]:
    """Return the configuration and the model of a folder or of a hub's model, on the CPU.

    Raises:
        FileNotFoundError: a file that an index lists is missing.
        ValueError: it cannot be loaded, or the files do not fit the architecture; the message says why.
    """
    if any(exists(Path(path), name) for name in (TENSORS, INDEX)):
        require_fit(Path(path))
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with _named(path):
        config = AutoConfig.from_pretrained(path, **options)
    with _named(path):
        loaded: Any = auto_class(config).from_pretrained(
            path, **options, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model, report = loaded
    _refuse_unfit(path, type(model).__name__, report)
    return config, model


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turn an error of a library, within the context, into one line that names the model."""
    try:
        yield
    except library_errors() as error:
        raise ValueError(cannot_be_loaded(path, error)) from error


def _refuse_unfit(path: str, model: str, report: dict[str, Iterable[Any]]) -> None:
    """Raise `ValueError` if transformers reports tensors that are missing, left over or of other shapes."""
    shapes = {
        name: (str(list(found)), str(list(wanted))) for name, found, wanted in report["mismatched_keys"]
    }
    missing = set(report["missing_keys"]) - shapes.keys()
    unknown = set(report["unexpected_keys"])
    if missing or unknown or shapes:
        raise ValueError(unfit(path, model, missing, unknown, shapes))
    if errors := list(report["error_msgs"]):
        raise ValueError(f"model {path} cannot be loaded: {errors[0].splitlines()[0]}")
