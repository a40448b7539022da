"""calibrated=true|false turns each method into its counterpart, or says why there is none."""

from dataclasses import replace

import pytest

from baselines.awq import AWQ
from baselines.dense import Dense
from baselines.gptq import GPTQ
from baselines.gwq import GWQ, Score
from baselines.hadamard import Hadamard
from baselines.rtn import RTN
from experiments.config.calibrated import with_calibration
from sinq import SINQ, Grid, Method, NotApplicable, SINQRefined

GRID = Grid(bits=3)
ASINQ = AWQ(SINQ(GRID), norm=1, weight_term=False, clip=False)


@pytest.mark.parametrize(
    ("without", "with_"),
    [
        (SINQ(GRID), ASINQ),
        (SINQRefined(GRID), replace(ASINQ, inner=SINQRefined(GRID))),
        (RTN(GRID), AWQ(RTN(GRID))),
        (Hadamard(RTN(GRID)), Hadamard(AWQ(RTN(GRID)))),
    ],
)
def test_both_ways(without: Method, with_: Method) -> None:
    assert with_calibration(without, True) == with_
    assert with_calibration(with_, False) == without
    assert with_calibration(without, False) is without
    assert with_calibration(with_, None) is with_


def test_what_has_no_counterpart_says_why() -> None:
    for method in (GPTQ(RTN(GRID)), Hadamard(GPTQ(RTN(GRID)))):
        with pytest.raises(
            NotApplicable,
            match="calibrated=false is not possible: GPTQ works from the Hessian of each layer's inputs",
        ):
            with_calibration(method, False)
    with pytest.raises(
        NotApplicable,
        match="calibrated=false is not possible: GWQ works from the SquaredGradient of the loss",
    ):
        with_calibration(GWQ(score=Score.fisher), False)
    with pytest.raises(
        NotApplicable,
        match="calibrated=true is not possible: Dense as it is set has no counterpart that looks at text",
    ):
        with_calibration(Dense(), True)
