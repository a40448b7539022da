"""The cases are in interpreted_quantize.py; see interpreted.py for why."""

from tests.sinq.interpreted import needs_triton, run


@needs_triton
def test_triton_quantize() -> None:
    run("interpreted_quantize.py")
