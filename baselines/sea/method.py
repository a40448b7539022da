"""SEA (arXiv 2310.01777): attention on the keys that a linear attention estimates, in linear time and memory.

Every attention of the model gets a small estimator, which guesses its attention map in K columns from linear
attention (`estimator.py` of `sinq/model/attention_forms/`). Of these columns the highest are kept, as many as
stand for k keys at any length (`selection.py`), and exact softmax attention is computed on their keys alone
(`sinq/kernels/block_attention.py`). Estimators, and the model with them, are trained to do what the model did
before (`losses.py`, `lessons.py`).

    method=sea                          the settings of the authors' code for OPT: a GPU's work
    method=sea_cpu                      the same on few windows, at higher rates: minutes

Rows to compare with, of the same training:

    method.form=dense                   softmax attention, fine-tuned on the next token alone
    method.form=linear                  linear attention without anything exact (a Performer)
    method.form=local                   the last k keys in place of estimated ones
    method.form=highest                 the k keys of the highest true scores: a bound, in quadratic time

Training is quadratic in the length: it makes the map of all pairs, one attention at a time. What is used
afterwards is linear.

Choices that paper and code leave open, or that differ: queries and keys are those after rotary embedding;
heads that share keys are treated as if each had its own; hidden states that are compared are those behind
each block; recall is that of the teacher's attention; a column without keys is never kept; the jitter moves
each key by a whole column or not; Ω is drawn anew every so many steps, not calls. Left out: a cache for
decoding, so that generating reads the text again for each token; bidirectional attention.
"""

import enum
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from baselines.sea.lessons import lessons
from baselines.sea.losses import Losses
from baselines.sea.maps import attention_maps
from baselines.sea.training import Student, is_new, settle, trained_parameters
from sinq import Calibration, CompressionReport, Context, Method, NotApplicable, PartReport
from sinq.calibration.gradients import next_token_loss
from sinq.common.errors import PASS_CALIBRATION
from sinq.common.options import check, number, whole
from sinq.common.timing import timed
from sinq.methods.plan import require_usable_weights
from sinq.model.attention_forms.edits import (
    EstimateAttention,
    HighestKeys,
    LinearizeAttention,
    NarrowAttention,
    ReplaceAttention,
)
from sinq.model.attention_forms.estimator import SHRINK
from sinq.model.attention_forms.form import attention_forms, query_shapes
from sinq.model.attention_forms.linear import LinearAttention, orthogonal_features
from sinq.model.attention_forms.sparse import EstimatedAttention
from sinq.model.edits import edit
from sinq.model.modes import evaluating
from sinq.model.recomputing import recomputing
from sinq.model.sharing import sparing_clone
from sinq.model.targets import select
from sinq.training.batches import Windows
from sinq.training.log import TrainingLog
from sinq.training.schedule import Schedule
from sinq.training.trainer import Trainer, Training

PUBLISHED = Training(
    steps=10_000, batch=32, learning_rate=1e-5, weight_decay=1e-2, schedule=Schedule.constant
)


class Form(enum.Enum):
    """The attention that a model gets."""

    estimated = "estimated"
    linear = "linear"
    local = "local"
    highest = "highest"
    dense = "dense"


@dataclass(frozen=True)
class SEA(Method):
    """Attention on estimated keys, trained by distillation.

    Raises:
        NotApplicable: the attention of the model cannot have another form, there is no text, or windows are
            longer than `tokens`.
        ValueError: there are fewer windows of text than a batch has, or the training stops at a number that
            is not finite.
    """

    name: ClassVar[str] = "sea"

    form: Form = Form.estimated
    keys: int = 64
    """Keys of a query and head on average, k."""
    blocks: int = 256
    """Columns of an estimate, K, a multiple of 4."""
    tokens: int = 2048
    """Longest text, which has a table of positions in each attention."""
    fraction: float = 8.0
    """Divisor of d ln d in the number of random features."""
    gate_bias: float = 0.0
    """Start of the gates' biases; 0 starts with a quarter of the sparse attention and half of the mean."""
    jitter: float = 0.1
    """Share of the windows of a training in which keys are moved to neighbouring columns at random."""
    redraw: int = 1000
    """Steps after which the random features are drawn anew."""
    new_share: float = 10.0
    """Factor of the learning rate for estimators."""
    base_share: float = 0.2
    """Factor of the learning rate for all other parameters; 0 to keep them."""
    losses: Losses = field(default_factory=Losses)
    training: Training = PUBLISHED

    def __post_init__(self) -> None:
        check(
            self,
            "method",
            keys=whole(1),
            blocks=whole(SHRINK),
            tokens=whole(1),
            fraction=number(above=0),
            jitter=number(least=0, most=1),
            redraw=whole(1),
            new_share=number(above=0),
            base_share=number(least=0),
        )
        if self.blocks % SHRINK:
            raise ValueError(
                f"method.blocks={self.blocks} is not possible; it must be a multiple of {SHRINK}"
            )
        if self.form is Form.dense and not self.base_share:
            raise ValueError("form=dense with base_share=0 has nothing to train; it is the dense model")

    @property
    def label(self) -> str:
        return f"SEA, {self.form.name}" if self.form is not Form.estimated else f"SEA k={self.keys}"

    @property
    def needs_calibration(self) -> bool:
        return True

    @property
    def compresses_layers(self) -> bool:
        return False

    def compress(
        self,
        model: nn.Module,
        calibration: Calibration | None = None,
        context: Context = Context(),
    ) -> CompressionReport:
        self.check_given(model, calibration)
        select(model, context.layers)  # refuses a model that is compressed already
        require_usable_weights(model)
        shapes = query_shapes(model)
        if calibration is None:
            raise NotApplicable(f"SEA trains on text; {PASS_CALIBRATION}")
        batches = self._batches(calibration)
        self.check_running(model, calibration)
        with timed(context.device_for(model)) as clock:
            teacher = sparing_clone(model)
            self._replace(model, shapes)
            log = self._train(model, teacher, batches, context)
            samples = self._samples(model, teacher, calibration)
        return CompressionReport(
            parts=_parts(model, clock.seconds),
            seconds_quantize=clock.seconds,
            training=log,
            samples=samples,
            method=self.label,
        )

    def _samples(self, model: nn.Module, teacher: nn.Module, calibration: Calibration) -> dict[str, Any]:
        """Return attention maps on the first window, where there are estimated ones."""
        if self.form is not Form.estimated:
            return {}
        names = list(attention_forms(model))
        with lessons(model, teacher, self.losses.divergence, self.keys) as attentions:
            maps = attention_maps(model, teacher, attentions, names, calibration.tokens[0])
        return {"attention_maps": maps}

    def _batches(self, calibration: Calibration) -> Windows:
        """Return the batches of a training.

        Raises:
            NotApplicable: windows are longer than the table of positions.
        """
        options, length = self.training, calibration.tokens.shape[1]
        if length > self.tokens:
            raise NotApplicable(
                f"windows of {length} tokens are longer than method.tokens={self.tokens}; use"
                f" calibration.seqlen={self.tokens}, or method.tokens={length}"
            )
        return Windows(calibration.tokens, options.batch, options.at_once, options.seed)

    def _replace(self, model: nn.Module, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Give every attention its form, ready for a training."""
        generator = torch.Generator().manual_seed(self.training.seed)
        for name, (heads, width) in shapes.items():
            if (change := self._edit(name, heads, width)) is None:
                return
            edit(model, change)
            form = attention_forms(model)[name]
            if isinstance(form, EstimatedAttention):
                form.estimator.initialize(generator, self.gate_bias)
            if isinstance(form, LinearAttention):
                form.omega.copy_(orthogonal_features(len(form.omega), width, generator))

    def _edit(self, name: str, heads: int, width: int) -> ReplaceAttention | None:
        """Return the change of an attention; None for none."""
        if self.form is Form.linear:
            return LinearizeAttention(name, width, self.fraction)
        if self.form is Form.local:
            return NarrowAttention(name, self.keys)
        if self.form is Form.highest:
            return HighestKeys(name, self.keys)
        if self.form is Form.dense:
            return None
        return EstimateAttention(name, heads, width, self.keys, self.blocks, self.tokens, self.fraction)

    def _train(
        self, model: nn.Module, teacher: nn.Module, batches: Windows, context: Context
    ) -> TrainingLog | None:
        """Train a model on its device, which must hold it and its teacher; None if nothing can be trained."""
        parameters = trained_parameters(model, self.base_share > 0)
        if not parameters:
            return None
        trainer = partial(
            Trainer,
            self.training,
            parameters=parameters,
            batches=batches,
            device=next(model.parameters()).device,
            shares={name: self.new_share if is_new(name) else self.base_share for name in parameters},
            store=context.states,
            progress=context.progress,
        )
        recomputed = recomputing(model) if self.training.gradient_checkpointing else nullcontext()
        with evaluating(model), recomputed:
            log = self._trained(model, teacher, trainer)
        settle(model, teacher)
        return log

    def _trained(self, model: nn.Module, teacher: nn.Module, trainer: Callable[..., Trainer]) -> TrainingLog:
        """Carry a training out: of a student beside its teacher, or of softmax attention on its own."""
        if self.form is Form.dense:
            return trainer(loss=partial(next_token_loss, model)).run()
        with lessons(model, teacher, self.losses.divergence, self.keys) as attentions:
            student = Student(
                teacher, model, attentions, self.losses, self.jitter, self.redraw, self.training.seed
            )
            return trainer(loss=student.loss, companion=student, measures=student.measures).run()


def _parts(model: nn.Module, seconds: float) -> tuple[PartReport, ...]:
    """Return the report of each attention's form; the time is shared out alike."""
    forms = attention_forms(model)
    return tuple(
        PartReport(
            kind="attention",
            name=name,
            dense_parameters=0,
            parameters=sum(parameter.numel() for parameter in form.parameters()),
            nbytes=sum(tensor.nbytes for tensor in form.state_dict().values()),
            relative_error=None,
            seconds=seconds / len(forms),
        )
        for name, form in forms.items()
    )
