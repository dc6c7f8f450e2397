"""Settings coerce what YAML leaves as text, refuse the rest in one sentence, and know which parameters only steer."""

from __future__ import annotations

import pytest

from nbutils.core.errors import UserError
from tests.pipeline.fake import SecondSettings

GOOD = {"run_dir": "r", "seed": 1, "learning_rate": 1e-3, "steps": 3, "step_seconds": 0.0, "fault": ""}


@pytest.mark.parametrize(
    "values,words",
    [
        ({"learning_rate": float("nan")}, "'learning_rate'.*finite"),
        ({"steps": True}, "'steps'.*number is expected"),
    ],
)
def test_a_wrong_value_is_one_sentence(values, words):
    with pytest.raises(UserError, match=f"^[^\n]*{words}[^\n]*$"):
        SecondSettings.checked(GOOD | values)


def test_a_missing_parameter_is_named():
    with pytest.raises(UserError, match="'steps' is missing"):
        SecondSettings.from_notebook({name: value for name, value in GOOD.items() if name != "steps"})


def test_text_that_is_a_number_is_read_as_one_and_other_names_are_passed_over():
    settings = SecondSettings.from_notebook(GOOD | {"learning_rate": "1e-5", "np": object(), "title": "another's"})
    assert settings.learning_rate == 1e-5
    assert set(settings.result_parameters()) == {"seed", "learning_rate", "steps"}  # without steering ones
