"""Rows from files, folders and the Hub: the Hub's own loader is tried on local folders and, offline, on its refusal."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from e2h_jax.data.sources.rows import Hub, read_rows, split_of
from e2h_jax.errors import UserError

HUB = Hub("nobody/nothing")
ROWS = [{"question": f"q{i}\u2028", "answer": str(i)} for i in range(3)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def values(path, hub=HUB):
    return [(row.split, row.value) for row in read_rows(str(path), hub)]


def test_every_kind_of_file(tmp_path):
    (tmp_path / "a_train.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "b.test.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    (tmp_path / "sub").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "sub" / "validation-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("not rows")
    (tmp_path / "dataset_infos.json").write_text("{}")
    expected = [(split, row) for split in ("train", "test", None, "valid") for row in ROWS]
    assert values(tmp_path) == expected
    assert values(tmp_path / "sub" / "validation-00000-of-00001.parquet") == expected[9:]
    assert next(read_rows(str(tmp_path / "a_train.jsonl"), HUB)).where.endswith("a_train.jsonl:1")


@pytest.mark.parametrize("depth", [600, 100_000])
def test_a_json_file_that_is_nested_too_deep_is_one_sentence(tmp_path, depth):
    (tmp_path / "deep.json").write_text("[" * depth + "]" * depth)
    with pytest.raises(UserError, match="deep.json: cannot be read as JSON .*recursion"):
        values(tmp_path / "deep.json")


def test_split_of_a_file_name():
    names = (
        "phase2_train.jsonl",
        "test-00000-of-00001.parquet",
        "samples.jsonl",
        "train_test.jsonl",
        "Validation.json",
        "latest.json",
    )
    assert [split_of(name) for name in names] == ["train", "test", None, None, "valid", None]


def test_a_hub_data_set_is_streamed_by_name(tmp_path, monkeypatch):
    """`datasets` loads a local folder by the same call as a name; its splits become ours."""
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert values("", Hub(str(tmp_path))) == [(split, row) for split in ("train", "valid") for row in ROWS]


def test_a_hub_data_set_of_nested_lines_is_streamed_as_text(tmp_path, monkeypatch):
    """Lines whose fields change type (null, then an object) cannot go through the Hub's JSON reader."""
    import datasets

    nested = [{"a": None}, {"a": {"b": [1, None, "\u2028"]}}, {"a": 3}]
    (tmp_path / "phase1_train.jsonl").write_bytes(lines(nested))
    real, asked = datasets.load_dataset, []

    def local(builder, data_files, **rest):
        asked.append(data_files)
        there = {split: [f.replace("hf://datasets/o/n", str(tmp_path)) for f in files] for split, files in data_files.items()}
        return real(builder, data_files=there, **rest)

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert values("", Hub("o/n", lines={"train": ("phase1_train.jsonl",)})) == [("train", row) for row in nested]
    assert asked == [{"train": ["hf://datasets/o/n/phase1_train.jsonl"]}]


def test_a_name_that_is_the_source_s_own_keeps_its_subsets(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **_: asked.append(names) or {})
    hub = Hub("o/n", subsets=("a", "b"))
    for path in ("", "o/n", "o/other"):
        values(path, hub)
    assert asked == [("o/n", "a"), ("o/n", "b")] * 2 + [("o/other",)]


def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    import datasets

    class OfflineError(Exception):
        """As the HTTP client's own: no OSError, no ValueError."""

    def offline(*_, **__):
        raise OfflineError("Couldn't reach 'owner/name' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    reason = "owner/name: cannot be read from the Hub .Couldn't reach .*; .* download it .* and set {}=DIR"
    with pytest.raises(UserError, match=reason.format("config.path")):
        values("owner/name")
    with pytest.raises(UserError, match=reason.format("config.math500")):
        list(read_rows("", Hub("owner/name", lines={"train": ("x.jsonl",)}), "config.math500"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no .jsonl, .* file is in this folder"):
        values(tmp_path / "empty")
    (tmp_path / "rows.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="rows.jsonl:1: a row must be one JSON object"):
        values(tmp_path / "rows.jsonl")
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(UserError, match="must hold one list"):
        values(tmp_path / "rows.json")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="bad.parquet: cannot be read"):
        values(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match='no such file or folder .did you mean "rows.jsonl"'):
        values(tmp_path / "row.jsonl")
