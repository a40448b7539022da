"""Words of the command line that are changed before Hydra reads them."""

import pytest

from experiments.common.arguments import of_each_run


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("-m calibration=sotu,wikitext2 calibration.samples=8 bits=3", {"calibration.samples=8"}),
        (
            "-m method=gptq,sinq method.damping=0.3 method.inner.x=1",
            {"method.damping=0.3", "method.inner.x=1"},
        ),
        ("--multirun method=hadamard,presinq method@method.inner=sinq", {"method@method.inner=sinq"}),
        (
            "-m method@method.inner=rtn,hqq method.inner.grid.tiling=2 method.seed=1",
            {"method.inner.grid.tiling=2"},
        ),
        ("experiment=grid text=choice(sotu,ptb) text.path='a b'", {"text.path='a b'"}),
        ("-m calibration=sotu calibration.samples=8 bits=2,3", set()),
        ("-m calibration=sotu,ptb calibration.samples=8,16 ~evaluation.layer_error", set()),
        ("-m calibration=sotu,ptb calibrated=true 'calibration.x=[1' +calibrations.a=1", set()),
        ("calibration=sotu,ptb calibration.samples=8", set()),
    ],
)
def test_options_of_a_swept_part_are_left_to_its_runs(words: str, changed: set[str]) -> None:
    before = words.split(" ") if "'a b'" not in words else [*words.split(" ")[:2], "text.path='a b'"]
    expected = [
        f"{word.partition('=')[0]}=choice({word.partition('=')[2]})" if word in changed else word
        for word in before
    ]
    assert of_each_run(before) == expected
