"""Seals of rows: the last lines of a row's file are hashes of its table of layers and of all above them.

A changed digit is valid JSON and a plausible number. With the seal it is damage, like a cut file; a table of
layers that was exchanged with another run's is, too. Rows of earlier versions have no seal and are read
without. The hash guards against accidents; who can write to the folder can write a hash too.
"""

import hashlib
import json
import re
from pathlib import Path

from experiments.results.schema import Row, RowError

LAYERS, WHOLE = "layers_sha256", "sha256"
HASH = '"([0-9a-f]{64})"'
HASH = '"([0-9a-f]{64})"'
LINES = re.compile(f',\n "{LAYERS}": (?:null|{HASH}),\n "{WHOLE}": {HASH}\n}}$'.encode())
LENGTH = 256
"""Bytes at the end of a file that hold the seal."""
BY_HAND = f"if it was changed by hand, remove its lines {LAYERS} and {WHOLE}"


def sealed(row: Row, layers: bytes | None) -> bytes:
    """Return the content of a row's file.

    Args:
        layers: the content of the file of its table of layers; None where there is none.
    """
    digest = None if layers is None else hashlib.sha256(layers).hexdigest()
    body = json.dumps({**row, LAYERS: digest}, indent=1).encode().removesuffix(b"\n}")
    return body + f',\n "{WHOLE}": "{hashlib.sha256(body).hexdigest()}"\n}}'.encode()


def unsealed(content: bytes, row: Row) -> Row:
    """Return a row without its seal.

    Args:
        content: of the row's file.
        row: the JSON object in it.

    Raises:
        RowError: the content is not what was written.
    """
    if WHOLE not in row and LAYERS not in row:
        return row
    seal = LINES.search(content[-LENGTH:])
    body = content[: content.rfind(f',\n "{WHOLE}"'.encode())]
    if seal is None or seal[2].decode() != hashlib.sha256(body).hexdigest():
        raise RowError(f"its content is not what was written; {BY_HAND}")
    return {key: value for key, value in row.items() if key not in (LAYERS, WHOLE)}


def fits(layers: bytes | None, row_file: Path) -> bool:
    """Return whether a table of layers is the one that a row was written with; True where unknown.

    Args:
        layers: the content of the table's file; None where there is no file.
        row_file: the file of the row.
    """
    try:
        seal = LINES.search(row_file.read_bytes()[-LENGTH:])
    except OSError:
        return True
    digest = None if layers is None else hashlib.sha256(layers).hexdigest().encode()
    return seal is None or seal[1] == digest
