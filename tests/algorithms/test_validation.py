"""Validation by hand: accuracies per level, the best step, and a resumed run that writes over what it repeats."""

import contextlib
import json

import pytest

from e2h_jax.algorithms import rounds, validation
from e2h_jax.algorithms.validation import Best, Validation, accuracies
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
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
        return Validation(config, get_template("e2h"), tmp_path, pool)

    return make


def wrong(*names):
    return RIGHT | dict.fromkeys(names, "```\n\n# Answer\n\n9")


def test_accuracies_per_level_and_group():
    graded = [(1, True), (1, False), (3, True), (5, False), (None, True)]
    expected = {"all": 0.6, "easy": 2 / 3, "hard": 0.0, "level_1": 0.5, "level_3": 1.0, "level_5": 0.0}
    assert accuracies(graded, (1, 2, 3), (4, 5)) == expected
    assert list(accuracies(graded, (1, 2, 3), (4, 5))) == list(expected)


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


class Run:
    """A training run that does nothing but be validated; its model of a step is a file that says which, and which run's."""

    def __init__(self, make, workdir, name, checkpoints=()):
        self.validation, self.workdir, self.name = make(), workdir, name
        self.best, self.checkpoints = Best(workdir, self.validation), set(checkpoints)
        self.best.resume(max(checkpoints, default=0))

    def save(self, folder):
        for part in ("model", "adapter"):
            (folder / part).mkdir(parents=True)
            (folder / part / "of").write_text(f"{self.name} {folder.name.removesuffix('.partial')}")

    def validate(self, step, right):
        """Grades `right` of the four problems as solved."""
        self.validation.record(step, wrong(*[f"p{i}" for i in range(4 - right)]))
        if step:
            self.best.offer(step, self.save, self.checkpoints)

    def published(self):
        step = self.best.publish()
        texts = {(self.workdir / part / "of").read_text() for part in ("model", "adapter")}
        assert len(texts) == 1 and not (self.workdir / "best").exists()
        return step, texts.pop()


def begun(make, workdir):
    """Step 2 is the best as of the checkpoint of step 4; then step 6 is better, and the run is killed."""
    run = Run(make, workdir, "first")
    for step, right in ((0, 0), (2, 2), (4, 1)):
        run.validate(step, right)
    run.checkpoints.add(4)
    run.validate(6, 3)
    assert sorted(path.name for path in (workdir / "best").iterdir()) == ["2", "6"]


@pytest.mark.parametrize("again", [1, 2, 3])
def test_the_published_model_is_of_the_step_that_is_named_when_grading_differs_after_a_kill(make, tmp_path, again):
    begun(make, tmp_path)
    run = Run(make, tmp_path, "second", {4})
    assert [record["step"] for record in run.validation.history] == [0, 2, 4]
    run.validate(6, again)  # 3 right ones before
    assert run.published() == ((6, "second 6") if again == 3 else (2, "first 2"))
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 6 if again == 3 else 2}


def test_a_damaged_checkpoint_leads_to_the_best_model_as_of_the_one_before(make, tmp_path):
    run = Run(make, tmp_path, "first")
    run.validate(0, 0)
    run.validate(1, 1)
    for step, right in ((3, 2), (5, 3), (7, 4)):
        run.checkpoints.add(step - 1)
        run.checkpoints -= {step - 5}
        run.validate(step, right)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["3", "5", "7"]  # checkpoints: 4 and 6
    run = Run(make, tmp_path, "second", {4})
    run.validate(8, 1)
    assert run.published() == (3, "first 3")


def test_from_the_beginning_nothing_is_left(make, tmp_path):
    begun(make, tmp_path)
    run = Run(make, tmp_path, "second")
    assert [record["step"] for record in run.validation.history] == [0] and not any((tmp_path / "best").iterdir())
    run.validate(0, 0)
    run.validate(2, 1)
    assert run.published() == (2, "second 2")


@pytest.mark.parametrize("moment", ["note", "first part", "second part", "folder"])
def test_publishing_goes_on_where_it_was_killed(make, tmp_path, monkeypatch, moment):
    begun(make, tmp_path)
    run = Run(make, tmp_path, "second", {4, 6})
    run.validate(8, 3)  # an equal one later is no better
    calls = []

    def killed(path):
        calls.append(path.name)
        if len(calls) == {"note": 0, "first part": 1, "second part": 2, "folder": 3}[moment]:
            raise KeyboardInterrupt
        return rmtree(path, ignore_errors=True)

    rmtree = validation.shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(Best, "_remove", lambda self, steps: [rmtree(self._folder / str(step)) for step in steps])
        patch.setattr(validation.shutil, "rmtree", lambda path, ignore_errors=False: killed(path))
        if moment == "note":
            patch.setattr(validation, "write_json", lambda path, value: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.best.publish()
    assert Run(make, tmp_path, "third", {8}).published() == (6, "first 6")
    assert Run(make, tmp_path, "fourth", {8}).published() == (6, "first 6")  # killed before done.json


def test_without_validation_the_last_model_is_published(tmp_path):
    best = Best(tmp_path, None)
    for step in (3, 9):
        best.offer(step, lambda folder: (folder / "model").mkdir(parents=True), ())
        assert [path.name for path in (tmp_path / "best").iterdir()] == [str(step)]
    assert best.publish() == 9 and (tmp_path / "model").is_dir()


def test_what_was_deleted_is_told(make, tmp_path):
    begun(make, tmp_path)
    validation.shutil.rmtree(tmp_path / "best")
    with pytest.raises(UserError, match="best, the models to choose from, is gone; delete"):
        Run(make, tmp_path, "second", {6}).best.publish()
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(UserError, match=r"validation\.jsonl does not hold the validations of this run; restore it"):
        Run(make, tmp_path, "second", {4})


@pytest.fixture
def play_rounds(make, tmp_path, pool, monkeypatch):
    """Plays two rounds that do nothing; `right`: how many of the four problems the model of each round solves, 0 = init's."""
    make()  # writes the problems
    config = rounds.defaults()
    config.update({"init": "init", "rounds": 2})
    config.validation.problems = str(tmp_path / "problems.jsonl")
    monkeypatch.setattr(rounds, "GradingPool", lambda: contextlib.nullcontext(pool))

    def play(*right):
        def solve(config, folder):
            number = int(folder.parent.name.removeprefix("round-"))
            texts = wrong(*[f"p{i}" for i in range(4 - right[number])])
            records = [{"problem_id": name, "sample": 0, "text": text, "finish": "stop"} for name, text in texts.items()]
            write_records(folder / "samples-00000-of-00001.jsonl", records)

        def train(this):
            (this.folder / "train" / "model").mkdir(parents=True, exist_ok=True)
            (this.folder / "train" / "model" / "of").write_text(str(this.number))
            return {}

        monkeypatch.setattr(rounds.sample, "run", solve)
        summary = rounds.run(config, tmp_path / "run", get_template("e2h"), train)
        return summary["best_round"], int((tmp_path / "run" / "model" / "of").read_text()), summary["best_all"]

    return play


def test_the_rounds_publish_what_the_summary_names_when_grading_differs_after_a_kill(play_rounds, tmp_path, monkeypatch):
    write_json = rounds.write_json

    def killed(path, value):
        if path.parts[-2:] == ("round-2", "validation.json"):
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rounds, "write_json", killed)
        play_rounds(0, 2, 4)  # recorded, and killed before it was said to be done
    assert len((tmp_path / "run" / "validation.jsonl").read_text().splitlines()) == 3
    assert play_rounds(0, 2, 1) == (1, 1, 0.5)
    assert play_rounds(0, 0, 4) == (1, 1, 0.5)  # nothing is validated again
    (tmp_path / "run" / "validation.jsonl").unlink()
    assert play_rounds(0, 1, 3) == (2, 2, 0.75)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_all"] for line in lines] == [0.0, 0.25, 0.75]


def test_each_round_has_a_seed_of_its_own(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "GradingPool", lambda: contextlib.nullcontext(pool))
    seeds = []

    def play(this):
        seeds.append(this.seed)
        (this.folder / "train" / "model").mkdir(parents=True)
        return {}

    for run, seed in enumerate((0, 0, 1)):
        config = rounds.defaults()
        config.update({"init": "init", "rounds": 3, "seed": seed})
        rounds.run(config, tmp_path / str(run), get_template("e2h"), play)
    assert len(set(seeds[:3])) == 3 and seeds[3:6] == seeds[:3] and not set(seeds[6:]) & set(seeds[:3])
    assert all(0 <= seed < 2**31 for seed in seeds)


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
