"""The README and the pages are true: steps work as written, files and methods exist, and it stays short."""

import re
import shutil
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_following_the_steps_adds_a_method(tiny_folder: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("sinq", "baselines", "experiments", "conf"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", project)
    steps = README[README.index("## Add a method") :]
    for language, content in re.findall(r"```(python|yaml)\n(.*?)```", steps, re.S):
        path = re.match(r"# (\S+)\n", content)
        assert path, f"a block of {language} does not begin with its path"
        (project / path[1]).write_text(content)
    method = re.search(r"python run.py method=(\w+)", steps)
    assert method
    options = [
        "model=hub",
        f"model.path={tiny_folder}",
        "text.evaluate_from=2025",
        "evaluation=quality",
        "group_size=32",
        "logger=none",
    ]
    words = ("run.py", f"method={method[1]}", "bits=3", f"results_dir={tmp_path / 'results'}", *options)
    done = forked.run(tmp_path / "work", words, {"SINQ_CACHE": str(tmp_path / "cache")}, project)
    assert done.done() == 0, done.output
    assert f"{method[1]} 3-bit g32" in done.stdout


def test_the_readme_is_short() -> None:
    words = [word for word in README.split() if re.search(r"\w", word)]
    assert len(words) <= 1200
    assert max(map(len, README.splitlines())) <= 120


def test_no_paragraph_of_the_readme_is_a_wall() -> None:
    prose = re.sub(r"```.*?```|<picture>.*?</picture>", "", README, flags=re.S)
    paragraphs = [each.splitlines() for each in re.split(r"\n\s*\n", prose)]
    for lines in paragraphs:
        assert len(lines) <= 4 or re.match(r"[-|\[]|\d\.", lines[0]), lines[0]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        target for page in PAGES for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M)
    }
    assert {"setup", "run", "test", "bench"} <= named <= targets


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower().replace("'", "")).replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!http)([^)]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_all_pages_are_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} == linked


def test_every_method_is_in_the_table_of_methods() -> None:
    rows = README[README.index("## Methods") : README.index("## Recipes")]
    options = (ROOT / "docs/run.md").read_text()
    for file in (ROOT / "conf/method").glob("*.yaml"):
        assert f"`{file.stem}`" in rows, file.stem
        assert f"`{file.stem}`" in options, file.stem


def test_every_option_of_a_run_is_explained() -> None:
    config = (ROOT / "docs/run.md").read_text()
    for option in re.findall(
        r"^  - (?!config_schema|_self_|override)(\w+):", (ROOT / "conf/config.yaml").read_text(), re.M
    ):
        assert f"`{option}`" in config, option
