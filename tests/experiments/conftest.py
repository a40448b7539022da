"""Fixtures of several files of the harness's tests."""

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments.config.build import register
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    """Lets a module's tests call `hydra.compose` on `conf/`."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield
