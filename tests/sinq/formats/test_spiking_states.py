"""Keys and values as spikes: against neurons in plain Python, plain codes, and what is stored."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sinq import KeyValueFormat, NotApplicable, StateFormat
from sinq.formats.key_values import Sharing, StoredStates

SHAPE = (2, 3, 5, 16)
"""Batch, heads, tokens, width."""


def states(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) + 0.3


def by_hand(x: Tensor, format: StateFormat, salient: set[int]) -> Tensor:
    """Number by number: neurons charged in units of scale / T where they are salient, else of the scale."""
    found, levels = torch.empty_like(x), 2**format.bits
    for batch, head, token in torch.cartesian_prod(*map(torch.arange, SHAPE[:3])).tolist():
        row = x[batch, head, token]
        low, high = row.min().clamp_max(0), row.max().clamp_min(0)
        scale = ((high - low) * (1 / (levels - 1))).half().float()
        zero = torch.round(-low / scale)
        for channel in range(SHAPE[3]):
            steps = format.steps if head * SHAPE[3] + channel in salient else 1
            charge = int(torch.round((row[channel] / scale + zero) * steps))
            total = 0
            for _ in range(steps):
                spike = max(0, min(charge, levels - 1))
                charge, total = charge - spike, total + spike
            found[batch, head, token, channel] = (total / steps - zero) * scale
    return found


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(2, 5), st.sets(st.integers(0, 47)), st.integers(0, 100))
def test_they_stand_for_what_neurons_fire(bits: int, steps: int, salient: set[int], seed: int) -> None:
    format, x = StateFormat(bits, steps=steps), states(seed)
    channels = torch.tensor(sorted(salient), dtype=torch.int64)
    stored = StoredStates.of(format, x, salient=channels)
    expected = by_hand(x, format, salient)
    step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True).clamp_max(0)) / (2**bits - 1)
    off = (stored.read(torch.float32, salient=channels) - expected).abs()
    assert (off > 1e-4 * step).float().mean() < 0.01  # zeros and charges half-way between two may turn
    assert (off <= 1.01 * step).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_salient_channels_they_are_plain_codes(bits: int) -> None:
    none = torch.empty(0, dtype=torch.int64)
    fired = StoredStates.of(StateFormat(bits, steps=2), states(), salient=none)
    plain = StoredStates.of(StateFormat(bits), states())
    assert torch.equal(fired.codes, plain.codes)
    assert torch.equal(fired.read(torch.float32, salient=none), plain.read(torch.float32))


@pytest.mark.parametrize(("bits", "steps"), [(4, 2), (3, 4), (8, 3)])
def test_salient_channels_are_nearer_and_cost_their_steps(bits: int, steps: int) -> None:
    channels = torch.tensor([0, 1, 17, 18, 19, 30, 40, 47])
    format, x = StateFormat(bits, steps=steps), states()
    fired, plain = StoredStates.of(format, x, salient=channels), StoredStates.of(StateFormat(bits), x)
    errors = [
        (each.transpose(1, 2).flatten(2) - x.transpose(1, 2).flatten(2)).square().mean((0, 1))
        for each in (fired.read(torch.float32, salient=channels), plain.read(torch.float32))
    ]
    chosen = torch.zeros(48, dtype=torch.bool).index_fill_(0, channels, True)
    assert errors[0][chosen].mean() < errors[1][chosen].mean() / 2
    assert torch.equal(errors[0][~chosen], errors[1][~chosen])
    assert fired.later is not None
    assert fired.later.nbytes == 2 * 5 * (steps - 1) * bits  # 8 channels of a token
    later = sum(tensor.nbytes for tensor in fired.tensors().values())
    assert later == sum(tensor.nbytes for tensor in plain.tensors().values()) + fired.later.nbytes


def test_tokens_are_joined_and_sequences_chosen() -> None:
    channels = torch.tensor([2, 3, 20])
    format, x = StateFormat(4, steps=2), states()
    whole = StoredStates.of(format, x, salient=channels)
    parts = [StoredStates.of(format, x[:, :, part], salient=channels) for part in (slice(0, 2), slice(2, 5))]
    joined = parts[0].followed_by(parts[1])
    expected = whole.read(torch.float32, salient=channels)
    assert torch.equal(joined.read(torch.float32, salient=channels), expected)
    chosen = whole.changed(lambda tensor: tensor[[1]])
    assert torch.equal(chosen.read(torch.float32, salient=channels), expected[[1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"symmetric": True}, "kv steps=2 is possible with one asymmetric scale"),
        ({"group_size": 8}, "kv steps=2 is possible with one asymmetric scale"),
        ({"sharing": Sharing.head}, "kv steps=2 is possible with one asymmetric scale"),
        ({"sharing": Sharing.channel, "group_size": 8}, "kv steps=2 is possible with one asymmetric scale"),
    ],
)
def test_what_they_do_not_share_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        StateFormat(4, steps=2, **options)  # type: ignore[arg-type]


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"kv\.steps=0 is not possible"):
        StateFormat(4, steps=0)
    with pytest.raises(ValueError, match=r"kv\.share=2 is not possible"):
        StateFormat(4, steps=2, share=2)
    with pytest.raises(NotApplicable, match=r"kv\.rotate=true .* kv\.keys\.steps=2"):
        KeyValueFormat(StateFormat(4, steps=2), StateFormat(4), rotate=True)
