"""Validation by hand: accuracies per level, the best step, and a resumed run that writes over what it repeats."""

import json

import pytest

from e2h_jax.algorithms import validation
from e2h_jax.algorithms.validation import Validation, accuracies
from e2h_jax.data.storage import write_records
from e2h_jax.errors import UserError
from e2h_jax.grading.pool import GradingPool

PROBLEMS = [{"id": f"p{i}", "question": f"{i}?", "answer": str(i), "level": level} for i, level in enumerate((1, 1, 3, 5))]
RIGHT = {f"p{i}": f"so\n\n# Answer\n\n{i}" for i in range(4)}


@pytest.fixture(scope="module")
def pool():
    with GradingPool(workers=1) as pool:
        yield pool


@pytest.fixture
def make(tmp_path, pool):
    def make(**fields):
        config = validation.defaults()
        path = tmp_path / "problems.jsonl"
        if not path.exists():
            write_records(path, PROBLEMS)
        config.update({"problems": str(path)} | fields)
        return Validation(config, "e2h", tmp_path, pool)

    return make


def wrong(*names):
    return RIGHT | dict.fromkeys(names, "```\n\n# Answer\n\n9")


def test_accuracies_per_level_and_group():
    graded = [(1, True), (1, False), (3, True), (5, False), (None, True)]
    expected = {"all": 0.6, "easy": 2 / 3, "hard": 0.0, "level_1": 0.5, "level_3": 1.0, "level_5": 0.0}
    assert accuracies(graded) == expected and list(accuracies(graded)) == list(expected)


def test_what_is_recorded_is_written_and_the_best_step_known(make, tmp_path):
    found = make(metric="hard")
    assert found.best() is None
    assert found.record(0, wrong("p0", "p3")) == {
        "all": 0.5, "easy": 2 / 3, "hard": 0.0, "level_1": 0.5, "level_3": 1.0, "level_5": 0.0,
    }  # fmt: skip
    found.record(10, wrong("p1", "p2"))
    found.record(20, RIGHT)
    found.record(30, wrong("p3"))
    assert found.best() == 10  # the first of equals by "hard"
    assert found.best(first=11) == 20 and found.accuracy(20)["all"] == 1.0
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30]
    page = (tmp_path / "validation.md").read_text()
    assert "| 0 | 50.0 | 66.7 | 0.0 | 50.0 | 100.0 | 0.0 |" in page
    assert page.count("Step 0: wrong") == 2 and "````\n```\n\n# Answer\n\n9\n````" in page


def test_a_step_recorded_again_takes_the_place_of_what_followed(make, tmp_path):
    first = make()
    for step in (0, 5, 10):
        first.record(step, wrong("p0"))
    whole = (tmp_path / "validation.jsonl").read_bytes(), (tmp_path / "validation.md").read_bytes()
    resumed = make()
    assert resumed.best() == 0 and [record["step"] for record in resumed.history] == [0, 5, 10]
    resumed.record(5, wrong("p0"))
    assert [record["step"] for record in resumed.history] == [0, 5]
    resumed.record(10, wrong("p0"))
    assert ((tmp_path / "validation.jsonl").read_bytes(), (tmp_path / "validation.md").read_bytes()) == whole


def test_without_a_metric_the_last_is_the_best_and_every_says_when(make):
    found = make(metric="", every=3)
    assert [step for step in range(8) if found.due(step, 7)] == [0, 3, 6, 7]
    found.record(0, RIGHT)
    found.record(3, wrong("p1"))
    assert found.best() == 3


def test_solutions_of_all_levels_are_shown_in_turn(make):
    found = make(shown=3)
    found.record(0, RIGHT)
    assert list(found.history[0]["shown"]) == ["p0", "p2", "p3"]
    assert found.history[0]["shown"]["p2"] == {"right": True, "text": RIGHT["p2"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "level_2"}, "of these problems there are all, easy, hard, level_1, level_3, level_5"),
        ({"metric": "eassy"}, 'did you mean "easy"'),
        ({"every": 0}, "config.validation.every must be at least 1"),
        ({"shown": -1}, "config.validation.shown at least 0"),
    ],
)
def test_mistakes_are_told(make, fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


@pytest.mark.parametrize("answer", [None, "unavailable"])
def test_a_problem_without_an_answer_is_told(make, tmp_path, answer):
    write_records(tmp_path / "problems.jsonl", [*PROBLEMS, {"id": "x", "question": "?", "answer": answer}])
    with pytest.raises(UserError, match="problem 'x' has no answer"):
        make()
