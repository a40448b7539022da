"""The rulers, tested on things of known size, and the measurements made with them."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sinq
from baselines.dense import Dense
from baselines.stat import STAT
from experiments.common.meters import peak_memory, seconds
from experiments.evaluation import Latency, LayerError, Memory, Perplexity, Size
from experiments.evaluation.logits import head_is_plain
from experiments.evaluation.text_pass import token_nll
from experiments.models.source import sparing_clone
from sinq import SINQ, Calibration, Context, Grid, Layers, Method, OnMisfit
from sinq.kernels import Kernel, using
from tests.conftest import tiny_model, tiny_tokens
from tests.experiments.tiny import Capped, subject
from tests.fake_clock import FakeClock

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dense models predict is kept in a folder of each test."""
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))


class TestPerplexity:
    def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(self) -> None:
        given = subject()
        given.model.lm_head.weight.zero_()
        assert Perplexity(seqlen=32).measure(given).metrics["value"] == pytest.approx(96, rel=1e-6)

    def test_it_is_the_plain_loop(self, architecture: str) -> None:
        given = subject(architecture)
        result = Perplexity(windows=3, seqlen=32).measure(given)
        expected = []
        for window in given.tokens[: 3 * 32].reshape(3, 32):
            log_likelihood = given.model(window[None]).logits[0].double().log_softmax(-1)
            expected.append(-log_likelihood[:-1].gather(1, window[1:, None]).mean().item())
        assert result.samples["window_nll"] == pytest.approx(expected, rel=1e-5)
        assert result.metrics["value"] == pytest.approx(math.exp(sum(expected) / 3), rel=1e-5)
        assert (result.metrics["windows"], result.metrics["windows_available"], result.metrics["seqlen"]) == (
            3,
            8,
            32,
        )

    def test_windows_are_cut_to_the_models_context(self) -> None:
        assert Perplexity(windows=1).measure(subject()).metrics["seqlen"] == 64

    def test_a_model_that_does_more_than_its_head_is_run_whole(self) -> None:
        model: Any = Capped()
        assert not head_is_plain(model, tiny_tokens(1, 16))
        assert head_is_plain(model.inner, tiny_tokens(1, 16))
        measured = Perplexity(windows=1, seqlen=32).measure(subject(compressed=model))
        assert measured.metrics["head"] == "whole"
        window = subject().tokens[:32]
        expected = nn.functional.cross_entropy(model(window[None], False).logits[0, :-1], window[1:]).item()
        assert measured.metrics["nll"] == pytest.approx(expected, rel=1e-5)

    def test_a_text_shorter_than_a_window_is_refused_early(self) -> None:
        given = subject(windows=0)
        with pytest.raises(ValueError, match="0 tokens, fewer than one window of seqlen=64"):
            Perplexity().check(given)

    @pytest.mark.slow
    def test_it_is_not_slower_than_the_plain_loop(self) -> None:
        from experiments.models.source import SmolLM2, load

        model = load(SmolLM2(), CPU).model
        windows = torch.randint(1000, (4, 1, 2048), generator=torch.Generator().manual_seed(0))

        @torch.inference_mode()
        def plain(window: torch.Tensor) -> float:
            return nn.functional.cross_entropy(
                model(window, use_cache=False).logits[0, :-1].float(), window[0, 1:]
            ).item()

        token_nll(model, windows[0])
        ours, theirs = zip(
            *((seconds(partial(token_nll, model, w), CPU), seconds(partial(plain, w), CPU)) for w in windows),
            strict=True,
        )
        print(f"fastest, ours / plain: {min(ours) / min(theirs):.3f}")
        assert min(ours) < 1.1 * min(theirs)  # the fastest of several rounds in turn: noise only ever adds


class TestSize:
    def test_it_is_what_a_checkpoint_weighs(self, tmp_path: Path) -> None:
        model = tiny_model("qwen3-tied")
        report = SINQ(Grid(bits=4, group_size=32)).compress(model)
        given = subject("qwen3-tied", compressed=model)
        metrics = Size().measure(type(given)(**{**vars(given), "report": report})).metrics
        sinq.save(model, tmp_path)
        file = tmp_path / "model.safetensors"
        header = int.from_bytes(file.read_bytes()[:8], "little") + 8
        assert metrics["model_nbytes"] == file.stat().st_size - header
        weights = sum(layer.dense_parameters for layer in report.parts)
        assert metrics["bits_per_weight"] == pytest.approx(
            8 * sum(layer.nbytes for layer in report.parts) / weights
        )
        assert metrics["dense_model_nbytes"] == sum(p.nbytes for p in tiny_model("qwen3-tied").parameters())

    def test_layers_left_dense_count_with_what_they_cost(self) -> None:
        model = tiny_model("llama")
        only_wide = Context(Layers(on_misfit=OnMisfit.skip))  # the two of 14 that are 128 wide
        report = SINQ(Grid(group_size=128)).compress(model, context=only_wide)
        given = subject(compressed=model)
        metrics = Size().measure(type(given)(**{**vars(given), "report": report})).metrics
        compressed, dense = 2 * 64 * 128, 2 * (4 * 64 * 64 + 2 * 64 * 128)
        assert (metrics["weights"], metrics["weights_left_dense"]) == (compressed + dense, dense)
        assert metrics["nbytes"] == sum(layer.nbytes for layer in report.parts) + 4 * dense

    @pytest.mark.parametrize("then", [Dense(), SINQ(Grid(bits=4, group_size=16))])
    def test_smaller_matrices_count_with_what_is_left_of_them(self, then: Method) -> None:
        model, dense = tiny_model("llama"), 2 * (4 * 64 * 64 + 3 * 64 * 128)
        text = Calibration(tiny_tokens(8))
        report = STAT(then, target=0.8, chunk=16, whole_heads=False, context=0).compress(model, text)
        given = subject(compressed=model)
        metrics = Size().measure(type(given)(**{**vars(given), "report": report})).metrics
        left = sum(part.parameters for part in report.parts)
        assert (metrics["weights"], metrics["dense_weights"]) == (left, dense)
        assert left == pytest.approx(0.8 * dense, rel=0.02)
        head = sum(p.numel() for p in (model.lm_head.weight, model.model.embed_tokens.weight)) + 5 * 64
        stored = sum(tensor.nbytes for tensor in sinq.stored_tensors(model).values())
        assert metrics["nbytes"] == stored - 4 * head
        assert metrics["weights_left_dense"] == (left if isinstance(then, Dense) else 0)

    def test_a_dense_model_has_the_bits_of_its_number_format(self) -> None:
        assert Size().measure(subject()).metrics["bits_per_weight"] == 32


class TestMemory:
    @pytest.mark.parametrize("size", [50_000_000, 200_000_000])
    def test_a_tensor_of_known_size_is_measured(self, size: int) -> None:
        with peak_memory(CPU) as peak:
            torch.ones(size, dtype=torch.uint8)
        assert 0.98 * size < peak.increase_bytes < 1.2 * size + 30e6, peak.source

    def test_memory_freed_before_does_not_count(self) -> None:
        torch.ones(300_000_000, dtype=torch.uint8)
        with peak_memory(CPU) as peak:
            pass
        assert peak.increase_bytes < 30e6

    def test_inference_needs_at_least_the_weights(self) -> None:
        metrics = Memory(prompt_tokens=32).measure(subject()).metrics
        assert (
            metrics["inference_peak_bytes"]
            == metrics["inference_weights_bytes"] + metrics["inference_increase_bytes"]
        )
        assert "quantize_peak_bytes" not in metrics
        assert metrics["inference_weights_bytes"] == sum(p.nbytes for p in tiny_model("llama").parameters())


def _slept(pause: float) -> float:
    """Sleep; the seconds it took by the system's clock."""
    start = time.perf_counter()
    time.sleep(pause)
    return time.perf_counter() - start


class TestLatency:
    def test_what_is_timed_is_the_work_and_little_else(self) -> None:
        slept: list[float] = []
        start = time.perf_counter()
        found = seconds(lambda: slept.append(_slept(0.2)), CPU)
        assert 0.2 <= slept[0] <= found <= time.perf_counter() - start

    def test_a_model_twice_as_slow_has_half_the_speed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = FakeClock.installed(monkeypatch)

        class Slow(nn.Module):
            """Sleeps, then answers."""

            def __init__(self, pause: float) -> None:
                super().__init__()
                self.pause, self.inner = pause, tiny_model("llama")

            def forward(self, **inputs: Any) -> Any:
                clock.sleep(self.pause)
                return self.inner(**inputs)

        given = subject(compressed=Slow(0.2))
        loaded = type(given.loaded)(Slow(0.1), given.loaded.tokenizer, torch.float32)  # type: ignore[arg-type]
        given = type(given)(**{**vars(given), "loaded": loaded})
        object.__setattr__(given.loaded.model, "config", tiny_model("llama").config)
        result = Latency(prompt_tokens=8, decode_tokens=2, rounds=2).measure(given)
        for phase in ("prefill", "decode"):
            assert result.metrics[phase]["ratio"] == pytest.approx(0.5)
            assert [len(times) for times in result.samples["seconds"][phase].values()] == [2, 2]
        assert result.samples["seconds"]["prefill"]["dense"] == pytest.approx([0.1, 0.1])
        assert result.metrics["decode"]["tokens_per_second"] == pytest.approx(5)  # two tokens, of 0.2 s each

    def test_the_kernel_that_ran_is_named(self) -> None:
        model = sparing_clone(tiny_model("llama"))
        SINQ(Grid(bits=8, group_size=32)).compress(model)
        options = Latency(prompt_tokens=8, decode_tokens=1, rounds=1)
        assert options.measure(subject(compressed=model)).metrics["kernel"] == "cpu"
        with using(Kernel.reference):
            assert options.measure(subject(compressed=model)).metrics["kernel"] == "reference"
        dense = options.measure(subject()).metrics
        assert dense["kernel"] == "torch"
        assert "ratio" not in dense["decode"]

    def test_a_prompt_longer_than_the_context_is_refused_early(self) -> None:
        with pytest.raises(ValueError, match=r"prompt_tokens=60 and decode_tokens=8 do not fit .* 64"):
            Latency(prompt_tokens=60).check(subject())


NAMES = {Perplexity: "perplexity", LayerError: "layer_error", Latency: "latency", Memory: "memory"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Perplexity, {"windows": 0}),
        (Perplexity, {"seqlen": 1}),
        (Perplexity, {"top_k": 0}),
        (LayerError, {"windows": 0}),
        (LayerError, {"seqlen": 0}),
        (Latency, {"rounds": 0}),
        (Memory, {"prompt_tokens": 0}),
    ],
)
def test_options_out_of_range_are_named(kind: Any, options: dict[str, int]) -> None:
    (name, value) = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"evaluation.{NAMES[kind]}.{name}={value}"):
        kind(**options)
