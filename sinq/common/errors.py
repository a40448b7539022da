"""The one error a sweep treats differently from a mistake."""


class NotApplicable(ValueError):  # noqa: N818 - it is not always an error
    """A combination of options that makes no sense (NF4 at 3 bits; GPTQ without calibration text).

    Alone it is an error like any `ValueError`; in a sweep over many options it is listed with its reason and fails nothing.
    """
