"""The harness: options to rows, tables and pages. It needs more packages than the library `sinq`."""

from importlib.util import find_spec

if find_spec("hydra") is None:
    raise ImportError(
        "the harness's own packages are not installed; install them with: pip install 'sinq-harness[harness]'"
    )
