"""Sums of atoms against loops, and oscillators against sines."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experiments.models.sdgm.atoms import RESEED, Atoms, Modulation, synthesized, synthesized_by_products


def atoms_of(count: int, width: int, span: int, dtype: torch.dtype = torch.float64) -> Atoms:
    generator = torch.Generator().manual_seed(0)
    atoms = Atoms(count, width, span).to(dtype)
    for parameter in atoms.parameters():
        parameter.data = torch.rand(count, width, generator=generator, dtype=dtype) * 3
    return atoms.requires_grad_(False)


def by_loops(atoms: Atoms, coefficients: Tensor, start: int) -> Tensor:
    """The definition, one number at a time."""
    batch, tokens, count = coefficients.shape
    found = torch.zeros(batch, tokens, atoms.amplitude.shape[1], dtype=torch.float64)
    for b in range(batch):
        for t in range(tokens):
            for d in range(found.shape[2]):
                for k in range(count):
                    f = math.exp(atoms.log_frequency[k, d].item())
                    angle = 2 * math.pi * f * (start + t) / atoms.span + atoms.phase[k, d].item()
                    found[b, t, d] += coefficients[b, t, k] * atoms.amplitude[k, d] * math.sin(angle)
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
def test_a_sum_is_that_of_loops(batch: int, tokens: int, count: int, width: int, start: int) -> None:
    atoms = atoms_of(count, width, 64)
    coefficients = torch.randn(batch, tokens, count, dtype=torch.float64)
    assert torch.allclose(atoms(coefficients, start), by_loops(atoms, coefficients, start), atol=1e-12)


def test_chunks_change_nothing() -> None:
    atoms = atoms_of(3, 2, 300)
    coefficients = torch.randn(1, 300, 3, dtype=torch.float64)
    parts = [atoms(coefficients[:, t : t + 1], t) for t in range(300)]
    assert torch.allclose(atoms(coefficients), torch.cat(parts, 1), atol=1e-12)


def test_a_span_is_a_period_of_whole_frequencies() -> None:
    step = torch.full((1, 1), 2 * math.pi * 3 / 32, dtype=torch.float64)
    ones, phase = torch.ones(1, 64, 1, dtype=torch.float64), torch.zeros(1, 1)
    wave = synthesized(ones, torch.ones(1, 1), step, phase, 0)[0, :, 0]
    assert torch.allclose(wave[:32], wave[32:], atol=1e-12)
    spectrum = torch.fft.rfft(wave[:32]).abs()
    assert spectrum.argmax() == 3
    assert abs(spectrum[3].item() - 16) < 1e-9


def test_oscillators_are_sines_over_4096_steps() -> None:
    atoms = atoms_of(5, 7, 4096)
    found = atoms.oscillators(0)
    positions = torch.arange(4096, dtype=torch.float64)[:, None, None]
    expected = torch.sin(positions * atoms.step + atoms.phase)
    turned = torch.stack([found.sines() for _ in range(4096)])
    assert (turned - expected).abs().max() < 1e-10


def test_a_recurrence_is_the_synthesis_over_4096_positions() -> None:
    """Sums of turned atoms, one position after another, are those of the whole pass; float32, as models."""
    atoms = atoms_of(5, 7, 4096, torch.float32)
    coefficients = torch.rand(1, 4096, 5, generator=torch.Generator().manual_seed(1))
    found = atoms.oscillators(0)
    sums = [coefficients[0, t] @ (found.sines() * atoms.amplitude) for t in range(4096)]
    assert torch.allclose(torch.stack(sums), atoms(coefficients)[0], atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 4), st.integers(2, 3), st.integers(0, 50))
def test_products_are_sums_where_channels_share_a_frequency(
    tokens: int, count: int, width: int, start: int
) -> None:
    atoms = atoms_of(count, width, 64)
    coefficients = torch.randn(2, tokens, count, dtype=torch.float64)
    others = (coefficients, atoms.amplitude, atoms.step[:, :1], atoms.phase, start)
    assert torch.allclose(synthesized_by_products(*others), synthesized(*others), atol=1e-12)


def test_a_modulation_is_that_of_loops() -> None:
    modulation = Modulation(3, 2, 64).double()
    for number, parameter in enumerate(modulation.parameters()):
        parameter.data = torch.linspace(-1, 2 + number, parameter.numel()).reshape(parameter.shape).double()
    inner, bias, outer = (each.tolist() for each in (modulation.inner, modulation.bias, modulation.outer))
    found = modulation(5, 4)
    for t in range(4):
        for k in range(3):
            units = [math.tanh((5 + t) / 64 * i + b) for i, b in zip(inner, bias, strict=True)]
            expected = 1 + sum(unit * row[k] for unit, row in zip(units, outer, strict=True))
            assert abs(found[t, k].item() - expected) < 1e-12


def test_oscillators_in_float32_do_not_drift() -> None:
    """Errors stay those of the angle in float32, since sines are taken again from time to time."""
    atoms = atoms_of(5, 7, 64, torch.float32)
    found = atoms.oscillators(RESEED - 3)
    positions = torch.arange(RESEED - 3, 4 * RESEED, dtype=torch.float32)[:, None, None]
    turned = torch.stack([found.sines() for _ in range(len(positions))])
    assert (turned - torch.sin(positions * atoms.step + atoms.phase)).abs().max() < 1e-3


def test_atoms_that_are_known_are_learned_back() -> None:
    """Amplitudes, frequencies and phases near the true ones are driven to the same sum."""
    torch.manual_seed(0)
    true = atoms_of(3, 2, 32)
    coefficients = torch.rand(4, 32, 3, dtype=torch.float64)
    learned = atoms_of(3, 2, 32)
    for parameter in learned.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    learned.requires_grad_(True)
    optimizer = torch.optim.Adam(learned.parameters(), 3e-3)
    losses = []
    for _ in range(1000):
        optimizer.zero_grad()
        loss = (learned(coefficients) - true(coefficients)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 < losses[0]
    assert losses[-1] < losses[0] / 100
