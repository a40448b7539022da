"""Errors a user can mend, in a line or two: the mistake, its value, and the values accepted.

Their traceback is printed only with `HYDRA_FULL_ERROR=1`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from experiments.common import extras, interrupts
from experiments.common.arguments import not_composed, unreadable
from experiments.common.console import console
from sinq.common.errors import PASS_CALIBRATION, USE_COMPRESS, NotApplicable
from sinq.common.options import shown

ASKED = "SINQ_FULL_ERROR"
"""Environment variable with the user's own HYDRA_FULL_ERROR while this program sets that."""


class OutOfMemoryError(MemoryError):
    """A run needed more memory than there is; the message says how much it had and what to try."""


USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError, OutOfMemoryError)
"""Errors that the user can mend; all others are faults of this program and show their traceback."""


def not_applicable(error: BaseException | None) -> bool:
    """Return whether an error is a `NotApplicable`, or was caused by one (Hydra wraps errors in its own)."""
    return isinstance(error, NotApplicable) or (error is not None and not_applicable(error.__cause__))


AS_OPTIONS = {PASS_CALIBRATION: "use calibration=wikitext2 or sotu", USE_COMPRESS: "use stream=false"}
"""Advice of the library → the same as options."""


def explain(error: BaseException) -> str:
    """Return the message of an error as the user of a command line reads it."""
    message = _message(error)
    for python, options in AS_OPTIONS.items():
        message = message.replace(python, options)
    return message


def _message(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name} does not exist; choose one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override), _first_line(error))
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return _message(error.__cause__)
    if isinstance(error, InterpolationResolutionError):
        return _first_line(error).rpartition("while resolving interpolation: ")[2]
    if isinstance(error, ModuleNotFoundError) and (advice := extras.advice(error.name)):
        return advice
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_option(cause)
    if isinstance(error, HydraException) and (advice := not_composed(str(error).strip())):
        return advice
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        line, value = _first_line(cause), shown(cause.value)
        given = "" if cause.value is None or value in line else f"={value}"
        return f"{cause.full_key or 'configuration'}{given}: {line}"
    return _first_line(error) if isinstance(error, HydraException | OmegaConfBaseException) else str(error)


def _unknown_option(error: OmegaConfBaseException) -> str:
    siblings = error.parent_node if isinstance(error.parent_node, DictConfig) else {}
    known = ", ".join(str(key) for key in siblings if not str(key).startswith("_"))
    return f"there is no option {error.full_key}" + (f"; there are: {known}" if known else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def run_cli(main: Callable[[], object]) -> None:
    """Run a command-line entry; on a mistake print it and exit with 1, on Ctrl-C with 130."""
    traceback_wanted = os.environ.get(ASKED, os.environ.get("HYDRA_FULL_ERROR")) == "1"
    try:
        interrupts.raise_again()
        with _raised_by_hydra():
            main()
    except KeyboardInterrupt:
        sys.exit(_print_error("interrupted; the run under way was not recorded", 130))
    except USER_ERRORS as error:
        if traceback_wanted:
            raise
        sys.exit(_print_error(explain(error), 1))
    except ModuleNotFoundError as error:
        if traceback_wanted or extras.advice(error.name) is None:
            raise
        sys.exit(_print_error(explain(error), 1))


@contextmanager
def _raised_by_hydra() -> Iterator[None]:
    """Make Hydra raise errors for a while, instead of printing them its own way.

    What the user asked for is kept in `ASKED`, for the job that Hydra calls.
    """
    names = ("HYDRA_FULL_ERROR", ASKED)
    before = {name: os.environ.get(name) for name in names}
    os.environ[ASKED] = before[ASKED] or before["HYDRA_FULL_ERROR"] or "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _print_error(message: str, status: int) -> int:
    """Print an error; return the exit status."""
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, soft_wrap=True)
    return status
