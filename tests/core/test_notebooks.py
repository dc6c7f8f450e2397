"""Reading a notebook's parameters cell and the settings among its names, and refusing what would be misread."""

import nbformat
import pytest

from nbutils.core.errors import UserError
from nbutils.core.notebooks import Parameter, parameters
from nbutils.core.stages import spec
from tests.pipeline.fake import SecondSettings


def notebook(path, *cells):
    """Writes one whose cells all have the tag of parameters."""
    made = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]}) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def test_names_types_defaults_and_help(tmp_path):
    lines = ['"""Parameters."""', 'names: list = ["a", {"path": "b"}]  # what', "", "# alone", "x: bool = True"]
    assert parameters(notebook(tmp_path / "n.ipynb", "\n".join(lines))) == {
        "names": Parameter("list", ["a", {"path": "b"}], "what"),
        "x": Parameter("bool", True, ""),
    }


@pytest.mark.parametrize(
    "cells,word",
    [
        ([], "exactly one cell"),
        (["x: int = 1", "y: int = 1"], "exactly one cell"),
        (["x = 1"], "typed literals alone"),
        (["x: int = 2 * 3"], "malformed node.*line 1"),
    ],
)
def test_anything_else_is_refused(tmp_path, cells, word):
    with pytest.raises(UserError, match=word):
        parameters(notebook(tmp_path / "n.ipynb", *cells))


def test_a_file_that_is_no_notebook_and_a_stage_that_is_none(tmp_path):
    (tmp_path / "n.ipynb").write_text("half a noteb")
    with pytest.raises(UserError, match="no notebook"):
        parameters(tmp_path / "n.ipynb")
    with pytest.raises(UserError, match="data, train, metrics"):
        spec("tain")


def test_a_missing_parameter_is_named():
    """`tests/pipeline/test_run.py` has what else settings refuse."""
    with pytest.raises(UserError, match="'steps' is missing"):
        SecondSettings.from_notebook({"run_dir": "r"})
