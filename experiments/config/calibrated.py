"""`calibrated=true|false`: the counterpart of a method with or without calibration.

AWQ around a scalar quantizer adds calibration (around SINQ: A-SINQ), and removing AWQ takes it away. A method
that needs statistics throughout, such as GPTQ, has no counterpart.
"""

from dataclasses import replace
from typing import Any

from baselines.awq import AWQ, around
from sinq import Method, NotApplicable, ScalarMethod


def with_calibration(method: Method, wanted: bool | None) -> Method:
    """Return the method, or the counterpart of it that is (or is not) calibrated.

    Args:
        wanted: True for a calibrated method, False for an uncalibrated one, None for the method unchanged.

    Raises:
        NotApplicable: the method has no such counterpart.
    """
    if wanted is None or method.needs_calibration == wanted:
        return method
    if wanted and isinstance(method, ScalarMethod):
        return around(method)
    if isinstance(method, AWQ):
        return method.inner
    inner: Any = getattr(method, "inner", None)
    if isinstance(inner, Method) and inner.needs_calibration != wanted:
        flipped: Any = method
        return with_calibration(replace(flipped, inner=with_calibration(inner, wanted)), wanted)
    name = type(method).__name__
    if wanted:
        raise NotApplicable(
            f"calibrated=true is not possible: {name} as it is set has no counterpart that looks at text"
        )
    needs = f"the {method.statistic.described()}" if method.statistic else "calibration text"
    raise NotApplicable(
        f"calibrated=false is not possible: {name} works from {needs};"
        " without it, use method=sinq, rtn or hqq"
    )
