"""The error that a sweep treats differently from a mistake, and advice that a command line words differently.

The library speaks Python. Where that would not help on a command line, the advice is one of the phrases
below, which `experiments/common/errors.py` replaces by options.
"""

PASS_CALIBRATION = "pass calibration=Calibration(tokens)"
USE_COMPRESS = "use compress"


class NotApplicable(ValueError):  # noqa: N818 - it is not always an error
    """A combination of options that makes no sense (NF4 at 3 bits; GPTQ without calibration text).

    In a single run it is an error like any `ValueError`. A sweep over many options lists it with its reason
    and goes on.
    """
