"""Migration of rows from schema 1 to schema 2.

Schema 1 named classes by their paths and held every option. Schema 2 has names and versions instead of paths.
A row's run id is a hash of its `identity`, which leaves out options at their defaults
(`sinq/common/named.py`); `options` has them all. Ids of old rows stay as they are.

`CLASSES` holds the classes of schema 1 with the defaults they had then. It is data, and never follows the
code: a class that has changed since has a new version, which no old row claims. A class that is not in the
table (a user's own) keeps the last part of its path.
"""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

GRID: Json = {
    "bits": 4, "group_size": 64, "tiling": 1, "levels": "uniform", "symmetric": False, "auxiliary_bits": 16,
    "range_floor": 0.0,
}  # fmt: skip
SINKHORN: Json = {
    "iterations": 16, "step_min": 0.7, "step_max": 2.0, "log_min": -0.3, "log_max": 10.0,
    "std_min": 0.001, "std_max": 1000.0, "early_stop": True, "relative_floors": True,
}  # fmt: skip
HALF_QUADRATIC: Json = {
    "steps": 20, "norm": 0.7, "beta": 10.0, "growth": 1.0, "early_stop": False, "reround": False,
}  # fmt: skip
CODEBOOKS: Json = {"codebooks": 2, "bits_per_codebook": 8, "group": 8, "codebook_share": 1.0}
TUNING: Json = {
    "epochs": 10, "patience": 3, "batch": 4, "learning_rate": 1e-05, "betas": [0.9, 0.95],
    "validation": 0.125, "seed": 0,
}  # fmt: skip
GPTQ: Json = {"grid": GRID, "damping": 0.01, "block": 128, "act_order": "none", "true_sequential": False}
NETWORK: Json = {
    "steps": 150, "learning_rate": 0.005, "budget_weight": 10.0, "temperature": [1.0, 0.1], "hidden": 64,
    "rows": 128,
}  # fmt: skip
CALIBRATION: Json = {"samples": 128, "seqlen": 2048, "seed": 0, "sequential": True}

CLASSES: Mapping[str, tuple[str | None, Json]] = {
    "sinq.dual_scale.SINQ": (
        "sinq", {"grid": GRID, "sinkhorn": SINKHORN, "kurtosis_gate": None, "refinement": None},
    ),
    "sinq.presinq.PreSINQ": ("presinq", {"sinkhorn": SINKHORN, "output_projection": True}),
    "sinq.refined.SINQRefined": (
        "sinq_refined",
        {"grid": GRID, "norm": 1.0, "passes": 2, "steps": 2, "influence": 2.0, "range_share": None},
    ),
    "baselines.aqlm.AQLM": (
        "aqlm",
        {
            "format": CODEBOOKS, "beam": 4, "init_iterations": 100, "rounds": 1000, "steps": 100,
            "tolerance": 0.01, "learning_rate": 0.0001, "seed": 0,
        },
    ),
    "baselines.awq.AWQ": ("awq", {"norm": 2, "ratios": 20, "weight_term": True, "clip": True}),
    "baselines.dense.Dense": ("dense", {}),
    "baselines.gptq.GPTQ": ("gptq", GPTQ),
    "baselines.gwq.GWQ": ("gwq", {"grid": GRID, "share": 0.01, "score": "grad", "seed": 0}),
    "baselines.hadamard.Hadamard": ("hadamard", {"seed": 0}),
    "baselines.hadamard.ResidualHadamard": ("residual_hadamard", {"seed": 0}),
    "baselines.hqq.HQQ": (
        "hqq",
        {
            "grid": GRID, "refinement": HALF_QUADRATIC | {"early_stop": True, "reround": True},
            "round_zero": False,
        },
    ),
    "baselines.mgptq.MGPTQ": (
        "mgptq",
        GPTQ | {
            "grid": GRID | {"bits": 2}, "average_bits": None, "widths": [1, 2, 3, 4], "allocator": "gnn",
            "training": NETWORK, "neighbours": None, "seed": 0, "act_order": "full",
        },
    ),
    "baselines.mixed.Mixed": (
        "mixed",
        {
            "budget": {"bits_per_weight": 3.5}, "bits": [2, 3, 4, 5, 6, 8], "probes": [2, 3, 4],
            "tokens": 128, "shrinkage": 0.3,
        },
    ),
    "baselines.rtn.RTN": ("rtn", {"grid": GRID}),
    "baselines.allocation.Budget": (None, {"bits_per_weight": 3.5}),
    "baselines.column_gnn.Training": (None, NETWORK),
    "sinq.layers.Layers": (None, {"exclude": ["lm_head"], "on_misfit": "error"}),
    "sinq.tuning.BlockTuning": (None, TUNING),
    "sinq.codebooks.Codebooks": (None, CODEBOOKS),
    "sinq.grid.Grid": (None, GRID),
    "sinq.sinkhorn.Sinkhorn": (None, SINKHORN),
    "sinq.half_quadratic.HalfQuadratic": (None, HALF_QUADRATIC),
    "experiments.evaluation.perplexity.Perplexity": (
        "perplexity", {"windows": None, "seqlen": 2048, "top_k": 64},
    ),
    "experiments.evaluation.layer_error.LayerError": ("layer_error", {"windows": 1, "seqlen": 512}),
    "experiments.evaluation.size.Size": ("size", {}),
    "experiments.evaluation.latency.Latency": (
        "latency", {"prompt_tokens": 128, "decode_tokens": 8, "rounds": 3},
    ),
    "experiments.evaluation.memory.Memory": ("memory", {"prompt_tokens": 512}),
    "experiments.evaluation.zero_shot.ZeroShot": (
        "zero_shot",
        {"tasks": ["piqa_local"], "limit": None, "shots": None, "max_length": 2048, "batch_size": None},
    ),
}  # fmt: skip
"""Path at schema 1 → name at schema 2 (None for plain options), and the defaults of schema 1."""


def from_schema_1(row: Json) -> Json:
    """Return a row of schema 1 as one of schema 2."""
    identity = row.get("identity")
    changed = {"config": without_paths(row.get("config"))}
    if isinstance(identity, dict):
        described = {key: identity[key] for key in ("method", "layers", "evaluation") if key in identity}
        reduced, full = _both(described)
        if identity.get("calibration"):
            reduced["calibration"], full["calibration"] = _calibration(identity["calibration"])
        changed |= {"identity": identity | reduced, "options": full}
    return row | changed


def _both(value: Any) -> tuple[Any, Any]:
    """Return a described value without its defaults, and with them."""
    if isinstance(value, list):
        pairs = [_both(item) for item in value]
        return [reduced for reduced, _ in pairs], [full for _, full in pairs]
    if not isinstance(value, dict):
        return value, value
    parts = {key: _both(item) for key, item in value.items() if key != "kind"}
    reduced = {key: part for key, (part, _) in parts.items()}
    full = {key: part for key, (_, part) in parts.items()}
    if "kind" not in value:
        return reduced, full
    name, defaults = CLASSES.get(value["kind"], (value["kind"].rpartition(".")[2], {}))
    header = {} if name is None else {"name": name, "version": 1}
    changed = {key: reduced[key] for key in parts if key not in defaults or full[key] != defaults[key]}
    if name == "aqlm":
        return _tuned(header | changed, header | full, parts["tuning"])
    return header | changed, header | full


def _tuned(reduced: Json, full: Json, tuning: tuple[Any, Any]) -> tuple[Json, Json]:
    """Return AQLM inside the method `tuned`: at schema 1 the tuning was an option of AQLM, or null."""
    inner = [{key: value for key, value in options.items() if key != "tuning"} for options in (reduced, full)]
    if tuning[1] is None:
        return inner[0], inner[1]
    header = {"name": "tuned", "version": 1}
    changed = {"tuning": tuning[0]} if tuning[1] != TUNING else {}
    return header | {"inner": inner[0]} | changed, header | {"inner": inner[1], "tuning": tuning[1]}


def _calibration(identity: Json) -> tuple[Json, Json]:
    """Return a described calibration without its defaults, and with them."""
    header = {"name": "text", "version": 1, "text": identity["text"]}
    options = {key: value for key, value in identity.items() if key != "text"}
    changed = {key: value for key, value in options.items() if value != CALIBRATION.get(key)}
    return header | changed, header | options


def without_paths(config: Any) -> Any:
    """Return a configuration with the name of each class instead of its path."""
    if isinstance(config, list):
        return [without_paths(item) for item in config]
    if not isinstance(config, dict):
        return config
    plain = {key: without_paths(item) for key, item in config.items() if key != "_target_"}
    return {"schema": config["_target_"].rpartition(".")[2], **plain} if "_target_" in config else plain
