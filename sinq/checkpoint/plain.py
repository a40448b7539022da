"""Export of a sliced model as a plain Hugging Face checkpoint, where its configuration can say the sizes.

    save_plain(model, "folder")
    AutoModelForCausalLM.from_pretrained("folder")     # without this library

A configuration has one number of heads and one of neurons for all blocks, so all must have kept equally many.
Llama, Mistral, Qwen2 and Qwen3 can say both numbers; OPT, GPT-2, BERT and DistilBERT derive the width of a
head from their hidden size, and can say only the number of neurons. `save` writes every sliced model, for
`load`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinq.common.errors import NotApplicable
from sinq.model.edits import architecture, edits
from sinq.model.slicing import SliceBlock
from sinq.model.units import Counts, Units, find_units

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Sizes = Mapping[str, int]
"""Options of a configuration."""


def _grouped(counts: Counts, width: int) -> Sizes:
    return {
        "num_attention_heads": counts.heads,
        "num_key_value_heads": counts.kv_heads,
        "head_dim": width,
        "intermediate_size": counts.neurons,
    }


OPTIONS: Mapping[str, Callable[[Counts, int], Sizes]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _grouped),
    "opt": lambda counts, _: {"num_attention_heads": counts.heads, "ffn_dim": counts.neurons},
    "gpt2": lambda counts, _: {"n_head": counts.heads, "n_inner": counts.neurons},
    "bert": lambda counts, _: {"num_attention_heads": counts.heads, "intermediate_size": counts.neurons},
    "distilbert": lambda counts, _: {"n_heads": counts.heads, "hidden_dim": counts.neurons},
}
"""Kind of model → options that say its sizes."""


def save_plain(model: "PreTrainedModel", folder: str | Path) -> None:
    """Write a sliced model as Hugging Face's `save_pretrained` does, with a configuration of its sizes.

    Raises:
        NotApplicable: no configuration says the model's sizes, or it has other edits; the message says what
            to do.
    """
    other = [change.name for change in edits(model) if not isinstance(change, SliceBlock)]
    if other:
        raise NotApplicable(
            f"the model has an edit {other[0]}, which a plain checkpoint cannot have; use sinq.save"
        )
    plain = architecture(plain_config(model), model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    if hasattr(model, "generation_config"):  # encoders have none
        plain.generation_config = model.generation_config
    plain.save_pretrained(folder)


def plain_config(model: "PreTrainedModel") -> "PretrainedConfig":
    """Return a configuration that says the sizes of a sliced model.

    Raises:
        NotApplicable: none does.
    """
    units = find_units(model)
    counts, config = _common(units), model.config
    if config.model_type not in OPTIONS:
        raise NotApplicable(f"no options of {config.model_type} are known that say its sizes; use sinq.save")
    sizes: Any = OPTIONS[config.model_type](counts, units[0].head_width)
    if "head_dim" not in sizes and counts.heads * units[0].head_width != config.hidden_size:
        raise NotApplicable(
            f"{config.model_type} divides its hidden size by the number of heads, so a plain checkpoint has"
            f" all of them; this model has {counts.heads}; use sinq.save"
        )
    return type(config).from_dict(config.to_dict() | sizes)


def _common(units: tuple[Units, ...]) -> Counts:
    """Return the counts that all blocks have, or raise `NotApplicable`."""
    first = units[0].counts
    for each in units:
        if each.counts != first:
            raise NotApplicable(
                f"{units[0].name} and {each.name} have different sizes ({first}, {each.counts}), which a"
                " plain checkpoint cannot say; slice uniformly (STAT: method.allocation=uniform), or use"
                " sinq.save"
            )
    return first
