"""A checkpoint, quantized file to file: weights as in memory, memory of a layer, kills and bad files."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import sinq
from baselines.gptq import GPTQ
from baselines.hadamard import Hadamard
from baselines.rtn import RTN
from sinq import SINQ, Context, Grid, LayerMethod, Layers, NotApplicable, OnMisfit, PreSINQ, stored_tensors
from tests.conftest import tiny_tokens
from tests.forked import fork
from tests.sinq.checkpoint.streams import METHOD, UP, assert_same, change, checkpoint, shard_of, shards


def compressed(
    folder: Path, method: LayerMethod = METHOD, context: Context = Context()
) -> dict[str, torch.Tensor]:
    """What compressing in memory would save."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    method.compress(model, context=context)
    return stored_tensors(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_writes_what_compressing_in_memory_saves(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "dense", architecture, dtype=dtype)
    assert len(list(source.glob("*.safetensors"))) > 1
    report = sinq.stream(source, tmp_path / "small", METHOD)
    expected = compressed(source)
    files = [load_file(file) for file in sorted((tmp_path / "small").glob("*.safetensors"))]
    assert_same({name: tensor for file in files for name, tensor in file.items()}, expected)
    model = sinq.load(tmp_path / "small")
    assert_same(stored_tensors(model), expected)
    in_memory = AutoModelForCausalLM.from_pretrained(source)
    expected_report = METHOD.compress(in_memory)
    assert any(parameter.requires_grad for parameter in in_memory.parameters())
    assert torch.equal(model(tiny_tokens()).logits, in_memory(tiny_tokens()).logits)
    assert [replace(layer, seconds=0) for layer in report.parts] == [
        replace(layer, seconds=0) for layer in expected_report.parts
    ]


def test_one_file_and_layer_choices_are_the_same_too(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", "moe", shard="1GB")
    context = Context(Layers(exclude=("lm_head", "down_proj"), on_misfit=OnMisfit.shrink))
    for index, method in enumerate((RTN(Grid(3, 48)), Hadamard(RTN(Grid(4, 32))))):
        report = sinq.stream(source, tmp_path / str(index), method, context)
        assert_same(stored_tensors(sinq.load(tmp_path / str(index))), compressed(source, method, context))
        assert not any("down_proj" in layer.name for layer in report.parts)
    (source / "tokenizer_config.json").write_text("{}")
    sinq.stream(source, tmp_path / "with", METHOD)
    assert (tmp_path / "with/tokenizer_config.json").read_text() == "{}"


def mapped(folder: Path) -> list[tuple[int, int]]:
    """Addresses at which files of a folder are mapped into this process."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    return [(int(start, 16), int(end, 16)) for start, end in (line.split()[0].split("-") for line in lines)]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="this system does not say what a process has mapped"
)


@needs_proc
def test_what_is_loaded_are_views_of_the_files(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", "qwen3-tied")
    sinq.stream(source, tmp_path / "many", METHOD)
    model = AutoModelForCausalLM.from_pretrained(source)
    METHOD.compress(model)
    sinq.save(model, tmp_path / "one")
    for folder in (tmp_path / "many", tmp_path / "one"):
        loaded = sinq.load(folder)
        places = mapped(folder)
        tensors = stored_tensors(loaded)
        assert any(name.endswith("codes") for name in tensors)
        outside = [
            name
            for name, tensor in tensors.items()
            if not any(start <= tensor.data_ptr() < end for start, end in places)
        ]
        assert outside == []
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        loaded.lm_head.weight.data.zero_()  # in memory, not in the file
    assert sinq.load(folder).lm_head.weight.any()
    with pytest.raises(ValueError, match="holds a model in several files"):
        sinq.save(sinq.load(tmp_path / "many"), tmp_path / "many")
    sinq.save(again := sinq.load(folder), folder)  # over the very file its tensors are views of
    assert_same(stored_tensors(sinq.load(folder)), stored_tensors(again))


def test_another_dtype_is_a_copy_and_only_of_what_is_dense(tmp_path: Path) -> None:
    sinq.stream(checkpoint(tmp_path / "dense"), tmp_path / "small", METHOD)
    half, full = (sinq.load(tmp_path / "small", dtype=dtype) for dtype in (torch.bfloat16, None))
    assert torch.equal(half.lm_head.weight, full.lm_head.weight.bfloat16())
    assert half.model.layers[0].mlp.up_proj.weight.codes.dtype == torch.uint8
    assert half.model.layers[0].mlp.up_proj.weight.scale.dtype == torch.float16


def stream_apart(source: Path, target: Path, method: LayerMethod) -> int:
    """Begin to stream in a child of this process; its number."""
    child = os.fork()
    if child == 0:
        with sinq.using(sinq.Kernel.reference):
            sinq.stream(source, target, method)
        os._exit(0)
    return child


def kill_and_resume(source: Path, target: Path, tries: int) -> None:
    """Print how often killed work was resumed, how many of its files were kept, and how many there are."""
    random.seed(0)
    resumed = 0
    for _ in range(tries):
        before, child = len(shards(target)), stream_apart(source, target, METHOD)
        while len(shards(target)) == before and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        if (target / "sinq.json").exists():
            break
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        resumed += not (target / "sinq.json").exists()
    first = {path: path.stat().st_mtime_ns for path in shards(target)}
    assert os.waitpid(stream_apart(source, target, METHOD), 0)[1] == 0
    print(resumed, sum(path.stat().st_mtime_ns == time for path, time in first.items()), len(first))


def printed(folder: Path, work: Callable[..., None], *arguments: Any) -> list[int]:
    """The numbers that `work` prints in a process of its own, which may fork."""
    process = fork(folder, work, *arguments)
    assert process.done() == 0, process.output
    return [int(number) for number in process.stdout.split()]


def test_work_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    resumed, kept, finished = printed(tmp_path / "work", kill_and_resume, source, tmp_path / "small", 3)
    assert resumed >= 1
    # the last file may have taken its name just before the journal was to say so
    assert finished - 1 <= kept <= finished
    with sinq.using(sinq.Kernel.reference):
        expected = compressed(source)
        report = sinq.stream(source, tmp_path / "small", METHOD)
    assert_same(stored_tensors(sinq.load(tmp_path / "small")), expected)
    assert len(report.parts) == 14
    assert not list((tmp_path / "small").glob(".*"))


def stopped(source: Path, target: Path) -> Path:
    """A folder in which work was interrupted after two files."""

    def two(items: Any, description: str, total: int) -> Any:
        for index, item in enumerate(items):
            if index == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        sinq.stream(source, target, METHOD, Context(progress=two))
    return target


def test_what_is_finished_is_not_made_again_and_reported_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "dense")
    target = stopped(source, tmp_path / "small")
    with pytest.raises(FileNotFoundError, match=r"has no sinq\.json"):
        sinq.load(target)
    made = []
    honest = SINQ.quantize
    monkeypatch.setattr(
        SINQ, "quantize", lambda self, weight, statistic=None: made.append(1) or honest(self, weight)
    )
    report = sinq.stream(source, target, METHOD)
    assert len(made) == 7  # the second block's
    assert report == sinq.stream(source, target, METHOD)
    assert (len(made), len(report.parts)) == (7, 14)


def test_leftovers_of_other_work_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    target = stopped(source, tmp_path / "small")
    with pytest.raises(ValueError, match=r"begun with another method: .*not .*'bits': 3.* Delete it"):
        sinq.stream(source, target, SINQ(Grid(bits=3, group_size=16)))
    with pytest.raises(ValueError, match="begun with another layers"):
        sinq.stream(source, target, METHOD, Context(Layers(exclude=("lm_head", "up_proj"))))
    checkpoint(tmp_path / "dense", "qwen3-tied")
    with pytest.raises(ValueError, match="begun with another source"):
        sinq.stream(source, target, METHOD)
    with pytest.raises(ValueError, match="is not empty, and nothing here was begun by stream"):
        sinq.stream(source, source, METHOD)


def test_methods_that_need_more_than_a_matrix_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    with pytest.raises(NotApplicable, match=r"GPTQ needs the Hessian of each layer's inputs; use compress"):
        sinq.stream(source, tmp_path / "small", GPTQ(RTN(Grid(group_size=16))))
    with pytest.raises(NotApplicable, match="PreSINQ needs the whole model"):
        sinq.stream(source, tmp_path / "small", PreSINQ(METHOD))
    with pytest.raises(ValueError, match="group_size=48 does not divide 14 layers"):
        sinq.stream(source, tmp_path / "small", SINQ(Grid(group_size=48)))
    assert not (tmp_path / "small").exists()


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    change(source, UP, torch.full((128, 64), float("nan")))
    with pytest.raises(ValueError, match=r"layer model\.layers\.1\.mlp\.up_proj has NaN or Inf"):
        sinq.stream(source, tmp_path / "small", METHOD)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    change(source, UP, torch.zeros(64, 64))
    with pytest.raises(
        ValueError, match=rf"of another shape {re.escape(UP)} \[64, 64\], which is \[128, 64\] in the model"
    ):
        sinq.stream(source, tmp_path / "a", METHOD)
    change(source, UP, None)
    with pytest.raises(ValueError, match=rf"do not fit LlamaForCausalLM: missing {re.escape(UP)}"):
        sinq.stream(source, tmp_path / "b", METHOD)
    shard_of(source, UP).unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf"{shard_of(source, UP).name} is missing; model\.safetensors\.index\.json lists it",
    ):
        sinq.stream(source, tmp_path / "c", METHOD)
    with pytest.raises(ValueError, match=r"no config\.json"):
        sinq.stream(tmp_path / "nowhere", tmp_path / "d", METHOD)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.bin"])
def test_weights_that_are_no_safetensors_are_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", shard="1GB")
    (source / "model.safetensors").rename(source / name)
    with pytest.raises(ValueError, match=rf"weights in {name}, and only safetensors .*; load and save"):
        sinq.stream(source, tmp_path / "small", METHOD)
    checkpoint(source, shard="1GB")  # safetensors beside it count
    sinq.stream(source, tmp_path / "small", METHOD)


def test_tensors_of_no_model_and_untied_ones_are_named(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", "qwen3-tied", shard="1GB")
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"model.layers.0.extra": torch.ones(1)}, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"not of the model model\.layers\.0\.extra"):
        sinq.stream(source, tmp_path / "small", METHOD)
    save_file(tensors | {"lm_head.weight": torch.ones(96, 64)}, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight.* differ, but the configuration ties them"):
        sinq.stream(source, tmp_path / "small", METHOD)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        source / "model.safetensors",
    )
    sinq.stream(source, tmp_path / "small", METHOD)
    assert_same(stored_tensors(sinq.load(tmp_path / "small")), compressed(source))


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense", "moe")
    change(source, "model.layers.0.mlp.experts.2.up_proj.weight", None)
    with pytest.raises(
        ValueError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj cannot be made of 7 tensors"
    ):
        sinq.stream(source, tmp_path / "small", METHOD)


def test_a_file_cut_short_is_named_wherever_it_is(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    sinq.stream(source, tmp_path / "small", METHOD)
    for folder, act in (
        (tmp_path / "small", sinq.load),
        (source, lambda path: sinq.stream(path, tmp_path / "other", METHOD)),
    ):
        path = sorted(folder.glob("*.safetensors"))[1]
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read.* incomplete or damaged"):
            act(folder)


def test_a_file_cut_short_is_made_again(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "dense")
    target = stopped(source, tmp_path / "small")
    path = sorted(target.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-8])
    sinq.stream(source, target, METHOD)
    assert_same(stored_tensors(sinq.load(target)), compressed(source))


def anonymous_bytes() -> int:
    """Memory of this process that is of no file."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def save_llama(folder: Path, depth: int) -> None:
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=depth,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20MB")


def measure_stream(folder: Path, target: Path) -> None:
    """Print the bytes of a model's files, and the peak growth of this process's memory while streaming it."""
    start, peak, over = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.0005):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with sinq.using(sinq.Kernel.reference):
        sinq.stream(folder, target, RTN(Grid(4, 64)))
    over.set()
    watcher.join()
    print(sum(file.stat().st_size for file in folder.glob("*.safetensors")), peak - start)


@needs_proc
def test_memory_is_that_of_a_layer_however_many_there_are(tmp_path: Path) -> None:
    measured = []
    for depth in (3, 10):
        printed(tmp_path / "work", save_llama, tmp_path / str(depth), depth)
        measured += printed(
            tmp_path / "work", measure_stream, tmp_path / str(depth), tmp_path / f"{depth}-small"
        )
    shallow, low, deep, high = measured
    assert deep > shallow + 28 * 2**20
    assert high < 0.6 * deep
    assert high - low < 0.25 * (deep - shallow)
