"""`save_pretrained` of models with edits, and `from_pretrained` of folders of the official SINQ package.

transformers has no hook for files beside the tensors, and asks quantization packages to replace these two
methods of `PreTrainedModel` (its `SinqConfig` calls `sinq.hf_io.patch_hf_pretrained_io`). A model with edits
is written by `sinq.save`; a folder with the sidecar of the official package is read by
`sinq.checkpoint.foreign`. All else is left to transformers' own code, adapters of peft too. `push_to_hub` and
`Trainer` call `save_pretrained`, so they work as for any model.
"""

import inspect
from collections.abc import Mapping
from functools import cache, wraps
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sinq.checkpoint.folder import save
from sinq.checkpoint.foreign.official_sinq import SIDECAR
from sinq.checkpoint.foreign.reader import load_foreign
from sinq.common.inside import exists
from sinq.model.edits import edits
from sinq.transformers.linear import adopt

CANNOT = ("state_dict", "variant", "distributed_checkpoint")
"""Arguments of `save_pretrained` that ask for other files than `sinq.load` reads."""
SHARD = "max_shard_size"
OWN = ("config", "trust_remote_code", "adapter_kwargs")
"""Arguments that the automatic classes add to a call of `from_pretrained`."""
PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of `device_map` that are no device."""


@cache
def replace_methods() -> None:
    """Replace `save_pretrained` and `from_pretrained` of all models; a second call changes nothing."""
    PreTrainedModel.save_pretrained = _saving(PreTrainedModel.save_pretrained)  # type: ignore[method-assign]
    loading: Any = classmethod(_loading(PreTrainedModel.from_pretrained.__func__))  # type: ignore[attr-defined]
    PreTrainedModel.from_pretrained = loading  # type: ignore[method-assign]


def _saving(theirs: Any) -> Any:
    """Return a `save_pretrained` that writes models with edits, and leaves others to transformers'."""
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

    return save_pretrained


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


def _loading(theirs: Any) -> Any:
    """Return a `from_pretrained` that reads folders of the official package, too."""

    @wraps(theirs)
    def from_pretrained(cls: Any, source: Any, *rest: Any, **options: Any) -> Any:
        if source is None or not Path(source).is_dir() or not exists(Path(source), SIDECAR):
            return theirs(cls, source, *rest, **options)
        return _official(Path(source), rest, options)

    return from_pretrained


def _official(folder: Path, rest: tuple[Any, ...], options: Mapping[str, Any]) -> PreTrainedModel:
    """Return the model of a folder of the official package, given the rest of a call of `from_pretrained`."""
    given = {name: value for name, value in options.items() if value is not None and name not in OWN}
    dtype, device = given.pop("dtype", None), given.pop("device_map", "cpu")
    places = list(device.values()) if isinstance(device, Mapping) else [device]
    if rest or given or len(places) != 1 or places[0] in PLACEMENTS:
        wrong = ", ".join(given) or f"device_map={device}"
        raise ValueError(
            f"{folder} was written by the official SINQ package, and {wrong} is not possible with it;"
            " load it with dtype and device_map=<one device>, save it by save_pretrained, and load that"
        )
    target = f"cuda:{places[0]}" if isinstance(places[0], int) else places[0]
    model = load_foreign(folder, target, None if dtype == "auto" else dtype).model
    if attention := getattr(options.get("config"), "_attn_implementation", None):
        model.set_attn_implementation(attention)
    return model
