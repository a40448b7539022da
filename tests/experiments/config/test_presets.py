"""Every preset of `conf/method/` has the options that its package or paper publishes.

`TABLE` names every option of every preset once, with its value and a source. A source begins with a file, a
table or an equation; "here: …" is a choice of this project, with the reason, and what is published instead.
A new preset, or a new option, is not in the table, and fails.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from baselines.hqq import HQQ
from experiments.config.build import register
from sinq import Grid
from sinq.common.named import described
from tests.conftest import ROOT

CONF = ROOT / "conf"
PRESETS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))

SINQ_CODE = "huawei-csl/SINQ 6930f78, sinq/sinkhorn.py and dual_shift.py"
SINQ_TABLE_1 = "arXiv 2509.22944v4, table 1: its memory is that of 16-bit scales and zeros"
SINQ_HQQ = "huawei-csl/SINQ 6930f78, sinq/hqq.py: 20 steps, no growth, best zeros with the last codes"
RELEASE = "huawei-csl/SINQ 6930f78, the defaults of its Python interface (quantAux, kurtosis_threshold)"
A_SINQ = "arXiv 2509.22944v4, equation 6"
HQQ_CODE = "hqq 0.2.8.post1, core/optimize.py: optimize_weights_proximal_legacy"
HQQ_CONFIG = "hqq 0.2.8.post1, core/quantize.py: hqq_base_quant_config"
GPTQ_CODE = "IST-DASLab/gptq 4fe02ad, llama.py and gptq.py: defaults"
GPTQ_ORDER = "Efficient-ML/Qwen3-Quantization, the baselines of the SINQ paper: --act-order"
SMOOTHQUANT = (
    "arXiv 2211.10438, section 5.1 (OPT, BLOOM: 0.5); mit-han-lab/smoothquant, smooth.py: norms only"
)
STAT = "nicolehao34/InterpolativeDecompositionPruning 814aa12, bert-pruning-ID/prune_opt.py"
SEA = "gmlwns2000/sea-attention, src/trainer/opt_trainer.py and scripts/opt.py"
SEA_CODE = "gmlwns2000/sea-attention, src/models/perlin_attention/attention.py and trainer/perlin_trainer.py"
LORAPRUNE = "aim-uofa/LoRAPrune 4da5272, script/prune.sh and loraprune/utils.py, trainer.py"
LORAPRUNE_PAPER = "arXiv 2305.18403v5, section 4.1: batch, learning rate, cosine"
TORCH_ADAMW = "torch.optim.AdamW and transformers.TrainingArguments: defaults"
SPIKELLM_RATES = "SpikeLLM release, arun.sh: --let_lr 1e-3 --alpha 0.75"
SPIKELLM = "SpikeLLM release, arun.sh: --wbits 4 --abits 4 --addbit 1 --low_p .9 (T = 2, 10 %)"
PREFIXQUANT_TUNED = "arXiv 2410.05265, fine-tuning of W4A4KV4: rate of scales 5e-5, batches of 4, 20 epochs"
PREFIXQUANT = "ChenMnZ/PrefixQuant, utils/stat_utils.py: get_prefixed_tokens, outlier_threshold 64"
OMNIQUANT = "OpenGVLab/OmniQuant 147d4da, main.py: defaults, with --lwc and --let"
ABQ_CODE = "bytedance/ABQ-LLM 0392c36, algorithm/main.py, quantize/abq_llm.py: defaults, --lwc --let"
SCRIPTS = "scripts of OmniQuant and ABQ-LLM: 20 epochs, 40 at 2 bits (the code's default is 10)"
ABQ_PAPER = "arXiv 2408.08554, section 3: DLC and AKL alone; plain W2 beside W2*"
AWQ_CODE = "autoawq 0.2.9, quantize/quantizer.py and models/base.py: defaults"
AQLM_CODE = "Vahe1994/AQLM 001768a, main.py: defaults"
AQLM_README = "Vahe1994/AQLM, README: the recommended run, and 2x8 of its tables"
BNB = "bitsandbytes 0.50.2, functional.py: quantize_4bit, absmax of each block, no zero-point"
QUAROT = "arXiv 2404.00456, section 4: a random-sign Hadamard matrix"
QUAROT_ALL = "arXiv 2404.00456, section 4, stages 1b to 1d: values of heads, inputs of down and of o"
FUSED = "here: the residual stream alone, nothing at run time; QuaRot's other rotations are in quarot"
GWQ_ABSTRACT = "arXiv 2411.00850, abstract: the top 1 % by gradient in FP16"
MGPTQ_ABSTRACT = "arXiv 2501.18154, abstract: a graph network on columns, then blockwise quantization"
PLAIN = "the common definition: minimum to maximum of each group, uniform levels, a zero-point"
HALF = "here: 16-bit scales and zeros, as the SINQ paper counts all methods"
HALF_ABSMAX = "here: absmax in float16; bitsandbytes has float32, unless it quantizes them again"
OURS = "here: no source says; the docstring of the class lists it"
SHARED = "here: an option of the command line, 4 bits in groups of 64 as in the SINQ paper"
SEED = "here: the seed of the run"

GRID = (
    ("*grid.bits", 4, SHARED), ("*grid.group_size", 64, SHARED), ("*grid.tiling", 1, SINQ_CODE),
    ("*grid.levels", "uniform", PLAIN), ("*grid.symmetric", False, PLAIN), ("*grid.auxiliary_bits", 16, HALF),
    ("*grid.range_floor", 0.0, "here: no floor; the release has 1e-4, autoawq 1e-5, in absolute terms"),
)  # fmt: skip
SINKHORN = (
    ("iterations", 16, SINQ_CODE), ("step_min", 0.7, SINQ_CODE), ("step_max", 2.0, SINQ_CODE),
    ("log_min", -0.3, SINQ_CODE), ("log_max", 10.0, SINQ_CODE), ("std_min", 1e-3, SINQ_CODE),
    ("std_max", 1e3, SINQ_CODE), ("early_stop", True, SINQ_CODE),
    ("relative_floors", True, "here: floors in units of the tile's deviation; the release has absolute ones"),
)  # fmt: skip
HALF_QUADRATIC = (
    ("steps", 20, HQQ_CODE), ("norm", 0.7, HQQ_CODE), ("beta", 10.0, HQQ_CODE),
    ("growth", 1.0, f"{HQQ_CODE} (it names kappa=1.01 and never applies it)"),
)  # fmt: skip
FEEDBACK = (
    ("block", 128, GPTQ_CODE), ("toward", "identity", GPTQ_CODE),
    ("act_order", "full", GPTQ_ORDER), ("true_sequential", False, GPTQ_CODE),
    ("static_groups", False, "here: act_order=full has static groups whatever this is"),
    ("keep_better_rows", False, GPTQ_CODE), ("solve_groups", 0, GPTQ_CODE),
)  # fmt: skip
WEIGHTS = (("*candidates", 16, OURS), ("*narrowest", 0.7, OURS))
SEA_LOSSES = (("divergence", 0.1), ("next_token", 0.1), ("hidden", 5.0), ("logits", 0.2))
SEA_CPU = (
    ("keys", 32), ("blocks", 64), ("tokens", 1024), ("gate_bias", 4.0), ("training.steps", 100),
    ("training.batch", 1), ("training.learning_rate", 1e-4), ("training.schedule", "cosine"),
    ("training.warm_up", 0.1), ("training.gradient_checkpointing", False),
)  # fmt: skip
LEARNED = (
    ("clipping", True), ("transformation", True), ("alpha", 0.5), ("batch", 1),
    ("clipping_rate", 1e-2), ("transformation_rate", 5e-3),
)  # fmt: skip
TABLE: tuple[tuple[str, str, Any, str], ...] = (
    *(("*", option, value, source) for option, value, source in GRID),
    ("*", "seed", 0, SEED), ("*", "*.seed", 0, SEED),
    *(("*", f"*sinkhorn.{option}", value, source) for option, value, source in SINKHORN),
    ("*", "*kurtosis_gate", None, "arXiv 2509.22944v4: no gate"),
    ("*", "*refinement", None, "arXiv 2509.22944v4: round to nearest"),
    ("*", "*shared_columns", False, "arXiv 2509.22944v4: a second scale for each matrix"),
    *(("*", f"*refinement.{option}", value, source) for option, value, source in HALF_QUADRATIC),
    ("hqq", "refinement.early_stop", True, HQQ_CODE), ("hqq", "refinement.reround", True, HQQ_CODE),
    ("hqq", "round_zero", None, f"{HQQ_CONFIG}: true at 4 bits, else false, which null stands for"),
    ("sinq_hqq", "refinement.early_stop", False, SINQ_HQQ),
    ("sinq_hqq", "refinement.reround", False, SINQ_HQQ),
    ("sinq_nf3", "grid.bits", 3, "the table of levels has 3 bits"),
    ("sinq_nf3", "grid.levels", "nf3", SINQ_CODE), ("sinq_nf4", "grid.levels", "nf4", SINQ_CODE),
    ("sinq_release", "grid.auxiliary_bits", 8, RELEASE), ("sinq_release", "grid.range_floor", 1e-4, RELEASE),
    ("sinq_release", "sinkhorn.relative_floors", False, RELEASE),
    ("sinq_release", "kurtosis_gate", 5.0, RELEASE),
    ("sinq", "grid.auxiliary_bits", 16, SINQ_TABLE_1),
    ("sinq_[fr]*", "*norm", 1.0, OURS), ("sinq_[fr]*", "*passes", 2, OURS),
    ("sinq_[fr]*", "*steps", 2, OURS),
    ("sinq_[fr]*", "*influence", 2.0, OURS), ("sinq_[fr]*", "*range_share", None, OURS),
    ("presinq", "output_projection", True, "here: on; off in the authors' code, where it is wrong"),
    ("head8", "head.grid.bits", 8, "here: no visible loss of the largest matrix of a small model"),
    ("bf16", "dtype", "bfloat16", "here: the format in which most models are published"),
    ("prefix*", "threshold", 64.0, PREFIXQUANT), ("prefix*", "rare", 0.1, PREFIXQUANT),
    ("prefix*", "tokens", [], PREFIXQUANT),
    ("prefixquant_tuned", "inner.tuning.epochs", 20, PREFIXQUANT_TUNED),
    ("prefixquant_tuned", "inner.tuning.learning_rate", 5e-5, PREFIXQUANT_TUNED),
    ("prefixquant_tuned", "inner.tuning.betas", [0.9, 0.999], TORCH_ADAMW),
    ("prefixquant_tuned", "inner.tuning.batch", 4, PREFIXQUANT_TUNED),
    ("prefixquant_tuned", "inner.tuning.validation", 0.125, "here: 64 of 512 windows, as in AQLM"),
    ("prefixquant_tuned", "inner.tuning.patience", 20, "here: all epochs, of which the best is kept"),
    ("prefixquant_tuned", "*_inputs", True, PREFIXQUANT_TUNED),
    ("aqlm*", "*_inputs", False, AQLM_CODE),
    ("stat", "target", 0.8, f"{STAT}: --mu 0.8"), ("stat", "chunk", 1, STAT),
    ("stat", "context", None, f"{STAT}: attention counts over the 2048 tokens of a window"),
    ("stat", "selection", "pivots", STAT), ("stat", "correction", "interpolation", STAT),
    ("stat", "allocation", "threshold", STAT), ("stat", "depth", "fitted", STAT),
    ("stat", "whole_heads", True, STAT), ("stat", "weigh_columns", True, STAT),
    ("stat", "sketch", "gaussian", STAT), ("stat", "heads_after_neurons", False, STAT),
    ("stat", "sketch_rows", None, "here: four for each column, at least 4096; the code has 12,800"),
    ("loraprune*", "sparsity.ratio", 0.5, LORAPRUNE), ("loraprune*", "sparsity.course", "cubic", LORAPRUNE),
    ("loraprune*", "sparsity.warm_up", 0.1, LORAPRUNE), ("loraprune*", "sparsity.cool_down", 0.1, LORAPRUNE),
    ("loraprune*", "sparsity.every", 10, LORAPRUNE), ("loraprune_cpu", "sparsity.every", 5, OURS),
    ("loraprune*", "sparsity.last_update", False, LORAPRUNE),
    ("loraprune*", "criterion", "lora", LORAPRUNE), ("loraprune*", "power", "absolute", LORAPRUNE),
    ("loraprune*", "eta", 1.0, LORAPRUNE), ("loraprune*", "decay", 0.9, LORAPRUNE),
    ("loraprune*", "keep_first", 0.1, LORAPRUNE), ("loraprune*", "keep_last", 1, LORAPRUNE),
    ("loraprune*", "chunk", 1, LORAPRUNE), ("loraprune*", "base", None, LORAPRUNE),
    ("loraprune*", "lora.rank", 8, LORAPRUNE),
    ("loraprune*", "lora.alpha", 16.0, LORAPRUNE), ("loraprune*", "lora.dropout", 0.05, LORAPRUNE),
    ("loraprune", "training.steps", 300, "here: two epochs of the paper's 20 thousand windows"),
    ("loraprune", "training.batch", 128, LORAPRUNE), ("loraprune", "training.learning_rate", 1e-4, LORAPRUNE),
    ("loraprune_cpu", "training.steps", 60, OURS), ("loraprune_cpu", "training.batch", 8, OURS),
    ("loraprune_cpu", "training.learning_rate", 1e-3, OURS),
    ("loraprune", "training.at_once", 1, OURS), ("loraprune_cpu", "training.at_once", 4, OURS),
    ("loraprune*", "training.schedule", "cosine", LORAPRUNE_PAPER),
    ("loraprune*", "training.warm_up", 0.0, TORCH_ADAMW), ("loraprune*", "training.clip", 1.0, TORCH_ADAMW),
    ("loraprune*", "training.betas", [0.9, 0.999], TORCH_ADAMW),
    ("loraprune*", "training.weight_decay", 0.0, TORCH_ADAMW),
    ("loraprune*", "training.precision", "auto", "here: bfloat16 where the device has it; the code: float16"),
    ("loraprune*", "training.gradient_checkpointing", False, LORAPRUNE),
    ("sea*", "form", "estimated", SEA_CODE), ("sea*", "fraction", 8.0, SEA),
    ("sea*", "redraw", 1000, SEA_CODE),
    ("sea", "keys", 64, SEA), ("sea", "blocks", 256, SEA), ("sea", "tokens", 2048, SEA),
    ("sea", "gate_bias", 0.0, "here: 0; the code starts it near 0, at random"),
    ("sea*", "jitter", 0.1, SEA_CODE),
    ("sea*", "new_share", 10.0, SEA), ("sea*", "base_share", 0.2, SEA),
    *(("sea*", f"losses.{name}", value, SEA_CODE) for name, value in SEA_LOSSES),
    ("sea", "training.steps", 10_000, SEA), ("sea", "training.batch", 32, SEA),
    ("sea", "training.learning_rate", 1e-5, SEA), ("sea*", "training.weight_decay", 1e-2, SEA),
    ("sea*", "training.clip", 1.0, SEA), ("sea*", "training.betas", [0.9, 0.999], TORCH_ADAMW),
    ("sea", "training.schedule", "constant", "here: no schedule is stated"),
    ("sea", "training.warm_up", 0.0, OURS),
    ("sea*", "training.at_once", 1, OURS),
    ("sea*", "training.precision", "auto", "here: bfloat16; the code: float16"),
    ("sea", "training.gradient_checkpointing", True, OURS),
    *(("sea_cpu", name, value, OURS) for name, value in SEA_CPU),
    ("spikellm*", "neurons.bits", 4, SPIKELLM), ("spikellm*", "neurons.steps", 2, SPIKELLM),
    ("spikellm*", "neurons.binary", False, "here: the same numbers in 15 times the passes"),
    ("spikellm*", "share", 0.1, SPIKELLM),
    ("spikellm*", "salience", "first_order", "SpikeLLM release, add_batch: S = (x WᵀW) ∘ x"),
    ("spikellm_ternary", "inner.format.steps", 5, OURS),
    ("spikellm_ternary", "inner.format.share", 0.1, OURS),
    ("spikellm_ternary", "inner.format.group_size", 64, OURS),
    ("spikellm_ternary", "inner.damping", 0.01, GPTQ_CODE),
    ("smoothquant", "alpha", 0.5, SMOOTHQUANT), ("smoothquant", "down", False, SMOOTHQUANT),
    ("smoothquant", "output", False, SMOOTHQUANT),
    *(("omniquant*", option, value, OMNIQUANT) for option, value in LEARNED),
    ("omniquant*", "down", False, OMNIQUANT),
    *((preset, "epochs", 20, SCRIPTS) for preset in ("omniquant", "abq", "omniquant_w4a4")),
    *((preset, "relative_loss", False, OURS) for preset in ("omniquant", "abq", "omniquant_w4a4")),
    *(("spikellm", f"inner.{option}", value, OMNIQUANT) for option, value in LEARNED if value in (1, 1e-2)),
    ("spikellm", "inner.down", False, SPIKELLM_RATES), ("spikellm", "inner.epochs", 20, SPIKELLM_RATES),
    ("spikellm", "inner.relative_loss", False, OURS), ("spikellm", "inner.alpha", 0.75, SPIKELLM_RATES),
    ("spikellm", "inner.transformation_rate", 1e-3, SPIKELLM_RATES),
    ("omniquant_w4a4", "alpha", 0.75, SPIKELLM_RATES),
    ("omniquant_w4a4", "transformation_rate", 1e-3, SPIKELLM_RATES),
    *(("abq*", option, value, ABQ_CODE) for option, value in LEARNED), ("abq*", "down", True, ABQ_CODE),
    ("abq*", "compensated", [3, 4], ABQ_CODE), ("abq*", "compensation_rate", 1e-2, ABQ_CODE),
    ("abq*", "levels", 0, ABQ_PAPER), ("abq*", "repacked", False, OURS),
    ("abq*", "squared_errors", False, ABQ_PAPER), ("abq*", "released_attention", False, ABQ_PAPER),
    *((preset, "epochs", 10, OURS) for preset in ("omniquant_cpu", "abq_cpu")),
    *((preset, "clipping_rate", 0.05, OURS) for preset in ("omniquant_cpu", "abq_cpu")),
    *((preset, "relative_loss", True, OURS) for preset in ("omniquant_cpu", "abq_cpu")),
    ("asinq", "norm", 1, A_SINQ), ("asinq", "weight_term", False, A_SINQ), ("asinq", "clip", False, A_SINQ),
    ("asinq", "ratios", 20, "huawei-csl/SINQ 6930f78, sinq/awq.py: 0, 0.05 … 0.95"),
    ("asinq", "inner.grid.auxiliary_bits", 16, "here: as sinq; the paper has 8, as conf/tables do"),
    ("awq", "norm", 2, AWQ_CODE), ("awq", "ratios", 20, AWQ_CODE), ("awq", "weight_term", True, AWQ_CODE),
    ("awq", "clip", True, AWQ_CODE),
    *((preset, *option) for preset in ("*gptq*", "sinq_free") for option in FEEDBACK),
    ("*gptq*", "damping", 0.01, GPTQ_CODE),
    ("gptq_better_rows", "keep_better_rows", True, OURS), ("sinq_free", "damping", 0.3, OURS),
    *((preset, *option) for preset in ("*weighted", "sinq_free") for option in WEIGHTS),
    ("rtn_nf4", "grid.levels", "nf4", BNB), ("fp4", "grid.levels", "fp4", BNB),
    ("rtn_nf4", "grid.symmetric", True, BNB), ("fp4", "grid.symmetric", True, BNB),
    ("rtn_nf4", "grid.auxiliary_bits", 16, HALF_ABSMAX), ("fp4", "grid.auxiliary_bits", 16, HALF_ABSMAX),
    ("hadamard*", "seed", 0, f"{QUAROT}; the seed of the run"),
    ("quarot", "seed", 0, f"{QUAROT}; the seed of the run"),
    ("hadamard", "only", [], "here: the inputs of all layers are rotated, as in QuIP#"),
    *(("hadamard_fused", option, False, FUSED) for option in ("values", "down", "output")),
    *(("quarot", option, True, QUAROT_ALL) for option in ("values", "down", "output")),
    ("gwq", "share", 0.01, GWQ_ABSTRACT), ("gwq", "score", "grad", GWQ_ABSTRACT),
    ("mgptq", "allocator", "gnn", MGPTQ_ABSTRACT), ("mgptq", "average_bits", None, OURS),
    ("mgptq", "widths", [1, 2, 3, 4], OURS), ("mgptq", "neighbours", None, OURS),
    ("mgptq", "training.*", ..., OURS), ("mgptq", "damping", 0.01, GPTQ_CODE),
    ("mgptq", "block", 128, GPTQ_CODE),
    ("mgptq", "act_order", "full", OURS), ("mgptq", "true_sequential", False, GPTQ_CODE),
    ("mixed", "budget.bits_per_weight", 3.5, OURS), ("mixed", "bits", [2, 3, 4, 5, 6, 8], OURS),
    ("mixed", "probes", [2, 3, 4], OURS), ("mixed", "tokens", 128, OURS), ("mixed", "shrinkage", 0.3, OURS),
    ("aqlm*", "*format.codebooks", 2, AQLM_README), ("aqlm*", "*format.bits_per_codebook", 8, AQLM_README),
    ("aqlm_1x16", "*format.codebooks", 1, AQLM_README),
    ("aqlm_1x16", "*format.bits_per_codebook", 16, AQLM_README),
    ("aqlm*", "*format.group", 8, AQLM_CODE), ("aqlm*", "*format.codebook_share", 1.0, OURS),
    ("aqlm*", "*beam", 1, AQLM_CODE), ("aqlm*", "*init_iterations", 100, AQLM_CODE),
    ("aqlm*", "*rounds", 1000, AQLM_CODE), ("aqlm*", "*steps", 100, AQLM_CODE),
    ("aqlm*", "*tolerance", 0.01, AQLM_README), ("aqlm*", "*learning_rate", 1e-4, AQLM_CODE),
    ("aqlm*", "tuning.epochs", 10, AQLM_README), ("aqlm*", "tuning.patience", 3, AQLM_CODE),
    ("aqlm*", "tuning.learning_rate", 1e-5, AQLM_CODE), ("aqlm*", "tuning.betas", [0.9, 0.95], AQLM_CODE),
    ("aqlm*", "tuning.validation", 0.125, f"{AQLM_README}: 128 of 1024 windows"),
    ("aqlm*", "tuning.batch", 4, "here: for a few windows; the recommended run has 32"),
    ("aqlm_cpu", "inner.beam", 4, OURS), ("aqlm_cpu", "inner.init_iterations", 30, OURS),
    ("aqlm_cpu", "inner.rounds", 4, OURS), ("aqlm_cpu", "inner.steps", 25, OURS),
    ("aqlm_cpu", "inner.tolerance", 0.03, OURS), ("aqlm_cpu", "tuning.epochs", 3, OURS),
)  # fmt: skip
"""(preset, option, value, source). The last entry that fits holds; `...` accepts any value."""


@pytest.fixture(scope="module")
def presets() -> dict[str, dict[str, Any]]:
    """The options of every preset, by dotted name."""
    register()
    GlobalHydra.instance().clear()
    found = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in PRESETS:
            bits = ["bits=3"] if name == "sinq_nf3" else []
            method = instantiate(compose("config", [f"method={name}", *bits]).method, _convert_="all")
            found[name] = dict(leaves(described(method, defaults=True)))
    return found


def leaves(options: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        elif key not in ("name", "version"):
            yield path + key, value


def entry(preset: str, option: str) -> tuple[str, str, Any, str] | None:
    fitting = (row for row in TABLE if fnmatchcase(preset, row[0]) and fnmatchcase(option, row[1]))
    return next(iter(list(fitting)[::-1]), None)


@pytest.mark.parametrize("preset", PRESETS)
def test_options_are_the_published_ones(preset: str, presets: dict[str, dict[str, Any]]) -> None:
    wrong = {}
    for option, value in presets[preset].items():
        row = entry(preset, option)
        if row is None or (row[2] is not ... and row[2] != value):
            wrong[option] = (value, row)
    assert wrong == {}


def test_every_entry_is_used_and_has_a_source(presets: dict[str, dict[str, Any]]) -> None:
    used = {repr(entry(preset, option)) for preset, options in presets.items() for option in options}
    assert [row for row in TABLE if repr(row) not in used] == []
    assert all(len(source) > 20 for *_, source in TABLE)


@pytest.mark.parametrize(("bits", "whole"), [(2, False), (3, False), (4, True), (5, False), (8, False)])
def test_hqq_starts_from_whole_zeros_where_its_package_does(bits: int, whole: bool) -> None:
    """Source: `hqq_base_quant_config` has `"round_zero": True if nbits == 4 else False`."""
    weight = 0.05 * torch.randn(8, 64, generator=torch.Generator().manual_seed(bits))
    published, asked, other = (
        HQQ(Grid(bits), round_zero=start).quantize(weight).dequantize() for start in (None, whole, not whole)
    )
    assert torch.equal(published, asked)
    assert not torch.equal(published, other)
