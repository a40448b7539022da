"""A compressed output head beside what another method compresses.

Methods leave the head dense. In a small model it is the largest matrix, and all of it is read for each token.
`head` rounds it, `inner` does the rest. A head that shares its weight with the embedding gets codes beside
it, and the embedding stays as it is: the model is then larger by these codes, and decodes faster. The report
has the head as one more part, and says of a tied one that it was copied (`tied_head_copied`).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from sinq.calibration.data import Calibration
from sinq.common.errors import NotApplicable
from sinq.methods.base import Method
from sinq.methods.block_loop import compress_layers
from sinq.methods.plan import LayerPlan, Plan
from sinq.methods.report import CompressionReport, Decision
from sinq.methods.scalar import ScalarMethod
from sinq.methods.wrapper import MethodWrapper, require_once
from sinq.model.context import Context
from sinq.model.conv1d import is_linear
from sinq.model.targets import Target, output_head, select


@dataclass(frozen=True)
class CompressedHead(MethodWrapper):
    """Layers compressed by `inner`, and the output head rounded by `head`.

    Raises:
        NotApplicable: `head` needs calibration; the model has no linear head; `inner` compresses it too; the
            format of `head` does not fit it.
    """

    name: ClassVar[str] = "compressed_head"

    inner: Method
    head: ScalarMethod

    def __post_init__(self) -> None:
        super().__post_init__()
        require_once(self)
        if self.head.needs_calibration:
            raise NotApplicable(
                f"{type(self.head).__name__} is not possible for the head: it needs calibration text; give a"
                " method that needs none, such as RTN or SINQ"
            )

    @property
    def label(self) -> str:
        return f"{self.inner.label}, head {self.head.label}"

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        plan = self._plan(model, context)
        self.check_running(model, calibration)
        report = self.inner.compress(model, calibration, context)
        config: Any = model.config
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        of_head = compress_layers(model, plan, None, context)
        return replace(
            report,
            parts=(*report.parts, *of_head.parts),
            seconds_quantize=report.seconds_quantize + of_head.seconds_quantize,
            seconds_compile=report.seconds_compile + of_head.seconds_compile,
            method=self.label,
        )

    def _plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the plan of the head alone, under its own name also where it shares its weight."""
        head = output_head(model)
        name = next((name for name, module in model.named_modules() if module is head), None)
        if head is None or name is None or not is_linear(head):
            raise NotApplicable(f"{type(model).__name__} has no linear output head to compress")
        if self.inner.changes_model and any(
            head in target.modules for target in select(model, context.layers).targets
        ):
            raise NotApplicable(f"{name} is compressed by the inner method too; add it to layers.exclude")
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        decisions = (Decision("tied_head_copied", 1.0),) if embedding.weight is head.weight else ()
        target = Target(name, head)
        if incompatibility := self.head.incompatibility(target.shape):
            raise NotApplicable(f"the head {name} {target.shape} does not fit: {incompatibility.reason}")
        return Plan((LayerPlan(target, self.head, decisions),))
