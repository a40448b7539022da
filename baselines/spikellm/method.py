"""SpikeLLM (arXiv 2407.04752): inputs of layers as neurons that fire, salient channels for more steps.

    1. `inner` compresses the weights. The paper's is OmniQuant, which trains with inputs that fire.
    2. The inputs of every compressed layer become neurons (`formats/spikes.py`, `model/spikes.py`), which
       really fire when the model runs: a membrane, T steps, soft reset.
    3. Block by block, behind blocks that fire, the channels of the largest first-order saliency are chosen
       (`channels.py`, `sinq/algorithms/saliency.py`). They fire for T steps, the others for one.
    4. With kv=kv4_spikes around it, keys and values fire too when attention gets them.

    method=spikellm                                                        W4A4, T = 2, 10 % of the channels
    method=spikellm method.neurons.steps=4 method.share=0.05               W4A4, T = 4, 5 %
    method=spikellm bits=2 method.neurons.bits=8 method.share=0.05         W2A8
    method=spikellm_rtn                                                    weights rounded to nearest
    method=spikellm_ternary                                                ternary weights (`ternary.py`)

Differences from the paper and its release, all choices of this project:

- weights are rounded in groups, and keys and values do not fire while OmniQuant trains;
- saliency is taken of inputs in the space of the codes, while the block's own neurons are silent. With
  OmniQuant it is that of the dense weights, as in the release, which a scale of channels does not change;
  else that of the weights that `inner` left;
- the range of salient channels is that of T(L − 1) steps, where the release's largest codes never fire; it
  also subtracts zeros over all columns, where only those of the firing channels are right; and it never runs
  its neurons unless asked;
- weights have spikes with `inner=Ternary()` alone, which is ours. Mean steps of an input are
  1 + share · (T − 1): they are not "n-bit activations".
"""

from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

from torch import nn

from baselines.spikellm.channels import Channels, Firing, Salience
from sinq import Calibration, CompressionReport, Context, Method, NotApplicable, PartReport
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import SEED, check, number
from sinq.common.timing import Clock
from sinq.formats.spikes import NeuronFormat
from sinq.methods.activations import RoundedFormat, compressed_layers, require_inputs_shown
from sinq.methods.wrapper import MethodWrapper, let_refuse, require_once
from sinq.model.edits import edit
from sinq.model.spikes import FireInputs, SpikingInputs


@dataclass(frozen=True)
class SpikeLLM(MethodWrapper):
    """Weights compressed by `inner`, and neurons at the inputs of the compressed layers.

    Raises:
        ValueError: an option is out of its range.
        NotApplicable: `inner` compresses no layers, or rounds inputs itself.
    """

    name: ClassVar[str] = "spikellm"
    rounds_inputs: ClassVar[bool] = True

    inner: Method
    neurons: NeuronFormat = field(default_factory=NeuronFormat)
    share: float = 0.1
    """Share of each layer's input channels that are salient."""
    salience: Salience = Salience.first_order
    seed: int = 0
    """Seed of `salience=random`."""

    def __post_init__(self) -> None:
        check(self, "method", share=number(least=0, most=1), seed=SEED)
        require_once(self)
        if not self.inner.changes_model:
            raise NotApplicable(
                f"SpikeLLM is not possible with {type(self.inner).__name__}: inputs of compressed layers fire"
                ", and it compresses none; use RTN with 8 bits for nearly dense weights"
            )

    @property
    def format(self) -> RoundedFormat | None:
        """Label of the weights' format and the neurons'; None where the weights have no one format."""
        weights = super().format
        return None if weights is None else RoundedFormat(weights, self.firing)

    @property
    def label(self) -> str:
        return f"SpikeLLM({self.inner.label}, {self.firing.label})"

    @property
    def firing(self) -> Firing:
        """Neurons, and the choice of their channels."""
        return Firing(self.neurons, self.share, self.salience, self.seed)

    @property
    def needs_calibration(self) -> bool:
        return super().needs_calibration or self.firing.measures

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        if self.firing.measures and calibration is None:
            raise NotApplicable(
                f"SpikeLLM needs calibration text to find salient channels; {PASS_CALIBRATION}"
            )
        let_refuse(self.inner, model, calibration, context)
        require_inputs_shown(model, context)
        self.check_running(model, calibration)
        channels, clock = Channels(self.firing), Clock()
        report = self.inner.compress(model, calibration, replace(context, inputs=channels))
        for name in compressed_layers(model):
            edit(model, FireInputs(name, asdict(self.neurons)))
        channels.finish(model, calibration, context, clock)
        neurons = {name: part for name, part in model.named_modules() if isinstance(part, SpikingInputs)}
        return replace(
            report,
            parts=tuple(with_mask(part, neurons.get(f"{part.name}.inputs")) for part in report.parts),
            seconds_statistics=report.seconds_statistics + clock.seconds,
            method=self.label,
        )


def with_mask(part: PartReport, neurons: SpikingInputs | None) -> PartReport:
    """Return the report of a layer with the bytes of the mask of its channels; others as they are."""
    if neurons is None:
        return part
    return replace(part, nbytes=part.nbytes + neurons.get_buffer("salient").nbytes)
