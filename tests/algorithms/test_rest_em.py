"""ReST-EM: what is kept, the bandit solved, and a killed run that goes on to the bit."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from e2h_jax.algorithms import rest_em, rounds, sft
from e2h_jax.algorithms.rest_em import select
from e2h_jax.algorithms.rounds import Solution
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_json, write_records
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.training import loop

pytestmark = pytest.mark.usefixtures("on_one_device")


def solution(problem, sample, text, right, score=None, stopped=True):
    return Solution({"id": problem, "level": 1}, sample, text, stopped, right, score)


def kept(solutions, **fields):
    settings = {"threshold": 0.5, "per_problem": 10, "choose": "seed", "seed": 0} | fields
    return [(chosen.problem["id"], chosen.sample) for chosen in select(solutions, **settings)]


def test_right_solutions_are_kept_once_and_hidden_ones_never_without_a_reward_model():
    solutions = [
        solution("p", 0, "x", True),
        solution("p", 1, "x", True),  # the same text
        solution("p", 2, "y", False),
        solution("p", 3, "z", True, stopped=False),
        solution("p", 4, "w", True),
        solution("q", 0, "x", None),
        solution("r", 0, "x", True),
    ]
    assert kept(solutions) == [("p", 0), ("p", 4), ("r", 0)]


def test_a_reward_model_filters_known_answers_and_speaks_for_hidden_ones():
    solutions = [
        solution("p", 0, "x", True, 0.4),
        solution("p", 1, "y", True, 0.5),
        solution("p", 2, "z", False, 0.9),
        solution("q", 0, "x", None, 0.7),
        solution("q", 1, "y", None, 0.2),
    ]
    assert kept(solutions) == [("p", 1), ("q", 0)]
    assert kept(solutions, threshold=0.1) == [("p", 0), ("p", 1), ("q", 0), ("q", 1)]


def test_at_most_so_many_are_kept_of_a_problem_by_score_or_by_seed():
    solutions = [solution("p", index, str(index), True, index / 20) for index in range(20)]
    assert kept(solutions, per_problem=3, threshold=0, choose="score") == [("p", 17), ("p", 18), ("p", 19)]
    drawn = {seed: kept(solutions, per_problem=3, threshold=0, seed=seed) for seed in range(8)}
    assert all(len(chosen) == 3 and chosen == sorted(chosen) for chosen in drawn.values())
    assert len({tuple(chosen) for chosen in drawn.values()}) > 4
    others = [solution("o", 0, "x", True, 1.0), *solutions]
    assert kept(others, per_problem=3, threshold=0, seed=2)[1:] == drawn[2]  # whatever the other problems are
    assert len(kept(solutions, per_problem=0, threshold=0)) == 20


def test_a_kept_solution_becomes_a_problem_with_that_solution_and_the_kept_are_counted():
    problems = [
        {"id": "p", "level": 1, "answer": "7"},
        {"id": "q", "level": 4, "answer": "9", "solution": "the beginning of one", "eos": False},
        {"id": "r", "level": None},
    ]
    chosen = [
        Solution(problems[1], 0, "x", True, None, 0.75),
        Solution(problems[0], 2, "y", True, True, None),
        Solution(problems[0], 3, "z", True, True, None),
        Solution(problems[2], 1, "w", True, True, None),
    ]
    kept_as = {"id": "q#0", "level": 4, "answer": "9", "solution": "x", "score": 0.75, "eos": True}
    assert rest_em._record(chosen[0]) == kept_as
    expected = {"kept": 4, "kept_problems": 3, "kept_hidden": 1, "kept_level_1": 2, "kept_level_4": 1}
    assert list(rest_em._counts(chosen).items()) == list(expected.items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("rest_em")


def parameters(folder):
    params = store.load(folder, make_mesh((1, 1, 1), jax.devices()[:1]), "policy")[2]
    return {path: np.asarray(param[...]) for path, param in nnx.to_flat_state(params)}


def test_the_bandit_is_solved_and_the_hidden_answers_are_learnt_from_the_reward_model(runs, configured, bandit, chances):
    assert all(0.05 < chance < 0.3 for chance in chances(bandit.policy).values())
    fields = {"rounds": 2, "train__epochs": 80, "train__batch_size": 2, "train__optimizer__learning_rate": 1e-2}
    summary = rest_em.run(configured(rest_em, **fields), runs / "solved")
    assert all(chance > 0.9 for chance in chances(runs / "solved" / "model").values())
    assert store.load_reads(runs / "solved" / "model") == {"template": "e2h"}
    assert summary["best_all"] == summary["best_hard"] == 1.0 and summary["init_all"] < 1.0
    assert summary["kept"] == summary["kept_problems"] == 4 and summary["kept_hidden"] == 2
    records = read_many(runs / "solved" / "round-1" / "kept.jsonl", "problem")
    assert {record["question"]: record["solution"][-1] for record in records} == {f"a={a}": str(a + 3) for a in range(4)}
    first, second = (read_many(runs / "solved" / f"round-{n}" / "samples", "sample") for n in (1, 2))
    assert len(first) == len(second) == 96 and first != second
    lines = [json.loads(line) for line in (runs / "solved" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2] and lines[2]["validation_all"] == 1.0
    assert summary["samples_seconds"] > 0 and summary["scored_seconds"] > 0 and summary["train_seconds"] > 0


class Killed(BaseException):
    """What kill -9 leaves behind, without the wait for another process to start."""


def test_a_run_killed_between_parts_and_inside_one_ends_in_the_same_bytes(runs, configured, monkeypatch):
    config = configured(rest_em, rounds=2, train__checkpoint_every=1, train__epochs=6)
    rest_em.run(config, runs / "whole")
    deaths = []

    def dies_at(module, name, which):
        real = getattr(module, name)

        def function(*arguments, **fields):
            if which(arguments) and (name, which) not in deaths:
                deaths.append((name, which))
                raise Killed
            return real(*arguments, **fields)

        monkeypatch.setattr(module, name, function)

    # Before the mark of a finished part, in the middle of an M-step, and before the second round's kept solutions.
    dies_at(rounds, "write_json", lambda arguments: arguments[0].match("round-1/samples.json"))
    dies_at(rounds, "write_json", lambda arguments: arguments[0].match("round-1/validation.json"))
    dies_at(loop, "_log", lambda arguments: arguments[2] == 2)
    dies_at(rest_em, "write_records", lambda arguments: arguments[0].match("round-2/kept.jsonl"))
    for _ in range(4):
        with pytest.raises(Killed):
            rest_em.run(config, runs / "killed")
    assert not (runs / "killed" / "model").exists()
    trained = []
    monkeypatch.setattr(sft, "run", lambda config, folder, run=sft.run: trained.append(folder) or run(config, folder))
    rest_em.run(config, runs / "killed")
    assert [folder.parent.name for folder in trained] == ["round-2"]  # finished parts are not run again

    for name in ("whole", "killed"):
        assert not list((runs / name).rglob("*.tmp")) and not list((runs / name).rglob("*.partial"))
    files = [path.relative_to(runs / "whole") for path in (runs / "whole").rglob("*.jsonl") if path.name != "metrics.jsonl"]
    assert len(files) >= 2 * 4 + 1
    for file in [*files, "validation.md"]:
        assert (runs / "whole" / file).read_bytes() == (runs / "killed" / file).read_bytes(), file
    for folder in ("model", "round-1/train/model", "round-2/train/model"):
        expected, found = parameters(runs / "whole" / folder), parameters(runs / "killed" / folder)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_continue_starts_from_the_round_before_and_demonstrations_are_mixed_in(runs, configured, bandit, monkeypatch):
    starts = []
    monkeypatch.setattr(sft, "run", lambda config, folder, run=sft.run: starts.append(config.init) or run(config, folder))
    fields = {"rounds": 2, "reward_model": "", "train__epochs": 1, "validation__problems": ""}
    config = configured(rest_em, restart="continue", demonstrations=bandit.demonstrations, **fields)
    summary = rest_em.run(config, runs / "continued")
    assert starts == [bandit.policy, str(runs / "continued" / "round-1" / "train" / "model")]
    records = read_many(runs / "continued" / "round-2" / "kept.jsonl", "problem")
    assert [record["id"] for record in records[2:]] == [f"demonstration:bandit/{a}/{b}" for a in range(4) for b in range(7)]
    assert summary["best_round"] == 2 and summary["kept"] == 2 and "best_all" not in summary  # without validation: the last


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": ""}, "config.init is empty"),
        ({"rounds": 0}, "config.rounds=0 must be at least 1"),
        ({"restart": "never"}, "must be base or continue"),
        ({"restart": "continue", "base": "x"}, "config.base is set"),
        ({"choose": "score", "reward_model": ""}, "config.choose=score needs config.reward_model"),
        ({"aggregation": "product"}, 'did you mean "prod"'),
        ({"sample__temperature": 0.0}, "draws the same solution every time"),
        ({"train__batch_size": 0}, "config.train.batch_size=0 must be at least 1"),
        ({"train__lora__rank": -1}, "config.train.lora.rank=-1"),
        ({"train__too_long": "eror"}, "config.train.too_long='eror'"),
        ({"score__read_at": "first"}, "config.score.read_at='first' is unknown"),
        ({"score__quantize": "int4"}, "config.score.quantize='int4'"),
        ({"sample__top_p": 0.0}, "config.sample.top_p in"),
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"init": "nowhere"}, "nowhere holds no model"),
        ({"base": "nowhere"}, "nowhere holds no model"),
        ({"demonstrations": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"validation__metric": "level_2"}, "config.validation.metric='level_2' is unknown"),
        ({"threshold": 1.1}, "config.threshold=1.1 keeps no solution"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(tmp_path, configured, fields, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        rest_em.run(configured(rest_em, **fields), tmp_path)
    assert not list(tmp_path.glob("round-*"))


def test_a_mistake_in_a_part_names_the_fields_of_the_loop(tmp_path, configured):
    config = configured(rest_em, score__row_length=4, validation__problems="", sample__samples=2)
    told = r"^round-1/scored: .* more than config\.score\.row_length=4 .*; raise it, or set config\.score\.too_long=zero"
    with pytest.raises(UserError, match=told):
        rest_em.run(config, tmp_path)

    def fails(folder):
        raise UserError("config.length is not config.mesh, config.init, config.seed, config.template or config.written_in")

    told = "config.train.length is not config.mesh, config.init, config.seed, config.template or config.template"
    with pytest.raises(UserError, match=f"/part: {told}$"):
        rounds.part(tmp_path, "part", fails, "train")
    with pytest.raises(UserError, match="/part: config.length is not"):
        rounds.part(tmp_path, "part", fails)


def test_questions_without_room_are_counted_and_validation_problems_told_first(tmp_path, configured, bandit, monkeypatch):
    questions = read_many(bandit.validation, "problem")
    write_records(tmp_path / "long.jsonl", [*questions, questions[0] | {"id": "long", "question": "a=" + "1+" * 80}])
    config = configured(rest_em, validation__problems=str(tmp_path / "long.jsonl"))
    told = r'\(validation problem "long", .*\); lower max_new_tokens, or take such ones out of config.validation.problems$'
    with pytest.raises(UserError, match=f"config.sample.max_new_tokens=8 exceed .*{told}"):
        rest_em.run(config, tmp_path / "told")
    assert not list((tmp_path / "told").glob("round-*"))
    monkeypatch.setattr(rounds.sample, "run", lambda drawing, folder: {"dropped": 3})
    this = rounds.Round(configured(rest_em, reward_model=""), None, 1, tmp_path / "round-1", 0, bandit.policy, None)
    (tmp_path / "round-1").mkdir()
    assert this.draw() == {"dropped_questions": 3}


def test_chat_is_the_text_format_of_the_policy_and_of_the_base_alike(tmp_path, configured, bandit):
    shutil.copytree(bandit.policy, tmp_path / "base")
    config = configured(rest_em, template="chat", base=str(tmp_path / "base"))
    assert rounds.check_files(config).name == "e2h"  # which model.json of both records
    description = json.loads((tmp_path / "base" / "model.json").read_text())
    write_json(tmp_path / "base" / "model.json", description | {"reads": {"template": "math_shepherd"}})
    with pytest.raises(UserError, match="base records another text format than config.init="):
        rest_em.run(config, tmp_path)
    with pytest.raises(UserError, match='there is no template "e3h"'):
        rounds.check_files(configured(rest_em, score__template="e3h"))


def test_questions_without_answers_need_a_reward_model(tmp_path, configured):
    write_records(tmp_path / "hidden.jsonl", [{"id": "a", "question": "a=1", "answer": "unavailable", "level": 4}])
    with pytest.raises(UserError, match="every answer is hidden.*set config.reward_model"):
        rest_em.run(configured(rest_em, questions=str(tmp_path / "hidden.jsonl"), reward_model=""), tmp_path)


def test_a_policy_is_no_reward_model_and_nothing_kept_is_told(tmp_path, configured, bandit):
    with pytest.raises(UserError, match="holds a policy model where a reward model is needed"):
        rest_em.run(configured(rest_em, reward_model=bandit.policy), tmp_path)
    with pytest.raises(UserError, match="of 96 solutions none is kept; lower config.threshold"):
        rest_em.run(configured(rest_em, threshold=1.0, validation__problems=""), tmp_path)
