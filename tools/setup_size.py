"""How much a set-up downloads, in words: asks each distribution's server for its size, and fetches nothing."""

import os
import ssl
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def file_size(url: str, context: ssl.SSLContext) -> int | None:
    """Bytes of one distribution, without downloading it; None where nobody says."""
    parts = urllib.parse.urlparse(url)
    try:
        if parts.scheme == "file":
            return os.stat(urllib.request.url2pathname(parts.path)).st_size
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def certificates(venv: Path) -> ssl.SSLContext:
    """The system's, and those inside pip: a Python from its own installer on macOS brings none."""
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    for bundle in venv.glob("lib/python*/site-packages/pip/_vendor/certifi/cacert.pem"):
        context.load_verify_locations(bundle)
    return context


def size_sentence(sizes: list[int | None]) -> str:
    """`577 MB in 211 files`, honest about files of unknown size."""
    known = [size for size in sizes if size is not None]
    if not known:
        return "size unknown"
    megabytes = sum(known) / 1e6
    amount = (
        f"{megabytes / 1e3:.1f} GB" if megabytes >= 1e3 else f"{max(megabytes, 0.1):.{0 if megabytes >= 10 else 1}f} MB"
    )
    files = f"{len(sizes)} file{'' if len(sizes) == 1 else 's'}"
    unknown = len(sizes) - len(known)
    return f"{amount} in {files}" if not unknown else f"at least {amount} in {files} ({unknown} of unknown size)"


def sizes_of(urls: list[str], venv: Path) -> list[int | None]:
    """Bytes of each distribution, asked for many at a time."""
    context = certificates(venv)
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda url: file_size(url, context), urls))
