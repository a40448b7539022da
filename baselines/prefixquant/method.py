"""PrefixQuant (arXiv 2410.05265): outlier tokens before every text, so that static scales fit the rest.

A scale that is fixed beforehand and shared by all tokens is spoilt by the few with massive activations. Their
number in a text is fixed, and they come first: attention needs somewhere to go. So the method finds which
tokens they are, and puts them before every text, once, as keys and values that are never rounded; the text
itself then has none. What remains is rounded by `inner`, by rounded activations and keys and values around
it:

    method=prefixquant      RTN, static activations of 4 bits, static keys and values of 4 bits
    method=prefixquant_tuned    then each block tuned behind the prefix and rounded inputs
    method=prefix           the dense model with the same prefix, which rows should be compared with

Choices that the paper leaves open, or that differ: ids are counted on the calibration text of the run
(the paper's is 64 × 512 tokens of Pile); where a model has no token that begins texts, the one that ends them
stands for it, as in the paper for Qwen; weights are rounded as the options of `inner` say, in groups (the
paper's: by rows, symmetric); no rotation unless a method around this one rotates.

The paper fine-tunes as an option, and so does this: `inner` is then `Tuned(RTN())`. Towards the dense block's
outputs behind dense blocks, 20 epochs for W4A4 (10 for W4A8) train static scales of inputs, scales and zeros
of weights, gains and biases. Differences: the weights themselves are not trained (the paper's rate is
5e-6), nor scales of keys and values, which are found afterwards; Adam at a constant rate and the best of the
epochs on held-out windows, where the paper has AdamW, a cosine to a tenth, and the last epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines.prefixquant.detection import Detection, detect
from sinq import Calibration, CompressionReport, Context, Decision, Method, NotApplicable, PartReport
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import check, number, several, whole
from sinq.common.timing import timed
from sinq.methods.plan import require_usable_weights
from sinq.methods.wrapper import MethodWrapper, let_refuse, require_once
from sinq.model.attention import head_shapes, kept_layers, position_modules
from sinq.model.edits import edit
from sinq.model.key_value_edits import PrefixKeyValues, ShiftPositions, key_value_stores


@dataclass(frozen=True)
class Prefix(MethodWrapper):
    """Outlier tokens put before every text, then `inner`.

    Raises:
        NotApplicable: the model has no token that begins or ends texts, or keeps other states than keys and
            values.
    """

    name: ClassVar[str] = "prefix"

    inner: Method
    threshold: float = 64.0
    """Ratio to the median from which a token is an outlier, η."""
    rare: float = 0.1
    """Share of windows below which a single candidate is none."""
    tokens: tuple[int, ...] = ()
    """Ids of the prefix; empty to detect them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))  # a file has a list
        check(
            self,
            "method",
            threshold=number(above=1),
            rare=number(least=0, most=1),
            tokens=several(whole(0), least=0),
        )
        require_once(self)
        if self.inner.changes_shapes:
            name = self.inner.name
            raise NotApplicable(
                f"a prefix has keys and values of all heads, and {name} removes some; put the prefix second,"
                f" as what follows in {name} (`then`)"
            )

    @property
    def label(self) -> str:
        return f"Prefix({self.inner.label})"

    @property
    def needs_calibration(self) -> bool:
        return super().needs_calibration or not self.tokens

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        if not self.tokens and calibration is None:
            raise NotApplicable(f"the tokens of a prefix are found on calibration text; {PASS_CALIBRATION}")
        require_usable_weights(model)
        let_refuse(self.inner, model, calibration, context)
        shapes, begin = head_shapes(model), self.tokens[-1] if self.tokens else beginning(model)
        position_modules(model)
        _require_possible(model, self.tokens)
        self.check_running(model, calibration)
        with timed(context.device_for(model)) as clock:
            part = self._begin(model, calibration, context, shapes, begin)
        report = self.inner.compress(model, calibration, context)
        seconds = report.seconds_statistics + clock.seconds
        return replace(report, parts=(*report.parts, part), seconds_statistics=seconds, method=self.label)

    def _begin(
        self,
        model: nn.Module,
        calibration: Calibration | None,
        context: Context,
        shapes: dict[str, tuple[int, int]],
        begin: int,
    ) -> PartReport:
        """Find the tokens, unless they are given, and put them before every text."""
        if self.tokens or calibration is None:
            ids = list(self.tokens)
            found: tuple[Decision, ...] = ()
            nbytes = begin_texts(model, ids, shapes)
        else:
            before = detect(model, calibration.tokens, self.threshold, context)
            ids = before.prefix(begin, self.rare)
            nbytes = begin_texts(model, ids, shapes)
            found = _found(before, detect(model, calibration.tokens, self.threshold, context))
        tokens = [Decision(f"prefix_token_{index}", token, chosen=True) for index, token in enumerate(ids, 1)]
        return PartReport("prefix", "prefix", 0, 0, nbytes, None, 0.0, (*tokens, *found))


def _require_possible(model: Any, tokens: Sequence[int]) -> None:
    """Raise `NotApplicable` for ids that a model does not have, and for more than it has positions."""
    known = model.get_input_embeddings().num_embeddings
    positions = getattr(model.config, "max_position_embeddings", None)
    if unknown := [token for token in tokens if token >= known]:
        raise NotApplicable(f"method.tokens has {unknown[0]}; {type(model).__name__} knows ids below {known}")
    if positions and len(tokens) >= positions:
        raise NotApplicable(
            f"method.tokens has {len(tokens)} ids, which leave none of the {positions} positions of"
            f" {type(model).__name__} for a text"
        )


def beginning(model: Any) -> int:
    """Return the id of the token that begins texts, else of the one that ends them.

    Raises:
        NotApplicable: the model's configuration has neither.
    """
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(model.config, name, None)
        if (token := found[0] if isinstance(found, list) else found) is not None:
            return int(token)
    raise NotApplicable(
        f"the configuration of {type(model).__name__} has neither bos_token_id nor eos_token_id, and a prefix"
        " ends with one of them; add one to config.json, or give method.tokens"
    )


@torch.no_grad()
def begin_texts(model: Any, ids: list[int], shapes: dict[str, tuple[int, int]]) -> int:
    """Put tokens before every text as keys and values of the present model, and return their bytes.

    Args:
        shapes: heads and width of each attention module, from `head_shapes`.
    """
    kept = kept_layers(model, torch.tensor([ids]))
    states: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (heads, width) in shapes.items():
        layer = kept[model.get_submodule(name).layer_idx]
        states[name] = layer.keys[0].clone(), layer.values[0].clone()
        edit(model, PrefixKeyValues(name, heads, width, len(ids)))
    edit(model, ShiftPositions(len(ids)))
    stores = key_value_stores(model)
    for name, pair in states.items():
        stores[name].begin_with(*pair)
    return sum(tensor.nbytes for pair in states.values() for tensor in pair)


def _found(before: Detection, after: Detection) -> tuple[Decision, ...]:
    """Return what was found without the prefix and behind it."""
    return (
        Decision("outliers_per_window", max(before.per_block), chosen=True),
        Decision("largest_ratio", before.largest_ratio, chosen=True),
        Decision("largest_ratio_behind_prefix", after.largest_ratio, chosen=True),
    )
