"""`save_pretrained` of a model with edits, which writes what `sinq.save` writes.

transformers has no hook for files beside the tensors, and asks quantization packages to replace
`PreTrainedModel.save_pretrained` (its `SinqConfig` calls `sinq.hf_io.patch_hf_pretrained_io`). Models without
edits, and adapters of peft on top of any model, are left to transformers' own code. `push_to_hub` and
`Trainer` call `save_pretrained`, so they work as for any model.
"""

import inspect
from collections.abc import Mapping
from functools import cache, wraps
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sinq.checkpoint.folder import save
from sinq.model.edits import edits
from sinq.transformers.linear import adopt

CANNOT = ("state_dict", "variant", "distributed_checkpoint")
"""Arguments that ask for other files than `sinq.load` reads."""
SHARD = "max_shard_size"


@cache
def write_edits_too() -> None:
    """Let `save_pretrained` write models with edits; a second call changes nothing."""
    theirs = PreTrainedModel.save_pretrained
    signature = inspect.signature(theirs)

    @wraps(theirs)
    def save_pretrained(self: PreTrainedModel, save_directory: Any, *rest: Any, **options: Any) -> None:
        adopt(self)
        if not edits(self) or getattr(self, "_hf_peft_config_loaded", False):
            theirs(self, save_directory, *rest, **options)
            return
        given = signature.bind(self, save_directory, *rest, **options)
        given.apply_defaults()
        _write(self, Path(save_directory), given.arguments, signature.parameters[SHARD].default)

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


def _write(model: PreTrainedModel, folder: Path, given: Mapping[str, Any], shard: object) -> None:
    """Write a model with edits, given the arguments of `save_pretrained` and the default size of a file."""
    if asked := [name for name in CANNOT if given[name]]:
        raise ValueError(f"{asked[0]} is not possible for a model with compressed layers; leave it out")
    if given[SHARD] != shard:
        raise ValueError(
            f"{SHARD}={given[SHARD]} is not possible: a compressed model is written to one file;"
            " sinq.stream writes several"
        )
    if not given["is_main_process"]:
        return
    save(model, folder)
    if given["push_to_hub"]:
        options = {"repo_id": folder.name, "token": given["token"]} | given["kwargs"]
        model.push_to_hub(**options)
