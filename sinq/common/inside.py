"""Files that a file names: they lie in its folder, and are regular files.

A checkpoint is data from elsewhere. A name in it such as `../x`, an absolute path, a link that leads out, a
device or a pipe is refused before it is opened. The cache of the Hugging Face hub keeps the content of
`snapshots/<commit>/<name>` in `blobs/` beside the snapshots, behind links; these are followed.
"""

import stat
from pathlib import Path, PurePath

SNAPSHOTS, BLOBS = "snapshots", "blobs"


def regular_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder.

    Raises:
        ValueError: the name leads out of the folder, or to something that is no regular file.
        FileNotFoundError: there is no such file.
    """
    path, pure = folder / name, PurePath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{name!r} is not the name of a file in {folder}")
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise ValueError(f"{path} cannot be opened: {error}") from error
    if not any(target.is_relative_to(root) for root in _roots(folder)):
        raise ValueError(f"{path} is a link out of its folder, to {target}; copy the file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file")
    return path


def exists(folder: Path, name: str) -> bool:
    """Return whether a folder has an entry of this name; a broken link is one."""
    path = folder / name
    return path.exists() or path.is_symlink()


def _roots(folder: Path) -> list[Path]:
    """Return the folders in which files of `folder` may lie."""
    whole = folder.resolve()
    hub = [parent.parent / BLOBS for parent in whole.parents if parent.name == SNAPSHOTS]
    return [whole, *hub]
