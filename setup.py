"""Packages of the wheel. Other settings are in `pyproject.toml`, which cannot add to the packages it finds.

The folder `conf/` is installed as `experiments.conf`: a package named `conf` could collide with others.
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
