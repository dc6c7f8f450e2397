"""What the tests of metrics share."""

import pytest


@pytest.fixture
def bundles(monkeypatch) -> list[dict]:
    """What was shown, by media type."""
    shown = []
    monkeypatch.setattr("nbutils.metrics.display.display", lambda bundle, raw=False: shown.append(bundle))
    return shown
