"""Settings coerce what YAML leaves as text, refuse the rest in one sentence, and know which parameters only steer."""

from __future__ import annotations

import pytest

from nbutils.core.errors import UserError
from tests.pipeline.fake import SecondSettings

GOOD = {"run_dir": "r", "seed": 1, "learning_rate": 1e-3, "steps": 3, "step_seconds": 0.0, "fault": ""}


@pytest.mark.parametrize(
    "values,words",
    [
        ({"learning_rate": 2.0}, ["'learning_rate'", "2.0", "less than 1"]),
        ({"steps": True}, ["'steps'", "number is expected"]),
        ({"steps": 2.5}, ["'steps'", "integer"]),
        ({"learning_rate": float("nan")}, ["'learning_rate'", "finite"]),
        ({"fault": 3}, ["'fault'", "string"]),
        ({"stepz": 3}, ["'stepz'", "Did you mean 'steps'?"]),
        ({"steps": None}, ["'steps' is missing"]),
        ({"seed": -1}, ["'seed'", "greater than or equal to 0"]),
    ],
)
def test_a_wrong_value_is_one_sentence(values, words):
    with pytest.raises(UserError) as error:
        SecondSettings.checked({name: value for name, value in (GOOD | values).items() if value is not None})
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_text_that_is_a_number_is_read_as_one_and_other_names_are_passed_over():
    settings = SecondSettings.from_notebook(GOOD | {"learning_rate": "1e-5", "np": object(), "title": "another's"})
    assert settings.learning_rate == 1e-5
    assert set(settings.result_parameters()) == {"seed", "learning_rate", "steps"}  # without steering ones
