"""Wrong inputs through the command line: a few lines, exit code 1, no traceback, the option and its value.

All but a few run in this process, through the function that `run.py` calls.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, LlamaConfig

from experiments import command
from tests import forked
from tests.conftest import SMALL, tiny_model, tiny_tokenizer

BASE = ["text.evaluate_from=2025", "evaluation=quality", "group_size=32", "logger=none", "device=cpu"]
LONG = "evaluation.perplexity.windows=2"
GPTQ = ("method=gptq", "calibration=sotu", "calibration.text.calibrate_until=1790")


def llama(folder: Path, **options: object) -> Path:
    """A folder with a tiny Llama whose configuration differs."""
    torch.manual_seed(0)
    body = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = LlamaConfig(**(SMALL | body | {"max_position_embeddings": 64} | options))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def config_of(folder: Path, **options: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def text(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and texts, good and bad."""
    root = tmp_path_factory.mktemp("inputs")
    tiny_model("llama").save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    config_of(llama(root / "quantized"), quantization_config={"quant_method": "gptq", "bits": 4})
    config_of(llama(root / "code"), model_type="xyz", auto_map={"AutoConfig": "c.C"})
    llama(root / "vocabulary", vocab_size=40)
    broken = AutoModelForCausalLM.from_pretrained(llama(root / "nan"))
    torch.nn.init.constant_(broken.model.norm.weight, torch.nan)
    broken.save_pretrained(root / "nan")
    loud = AutoModelForCausalLM.from_pretrained(llama(root / "loud"))
    loud.model.norm.weight.data *= 1e6
    loud.save_pretrained(root / "loud")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertLMHeadModel(BertConfig(**SMALL, **sizes, max_position_embeddings=64)).save_pretrained(root / "bert")
    tiny_tokenizer().save_pretrained(root / "bert")
    sample = "c4/c4_train_sample.jsonl"
    text(root / "no-text", sample, b'{"content": "a"}\n')
    text(root / "no-json", sample, b'{"text": "a"}\ntext\n')
    text(root / "number", sample, b'{"text": 5}\n')
    cut = gzip.compress(b'{"text": "a"}\n' * 999)[:-20]
    text(root / "cut", "c4/c4-validation.00000-of-00008.json.gz", cut)
    text(root / "binary", "wikitext2/wiki.test.raw", b"\x80\xff\x00")
    short = text(root / "short", "wikitext2/wiki.test.raw", b"a short text\n")
    (short / "wikitext2/wiki.train.raw").write_text("a short text, and a bit more of it to read\n" * 3)
    (root / "conf/logger").mkdir(parents=True)
    (root / "conf/logger/evil.yaml").write_text(f"_target_: pathlib.Path.touch\nself: {root}/touched\n")
    return root


@dataclass(frozen=True)
class Case:
    """Words, and what the answer must have."""

    words: tuple[str, ...]
    said: tuple[str, ...]


def case(words: str, *said: str) -> Case:
    return Case(tuple(words.split(" | ")), said)


LORAPRUNE = ("method=loraprune", "method@method.then=rtn")
CASES = [
    # activations
    case("activation=a8_token | activation.bits=9", "activation.bits=9 is not", "16"),
    case("activation=a4_token | activation.clip_ratio=nan", "activation.clip_ratio=nan is not"),
    case("activation=a4_token | activation.group_size=48", "group_size=48 does not divide the 64 inputs"),
    case("activation=a8_tensor | activation.group_size=64", "activation.per=tensor", "activation.per=token"),
    case("method=rtn | activation=a8_static", "needs calibration text", "calibration=wikitext2"),
    case("activation=a8_token | stream=true", "Activations needs the whole model", "stream=false"),
    case("stream=true | stream_workers=0", "stream_workers=0 is not possible", "from 1 to 1024, or ray"),
    case("stream=true | stream_workers=rayy", "stream_workers=rayy is not possible", "or ray"),
    case("stream_workers=2", "stream_workers=2 is not possible without", "add stream=true"),
    case("activation=8 | bits=3", "activation=8 is not", "a8_token"),
    # keys and values
    case("kv=kv4 | kv.keys.bits=5", "kv.bits=5 is not", "16"),
    case("kv=kivi2 | kv.keys.group_size=0", "sharing=channel needs group_size"),
    case("kv=kv4_rotated | kv.keys.bits=16", "kv.rotate=true is not possible"),
    case("kv=kv4_static", "needs calibration text", "calibration=wikitext2"),
    case("kv=kv4 | stream=true", "KeyValues needs the whole model", "stream=false"),
    case("kv=4", "kv=4 is not", "kv4"),
    case("method=prefixquant | bits=4", "needs calibration text", "calibration=wikitext2"),
    case("method=prefixquant | calibration=sotu | method.threshold=0", "method.threshold=0.0 is not"),
    case("method=stat | method@method.then=rtn", "STAT ranks heads and neurons on calibration text"),
    case("method=stat | bits=3 | calibration=sotu", "method=stat takes no group_size and no bits"),
    case("method=stat | method@method.then=rtn | calibration=sotu | method.target=0", "target=0.0 is not"),
    case("method=stat | method@method.then=rtn | calibration=sotu", "method.chunk=1 neurons", "divide"),
    Case(LORAPRUNE, ("LoRAPrune trains on text", "calibration=wikitext2")),
    Case((*LORAPRUNE, "calibration=sotu", "method.sparsity.ratio=1"), ("ratio=1.0 is not", "below 1")),
    Case((*LORAPRUNE, "calibration=sotu", "method.training.batch=0"), ("training.batch=0 is not",)),
    Case((*LORAPRUNE, "calibration=sotu", "method.training.at_once=3"), ("at_once=3", "batch=128")),
    Case(
        (*LORAPRUNE, "calibration=sotu", "calibration.samples=8", "calibration.seqlen=16"),
        ("8 windows of 16 tokens", "training.batch", "calibration.samples=128"),
    ),
    case("method=smoothquant | bits=8", "SmoothQuant needs calibration text"),
    case("method=smoothquant | calibration=sotu | method.alpha=2", "method.alpha=2.0 is not", "0 to 1"),
    case("method=omniquant | bits=4", "OmniQuant learns from calibration text", "calibration=wikitext2"),
    case("method=omniquant | calibration=sotu | activation=a4_static", "activation.static=true", "a4_token"),
    case("method=omniquant | calibration=sotu | method.epochs=0", "method.epochs=0 is not"),
    case("method=abq | calibration=sotu | method.levels=5", "method.levels=5 is not", "bits=3"),
    case("method=abq | calibration=sotu | method.repacked=true", "method.levels=0", "levels=5 or 3"),
    case("method=spikellm | bits=4", "SpikeLLM needs calibration text", "calibration=wikitext2"),
    case("method=spikellm | calibration=sotu | method.share=2", "method.share=2.0 is not", "0 to 1"),
    case("method=spikellm | calibration=sotu | method.neurons.bits=9", "neurons.bits=9 is not", "1 to 8"),
    case("method=spikellm | calibration=sotu | method.neurons.steps=0", "neurons.steps=0 is not"),
    case("method=spikellm | calibration=sotu | activation=a8_token", "around SpikeLLM", "activation=none"),
    case("method=spikellm | calibration=sotu | stream=true", "SpikeLLM needs the whole model"),
    case("+schema@evaluation.operations=Operations | evaluation.operations.windows=0", "windows=0 is"),
    case("evaluation=layers | evaluation.attention_entropy.seqlen=1", "attention_entropy.seqlen=1 is"),
    case("+schema@evaluation.scaling=Scaling | evaluation.scaling.lengths=[2,1,4]", "lengths must ascend"),
    case("+schema@evaluation.scaling=Scaling | evaluation.scaling.lengths=[1,2,99999]", "context of"),
    # numbers
    Case((*GPTQ, "method.damping=nan"), ("method.damping=nan is",)),
    Case((*GPTQ, "method.damping=inf"), ("method.damping=inf is",)),
    Case((*GPTQ, "method.damping=-1"), ("method.damping=-1 is",)),
    *(
        case(f"evaluation.perplexity.windows={value}", f"perplexity.windows={value} is not", "whole number")
        for value in ("1.5", "abc", "[1]", "-1", "nan")
    ),
    case("evaluation.perplexity.windows=true", "evaluation.perplexity.windows=True", "whole number"),
    case("evaluation.perplexity.top_k=1.5", "evaluation.perplexity.top_k=1.5"),
    case("evaluation.perplexity.top_k=abc", "evaluation.perplexity.top_k=abc"),
    case("evaluation.perplexity.seqlen=1", "evaluation.perplexity.seqlen=1"),
    case("evaluation.layer_error.windows=1.5", "evaluation.layer_error.windows=1.5"),
    case("evaluation.perplexity.bos=last", "evaluation.perplexity.bos", "last", "first, each"),
    case("method.kurtosis_gate=nan", "kurtosis_gate=nan", "above 0"),
    case("method.kurtosis_gate=abc", "kurtosis_gate=abc"),
    case("method.refinement=5", "refinement=5", "HalfQuadratic"),
    case("method.grid=5", "grid"),
    case("method=hadamard | method.inner=5", "method.inner"),
    case("method=sinq_refined | method.passes=1000000000000", "passes=1000000000000", "1000000"),
    case("method=gwq | calibration=sotu | method.share=2", "method.share=2", "from 0 to 1"),
    case("method=mixed | calibration=sotu | budget.bits_per_weight=0", "budget.bits_per_weight=0"),
    case("budget.bits_per_weight=3", "method=sinq takes no", "budget.bits_per_weight"),
    case("seed=-1", "seed=-1", "from 0 to"),
    case("seed=1e26", "seed", "1e+26"),
    Case((*GPTQ, "calibration.seed=-1"), ("calibration.seed=-1", "from 0 to")),
    Case((*GPTQ, f"calibration.seed={10**26}"), ("calibration.seed", f"{10**26}")),
    Case((*GPTQ, "calibration.samples=100000000"), ("calibration.samples=100000000", "from 1 to 1000000")),
    Case((*GPTQ, "calibration.samples=900000"), ("calibration.samples=900000", "or fewer", "tokens")),
    Case((*GPTQ, "calibration.text=5"), ("calibration.text=5",)),
    case("group_size=0", "group_size=0"),
    case("group_size=1.5", "group_size", "1.5"),
    case("bits=7", "bits=7", "one of (2, 3, 4, 5, 6, 8)"),
    case("bits=abc", "bits", "abc"),
    case("method.grid.tiling=3", "tiling=3", "one of (1, 2)"),
    case("layers.exclude=lm_head", "layers.exclude", "lm_head"),
    case("on_misfit=maybe", "on_misfit", "maybe", "shrink"),
    case("kernel=fast", "kernel", "fast"),
    case("device=gpu", "device=gpu", "cpu"),
    case("+evaluation.foo=5", "evaluation.foo=5", "~evaluation.foo"),
    case("evaluation.perplexity=null", "evaluation.perplexity=null", "~evaluation.perplexity"),
    case("text.calibrate_until=2030", "text.calibrate_until=2030"),
    case("text.calibrate_until=-5", "text.calibrate_until=-5"),
    case("sweep=search | sweep.trials=0", "sweep.trials=0"),
    case("sweep=search | sweep.max_bytes=nan", "sweep.max_bytes=nan"),
    # parts
    case("logger._target_=builtins.print", "logger._target_=builtins.print", "Logger"),
    case("method._target_=os.system", "method._target_"),
    case("evaluation.size._target_=builtins.print", "evaluation.size._target_=builtins.print", "Evaluation"),
    case("method=null", "method=null", "sinq_refined"),
    case("text=", "text=", "wikitext2"),
    case("model=[hub]", "model=[hub]", "smollm2"),
    case("method=rtnn", "method=rtnn", "rtn"),
    case("metod=rtn", "metod", "method"),
    case("method.bit=3", "method.bit", "grid"),
    case("method@method.inner=rtn", "method@method.inner", "method.inner"),
    case("method=gptq", "calibration"),
    case("table=table1", "table=table1", "experiment=paper"),
    case("~evaluation.perplexity | ~evaluation.layer_error | ~evaluation.size", "evaluation is empty"),
    # words
    case("=4", "=4", "option=value"),
    case("bits", "bits", "option=value"),
    case("--bits | 3", "--bits", "bits=…"),
    case("--bits=3", "--bits=3", "bits=3"),
    case("--multi-runs", "--multi-runs", "--multirun"),
    case("--cfg | everything", "--cfg", "everything", "job"),
    case("bits=2,3", "bits=2,3", "-m", "bits=[2,3]"),
    case("bits=range(2,4)", "bits=range(2,4)", "-m"),
    case("model.path=/a/my model (v2)", "'model.path=\"/a/my model (v2)\"'"),
    case("model.path=/模型", "'model.path=\"/模型\"'"),
    case("model.path=/mödel dir", "quoted twice"),
    case("bits=2,3 | -m | method=rtn,hqq", "python run.py -m", "method=rtn,hqq"),
    case("-m | bits=range(2,100000)", "99998 runs", "5000"),
    # folders and files
    case("results_dir=", "results_dir is empty"),
    case("-m | results_dir= | bits=2,3", "results_dir is empty"),
    case("model.path=", "model.path is missing"),
    case("model.path={}/nowhere", "nowhere", "no such folder"),
    case("model.path=no/such-model", "no/such-model", "model.path"),
    case("model.revision=main", "model.revision=main", "local folder"),
    case("model.path={}/bert", "bert", "encoder", "causal"),
    case("model.path={}/quantized", "quantized already", "gptq"),
    case("model.path={}/code", "{}/code/config.json", "code of its own"),
    case("model.path={}/vocabulary", "token 9", "40 tokens", "vocabulary"),
    Case(("model.path={}/nan", LONG), ("evaluation.perplexity of the dense model", "nan")),
    Case(("model.path={}/loud", LONG), ("evaluation.perplexity of the dense model: value is inf", "nll is")),
    case("text=c4 | text.path={}/no-text", "c4_train_sample.jsonl, line 1", "`text`", "content"),
    case("text=c4 | text.path={}/no-json", "c4_train_sample.jsonl, line 2 is not JSON", "text"),
    case("text=c4 | text.path={}/number", "c4_train_sample.jsonl, line 1", "`text`"),
    case("text=c4 | text.path={}/cut", "c4-validation.00000-of-00008.json.gz cannot be unpacked"),
    case("text=wikitext2 | text.path={}/binary", "wiki.test.raw is not text in UTF-8", "byte 0"),
    case("text=wikitext2 | text.path={}/tiny", "text.path={}/tiny has no wikitext2/wiki.test.raw"),
    case("text=wikitext2 | text.path={}/short", "the text has 1", "seqlen=64"),
    case("evaluation.perplexity.bos=each", "evaluation.perplexity.bos=each", "no BOS"),
    case(
        "method=gptq | calibration=wikitext2 | calibration.text.path={}/short | calibration.samples=128",
        "calibration.samples=128", "calibration text has", "or fewer",
    ),
]  # fmt: skip


def line(words: tuple[str, ...], folder: Path, results: Path) -> list[str]:
    """The words of a whole command line."""
    groups = {word.partition("=")[0].lstrip("~+") for word in words}
    base = [word for word in BASE if word.partition("=")[0] not in groups]
    if "text" in groups:
        base.remove("text.evaluate_from=2025")
    base += [] if "model" in groups else ["model=hub"]
    base += [] if groups & {"model", "model.path"} else [f"model.path={folder}/tiny"]
    base += [] if "results_dir" in groups else [f"results_dir={results}"]
    flags = [words[0]] if words[0] == "-m" else []
    given = [word.replace("{}", str(folder)) for word in words[len(flags) :]]
    return [*flags, *base, *given]


def judged(code: object, output: str, said: tuple[str, ...]) -> None:
    """Assert the standard of answers to wrong inputs."""
    assert code == 1, output
    assert "Traceback" not in output, output
    assert 1 <= len(output.strip().splitlines()) <= 5, output
    assert sum(line.startswith("error: ") for line in output.splitlines()) == 1, output
    assert all(word in output for word in said), (said, output)


@pytest.fixture
def answer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str]]:
    """Runs a command line in this process; returns the exit code and what it printed."""
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[object, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr("sys.argv", ["run.py", *words])
        try:
            command.main()
        except SystemExit as done:
            return done.code, "".join(capsys.readouterr())
        finally:
            GlobalHydra.instance().clear()
        return 0, "".join(capsys.readouterr())

    return call


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case.words[-2:])[-60:])
def test_a_wrong_input_is_answered_in_a_few_lines(
    case: Case, answer: Callable[..., tuple[object, str]], folder: Path, tmp_path: Path
) -> None:
    code, output = answer(*line(case.words, folder, tmp_path / "results"))
    judged(code, output, tuple(word.replace("{}", str(folder)) for word in case.said))
    rows = [json.loads(file.read_text()) for file in tmp_path.rglob("runs/*.json")]
    assert all(row["status"] == "failed" for row in rows)


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len({case.words for case in CASES}) == len(CASES) >= 60


def test_a_yaml_from_elsewhere_calls_nothing(
    answer: Callable[..., tuple[object, str]], folder: Path, tmp_path: Path
) -> None:
    words = [word for word in line(("bits=4",), folder, tmp_path / "results") if word != "logger=none"]
    code, output = answer("--config-dir", str(folder / "conf"), *words, "logger=evil")
    judged(code, output, ("logger._target_=pathlib.Path.touch",))
    assert not (folder / "touched").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=gptq", "calibration=sotu", "method.damping=nan"), "method.damping=nan"),
        (("text=c4", "text.path={}/no-text"), "line 1"),
        (("bits=2,3", "-m", "method=rtn,hqq"), "python run.py -m"),
    ],
)
def test_a_process_of_its_own_answers_alike(
    words: tuple[str, ...], said: str, folder: Path, tmp_path: Path
) -> None:
    done = forked.run(
        tmp_path / "work",
        ("run.py", *line(words, folder, tmp_path / "results")),
        {"SINQ_CACHE": str(tmp_path / "cache"), "HYDRA_FULL_ERROR": "0"},
    )
    judged(done.done(), done.output, (said,))


def test_what_was_done_in_place_of_what_was_asked_is_said_and_in_the_row(
    answer: Callable[..., tuple[object, str]], folder: Path, tmp_path: Path
) -> None:
    """More windows than the text has, windows longer than the context."""
    words = ("text=wikitext2", "text.path={}/few", "evaluation.perplexity.windows=1000")
    few = folder / "few"
    if not few.exists():
        text(few, "wikitext2/wiki.test.raw", b"some words of a text that is long enough\n" * 8)
        (few / "wikitext2/wiki.train.raw").write_text("other words to calibrate with, a few more\n" * 40)
    calibrated = (
        "method=gptq",
        "calibration=wikitext2",
        "calibration.text.path={}/few",
        "calibration.samples=64",
    )
    code, output = answer(
        *line((*words, *calibrated, "~evaluation.layer_error"), folder, tmp_path / "results")
    )
    assert code == 0, output
    assert "evaluation.perplexity: windows of 64 tokens, the model's context, not 2048" in output
    assert "evaluation.perplexity: the text has 5 windows of 64 tokens, not 1000" in output
    assert "calibration: windows of 64 tokens, the model's context, not 2048" in output
    assert "calibration: 64 windows of 64 tokens overlap; " in output
    rows = [json.loads(file.read_text()) for file in (tmp_path / "results/runs").glob("*.json")]
    assert all(row["metrics"]["perplexity"]["windows"] == 5 for row in rows)
    assert all(row["metrics"]["perplexity"]["seqlen"] == 64 for row in rows)
    (row,) = [row for row in rows if row["name"].startswith("gptq")]
    drawn = row["protocol"]["calibration"]
    assert (drawn["windows"], drawn["seqlen"]) == (64, 64)
    assert drawn["distinct_tokens"] <= drawn["text_tokens"] < 64 * 64
