"""Whether the hub can be reached: asked once, where each library would ask again and again for a minute."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import cache
from ssl import SSLError
from urllib.error import HTTPError
from urllib.request import Request, build_opener

SECONDS = 2.0
OFFLINE = "HF_HUB_OFFLINE"


def offline() -> str:
    """What is said beside a failure where nobody asks the hub; '' where it is asked."""
    is_set = os.environ.get(OFFLINE, "").lower() in ("1", "true", "yes", "on")
    return f" (offline: the hub does not answer, or {OFFLINE} is set)" if is_set else ""


def hub_answers() -> bool:
    """Whether the hub (HF_ENDPOINT, or huggingface.co; through a proxy where one is set) answers within 2 s.

    Where it does not, this process and its children are offline from then on.
    """
    if offline():
        return False
    if _reached(os.environ.get("HF_ENDPOINT") or "https://huggingface.co"):
        return True
    os.environ[OFFLINE] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:  # it has read the variable already
            setattr(sys.modules[name], OFFLINE, True)
    return False


@cache
def _reached(endpoint: str) -> bool:
    reached = threading.Event()
    # A socket's timeout holds for each address of a name, and not for finding them.
    thread = threading.Thread(target=_ask, args=(endpoint, reached), daemon=True, name="looking for the hub")
    thread.start()
    thread.join(SECONDS)
    return reached.is_set()


def _ask(endpoint: str, reached: threading.Event) -> None:
    for pause in (0.0, 0.5):  # a name server may stumble in a session's first second
        time.sleep(pause)
        try:
            build_opener().open(Request(endpoint, method="HEAD"), timeout=SECONDS).close()
        except HTTPError:
            pass  # an answer, whatever it says
        except Exception as error:  # what is no address, or no proxy's, raises others than OSError
            if not isinstance(getattr(error, "reason", None), SSLError):  # certificates are the libraries' affair
                continue
        reached.set()
        return
