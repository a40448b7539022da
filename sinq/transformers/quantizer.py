"""The reader of our folders for `from_pretrained`: edits before the weights, tensors by transformers.

transformers builds the architecture on the meta device and asks the quantizer of the configuration to
prepare it. Ours reads `sinq.json`, compares the checksum of every tensor, repeats the edits, and compares
names, types and shapes with the files: all that `sinq.load` does before it takes memory. Then the model has
the tensors of the files under their names, and transformers puts them on their devices like any others.

Refused in one line: another class of model than the folder's, dense models (they are compressed by a method,
or by transformers' `SinqConfig`), layers kept on disk, and tensors that do not come from files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, get_module_from_name
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.quantization_config import QuantizationConfigMixin

from sinq.checkpoint.configuration import QUANT_METHOD
from sinq.checkpoint.folder import require_tensors
from sinq.checkpoint.layout import LAYOUT, read_layout
from sinq.checkpoint.weight_files import all_tensors
from sinq.common.inside import exists
from sinq.model.edits import edit, weight_stores


class FolderConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a folder of ours; what was done to the model is in `sinq.json`."""

    def __init__(self, quant_method: str = QUANT_METHOD, **unknown: Any) -> None:
        if unknown:
            raise ValueError(f"quantization_config of {quant_method} has no {', '.join(sorted(unknown))}")
        self.quant_method = quant_method  # type: ignore[assignment]


class FolderQuantizer(HfQuantizer):
    """Preparation of a model for the tensors of a folder that `sinq.save` or `stream` wrote."""

    def validate_environment(self, device_map: Any = None, **other: Any) -> None:
        """Raise `ValueError` if the model is dense, or layers are to stay on disk."""
        if not self.pre_quantized:
            raise ValueError(
                f"{QUANT_METHOD} reads folders that sinq.save wrote, and compresses nothing;"
                " use a method, as in sinq.SINQ().compress(model), or transformers' SinqConfig"
            )
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise ValueError("device_map has disk, and compressed layers stay in memory; use cpu there")

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **other: Any
    ) -> None:
        if not checkpoint_files:
            raise ValueError("a compressed model is loaded from its folder; state_dict has no sinq.json")
        repeat_edits(model, folder_of(checkpoint_files[0], model))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **other: Any) -> None:
        for store in weight_stores(model):
            store.settle()

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters on top can be trained, since products have gradients by their inputs."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def register() -> None:
    """Make transformers know both classes.

    Its own decorators refuse a name that is there, and so a second import of this package (in a notebook).
    """
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = FolderConfig
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = FolderQuantizer


def repeat_edits(model: PreTrainedModel, folder: Path) -> None:
    """Make the edits of a folder in a model on the meta device, with all checks that `sinq.load` makes.

    Raises:
        FileNotFoundError: the folder has no `sinq.json`.
        ValueError: it is damaged, or is no folder of this class of models.
    """
    layout, tensors = read_layout(folder), all_tensors(folder)
    layout.verify(tensors)
    _tie(model)
    try:
        for change in layout.edits(tensors):
            edit(model, change)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{layout.path}: {error}") from error
    require_tensors(model, tensors, folder)


def _tie(model: PreTrainedModel) -> None:
    """Tie what transformers will tie after loading: while it builds a model, `tie_weights` does nothing."""
    for target, source in model.all_tied_weights_keys.items():
        module, name = get_module_from_name(model, target)
        setattr(module, name, model.get_parameter_or_buffer(source))


def folder_of(file: str, model: PreTrainedModel) -> Path:
    """Return the folder of a file of tensors, with `sinq.json` in it.

    From the hub, transformers loads only the files that it knows. `sinq.json` is then loaded into the same
    snapshot of the hub's cache.
    """
    folder = Path(file).parent
    source: Any = model.config.name_or_path
    commit = extract_commit_hash(file, None)
    if commit is not None and not exists(folder, LAYOUT):
        cached_file(source, LAYOUT, revision=commit, cache_dir=folder.parents[2])
    return folder
