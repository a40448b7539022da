"""Schemas and objects of configurations. Options are declared once, on dataclasses, and registered here.

Every dataclass that can be chosen has a schema in Hydra's config group `schema`, under the class name.
hydra-zen generates it with all fields, types and defaults. A YAML file in `conf/` starts from a schema and
sets the options that differ:

    # conf/method/sinq_release.yaml
    defaults: [{/schema@_here_: SINQ}, _self_]
    kurtosis_gate: 5.0

So a typo or a wrong type fails while Hydra composes, and a value out of range when `build` instantiates.
Methods need no registration: every dataclass in `sinq/methods/` and at the top of a module or package of
`baselines/` that is a `Method` has a schema.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import hydra_zen
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import baselines
from experiments.common.paths import data_dir
from experiments.config.calibrated import with_calibration
from experiments.config.instantiation import instantiated
from experiments.config.shared_options import SharedOptions, refuse_untaken
from experiments.data.corpora import C4, C4New, C4Saved, PennTreebank, Pile, WikiText2
from experiments.data.file import TextFile
from experiments.data.text import StateOfTheUnion
from experiments.evaluation import (
    AttentionEntropy,
    CoefficientMixture,
    Latency,
    LayerError,
    LlamaCppPerplexity,
    Memory,
    Operations,
    Perplexity,
    PseudoPerplexity,
    Scaling,
    Size,
    StableRank,
    Unigram,
    ZeroShot,
)
from experiments.models.architectures import Transformer
from experiments.models.sdgm.architecture import SpectralDictionary
from experiments.models.smollm2_tuned import SmolLM2Tuned
from experiments.models.source import Gemma3, Pretrained, SmolLM2
from experiments.models.trained import Trained
from experiments.runs.calibration import CalibrationText, NoCalibration
from experiments.runs.logger import NoLogger
from experiments.runs.run import Run
from experiments.runs.search import NoSearch, Search
from experiments.runs.text_free import RandomTokens, SelfGenerated
from experiments.track.weights_and_biases import WandB
from sinq import (
    ActivationFormat,
    Activations,
    HalfQuadratic,
    Kernel,
    KeyValueFormat,
    KeyValues,
    Layers,
    Method,
    NotApplicable,
    OnMisfit,
    methods,
)
from sinq.common.options import SEED
from sinq.kernels.integer import Products

PARTS: tuple[type, ...] = (
    SmolLM2, SmolLM2Tuned, Gemma3, Pretrained, Trained, Transformer, SpectralDictionary,
    StateOfTheUnion, WikiText2, C4, C4New, C4Saved, PennTreebank, Pile, TextFile,
    NoCalibration, CalibrationText, RandomTokens, SelfGenerated,
    Perplexity, PseudoPerplexity, Size, Latency, Memory, LayerError, Operations, ZeroShot,
    AttentionEntropy, StableRank, Scaling, CoefficientMixture, Unigram, LlamaCppPerplexity,
    NoLogger, WandB, HalfQuadratic, ActivationFormat, KeyValueFormat, NoSearch, Search,
)  # fmt: skip
OF_RUN = ("model", "text", "method", "activation", "kv", "calibration", "layers", "evaluation")
"""Parts of a configuration that define a run; `logger` and `sweep` do not."""


@dataclasses.dataclass
class Experiment:
    """Runs of an experiment; see `experiments/sweeps/experiment.py`."""

    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(kw_only=True)
class Config(SharedOptions):
    """Top level of a configuration: groups from `conf/`, options that methods share, options of a run."""

    model: Any
    text: Any
    method: Any
    activation: Any
    kv: Any
    calibration: Any
    evaluation: dict[str, Any]
    logger: Any
    sweep: Any
    layers: hydra_zen.builds(Layers, populate_full_signature=True)  # type: ignore[valid-type]
    calibrated: bool | None = None
    on_misfit: OnMisfit = OnMisfit.error
    device: str = "auto"
    kernel: Kernel = Kernel.auto
    products: Products = Products.simulated
    """Numbers that rounded inputs are multiplied in."""
    stream: bool = False
    stream_workers: Any = 1
    """Number of processes that stream, or "ray"."""
    seed: int = 0
    force: bool = False
    save: bool = False
    """Keep the model in `<results_dir>/checkpoints/<run_id>`."""
    plan: bool = False
    wait: bool = False
    results_dir: str = "results"
    table: str | None = None
    """Name of a file of `conf/tables/`, printed at the end of a sweep."""
    experiment: Experiment = dataclasses.field(default_factory=Experiment)


@cache
def register() -> None:
    """Register all schemas and the resolvers `${data:…}` and `${sweep:}` with Hydra.

    A second call does nothing. The schemas take almost half as long to make as a configuration to compose,
    and tables compose hundreds.

    Raises:
        TypeError: two classes have the same name.
    """
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for name, part in by_name((*PARTS, *method_classes())).items():
        store.store(group="schema", name=name, node=hydra_zen.builds(part, populate_full_signature=True))
    OmegaConf.register_new_resolver("data", _in_data, replace=True)
    OmegaConf.register_new_resolver("sweep", _sweep, replace=True)


def method_classes() -> list[type[Method]]:
    """Return every method: dataclasses of `sinq/methods/`, and of modules and packages of `baselines/`.

    Modules inside a package, such as its kernels, are not imported here: those take longer than all others.
    """
    found: dict[type[Method], None] = {}  # a set that keeps the order
    for package in (methods, baselines):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(info.name)).values():
                if isinstance(value, type) and issubclass(value, Method) and dataclasses.is_dataclass(value):
                    found[value] = None
    return list(found)


def by_name(classes: Iterable[type]) -> dict[str, type]:
    """Map schema names to classes.

    Raises:
        TypeError: two classes have the same name, of which Hydra would silently keep the last.
    """
    named: dict[str, type] = {}
    for each in classes:
        other = named.setdefault(each.__name__, each)
        if other is not each:
            both = f"{other.__module__}.{other.__qualname__} and {each.__module__}.{each.__qualname__}"
            raise TypeError(
                f"two classes have the name {each.__name__}, under which a schema is stored:"
                f" {both}; rename one"
            )
    return named


def build(config: DictConfig) -> Run:
    """Return the run that a configuration describes.

    Args:
        config: composed with Hydra's section (`return_hydra_config=True`).

    Raises:
        NotApplicable: an option was given that the method does not take, or options exclude each other.
        ValueError, InstantiationException: a value is invalid.
    """
    refuse_untaken(config)
    results_folder(config)
    if not SEED.holds(config.seed):
        raise ValueError(f"seed={config.seed} is not possible; it must be {SEED}")
    if not config.evaluation:
        raise ValueError(
            "evaluation is empty: nothing would be measured; choose evaluation=default or quality, or leave"
            " one of its parts"
        )
    parts = {name: instantiated(config, name) for name in OF_RUN}
    method, names = with_calibration(parts["method"], config.calibrated), choices(config)
    if method != parts["method"]:
        suffix = "calibrated" if config.calibrated else "uncalibrated"
        names["method"] = f"{names.get('method', 'method')} {suffix}"
    activation, key_values = parts.pop("activation"), parts.pop("kv")
    if activation.rounds:
        method = Activations(method, activation, config.products)
    elif config.products is not Products.simulated:
        raise NotApplicable(
            f"products={config.products.name} is not possible with activations of {activation.bits} bits,"
            " which are not rounded; add activation=a8_token"
        )
    method = KeyValues(method, key_values) if key_values.rounds else method
    return Run(
        **(parts | {"method": method}),
        device=config.device,
        kernel=config.kernel,
        stream=config.stream,
        choices=names,
    )


def results_folder(config: DictConfig) -> Path:
    """Return the folder of rows; raise `ValueError` where its name is empty."""
    if not config.results_dir:
        raise ValueError("results_dir is empty; name a folder, such as results_dir=results")
    return Path(config.results_dir).expanduser()


def choices(config: DictConfig) -> dict[str, str]:
    """Return the chosen name of each config group, such as `{"method": "sinq"}`."""
    return {
        group: str(name)
        for group, name in config.hydra.runtime.choices.items()
        if name and not {"/", "@"} & {*group}
    }


def _sweep() -> str | None:
    """Return the name of the current sweep; None outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def _in_data(name: str) -> str:
    """Return the path of a file in the folder `SINQ_DATA`; raise `ValueError` where there is none."""
    folder = data_dir()
    if folder is None or not (folder / name).exists():
        where = (
            f"the folder SINQ_DATA={folder} does not have it"
            if folder
            else "the environment variable SINQ_DATA names no folder"
        )
        raise ValueError(f"{name} is not part of this project, and {where}")
    return str(folder / name)
