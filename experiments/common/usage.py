"""Text of `run.py --help`: `hydra.help` of `conf/config.yaml`, with the choices of each group of options.

Hydra's own help composes the configuration first, and so imports torch and every method, and lists the
generated schemas among the groups. This one only reads names of files.
"""

import re
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

from omegaconf import OmegaConf

from experiments.common.paths import conf_dir

WIDTH = 110
FLAGS = ("-h", "--help")


def is_wanted(words: Sequence[str]) -> bool:
    """Return True if the words of a command line ask for help."""
    return any(word in FLAGS for word in words)


def text(words: Sequence[str] = ()) -> str:
    """Return the help.

    Args:
        words: the command line; the choices in a folder that it gives by `--config-dir` are listed too.
    """
    config: Any = OmegaConf.load(conf_dir() / "config.yaml")
    folders = [conf_dir(), *_config_dirs(words)]
    groups = [
        *(str(group) for each in config.defaults if OmegaConf.is_dict(each) for group in each),
        "tables",
    ]
    lines = [_listed(group, choices(group, folders)) for group in groups if "/" not in group]
    return Template(config.hydra.help.template).substitute(APP_CONFIG_GROUPS="\n".join(lines))


def choices(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the names of a group's files, numbers in their order: table2 before table10."""
    names = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in _parts(name)])


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)  # words and numbers in turn, words first


def _listed(group: str, names: Sequence[str]) -> str:
    option = "table" if group == "tables" else group
    return textwrap.fill(
        ", ".join(names),
        WIDTH,
        initial_indent=f"  {option:12}",
        subsequent_indent=" " * 14,
        break_on_hyphens=False,
    )


def _config_dirs(words: Sequence[str]) -> list[Path]:
    """Return the folders that `--config-dir FOLDER`, `--config-dir=FOLDER` or `-cd FOLDER` name."""
    found = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    found += [after for word, after in pairwise(words) if word in ("-cd", "--config-dir")]
    return [Path(folder) for folder in found]
