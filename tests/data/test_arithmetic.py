"""The built-in curriculum: an exact checker, nothing that heals by luck, nothing shared between training and test."""

import re
from collections import Counter

import pytest

from e2h_jax.data import prepare
from e2h_jax.data.arithmetic import MODULUS, MOVES, OPERATIONS, check, compute, folk_table, parse, problems, solve
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError

QUESTION = "a=5;d=a-3;c=d*4"  # d = 2, c = 8 mod 7 = 1


@pytest.mark.parametrize(
    ("steps", "answer", "labels"),
    [
        (["d=5-3=2", "c=2*4=1"], "1", [1, 1, 1]),
        (["d=5-3=2", "c=2*4=1"], None, [1, 1]),
        (["d=5-3=2", "c=2*4=1"], "2", [1, 1, 0]),  # wrong answer after right steps
        (["d=5-3=3", "c=3*4=5"], "5", [0, None, None]),  # wrong value; what follows depends on it
        (["d=5-3=2", "c=2*4=3"], "3", [1, 0, None]),
        (["d=5-3=2", "c=3*4=5"], "5", [1, 0, None]),  # wrong copy of the value before
        (["d=4-3=1", "c=1*4=4"], "4", [0, None, None]),  # wrong copy of the start
        (["d=5-2=3", "c=2*4=1"], "1", [0, None, None]),  # wrong operand
        (["d=5+3=1", "c=2*4=1"], "1", [0, None, None]),  # wrong operation
        (["e=5-3=2", "c=2*4=1"], "1", [0, None, None]),  # wrong letter
        (["d=5-3=2"], "1", [1, 0]),  # missing step
        (["c=2*4=1"], "1", [0, None]),
        (["d=5-3=2", "c=2*4=1", "c=2*4=1"], "1", [1, 1, 0, None]),  # extra step
        (["c=2*4=1", "d=5-3=2"], "2", [0, None, None]),  # swapped
        (["d=5-3=2", "nonsense"], "1", [1, 0, None]),
        (["d=5-3=2 ", "c=2*4=1"], "1", [0, None, None]),
        (["d=5-3=2\n", "c=2*4=1"], "1", [0, None, None]),
        (["d=5-3=9", "c=2*4=1"], "1", [0, None, None]),
        (["d=5-3=2=2", "c=2*4=1"], "1", [0, None, None]),
        ([""], None, [0]),
        ([], "1", [0]),
        ([], None, []),
        (["d=5-3=2", "c=2*4=1"], "", [1, 1, 0]),
        (["d=5-3=2", "c=2*4=1"], "01", [1, 1, 0]),
        (["d=5-3=2", "c=2*4=1"], "١", [1, 1, 0]),
    ],
)
def test_the_checker_by_hand(steps, answer, labels):
    assert check(QUESTION, steps, answer) == labels


def test_the_moves_are_bijections_so_one_wrong_step_always_makes_a_wrong_answer():
    assert len(set(MOVES)) == len(MOVES) == 10
    for op, b in MOVES:
        assert {compute(a, op, b) for a in range(MODULUS)} == set(range(MODULUS))
        assert any(compute(a, op, b) != a for a in range(MODULUS))
    for problem in problems(1, "x", 5, 20):
        steps, answer = solve(problem["question"])
        for place in range(len(steps)):
            count = 0

            def author(a, op, b, place=place):
                nonlocal count
                count += 1
                return (compute(a, op, b) + (count == place + 1) * 3) % MODULUS

            wrong, wrong_answer = solve(problem["question"], author)
            assert wrong_answer != answer
            assert check(problem["question"], wrong, wrong_answer) == [1.0] * place + [0.0] + [None] * (len(steps) - place)


def test_folk_tables_are_wrong_everywhere_and_differ_between_seeds():
    tables = [folk_table(seed, 0.44) for seed in range(5)]
    for table in tables:
        assert len(table) == round(0.44 * 70)
        assert all(value != compute(*fact) and 0 <= value < MODULUS for fact, value in table.items())
    assert len({tuple(sorted(table.items())) for table in tables}) == 5
    assert folk_table(2, 0.44) == tables[2]
    assert folk_table(0, 0.0) == {} and len(folk_table(0, 1.0)) == 70


@pytest.mark.parametrize("level", OPERATIONS)
def test_problems_are_what_their_level_says(level):
    for problem in problems(0, "x", level, 30):
        start, moves = parse(problem["question"])
        steps, answer = solve(problem["question"])
        assert len(moves) == len(steps) == {1: 2, 2: 3, 3: 4, 4: 5, 5: 6}[level]
        assert problem["level"] == level and problem["answer"] == answer and problem["solution"] is None
        assert check(problem["question"], steps, answer) == [1.0] * (level + 2)
        names = re.findall(r"([a-p])=", problem["question"])
        assert len(set(names)) == len(names) == level + 2  # every letter is assigned once
        assert all(part[2] == name for part, name in zip(problem["question"].split(";")[1:], names, strict=False))


def test_problems_are_the_same_for_a_seed_and_others_for_another():
    first, again, other, named = (list(problems(s, n, 3, 20)) for s, n in ((0, "x"), (0, "x"), (1, "x"), (0, "y")))
    assert first == again
    assert first != other
    assert [p["question"] for p in first] != [p["question"] for p in named]
    assert len({p["id"] for p in first}) == 20


def test_test_problems_are_all_different_and_run_out_in_one_sentence():
    found = [renamed(p["question"]) for p in problems(0, "test", 1, 100, test=True)]
    assert len(set(found)) == 100
    with pytest.raises(UserError, match=r"cannot draw that many different level-1 test problems"):
        list(problems(0, "test", 1, 700, test=True))


def renamed(question):
    """The question with its letters in order of appearance."""
    names = {}
    return re.sub("[a-p]", lambda match: names.setdefault(match[0], chr(ord("A") + len(names))), question)


@pytest.fixture(scope="module")
def curriculum(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curriculum")
    config = prepare.defaults().unlock()
    fields = {"corpus": 5000, "demonstrations": 90, "evaluator_questions": 3000, "test_easy": 120, "test_hard": 100}
    fields |= {"rl_questions": 1000, "validation_easy": 360, "validation_hard": 60}
    config.arithmetic.update(fields)
    return folder, prepare.run(config, folder), config


def test_prepare_writes_what_it_says(curriculum):
    folder, summary, _ = curriculum
    left = summary["validation"] - 300  # of level 1, whose 140 or so held-out problems run out
    assert 0 < left < 120
    wanted = {"corpus": 5000, "demonstrations": 90, "demonstrations_all": 157, "evaluator_questions": 3000}
    wanted |= {"test": 220, "rl_questions": 1000}
    assert summary == wanted | {"validation": 300 + left}
    records = {name: read_many(folder / f"{name}.jsonl", "problem") for name in summary}
    assert {name: len(found) for name, found in records.items()} == summary
    levels = {name: Counter(p["level"] for p in found) for name, found in records.items()}
    assert levels["corpus"] == dict.fromkeys(range(1, 6), 1000)
    assert levels["demonstrations"] == dict.fromkeys((1, 2, 3), 30)
    assert levels["evaluator_questions"] == dict.fromkeys((1, 2, 3), 1000)
    assert levels["test"] == {1: 40, 2: 40, 3: 40, 4: 50, 5: 50}
    assert levels["rl_questions"] == dict.fromkeys(range(1, 6), 200)
    assert levels["validation"] == {1: left, 2: 120, 3: 120, 4: 30, 5: 30}


def test_no_test_problem_is_in_any_training_set_whatever_its_letters(curriculum):
    folder, summary, _ = curriculum
    held_out = {renamed(p["question"]) for p in read_many(folder / "test.jsonl", "problem")}
    assert len(held_out) == summary["test"]
    for name in ("corpus", "demonstrations", "evaluator_questions", "rl_questions", "validation"):
        asked = {renamed(p["question"]) for p in read_many(folder / f"{name}.jsonl", "problem")}
        assert not asked & held_out
        if name == "corpus":  # the two sets are not disjoint for want of trying: level 1 has 700 problems in all
            assert len({q for q in asked if q.count(";") == 2}) > 0.7 * 0.8 * 700


def test_questions_of_reinforcement_learning_are_new_and_the_hard_ones_keep_their_answers(curriculum):
    folder, summary, _ = curriculum
    records = {name: read_many(folder / f"{name}.jsonl", "problem") for name in summary}
    asked = [problem["question"] for problem in records.pop("rl_questions")]
    assert len(set(asked)) == len(asked) == 1000
    assert not set(asked) & {problem["question"] for found in records.values() for problem in found}
    for problem in read_many(folder / "rl_questions.jsonl", "problem"):
        assert problem["answer"] == (solve(problem["question"])[1] if problem["level"] <= 3 else None)
        assert problem["solution"] is None


def solution_of(problem):
    template = get_template("e2h")
    *steps, _, answer = problem["solution"].split("\n\n")
    assert problem["solution"] == template.format_solution(steps, answer)
    return steps, answer


def test_demonstrations_and_test_solutions_are_clean_and_the_corpus_errs_more_on_hard_problems(curriculum):
    folder, _, config = curriculum
    for name in ("demonstrations", "test", "validation"):
        for problem in read_many(folder / f"{name}.jsonl", "problem"):
            assert check(problem["question"], *solution_of(problem)) == [1.0] * (problem["level"] + 2)
    table = folk_table(config.arithmetic.seed, config.arithmetic.folk_share)
    rates, habits = {}, Counter()
    for easy in (True, False):
        wrong = total = 0
        for problem in read_many(folder / "corpus.jsonl", "problem"):
            if (problem["level"] in (1, 2, 3)) != easy:
                continue
            steps, answer = solution_of(problem)
            assert answer == steps[-1][-1]
            for step in steps:  # authors copy right and err in values only
                a, op, b, value = int(step[2]), step[3], int(step[4]), int(step[6])
                total += 1
                if value != compute(a, op, b):
                    wrong += 1
                    habits[table.get((a, op, b)) == value] += 1
        rates[easy] = wrong / total
    assert 0.10 < rates[True] < rates[False] - 0.08
    assert habits[True] > 3 * habits[False]


def test_every_text_of_the_curriculum_is_made_of_the_tokenizers_words(curriculum):
    folder, _, _ = curriculum
    tokenizer, template = load_tokenizer(folder / "tokenizer"), get_template("e2h")
    problem = read_many(folder / "test.jsonl", "problem")[-1]
    text = template.format_prompt(problem["question"]) + problem["solution"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_prepare_is_deterministic(curriculum, tmp_path):
    folder, _, config = curriculum
    prepare.run(config, tmp_path)
    for name in ("corpus.jsonl", "evaluator_questions.jsonl", "test.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def sample(problem, number, text):
    return {"problem_id": problem["id"], "sample": number, "text": text, "finish": "stop", "logprob": -1.0}


@pytest.fixture
def labels(curriculum, tmp_path):
    """`run(samples, **fields)` of the labelling, which returns its summary and the three data sets."""
    folder, _, _ = curriculum

    def run(samples, **fields):
        write_records(tmp_path / "samples.jsonl", samples)
        config = prepare.defaults().unlock()
        config.source = "arithmetic_labels"
        config.arithmetic.update(samples=(str(tmp_path / "samples.jsonl"),), problems=str(folder / "test.jsonl"), **fields)
        summary = prepare.run(config, tmp_path / "labels")
        return summary, *(read_many(tmp_path / "labels" / f"{name}.jsonl", "labelled") for name in ("prm", "orm", "oprm"))

    return run


def test_labels_of_samples(curriculum, labels):
    problem = next(p for p in read_many(curriculum[0] / "test.jsonl", "problem") if p["level"] == 1)
    (first, second), answer = solve(problem["question"])
    wrong = str((int(answer) + 1) % MODULUS)
    texts = [
        problem["solution"],
        f"{first}\n\n{second[:-1]}{wrong}\n\n# Answer\n\n{wrong}",
        f"{first}\n\n{second}\n\n# Answer\n\n{wrong}",
        f"{first}\n\n{second[:4]}",  # cut off
        "",
        f"{first}\n\n{second}\n\n# Answer",
        problem["solution"],  # again: one label is enough
    ]
    summary, prm, orm, _ = labels([sample(problem, i, text) for i, text in enumerate(texts)])
    assert [r["labels"] for r in prm] == [[1, 1, 1], [1, 0, None], [1, 1, 0], [1, 0], [], [1, 1, 0]]
    assert [r["labels"] for r in orm] == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0], [], [0, 0, 0]]
    assert [r["sample"] for r in prm] == list(range(6))
    assert prm[0]["steps"] == [first, second, f"# Answer\n\n{answer}"]
    assert all(r["question"] == problem["question"] and r["prefix"] == "" and r["level"] == 1 for r in prm)
    assert summary == {"solutions": 6, "right_steps": pytest.approx(9 / 13), "right_outcomes": pytest.approx(1 / 6)}
    assert labels([sample(problem, i, text) for i, text in enumerate(texts)], repeats=True)[0]["solutions"] == 7


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 60, 160), (1.0, 220, 220)])
def test_the_mixture(curriculum, labels, share, low, high):
    wrong_last = []
    for problem in read_many(curriculum[0] / "test.jsonl", "problem"):
        wrong = str((int(problem["answer"]) + 1) % MODULUS)
        wrong_last.append(sample(problem, 0, problem["solution"][:-1] + wrong))
    _, prm, orm, mixture = labels(wrong_last, oprm_outcomes=share)
    assert len(mixture) == len(prm) == 220
    outcomes = 0
    for mixed, steps, outcome in zip(mixture, prm, orm, strict=True):
        assert mixed in (steps, outcome) and steps != outcome
        outcomes += mixed == outcome
    assert low <= outcomes <= high
    assert labels(wrong_last, oprm_outcomes=share)[3] == mixture


def test_what_cannot_be_labelled(curriculum, labels):
    problem = read_many(curriculum[0] / "test.jsonl", "problem")[0]
    with pytest.raises(UserError, match=r"problem_id 'test/9/9' is not in .*test\.jsonl"):
        labels([sample(problem | {"id": "test/9/9"}, 0, "x")])
    for share in (-0.1, 1.5):
        with pytest.raises(UserError, match=r"oprm_outcomes=.* must be between 0 and 1"):
            labels([sample(problem, 0, "x")], oprm_outcomes=share)
