import copy

import torch
from torch import nn

from sinq import SINQ, CompressedLinear, Grid
from tests.conftest import tiny_model, tiny_tokens


def layer(bias: bool = True) -> tuple[nn.Linear, CompressedLinear]:
    torch.manual_seed(0)
    dense = nn.Linear(64, 48, bias=bias).requires_grad_(False)
    return dense, CompressedLinear(SINQ(Grid(group_size=32)).quantize(dense.weight), dense.bias)


def test_the_product_is_that_of_the_dequantized_weight() -> None:
    for bias in (True, False):
        dense, compressed = layer(bias)
        x = torch.randn(2, 5, 64)
        dense.weight.copy_(compressed.weight.value.dequantize())
        torch.testing.assert_close(compressed(x), dense(x), rtol=1e-3, atol=1e-4)


def test_a_cast_of_the_model_leaves_what_is_stored_alone() -> None:
    _, compressed = layer()
    before = compressed.weight.value.dequantize()
    compressed.to(torch.bfloat16)
    assert torch.equal(compressed.weight.value.dequantize(), before)
    assert compressed(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_cast_changes_what_experts_compute_in() -> None:
    model = tiny_model("moe")
    SINQ(Grid(bits=8, group_size=32)).compress(model)
    before = model(tiny_tokens()).logits
    after = model.to(torch.bfloat16)(tiny_tokens()).logits
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after.float(), before, rtol=0.1, atol=0.02)


def test_moving_a_model_moves_its_weights() -> None:
    _, compressed = layer()
    compressed.to("meta")
    assert all(tensor.device.type == "meta" for tensor in compressed.weight.value.state_dict().values())


def test_buffers_and_value_are_the_same_tensors() -> None:
    _, compressed = layer()
    for name, buffer in copy.deepcopy(compressed).weight.named_buffers():
        assert buffer.data_ptr() != dict(compressed.weight.named_buffers())[name].data_ptr()
    duplicate = copy.deepcopy(compressed)
    assert all(
        duplicate.weight.value.state_dict()[name] is buffer
        for name, buffer in duplicate.weight.named_buffers()
    )


def test_generation_works_with_a_cache() -> None:
    model = tiny_model("llama")
    SINQ(Grid(bits=8, group_size=32)).compress(model)
    out = model.generate(tiny_tokens(1, 8), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 12)
