"""The notebooks run as a fresh clone has them, without an error or a deprecation warning, and say what is stored in them."""

import copy
import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from e2h_jax import recipe
from e2h_jax.config import load_file

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)

WARNINGS = ",".join(f"error::{name}Warning" for name in ("Deprecation", "PendingDeprecation", "Future"))


@pytest.mark.parametrize("path", execute.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_is_stored(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    fresh = execute.execute(path, execute.environment(tmp_path) | {"PYTHONWARNINGS": WARNINGS})
    assert not list(execute.differences(stored, fresh))
    told = [output.text for cell in fresh.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert not told
    assert path.stat().st_size < 400_000


def notebook(*cells):
    made = [nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, *tags in cells]
    return nbformat.v4.new_notebook(cells=made)


def test_what_the_comparison_sees(tmp_path):
    path = tmp_path / "small.ipynb"
    cells = ("print('accuracy 41.8, n 1,000')",), ("print(90.5)", "approximate"), ("import time; time.time()", "unchecked")
    nbformat.write(notebook(*cells), path)
    stored = execute.execute(path, execute.environment(tmp_path))
    assert [cell.outputs != [] for cell in stored.cells] == [True] * 3
    assert not list(execute.differences(stored, stored))
    for cell, text, different in (
        (0, "accuracy 41.9, n 1,000\n", True),
        (1, "95\n", False),
        (1, "101\n", True),
        (1, "90.5 %\n", True),
        (2, "?", False),
    ):
        changed = copy.deepcopy(stored)
        changed.cells[cell].outputs = [nbformat.v4.new_output("stream", text=text)]
        assert bool(list(execute.differences(stored, changed))) is different, text


def test_an_error_or_a_deprecation_warning_in_a_cell_is_an_error(tmp_path):
    path = tmp_path / "small.ipynb"
    strict = execute.environment(tmp_path) | {"PYTHONWARNINGS": WARNINGS}
    for source in ("1 / 0", "import warnings; warnings.warn('old', FutureWarning)", "%%bash\nexit 3"):
        nbformat.write(notebook((source,)), path)
        with pytest.raises(CellExecutionError):
            execute.execute(path, strict)


def test_the_small_form_of_the_quickstart_fits_its_stages():
    recipe.check(load_file(str(ROOT / "configs" / "quickstart_small.py")))
