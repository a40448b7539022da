"""Zero-shot tasks: lm-eval's numbers against log-likelihoods summed by hand, flips against brute force."""

import copy
import inspect
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from baselines.rtn import RTN
from experiments.common.intervals import share
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import EvaluationContext, Size, ZeroShot
from experiments.evaluation.zero_shot import tasks
from experiments.evaluation.zero_shot.answers import answers, flips
from experiments.evaluation.zero_shot.local_tasks.local import articles
from experiments.models.source import LoadedModel, Pretrained, load, sparing_clone
from experiments.results import record
from experiments.runs.identity import identity
from experiments.runs.pipeline import Execution, execute
from experiments.runs.run import Run
from sinq import SINQ, CompressionReport, Grid
from sinq.common.progress import silent
from sinq.model.slicing import slice_block
from sinq.model.units import find_units
from tests.conftest import SHARED, needs_data, tiny_model, tiny_tokenizer
from tests.sinq.model.test_slicing import silence, some

CPU = torch.device("cpu")
ITEMS = [
    ("To boil an egg", "use water", "use a hammer and sand", 0),
    ("Dry wet hair", "pour on milk", "use a towel", 1),
    ("Cut bread", "take a knife", "take a spoon, quickly", 0),
    ("Stay warm", "open the window", "wear a coat", 1),
    ("Write a letter", "use a pen and paper", "use soup", 0),
    ("Light a room", "lamp", "a closed wooden box", 0),
    ("Mend a sock", "needle, thread", "ice", 0),
]
PAGES = [
    " = One = \n",
    " \n",
    " A first page , short . \n",
    " = = Part = = \n",
    " More . \n",
    " = Two = \n",
    " Its end . \n",
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with both tasks, made up."""
    return write_data(tmp_path / "data", monkeypatch)


def write_data(folder: Path, monkeypatch: pytest.MonkeyPatch, goal: str = ITEMS[0][0]) -> Path:
    for name in ("piqa", "wikitext2"):
        (folder / name).mkdir(parents=True)
    rows = [
        {"id": str(k), "goal": item[0] if k else goal, "sol1": item[1], "sol2": item[2]}
        for k, item in enumerate(ITEMS)
    ]
    (folder / "piqa/dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "piqa/dev-labels.lst").write_text("".join(f"{item[3]}\n" for item in ITEMS))
    (folder / "wikitext2/wiki.test.raw").write_text("".join(PAGES))
    monkeypatch.setenv("SINQ_DATA", str(folder))
    return folder


def tokenizer() -> Any:
    made = tiny_tokenizer()
    made.eos_token = "</s>"
    return made


def roomy(architecture: str = "llama") -> Any:
    """Tiny model with a context of 256 and uneven predictions; with even ones, it would choose by length."""
    model = tiny_model(architecture)
    model.lm_head.weight *= 30
    for matrix in (each for each in model.model.layers.parameters() if each.ndim == 2):
        matrix.mul_(8)  # or the layers would matter too little for rounding them to show
    model.config.max_position_embeddings = 256
    return model


def subject(dense: Any, compressed: Any = None, words: Any = None) -> EvaluationContext:
    loaded = LoadedModel(dense, words or tokenizer(), torch.float32)
    model = dense if compressed is None else compressed
    return EvaluationContext(
        model, loaded, torch.zeros(0, dtype=torch.long), CompressionReport(), CPU, silent
    )


@torch.inference_mode()
def log_likelihood(model: Any, words: Any, prompt: str, answer: str) -> float:
    """Of an answer after a prompt: one sequence, no batch, no padding."""
    ids, start = words(prompt + answer)["input_ids"], len(words(prompt)["input_ids"])
    said = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(said[position - 1, ids[position]].item() for position in range(start, len(ids)))


def by_hand(model: Any, words: Any, items: list[tuple[str, str, str, int]]) -> dict[str, list[int]]:
    chosen: dict[str, list[int]] = {"acc": [], "acc_norm": []}
    for goal, *solutions, _ in items:
        scores = [
            log_likelihood(model, words, f"Question: {goal}\nAnswer:", f" {each}") for each in solutions
        ]
        chosen["acc"].append(int(scores[1] > scores[0]))
        chosen["acc_norm"].append(int(scores[1] / len(solutions[1]) > scores[0] / len(solutions[0])))
    return chosen


def assert_as_by_hand(
    measured: Any, expected: dict[str, list[int]], labels: list[int], task: str = "piqa_local"
) -> None:
    for metric, chosen in expected.items():
        right = [choice == label for choice, label in zip(chosen, labels, strict=True)]
        assert measured.samples[task]["prediction"][metric] == "".join(map(str, chosen))
        assert measured.samples[task]["correct"][metric] == "".join(str(int(each)) for each in right)
        assert measured.metrics["tasks"][task][metric] == pytest.approx(np.mean(right))
        assert measured.metrics["tasks"][task][f"{metric}_stderr"] == pytest.approx(
            np.std(right, ddof=1) / math.sqrt(len(right))
        )


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_choices_and_accuracies_are_those_summed_by_hand(data: Path, batch_size: int | None) -> None:
    model = roomy()
    measured = ZeroShot(batch_size=batch_size).measure(subject(model))
    assert_as_by_hand(measured, by_hand(model, tokenizer(), ITEMS), [item[3] for item in ITEMS])
    facts = measured.metrics["tasks"]["piqa_local"]
    assert (facts["items"], facts["items_available"], facts["shots"], facts["version"]) == (7, 7, 0, "1.0")
    assert facts["batch_size"] == (batch_size or 64)


@needs_data
def test_it_holds_on_real_questions_with_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_DATA", str(SHARED / "data"))
    folder = SHARED / "data/models/stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (SHARED / "data/piqa/dev.jsonl").read_text().splitlines()[:16]]
    labels = [int(label) for label in (SHARED / "data/piqa/dev-labels.lst").read_text().split()[:16]]
    items = [(row["goal"], row["sol1"], row["sol2"], label) for row, label in zip(rows, labels, strict=True)]
    measured = ZeroShot(limit=16).measure(subject(model, words=words))
    assert_as_by_hand(measured, by_hand(model, words, items), labels)
    assert measured.metrics["tasks"]["piqa_local"]["items_available"] == 1838
    assert len({*measured.samples["piqa_local"]["prediction"]["acc"]}) == 2  # or a constant would pass


def sliced_and_masked(dense: Any) -> tuple[Any, Any]:
    """A model without some heads and neurons, others in each block, and one where these say nothing."""
    sliced, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    for seed, (units, other) in enumerate(zip(find_units(sliced), find_units(masked), strict=True)):
        kept = some(units, seed + 1)
        silence(other, kept)
        slice_block(sliced, units, kept)
    assert len({units.counts for units in find_units(sliced)}) > 1
    return sliced, masked


def said(measured: Any) -> list[str]:
    """The answers to all items, by metric."""
    return [
        measured.samples["piqa_local"][kind][metric]
        for kind in ("prediction", "correct")
        for metric in ("acc", "acc_norm")
    ]


@torch.no_grad()
def test_a_sliced_model_answers_as_the_masked_one_and_as_summed_by_hand(data: Path) -> None:
    dense = roomy().requires_grad_(False)
    sliced, masked = sliced_and_masked(dense)
    for batch_size in (None, 2):
        evaluation = ZeroShot(batch_size=batch_size)
        found, expected = (evaluation.measure(subject(dense, model)) for model in (sliced, masked))
        assert said(found) == said(expected)
        assert found.metrics == expected.metrics
        assert_as_by_hand(found, by_hand(sliced, tokenizer(), ITEMS), [item[3] for item in ITEMS])
    page = ZeroShot(("wikitext2_local",))
    byte_perplexity = [
        page.measure(subject(dense, model)).metrics["tasks"]["wikitext2_local"]["byte_perplexity"]
        for model in (sliced, masked, dense)
    ]
    assert byte_perplexity[0] == pytest.approx(byte_perplexity[1], rel=1e-4)
    assert byte_perplexity[0] != pytest.approx(byte_perplexity[2], rel=1e-2)


@needs_data
@torch.no_grad()
def test_it_does_so_on_real_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINQ_DATA", str(SHARED / "data"))
    folder = SHARED / "data/models/stories260k"
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    words, evaluation = AutoTokenizer.from_pretrained(folder), ZeroShot(limit=16)
    measured = [
        evaluation.measure(subject(dense, model, words)) for model in (*sliced_and_masked(dense), dense)
    ]
    assert said(measured[0]) == said(measured[1]) != said(measured[2])


def test_a_page_has_the_perplexity_per_word_and_byte_summed_by_hand(data: Path) -> None:
    model, words = roomy(), tokenizer()
    measured = ZeroShot(("wikitext2_local",)).measure(subject(model))
    pages = ["".join(PAGES[:5]), "".join(PAGES[5:])]
    detokenised = ["= One =\n\nA first page, short.\n== Part ==\nMore.\n", "= Two =\nIts end.\n"]
    values = measured.samples["wikitext2_local"]["values"]["word_perplexity"]
    # lm-eval counts both ends
    counts = [len(" ".join(page.split()).split()) + 2 for page in pages]
    assert [words_of for _, words_of in values] == counts
    task = tasks.load(("wikitext2_local",))["wikitext2_local"]["tasks"]["wikitext2_local"]
    asked = [instance.arguments[0] for instance in task.instances]
    assert [text.strip() for text in asked] == [text.strip() for text in detokenised]
    expected = [rolling(model, words, text) for text in asked]
    assert [found for found, _ in values] == pytest.approx(expected, rel=1e-5)
    metrics, total = measured.metrics["tasks"]["wikitext2_local"], sum(expected)
    assert metrics["word_perplexity"] == pytest.approx(
        math.exp(-total / sum(count for _, count in values)), rel=1e-5
    )
    assert metrics["byte_perplexity"] == pytest.approx(
        math.exp(-total / len("".join(pages).encode())), rel=1e-5
    )


@torch.inference_mode()
def rolling(model: Any, words: Any, text: str) -> float:
    """Of a text that fits the context, after the last token."""
    ids = [words.eos_token_id, *words(text)["input_ids"]]
    said = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    return said.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()


@pytest.mark.parametrize(
    ("local", "official"), [("piqa_local", "piqa/piqa"), ("wikitext2_local", "wikitext/wikitext")]
)
def test_our_tasks_differ_from_lm_evals_in_their_data_alone(local: str, official: str) -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    ours = load_yaml(tasks.FOLDER / f"{local}.yaml")
    theirs = load_yaml(Path(lm_eval.tasks.__file__).parent / f"{official}.yaml")
    about_data = {
        "task",
        "custom_dataset",
        "dataset_path",
        "dataset_name",
        "training_split",
        "validation_split",
        "test_split",
    }
    kept_ours, kept_theirs = (
        {k: source(task[k]) for k in task if k not in about_data} for task in (ours, theirs)
    )
    assert kept_ours == kept_theirs


def source(value: Any) -> Any:
    return inspect.getsource(value) if callable(value) else value


def test_articles_begin_with_their_titles() -> None:
    assert articles(PAGES) == ["".join(PAGES[:5]), "".join(PAGES[5:])]
    assert articles([" \n", *PAGES]) == [" \n" + "".join(PAGES[:5]), "".join(PAGES[5:])]


@needs_data
def test_wikitext2_has_62_articles(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (SHARED / "data/wikitext2/wiki.test.raw").open(encoding="utf-8", newline="\n").readlines()
    assert len(articles(lines)) == 62
    assert "".join(articles(lines)) == "".join(lines)


def hand_made(seed: int, items: int = 200, choices: int = 4) -> tuple[list[int], list[int], list[int]]:
    generator = random.Random(seed)
    pick = lambda: [generator.randrange(choices) for _ in range(items)]  # noqa: E731
    dense = pick()
    return (
        pick(),
        dense,
        [answer if generator.random() < 0.6 else generator.randrange(choices) for answer in dense],
    )


def kept(gold: list[int], chosen: list[int]) -> dict[str, dict[str, Any]]:
    right = "".join(str(int(a == b)) for a, b in zip(gold, chosen, strict=True))
    return {"correct": {"acc": right}, "prediction": {"acc": "".join(map(str, chosen))}}


def test_flips_are_those_counted_by_hand() -> None:
    gold, dense, compressed = hand_made(0)
    found = flips([kept(gold, compressed)], [kept(gold, dense)])["acc"]
    changed = wrong = right = 0
    for g, d, o in zip(gold, dense, compressed, strict=True):
        changed += d != o
        wrong += d == g and o != g
        right += d != g and o == g
    assert changed > wrong + right > 0  # wrong to wrong is a change of prediction only
    assert found["prediction"]["count"] == changed
    assert (found["to_wrong"], found["to_right"], found["correctness"]["count"]) == (
        wrong,
        right,
        wrong + right,
    )
    assert found["prediction"]["value"] == changed / 200
    assert found["difference"]["value"] == pytest.approx((right - wrong) / 200)
    assert found["difference"]["low"] < found["difference"]["value"] < found["difference"]["high"]


def test_few_items_without_a_change_do_not_make_certain() -> None:
    found = flips([kept([0, 1], [0, 1])], [kept([0, 1], [0, 1])])["acc"]["difference"]
    assert found["value"] == 0
    assert found["low"] < -0.3
    assert found["high"] > 0.3


def test_several_tasks_are_taken_together_item_by_item() -> None:
    made = [hand_made(seed, items) for seed, items in ((1, 50), (2, 150))]
    apart = flips([kept(gold, own) for gold, _, own in made], [kept(gold, dense) for gold, dense, _ in made])
    joined = [[value for each in made for value in each[k]] for k in range(3)]
    assert apart == flips([kept(joined[0], joined[2])], [kept(joined[0], joined[1])])


def test_a_model_has_no_flips_to_itself() -> None:
    gold, dense, _ = hand_made(3)
    found = flips([kept(gold, dense)], [kept(gold, dense)])["acc"]
    assert found["prediction"]["value"] == found["correctness"]["value"] == 0
    assert found["prediction"]["high"] > 0.01  # none of 200 is not never


@pytest.mark.parametrize(("count", "n"), [(0, 5), (1, 7), (25, 50), (60, 60), (3, 1838)])
def test_the_interval_of_a_share_is_wilsons(count: int, n: int) -> None:
    found, expected = share(np.arange(n) < count), binomtest(count, n).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_answers_to_other_items_are_not_compared() -> None:
    short, long = kept([0, 1], [0, 0]), kept([0, 1, 1], [0, 0, 1])
    with pytest.raises(ValueError, match="zip"):
        flips([short], [long])


def test_texts_are_compared_as_a_whole_and_likelihoods_by_correctness_alone() -> None:
    samples = [
        {
            "doc_id": k,
            "filter": filtered,
            "metrics": ["exact_match"],
            "exact_match": k % 2,
            "filtered_resps": [text],
            "doc": {},
        }
        for filtered in ("strict", "loose")
        for k, text in ((1, "seven"), (0, "six"))
    ]
    generated = answers(SimpleNamespace(OUTPUT_TYPE="generate_until"), samples)
    assert generated["correct"] == {"exact_match@strict": "01", "exact_match@loose": "01"}
    other = answers(
        SimpleNamespace(OUTPUT_TYPE="generate_until"),
        [sample | {"filtered_resps": ["six"]} for sample in samples],
    )
    assert flips([other], [generated])["exact_match@strict"]["prediction"]["count"] == 1
    likelihood = answers(SimpleNamespace(OUTPUT_TYPE="loglikelihood"), samples)
    assert "prediction" not in likelihood
    assert "prediction" not in flips([likelihood], [likelihood])["exact_match@strict"]


@pytest.fixture
def run(tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SINQ_CACHE", str(tmp_path / "cache"))
    roomy().save_pretrained(tiny_folder)
    tokenizer().save_pretrained(tiny_folder)
    evaluation = {"size": Size(), "zero_shot": ZeroShot()}
    return Run(
        Pretrained(path=str(tiny_folder)),
        StateOfTheUnion(evaluate_from=2025),
        RTN(Grid(2, 32)),
        evaluation,
        device="cpu",
    )


def test_a_row_has_accuracies_answers_and_flips(run: Run, tmp_path: Path) -> None:
    setting = Execution(tmp_path / "results")
    row = execute(run, setting)
    dense = record.find(setting.results_dir, row["dense_run_id"])
    assert dense is not None
    own, other = (each["samples"]["zero_shot"]["piqa_local"] for each in (row, dense))
    found = row["metrics"]["zero_shot"]["tasks"]["piqa_local"]["flips"]
    for metric in ("acc", "acc_norm"):
        changed = sum(
            a != b for a, b in zip(own["prediction"][metric], other["prediction"][metric], strict=True)
        )
        assert found[metric]["prediction"]["count"] == found[metric]["correctness"]["count"] == changed
    assert sum(found[metric]["prediction"]["count"] for metric in found) > 0  # 2 bits change something
    assert "flips" not in dense["metrics"]["zero_shot"]["tasks"]["piqa_local"]
    model = load(run.model, CPU).model
    assert other["prediction"]["acc"] == "".join(map(str, by_hand(model, tokenizer(), ITEMS)["acc"]))
    assert record.find(setting.results_dir, row["run_id"])["samples"] == row["samples"]  # type: ignore[index]


def test_other_questions_are_another_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(run)
    assert set(before["evaluation"]["zero_shot"]["questions"]) == {"piqa_local"}
    assert identity(replace(run, evaluation={"size": Size(), "zero_shot": ZeroShot(limit=3)})) != before
    write_data(tmp_path / "elsewhere", monkeypatch)
    assert identity(run) == before
    write_data(tmp_path / "changed", monkeypatch, goal="To boil two eggs")
    assert identity(run) != before


def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tasks._manager(True)
    # lm-eval's own index takes half a minute to read
    monkeypatch.setattr(tasks, "_manager", lambda only_local: local)
    setting = Execution(tmp_path / "results")
    (tmp_path / "no model").mkdir()
    nowhere = replace(run, model=Pretrained(path=str(tmp_path / "no model")))
    unknown = replace(nowhere, evaluation={"zero_shot": ZeroShot(("piqa_local", "piqq"))})
    with pytest.raises(
        ValueError,
        match=r"zero_shot.tasks=piqq: there is no such task; "
        r"known are, on local files, piqa_local, wikitext2_local",
    ):
        execute(unknown, setting)
    monkeypatch.setenv("SINQ_DATA", str(tmp_path / "nothing"))
    with pytest.raises(
        ValueError,
        match=r"tasks=piqa_local: SINQ_DATA=.*nothing has no piqa/dev.jsonl. From the hub, the task is piqa",
    ):
        execute(nowhere, setting)
    monkeypatch.delenv("SINQ_DATA")
    with pytest.raises(ValueError, match=r"SINQ_DATA is not set; it must name a folder with piqa/dev.jsonl"):
        execute(nowhere, setting)
    assert not (tmp_path / "results").exists()


def test_a_hub_that_cannot_be_reached_is_explained() -> None:
    def fail(names: list[str]) -> Any:
        raise ConnectionError("no route\nand more")

    with pytest.raises(
        ValueError,
        match=r"tasks=hellaswag: its data cannot be had \(no route\). Without a network, use piqa_local or",
    ):
        tasks._load_one(SimpleNamespace(load=fail), "hellaswag", None)


@pytest.mark.parametrize(("flag", "reason"), [("UNSAFE_CODE", "runs code"), ("MULTIMODAL", "shows pictures")])
def test_tasks_of_other_kinds_are_refused(flag: str, reason: str) -> None:
    task = SimpleNamespace(task_name="odd", **{flag: True})
    with pytest.raises(ValueError, match=f"tasks=odd {reason}"):
        tasks._prepare(task, None)


def test_what_does_not_fit_the_model_is_refused_early(data: Path) -> None:
    with pytest.raises(
        ValueError, match=r"item 0 has an answer of 22 tokens, longer than an input may be \(20"
    ):
        ZeroShot(max_length=20).check(subject(roomy()))
    with pytest.raises(ValueError, match="neither a first nor a last token"):
        ZeroShot().check(subject(roomy(), words=tiny_tokenizer()))
    ZeroShot().check(subject(roomy()))


def test_the_model_the_tokenizer_and_the_generators_stay_as_they_are(data: Path) -> None:
    dense = roomy("qwen3-tied")
    compressed: Any = sparing_clone(dense)
    SINQ(Grid(3, 32)).compress(compressed)
    compressed.lm_head.weight = torch.nn.Parameter(2 * dense.lm_head.weight)  # as a rotation unties it
    words, ids = tokenizer(), torch.arange(3, 40)[None]
    words.pad_token = None
    before = [model(ids).logits for model in (dense, compressed)]
    random.seed(5)
    expected = random.Random(5).random()
    measured = ZeroShot().measure(subject(dense, compressed, words))
    assert random.random() == expected
    assert words.pad_token is None
    assert all(
        torch.equal(model(ids).logits, logits)
        for model, logits in zip((dense, compressed), before, strict=True)
    )
    assert_as_by_hand(measured, by_hand(compressed, words, ITEMS), [item[3] for item in ITEMS])


def test_solved_examples_stand_before_the_question(data: Path) -> None:
    with pytest.raises(ValueError, match="shots"):
        ZeroShot(shots=-1)
    assert ZeroShot(shots=2).content() != ZeroShot().content()
    (instance, *_) = tasks.load(("piqa_local",), 2)["piqa_local"]["tasks"]["piqa_local"].instances
    assert instance.arguments[0].count("Question:") == 3
    assert ZeroShot(shots=2).measure(subject(roomy())).metrics["tasks"]["piqa_local"]["shots"] == 2


def test_a_batch_has_its_logits_in_the_budget() -> None:
    from experiments.evaluation.zero_shot.harness import LARGEST_BATCH, batch_that_fits

    assert batch_that_fits(2**30, 2048, 151_936) == 1
    assert batch_that_fits(2**30, 128, 49_152) == 2**30 // (12 * 128 * 49_152) == 14
    assert batch_that_fits(2**30, 8, 96) == LARGEST_BATCH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, r"zero_shot.tasks=\[\]"),
        ({"tasks": ("piqa_local", "piqa_local")}, "each once"),
        ({"limit": 0}, "zero_shot.limit=0"),
        ({"max_length": 1}, "zero_shot.max_length=1"),
        ({"batch_size": 0}, "zero_shot.batch_size=0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroShot(**options)
