"""The harness: options to rows, tables and pages. It needs more packages than the library `sinq`.

from experiments import perplexity      # of a model in memory; imported when it is asked for

perplexity(model, tokenizer, text, windows=16)
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.evaluation.in_memory import perplexity as perplexity

if find_spec("hydra") is None:
    raise ImportError(
        "the harness's own packages are not installed; install them with: pip install 'sinq-harness[harness]'"
    )


def __getattr__(name: str) -> Any:
    if name == "perplexity":
        from experiments.evaluation.in_memory import perplexity

        return perplexity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
