"""The cases are in interpreted_linear.py; see interpreted.py for why."""

from tests.sinq.interpreted import needs_triton, run


@needs_triton
def test_triton_linear() -> None:
    run("interpreted_linear.py")
