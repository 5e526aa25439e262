"""What a run has chosen is what it is resumed with."""

import json

import pytest

from e2h_jax.errors import UserError
from e2h_jax.parallel.chosen import begun_with


def never():
    raise AssertionError("chosen a second time")


def test_what_was_chosen_once_stays(tmp_path):
    assert begun_with(tmp_path, "rows", lambda: 64) == 64
    assert begun_with(tmp_path, "dtype", lambda: "float32", "bfloat16") == "float32"
    assert begun_with(tmp_path, "rows", never) == 64
    assert begun_with(tmp_path, "dtype", never, "bfloat16") == "float32"
    assert json.loads((tmp_path / "chosen.json").read_text()) == {"rows": 64, "dtype": "float32"}


def test_a_default_leaves_no_file(tmp_path):
    assert begun_with(tmp_path, "dtype", lambda: "float32", "float32") == "float32"
    assert not any(tmp_path.iterdir())


def test_a_mistake_leaves_no_file(tmp_path):
    def mistaken():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        begun_with(tmp_path, "rows", mistaken)
    assert not any(tmp_path.iterdir())
