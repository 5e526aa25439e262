import json

import pytest

from e2h_jax.data import prepare
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_records
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError


def problem(index, level, question=None):
    question = question or f"What is {index} plus {level}?"
    return {"id": f"my/{index}", "question": question, "answer": str(index), "level": level, "solution": "We add."}


@pytest.fixture
def config(tmp_path):
    write_records(tmp_path / "mine.jsonl", [problem(i, i % 5 + 1) for i in range(100)])
    config = prepare.defaults()
    config.source, config.path = "jsonl", str(tmp_path / "mine.jsonl")
    config.valid, config.test, config.vocab_size, config.format, config.name = 10, 20, 270, "jsonl", "mine"
    return config


def ids(folder, name):
    return [record["id"] for record in read_many(folder / "mine" / f"{name}.jsonl", "problem")]


def test_my_own_problems(config, tmp_path):
    summary = prepare.run(config, tmp_path / "a")
    assert [summary[name] for name in ("train", "valid", "test")] == [70, 10, 20]
    parts = [ids(tmp_path / "a", name) for name in ("train", "valid", "test")]
    assert sorted(sum(parts, [])) == sorted(f"my/{i}" for i in range(100))
    assert len(load_tokenizer(tmp_path / "a" / "tokenizer")) == 270
    prepare.run(config, tmp_path / "b")
    assert [ids(tmp_path / "b", name) for name in ("train", "valid", "test")] == parts
    config.seed = 1
    prepare.run(config, tmp_path / "c")
    assert ids(tmp_path / "c", "test") != parts[2]


def test_a_file_that_is_there_is_never_overwritten(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.jsonl").rename(tmp_path / "mine" / "train.jsonl")  # the source itself, at the place of the result
    config.path = str(tmp_path / "mine" / "train.jsonl")
    before = (tmp_path / "mine" / "train.jsonl").read_bytes()
    with pytest.raises(UserError, match="mine is there already and was not made by this stage; use another --workdir"):
        prepare.run(config, tmp_path)
    assert (tmp_path / "mine" / "train.jsonl").read_bytes() == before


def test_a_run_interrupted_before_its_tokenizer_makes_it_when_run_again(config, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    for form in ("tfds", "jsonl"):
        config.format = form
        prepare.run(config, tmp_path / f"whole {form}")
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(prepare, "train_bpe", interrupted)
            prepare.run(config, tmp_path / form)
        prepare.run(config, tmp_path / form)
        made, whole = ((tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes() for name in (form, f"whole {form}"))
        assert made == whole


def test_a_run_of_an_older_version_that_was_killed_at_its_end_just_finishes(config, tmp_path):
    """0.1.0 knew no `mixture_by`: of what a card lacks, the default was meant."""
    summary = prepare.run(config, tmp_path / "a")
    path = tmp_path / "a" / "mine" / "card.json"
    card = json.loads(path.read_text())
    del card["config"]["vocab_size"]
    path.write_text(json.dumps(card))
    with pytest.raises(UserError, match="made with another config"):
        prepare.run(config, tmp_path / "a")
    config.vocab_size = 0
    assert prepare.run(config, tmp_path / "a") == summary


def test_an_empty_file_is_refused(config, tmp_path):
    write_records(tmp_path / "mine.jsonl", [])
    with pytest.raises(UserError, match="mine.jsonl: no record is in it"):
        prepare.run(config, tmp_path / "a")


@pytest.mark.parametrize("form", ["parquet", "json"])
def test_my_own_problems_from_other_formats(config, tmp_path, form):
    """What Parquet has for a field that a row lacks is null."""
    rows = [problem(i, i % 5 + 1) | {"prefix": "One." if i == 3 else None} for i in range(100)]
    write_records(tmp_path / "mine.jsonl", rows)
    prepare.run(config, tmp_path / "lines")
    if form == "json":
        (tmp_path / "mine.json").write_text(json.dumps(rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    config.path = str(tmp_path / f"mine.{form}")
    prepare.run(config, tmp_path / form)
    for split in ("train", "valid", "test"):
        found, expected = (read_many(tmp_path / name / "mine" / f"{split}.jsonl", "problem") for name in (form, "lines"))
        assert found == expected and len(found) >= 10
    (tmp_path / "mine.json").write_text(json.dumps([rows[0], rows[0]]))
    config.path = str(tmp_path / "mine.json")
    with pytest.raises(UserError, match=r'mine.json:2: field "id" repeats "my/0" of .*mine.json:1'):
        prepare.run(config, tmp_path / "twice")


def test_a_lone_surrogate_in_a_question_is_no_obstacle(config, tmp_path):
    write_records(tmp_path / "mine.jsonl", [problem(i, 1, f"{i} \ud800?") for i in range(100)])
    prepare.run(config, tmp_path / "a")
    assert len(load_tokenizer(tmp_path / "a" / "tokenizer")) == 270
    assert all("\ufffd?" in r["question"] for r in read_many(tmp_path / "a" / "mine" / "train.jsonl", "problem"))


def test_levels_are_of_train_and_valid_alone(config, tmp_path):
    config.levels = (1, 2)
    prepare.run(config, tmp_path / "a")
    levels = {n: {r["level"] for r in read_many(tmp_path / "a" / "mine" / f"{n}.jsonl", "problem")} for n in ("train", "test")}
    assert levels == {"train": {1, 2}, "test": {1, 2, 3, 4, 5}}
    config.levels = (1, 7)
    with pytest.raises(UserError, match="a level is 1, 2, 3, 4 or 5, not 7"):
        prepare.run(config, tmp_path / "b")


def test_no_question_of_the_test_is_trained_on(config, tmp_path):
    asked_again = problem(0, 1)["question"].replace(" ", "  ")
    write_records(tmp_path / "test.jsonl", [problem(900, 3, asked_again), problem(901, 3, "New?")])
    config.test_path = str(tmp_path / "test.jsonl")
    summary = prepare.run(config, tmp_path / "a")
    assert (summary["test"], summary["problems whose question is in the test"], summary["train"]) == (2, 1, 89)
    assert "my/0" not in ids(tmp_path / "a", "train") + ids(tmp_path / "a", "valid")


def test_math_with_a_given_tokenizer(config, tmp_path):
    prepare.run(config, tmp_path / "a")
    lines = [{"problem": f"{i}?", "solution": "So $1.$ Thus.", "answer": "1", "level": 2} for i in range(5)]
    (tmp_path / "math.jsonl").write_text("\n".join(map(json.dumps, [*lines, lines[0] | {"answer": ""}])))
    config.source, config.path, config.valid, config.test = "math", str(tmp_path / "math.jsonl"), 1, 1
    config.split = "none"
    config.tokenizer = str(tmp_path / "a" / "tokenizer")
    summary = prepare.run(config, tmp_path / "b")
    assert (summary["train"], summary["rows without an answer"]) == (3, 1)
    assert len(load_tokenizer(tmp_path / "b" / "tokenizer")) == 270
    assert read_many(tmp_path / "b" / "mine" / "test.jsonl", "problem")[0]["solution"] == "So $1.$\n\nThus.\n\n# Answer\n\n1"


def test_no_question_of_the_validation_is_trained_on(config, tmp_path):
    write_records(tmp_path / "mine.jsonl", [problem(i, 1, f"Is {i // 2} even?") for i in range(100)])  # each asked twice
    config.test = 0
    prepare.run(config, tmp_path / "a")
    asked = {
        n: {r["question"] for r in read_many(tmp_path / "a" / "mine" / f"{n}.jsonl", "problem")} for n in ("train", "valid")
    }
    assert asked["valid"] and not asked["train"] & asked["valid"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "jsonll"}, 'config.source="jsonll" is unknown .did you mean "jsonl"..; there are: math, '),
        ({"path": ""}, 'config.path is empty; source "jsonl" needs the file'),
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
        ({"test": 100}, "config.test=100 leaves no training problem of 100"),
        ({"valid": 80}, "config.valid=80 leaves no training problem of 80"),
        ({"valid": -1}, "config.valid=-1 must be at least 0"),
        ({"format": "tfd"}, 'config.format="tfd" is unknown .did you mean "tfds"'),
        ({"records": "rl"}, 'config.records="rl": of jsonl only sft, prm'),
        ({"max_tokens": 9}, "config.max_tokens counts tokens: set config.tokenizer"),
        ({"neutral": "drop"}, 'config.neutral is set, but source "jsonl" does not read it; leave it out'),
        ({"levels": (0, 1)}, "config.levels=.0, 1.: a level is 1, 2, 3, 4 or 5, not 0"),
        ({"template": "e2"}, 'no template "e2"'),
        ({"vocab_size": 10}, "vocab_size: must be at least 259"),
        ({"tokenizer": "/nowhere"}, "tokenizer: there is no folder /nowhere"),
    ],
)
def test_wrong_settings_are_one_sentence(config, tmp_path, change, message):
    config.update(change)
    with pytest.raises(UserError, match=message):
        prepare.run(config, tmp_path / "a")


def test_sources_are_handed_on(config, tmp_path, monkeypatch):
    calls = []
    for source in ("arithmetic", "arithmetic_labels"):
        monkeypatch.setitem(prepare.FILES, source, lambda config, workdir: calls.append((config.source, workdir)) or {})
        config.source = source
        assert prepare.run(config, tmp_path) == {}
    monkeypatch.setattr(prepare.rerank_pool, "convert", lambda path, folder: {"path": path, "folder": folder})
    config.source = "rerank_pool"
    assert prepare.run(config, tmp_path) == {"path": config.path, "folder": tmp_path}
    assert [source for source, _ in calls] == ["arithmetic", "arithmetic_labels"]
