"""A profile is read as it looks, or refused with line and column."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nbutils.core.errors import UserError
from nbutils.pipeline.parameters import read_override, read_profile


def read(tmp_path, text):
    """Name → value of a profile of this text."""
    (tmp_path / "p.yaml").write_text(text)
    return {name: entry.value for name, entry in read_profile(tmp_path / "p.yaml").items()}


@pytest.mark.parametrize(
    "text,value",
    {
        "1e-5": 1e-5,
        "-.5": -0.5,
        "1_000": 1000,
        "-1_": -1,
        "0x1F": 31,
        "yes": "yes",
        "2024-01-01": "2024-01-01",
        "runs/{name}/x": "runs/{name}/x",
        "'{a}/x'": "{a}/x",
        '"08"': "08",
        "010": 10,
        "1:30": "1:30",
        "[1, {fraction: 1e-3, name: null}]": [1, {"fraction": 1e-3, "name": None}],
    }.items(),
)
def test_read_rightly(tmp_path, text, value):
    found = read(tmp_path, f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text,place,words",
    [
        ("- a\n- b", "line 1, column 1:", "lines are expected"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1:", "'a' is here a second time"),
        ("d: [{path: x, path: y}]", "line 1, column 15:", "second time"),
        ("a:\n\tb: 1", "line 2, column 1:", "no tabs"),
        ("a: !!int x", "", "tags such as"),
        ("a: {b}/x", "line 1, column 7:", "quotes"),
        ("a: {{b}}", "line 1, column 5:", "unhashable"),
        ("a: b: c", "line 1, column 5:", "quotes"),
        ("a: [1, 2", "line 1, column 9:", "quotes"),
        ("a: !!python/name:os.system x", "line 1, column 4:", "python/name"),
        ("a: 1\n---\nb: 2", "line 2, column 1:", "another document"),
        ("a: 1\nb: \x07", "line 2:", "a control character"),
    ],
)
def test_refused_with_line_and_column(tmp_path, text, place, words):
    with pytest.raises(UserError, match=rf"\A.*{place}.*{words}.*\Z"):
        read(tmp_path, text)


def test_other_files_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match=r"There is no profile .*Is a directory.*params/demo\.yaml"):
        read_profile(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9")
    with pytest.raises(UserError, match="UTF-8"):
        read_profile(tmp_path / "latin.yaml")


def test_an_empty_profile_takes_every_default(tmp_path):
    assert read(tmp_path, "# nothing\n") == {}


def test_an_override_is_a_name_and_yaml():
    """More values in `test_what_yaml_writes_comes_back`."""
    assert read_override("learning_rate=1e-4")[1].value == 1e-4
    assert read_override("run_dir=a=b")[1].value == "a=b"
    for wrong in ("learning_rate", "a b=1", "a=[1"):
        with pytest.raises(UserError, match="-p "):
            read_override(wrong)


@given(
    st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text())
)
def test_what_yaml_writes_comes_back(value):
    text = yaml.safe_dump({"a": value}, allow_unicode=False)
    assert read_override("a=" + text.split(":", 1)[1])[1].value == value
