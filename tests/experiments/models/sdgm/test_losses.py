"""Spectra against a plain Fourier transform, and what the losses do and do not see."""

import math

import torch

from experiments.models.sdgm.losses import TINY, magnitudes, stft_loss, time_loss
from tests.experiments.models.sdgm.tiny import FOUR, ONE, VARIANTS, ids_of, model_of


def test_magnitudes_are_those_of_a_plain_transform() -> None:
    torch.manual_seed(0)
    signal = torch.randn(2, 19, 3, dtype=torch.float64)
    found = magnitudes(signal, 8, 3)
    assert found.shape == (6, 5, 4)
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / 8) for n in range(8)]
    for frame in range(4):
        for bin_ in range(5):
            total = sum(
                hann[n] * signal[1, 3 * frame + n, 2].item()
                * complex(math.cos(2 * math.pi * bin_ * n / 8), -math.sin(2 * math.pi * bin_ * n / 8))
                for n in range(8)
            )  # fmt: skip
            assert abs(found[5, bin_, frame].item() - math.sqrt(abs(total) ** 2 + TINY)) < 1e-9


def test_spectra_do_not_see_a_phase_and_the_error_in_time_does() -> None:
    t = torch.arange(256, dtype=torch.float64)
    sine, cosine = (f(2 * math.pi * 6 * t / 32)[None, :, None] for f in (torch.sin, torch.cos))
    assert stft_loss(sine, sine, 32, 8) == 0
    assert stft_loss(sine, cosine, 32, 8) < 1e-3 < stft_loss(sine, 2 * sine, 32, 8)
    assert abs(time_loss(sine, cosine).item() - 1.0) < 1e-9


def test_reconstruction_has_no_gradient_by_the_embeddings() -> None:
    made, wanted = torch.randn(1, 16, 2, requires_grad=True), torch.randn(1, 16, 2, requires_grad=True)
    (time_loss(made, wanted) + stft_loss(made, wanted, 8, 3)).backward()
    assert made.grad is not None
    assert made.grad.abs().max() > 0
    assert wanted.grad is None


def test_gradients_of_the_whole_loss_reach_every_parameter() -> None:
    for architecture in (ONE, FOUR, *VARIANTS.values()):
        model = model_of(architecture).train()
        architecture.loss(model, ids_of(2, 32)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_each_weight_is_that_of_its_loss() -> None:
    from dataclasses import replace

    model, ids = model_of(ONE), ids_of(2, 32)
    output = model(ids)
    nll = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    parts = {
        "time_weight": time_loss(output.synthesized, output.embeddings),
        "stft_weight": stft_loss(output.synthesized, output.embeddings, 8, 3),
        "lm_weight": nll,
    }
    none = replace(ONE, time_weight=0.0, stft_weight=0.0, lm_weight=0.0)
    assert none.loss(model, ids) == 0
    for name, part in parts.items():
        assert torch.allclose(replace(none, **{name: 2.0}).loss(model, ids), 2 * part)  # type: ignore[arg-type]
