"""Packages of the wheel. All else is in `pyproject.toml`, which cannot add a package to those it finds.

The folder `conf/` is installed inside `experiments`: a package of that common name would meet others.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["sinq*", "baselines*", "experiments*"]),
        "hydra_plugins",
        "experiments.conf",
    ],
    package_dir={"experiments.conf": "conf"},
)
