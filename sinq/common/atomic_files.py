"""Atomic files and folders: written beside the final path, made durable, then renamed."""

import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE

SCRATCH = ".tmp"
"""Suffix of unfinished files. After a kill -9 one may be left; nothing reads it."""
ABANDONED_SECONDS = 24 * 3600.0
"""Age from which an unfinished file of another machine counts as left behind."""


def scratch_prefix(path: Path) -> str:
    """Return how the names of this process's unfinished files for `path` begin."""
    return f".{path.name}.{platform.node()}-{os.getpid()}."


def abandoned(scratch: Path) -> bool:
    """Return whether an unfinished file or folder was left by a process that is gone.

    Processes of another machine cannot be asked; what they have not touched for a day counts.
    """
    writer = re.search(rf"\.{re.escape(platform.node())}-(\d+)\.[^.]*{re.escape(SCRATCH)}$", scratch.name)
    if writer is None:
        return time.time() - scratch.stat().st_mtime > ABANDONED_SECONDS
    try:
        os.kill(int(writer[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        return False
    return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch file that is renamed to `path` when the block succeeds, else deleted (also on Ctrl-C).

    A process that has opened or mapped the previous file keeps the previous content. A link at `path` is
    replaced, and not followed. Missing folders are created; who may read the file is the umask's to say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{scratch_prefix(path)}{secrets.token_hex(4)}{SCRATCH}")
    scratch.touch(0o666, exist_ok=False)  # of which the umask takes its part
    mode = S_IMODE(scratch.stat().st_mode)
    try:
        yield scratch
        scratch.chmod(mode)  # safetensors puts a file of its own there, for its owner alone
        _flush(scratch)
        os.replace(scratch, path)
        _flush(path.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yield an empty scratch folder that is renamed to `folder` when the block succeeds, else deleted.

    Raises:
        FileExistsError: the folder has something in it, or is a file.
    """
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there, and not empty; give a new folder, or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    around = tempfile.TemporaryDirectory(dir=folder.parent, prefix=scratch_prefix(folder), suffix=SCRATCH)
    with around as scratch:
        made = Path(scratch) / "folder"
        made.mkdir()  # who may read it is the umask's to say; a temporary folder is its owner's alone
        mode = S_IMODE(made.stat().st_mode) & 0o666
        yield made
        for path in sorted(made.rglob("*")):
            if path.is_file():
                path.chmod(mode)  # safetensors makes files for their owner alone
            _flush(path)
        os.replace(made, folder)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
