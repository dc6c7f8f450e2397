from __future__ import annotations

import pytest

from tests.chat.models import byte_tokenizer


@pytest.fixture(scope="session")
def bytes_tokenizer():
    """One token per byte, with ChatML."""
    return byte_tokenizer()
