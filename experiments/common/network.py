"""The network: whether a server answers, asked once in a process and for seconds at most.

Libraries of hubs try again and again, for minutes, when there is no network. Here a server is asked first;
one that does not answer is not asked again.
"""

import logging
import os
import sys
import threading
from functools import lru_cache
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

log = logging.getLogger(__name__)
SECONDS = 5.0
"""Longest wait for an answer. It is also that of looking up the server's name, which has no limit itself."""
OFFLINE = "HF_HUB_OFFLINE"


@lru_cache(maxsize=8)
def unreachable(url: str) -> str | None:
    """Return why a server cannot be reached, in some words; None if it answers, whatever it says."""
    reasons: list[str | None] = []
    thread = threading.Thread(target=lambda: reasons.append(_asked(url)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return reasons[0] if reasons else f"{url} gave no answer in {SECONDS:.0f} s"


def _asked(url: str) -> str | None:
    try:
        urlopen(Request(url, method="HEAD"), timeout=SECONDS).close()
    except HTTPError:
        return None
    except (OSError, HTTPException, ValueError) as error:
        return f"{url}: {getattr(error, 'reason', None) or error}"
    return None


@lru_cache(maxsize=1)
def prepare_hub() -> None:
    """Let the libraries of the hub use their caches alone where it cannot be reached; once in a process.

    Child processes do the same.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode() or (reason := unreachable(constants.ENDPOINT)) is None:
        return
    log.info("the hub cannot be reached (%s): only what is in its cache is found", reason)
    os.environ[OFFLINE] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it has read the constant already
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
