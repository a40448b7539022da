"""Installing: files of the wheel, the command it brings, and the library on its own dependencies alone."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from experiments.common.extras import EXTRAS
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("sinq", "baselines", "experiments", "hydra_plugins")
CORE = {"torch", "transformers", "huggingface-hub", "safetensors", "numpy", "numba"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    for name in (*PACKAGES, "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return next((source / "dist").glob("*.whl"))


def test_the_wheel_has_all_code_and_data_and_no_folder_of_a_common_name(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    for package in PACKAGES:
        files = {
            file for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts
        }
        assert {str(file.relative_to(ROOT)) for file in files if file.suffix != ".pyc"} <= names
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert f"experiments/{file.relative_to(ROOT)}" in names
    assert {f"{package}/py.typed" for package in ("sinq", "baselines", "experiments")} <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_command_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    module, _, function = PROJECT["scripts"]["sinq-harness"].partition(":")
    tables = "from experiments.tables import spec; print(spec.names())"
    code = f"from {module} import {function}; {tables}; {function}()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-P", "-c", code, "method=hqq", "--cfg", "job", "--package", "method"]
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tables = sorted(file.stem for file in (ROOT / "conf/tables").glob("*.yaml"))
    assert done.stdout.startswith(str(tables))
    assert "group_size" in done.stdout


def test_core_dependencies_are_few_and_all_is_the_sum_of_the_harness_extras() -> None:
    assert {Requirement(each).name for each in PROJECT["dependencies"]} == CORE
    (every,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(every).extras == {"harness", "report", "wandb", "zero-shot", "analysis"}


@pytest.mark.parametrize(("package", "extra"), EXTRAS.items())
def test_an_extra_that_is_advised_installs_the_package(package: str, extra: str) -> None:
    renamed = {"sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
    name = renamed.get(package, package.replace("_", "-"))
    assert name in {Requirement(each).name for each in PROJECT["optional-dependencies"][extra]}


def closure(names: set[str]) -> set[str]:
    """Distributions that these need, themselves included; those that are not installed are left out."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        needed = {
            each.name
            for each in map(Requirement, requires)
            if each.marker is None or each.marker.evaluate({"extra": ""})
        }
        waiting |= needed - found
    return found


def only(names: set[str], folder: Path) -> Path:
    """A folder of packages that has these distributions and no others, by links."""
    folder.mkdir()
    for name in names:
        each = distribution(name)
        for top in {file.parts[0] for file in each.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(each.locate_file(top))))
    return folder


LIBRARY = """
import importlib, pkgutil, torch, baselines, sinq
for package in (sinq, baselines):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if "triton" not in module.name and module.name != "sinq.transformers.lora":  # the extra `lora`
            importlib.import_module(module.name)
assert sinq.SINQ().quantize(torch.randn(4, 64)).dequantize().shape == (4, 64)
try:
    import experiments
except ImportError as error:
    print(error)
"""


def test_the_library_needs_its_core_dependencies_alone(tmp_path: Path) -> None:
    installed = closure(CORE)
    assert not installed & {"hydra-core", "pandas", "wandb", "altair"}
    path = os.pathsep.join((str(ROOT), str(only(installed, tmp_path / "site"))))
    command, environment = [sys.executable, "-S", "-c", LIBRARY], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'sinq-harness[harness]'" in done.stdout
