"""The exported file, against the package `gguf` and the reader of transformers; refusals before writing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from baselines.rtn import RTN
from sinq import SINQ, Gguf, GgufQ4K, Grid, NotApplicable, PreSINQ, export, save
from sinq.export.gguf import FILE
from sinq.export.source import Source
from tests.sinq.export.gguf.subjects import CONFIGS, SMALL, byte_level, model_of

GRID = Grid(bits=4, group_size=32)


def compressed(kind: str, method: object = RTN(GRID)) -> PreTrainedModel:
    model = model_of(CONFIGS[kind])
    method.compress(model)  # type: ignore[attr-defined]
    return model


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The file's tensors, decoded by the package."""
    reader = GGUFReader(folder / FILE)
    return {each.name: torch.tensor(dequantize(each.data, each.tensor_type)) for each in reader.tensors}


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_matrix_is_ours(kind: str, bits: int, tmp_path: Path) -> None:
    grid = Grid(bits=bits, group_size=32, symmetric=bits == 6)
    model = compressed(kind, PreSINQ(inner=RTN(grid)))
    report = export(model, tmp_path / "out", "gguf", tokenizer=byte_level())
    found, source = tensors(tmp_path / "out"), Source(model, torch.float32)
    assert report.bits_per_weight == pytest.approx({4: 5.0, 5: 6.0, 6: 8.5}[bits])
    for name in source.matrices:
        view, (block, part) = source.view(name), name.split(".", 3)[2:]
        stored = {
            "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
            "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
        }[part.rpartition(".")[2]]  # fmt: skip
        ending = "_shexp" if "shared" in part else "_exps" if "experts" in part else ""
        matrix = found[f"blk.{block}.{stored}{ending}.weight"]
        matrix = matrix[int(part.split(".")[2])] if ending == "_exps" else matrix
        if kind in ("llama", "mistral") and stored in ("attn_q", "attn_k"):
            matrix = matrix.unflatten(0, (-1, 8, 2)).transpose(1, 2).flatten(0, 2)  # heads of 16 rows
        offset = (view.zero * view.scale).abs().max().item() * 2**-11
        torch.testing.assert_close(matrix, view.dense(), rtol=1e-3, atol=offset)


@pytest.mark.parametrize("method", [RTN(GRID), SINQ(GRID, shared_columns=True)])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_transformers_reads_the_model(kind: str, method: object, tmp_path: Path) -> None:
    model, ids = compressed(kind, method), torch.arange(3, 35)[None]
    export(model, tmp_path / "out", "gguf", tokenizer=byte_level(bos_token="<s>"), dtype=torch.float32)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=FILE, dtype=torch.float32)
    torch.testing.assert_close(read(ids).logits, model(ids).logits, rtol=0, atol=2e-3)
    assert model(ids).logits.std() > 0.05


def test_a_saved_folder_gives_the_same_tensors(tmp_path: Path) -> None:
    model = compressed("llama")
    save(model, tmp_path / "saved")
    byte_level().save_pretrained(tmp_path / "saved")
    export(model, tmp_path / "one", "gguf", tokenizer=byte_level())
    export(tmp_path / "saved", tmp_path / "two", "gguf")
    one, two = (GGUFReader(tmp_path / name / FILE) for name in ("one", "two"))
    assert [each.name for each in one.tensors] == [each.name for each in two.tensors]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one.tensors, two.tensors, strict=True))
    assert two.fields["tokenizer.ggml.model"].contents() == "gpt2"


def test_keys_of_the_file(tmp_path: Path) -> None:
    export(compressed("qwen3_moe"), tmp_path / "out", "gguf", dtype=torch.bfloat16)
    reader = GGUFReader(tmp_path / "out" / FILE)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["general.architecture"] == "qwen3moe"
    assert keys["general.file_type"] == 3
    assert keys["qwen3moe.expert_count"] == 4
    assert keys["qwen3moe.attention.key_length"] == 16
    assert keys["tokenizer.ggml.model"] == "none"
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "BF16"
    assert kinds["blk.0.ffn_gate_inp.weight"] == kinds["output_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_down_exps.weight"] == "Q4_1"


def test_symmetric_codes_are_q4_0(tmp_path: Path) -> None:
    symmetric = Grid(bits=4, group_size=64, symmetric=True)
    report = export(compressed("llama", RTN(symmetric)), tmp_path / "out", "gguf")
    assert report.bits_per_weight == 4.5


@pytest.mark.parametrize(
    ("method", "format", "reason"),
    [
        (
            RTN(Grid(bits=3, group_size=32)),
            Gguf(),
            "its 3 bits take 5.0 bits a weight there.*low_bits=true",
        ),
        (SINQ(GRID), Gguf(), "column scales.*presinq"),
        (RTN(Grid(bits=4, group_size=16)), Gguf(), "groups of 16; blocks have 32 weights; use group_size"),
        (RTN(Grid(bits=8, group_size=32)), Gguf(), "no signed byte.*grid.symmetric=true"),
        (RTN(GRID), GgufQ4K(), "columns of 256"),
    ],
)
def test_refusals_name_a_layer_and_write_nothing(
    method: object, format: Gguf, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(NotApplicable, match=rf"model\.layers\.0\.\S+ .*{reason}"):
        export(compressed("llama", method), tmp_path / "out", format)
    assert not any(tmp_path.iterdir())


def test_low_bits_if_asked(tmp_path: Path) -> None:
    model = compressed("llama", RTN(Grid(bits=2, group_size=32)))
    report = export(model, tmp_path / "out", Gguf(low_bits=True))
    assert report.bits_per_weight == 5.0


def test_experts_of_several_types_are_refused(tmp_path: Path) -> None:
    model = compressed("qwen3_moe", RTN(Grid(bits=4, group_size=32, auxiliary_bits=32)))
    store = model.model.layers[0].mlp.experts.down_proj.stores()[1]
    store.value.tensors["zero"].fill_(8)
    with pytest.raises(NotApplicable, match="ffn_down_exps has experts of Q4_0, Q4_1"):
        export(model, tmp_path / "out", "gguf")
    assert not any(tmp_path.iterdir())


def test_a_re_fit_says_so(tmp_path: Path) -> None:
    model = model_of(LlamaConfig(**SMALL | {"hidden_size": 256, "intermediate_size": 256}))
    RTN(Grid(bits=4, group_size=64)).compress(model)
    report = export(model, tmp_path / "out", "gguf_q4_k")
    assert report.bits_per_weight == 4.5
    assert "**Re-fit**" in (tmp_path / "out" / "README.md").read_text()
    view = Source(model, torch.float32).view("model.layers.1.mlp.down_proj")
    found = tensors(tmp_path / "out")["blk.1.ffn_down.weight"]
    error = ((found - view.dense()).norm() / view.dense().norm()).item()
    assert 0 < error < 0.05
    assert len(report.requantized) == 14
    of_down = report.requantized["model.layers.1.mlp.down_proj"]
    assert of_down.second == pytest.approx(error, rel=1e-5)
    assert (of_down.quantized, of_down.exported) == (None, None)


def test_five_bits_have_no_re_fit(tmp_path: Path) -> None:
    model = model_of(LlamaConfig(**SMALL | {"hidden_size": 256, "intermediate_size": 256}))
    RTN(Grid(bits=5, group_size=64)).compress(model)
    with pytest.raises(NotApplicable, match=r"more than 4 bits, or zeros below 0.*use format=gguf"):
        export(model, tmp_path / "out", "gguf_q4_k")
