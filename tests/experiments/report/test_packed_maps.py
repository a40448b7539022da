"""Heat maps as text: what the page's script reads is what was written, and nothing in it is markup."""

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from experiments.report.drawn import HeatMap, HeatMaps
from experiments.report.packed_maps import STEPS, packed
from experiments.report.render_svg import draw
from experiments.report.scale import Scale

NASTY = "</script><b>&\"'"
VALUES = ((0.1, None, 0.35), (0.2, 0.9, 0.123456))


def figure(log: bool) -> HeatMaps:
    each = HeatMap("one", NASTY, VALUES)
    return HeatMaps("error", "Error", (NASTY, "down"), ("0", "1", "–"), (each,), log)


def content(markup: str) -> dict[str, object]:
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', markup)
    return json.loads(text)


def read_by_the_page(stored: dict[str, object]) -> list[float | None]:
    script = (files("experiments.report") / "assets/maps.js").read_text()
    text, scale = json.dumps(stored["runs"]["one"]), json.dumps(stored)  # type: ignore[index]
    code = f"maps.unpack({text}).map(p => p === null ? null : Number(maps.valueAt(p, {scale})))"
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        pytest.skip("no node on this system; apt-get install nodejs")
    done = subprocess.run(
        [node, "-e", f"{script}\nconsole.log(JSON.stringify({code}))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("log", [False, True])
def test_the_page_reads_what_was_written(log: bool) -> None:
    stored = content(packed(figure(log), Scale(0.1, 0.9, log), 16))
    assert stored["kinds"] == [NASTY, "down"]
    found = read_by_the_page(stored)
    for value, right in zip(found, [each for row in VALUES for each in row], strict=True):
        assert (value is None) == (right is None)
        if right is not None:
            assert value == pytest.approx(right, rel=0.07, abs=0.8 / STEPS)
    assert found[0] == 0.1
    assert found[4] == 0.9


def test_maps_of_one_value_have_a_scale() -> None:
    alike = HeatMaps("e", "t", ("q",), ("0",), (HeatMap("one", "name", ((0.5,),)),))
    assert content(draw(alike))["low"] < 0.5  # type: ignore[operator]


def test_a_layer_is_one_character() -> None:
    def length(blocks: int) -> int:
        values = (tuple(0.1 + k / blocks for k in range(blocks)),)
        maps = HeatMaps("e", "t", ("q",), ("0",) * blocks, (HeatMap("one", "name", values),) * 1)
        return len(str(content(packed(maps, Scale(0.1, 1.1), 16))["runs"]))

    assert length(2000) - length(1000) == 1000


def test_maps_are_of_the_runs_that_the_table_shows() -> None:
    """With a stub of a document: what is drawn at first, after sorting, and after filtering."""
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        pytest.skip("no node on this system; apt-get install nodejs")
    assets = str(files("experiments.report") / "assets")
    command = [node, str(Path(__file__).with_name("stub.js")), assets]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["start"] == ["one", "two"]
    assert said["sorted"] == ["two", "one"]
    assert (said["filtered"], said["count"]) == (["one"], "1 of 3 runs")
    assert said["cells"] == [
        ["0%", "0", "h0", "≈ 0"],
        ["50%", "0", "h31", "≈ 1"],
        ["0%", "16", "h0", "≈ 0.016"],
    ]
