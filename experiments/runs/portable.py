"""Text of a row without the folders of the machine that made it: a row may be published.

A path below a known folder begins with that folder's name (`$SINQ_DATA`, `$SINQ_CACHE`, `.` for the working
folder, `~`); of any other absolute path, only the last part is kept, as `…/name`. Numbers never depend on it:
models and texts are identified by their content.
"""

import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.common.paths import cache_dir, data_dir

ABSOLUTE = re.compile(
    r"(?:(?<=[\s=:,'\"(\[{])|^)(?:file://)?(/(?!/)[^\s'\",;()\[\]{}=:]*\w[^\s'\",;()\[\]{}=:]*)"
)
"""An absolute path at the beginning of a text, or after a mark that a path may follow; a URL is none."""
HOST = "<host>"


def portable(value: Any) -> Any:
    """Return plain JSON values in which texts name no absolute path and not this machine."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    for folder, name in _known():
        text = re.sub(rf"{re.escape(folder)}(?=[/\s'\",;:)\]]|$)", name, text)
    host = platform.node()
    text = re.sub(rf"\b{re.escape(host)}\b", HOST, text) if len(host) > 3 else text
    return ABSOLUTE.sub(lambda found: _shortened(found[1]), text)


def _known() -> Iterator[tuple[str, str]]:
    """Yield folders with the names that stand for them, the innermost first."""
    named = [(cache_dir(), "$SINQ_CACHE"), (Path.cwd(), "."), (Path.home(), "~")]
    if data := data_dir():
        named.append((data, "$SINQ_DATA"))
    both = {(str(each), name) for folder, name in named for each in (folder.absolute(), folder.resolve())}
    yield from sorted((pair for pair in both if pair[0] != "/"), key=lambda pair: -len(pair[0]))


def _shortened(path: str) -> str:
    parts = Path(path).parts
    return path if len(parts) < 3 and not Path(path).exists() else f"…/{parts[-1]}"
