"""Labels of sampled solutions: outcomes in a bounded ratio, and steps by what comes of completing them."""

import pytest

from e2h_jax.data import prepare
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template, write_template
from e2h_jax.errors import UserError
from e2h_jax.rewards import labels
from e2h_jax.rewards.labels import balance


def solution(answer, step="Think."):
    return f"{step}\n\nSo {answer}.\n\n# Answer\n\n{answer}"


def sample(problem, number, text):
    return {"problem_id": problem, "sample": number, "text": text, "finish": "stop", "logprob": None}


@pytest.fixture
def files(tmp_path):
    problems = [{"id": f"p/{n}", "question": f"{n}?", "answer": str(n), "level": n % 5 + 1} for n in range(4)]
    write_records(tmp_path / "problems.jsonl", problems)
    return tmp_path


def run(folder, module=labels, **fields):
    config = module.defaults().unlock()
    paths = {"problems": str(folder / "problems.jsonl"), "samples": str(folder / "samples.jsonl")}
    config.update({name: value for name, value in (paths | fields).items() if value is not None})
    out = folder / f"out{len(list(folder.iterdir()))}"
    summary = module.run(config.lock(), out)
    return summary, read_many(out, "labelled" if module is labels else "problem")


@pytest.mark.parametrize(
    ("right", "wrong", "kept"), [(1, 3, (1, 3)), (1, 9, (1, 3)), (9, 2, (6, 2)), (5, 5, (5, 5)), (4, 0, (0, 0)), (0, 4, (0, 0))]
)
def test_outcomes_are_kept_between_one_to_three_and_three_to_one(right, wrong, kept):
    outcomes = {n: n < right for n in range(right + wrong)}
    chosen = balance(outcomes, 3.0, "s")
    assert (sum(outcomes[n] for n in chosen), sum(not outcomes[n] for n in chosen)) == kept
    assert chosen == balance(outcomes, 3.0, "s") and balance(outcomes, 0, "s") == set(outcomes)


def test_outcome_labels(files):
    rows = [sample("p/2", n, solution(2 if n < 2 else 3, f"Way {n}.")) for n in range(12)]
    rows += [sample("p/2", 12, rows[0]["text"]), sample("p/2", 13, "no answer"), sample("p/2", 14, " ")]
    rows += [sample("p/3", n, solution(3, f"Way {n}.")) for n in range(4)]  # nothing wrong
    rows += [sample("p/0", 0, solution("0.0")), sample("p/0", 1, solution(7))]
    write_records(files / "samples.jsonl", rows)
    summary, records = run(files)
    by_problem = {p: [r for r in records if r["problem_id"] == p] for p in ("p/0", "p/2", "p/3")}
    assert [len(by_problem[p]) for p in by_problem] == [2, 8, 0]
    assert {tuple(r["labels"]) for r in by_problem["p/2"]} <= {(1.0,) * 3, (0.0,) * 3, (0.0,)}
    assert sum(r["labels"][0] == 1 for r in by_problem["p/2"]) == 2
    assert summary["questions"] == 3 and summary["questions with one outcome alone, left out"] == 1
    assert summary["solutions left out for the ratio"] == 5  # of p/2: 13 solutions, 2 right, 6 wrong ones stay
    assert summary["solutions with the text of another"] == 1 and summary["records"] == 10
    assert all(r["eos"] for r in records)
    assert run(files, levels=(1,))[0]["records"] == 2
    assert run(files)[1] == records != run(files, seed=1)[1]
    assert run(files, per_problem=0)[1] == records
    few, _ = run(files, per_problem=4)
    assert few["records"] == 2 + 4


def test_solutions_without_a_step_are_counted_over_all_questions(files):
    rows = [sample(f"p/{p}", n, text) for p in (1, 2) for n, text in enumerate((solution(p), solution(9), " "))]
    write_records(files / "samples.jsonl", rows)
    assert run(files, max_no_answer=1.0)[0]["solutions without a step of their own, left out"] == 2


def test_each_question_has_a_draw_of_its_own(files):
    rows = [sample(f"p/{p}", n, solution(p if n == 0 else 9, f"Way {n}.")) for p in range(4) for n in range(13)]
    write_records(files / "samples.jsonl", rows)
    _, records = run(files)
    kept = [{r["sample"] for r in records if r["problem_id"] == f"p/{p}"} for p in range(4)]
    assert all(0 in numbers and len(numbers) == 4 for numbers in kept) and len(set(map(frozenset, kept))) > 1


def test_of_solutions_with_one_text_the_first_counts(files):
    """A, B, A, C, A with room for two: A and B, whatever the order in the file."""
    texts = [solution(3, "A"), solution(9, "B"), solution(3, "A"), solution(9, "C"), solution(3, "A")]
    rows = [sample("p/3", n, text) for n, text in enumerate(texts)]
    write_records(files / "samples.jsonl", [rows[n] for n in (3, 4, 1, 0, 2)])
    for count, numbers in ((1, [0]), (2, [0, 1]), (3, [0, 1, 3])):
        _, records = run(files, per_problem=count, ratio=0)
        assert [r["sample"] for r in records] == numbers, count
    _, records = run(files, prepare, source="prefixes", path=str(files / "problems.jsonl"), problems=None, per_problem=2)
    assert [(r["id"], r["prefix"]) for r in records if r["step"] == 0] == [("p/3#0.0", "A"), ("p/3#1.0", "B")]
    summary, _ = run(files, prepare, source="prefixes", path=str(files / "problems.jsonl"), problems=None, per_problem=1)
    assert (summary["solutions"], summary["solutions left out"]) == (1, 4)


def test_undecided_answers_are_wrong_and_all_verdicts_are_counted(files, monkeypatch):
    verdicts = {"1": "correct", "2": "undecided", "3": "undecided", "4": "wrong"}
    monkeypatch.setattr(labels, "grade", lambda answer, truth: verdicts[answer])
    texts = [*(solution(n) for n in verdicts), "No answer.", "None here."]
    rows = [sample("p/2", n, text) for n, text in enumerate(texts)]
    rows[0]["finish"] = "length"
    write_records(files / "samples.jsonl", rows)
    summary, records = run(files, ratio=0, max_no_answer=1.0)
    assert [record["labels"][-1] for record in records] == [1, 0, 0, 0, 0, 0]
    assert all(record["prefix"] == "" for record in records)
    assert [record["eos"] for record in records] == [False, True, True, True, True, True]
    assert (summary["graded"], summary["graded: no answer"], summary["graded: undecided, taken as wrong"]) == (6, 2, 2)


def test_a_repeated_sample_is_refused(files):
    """As after `cat run1 run2`: with the same number for two texts, labels would be swapped."""
    rows = [sample("p/2", 0, solution(2)), sample("p/2", 1, solution(3))]
    write_records(files / "samples.jsonl", [*rows, rows[0] | {"text": solution(3)}])
    with pytest.raises(UserError, match=r'samples.jsonl:3: field "problem_id, sample" repeats .*"p/2", 0'):
        run(files)
    with pytest.raises(UserError, match=r'samples.jsonl:3: field "problem_id, sample" repeats'):
        run(files, prepare, source="prefixes", path=str(files / "problems.jsonl"), problems=None)
    write_records(files / "samples.jsonl", rows)
    _, prefixes = run(files, prepare, source="prefixes", path=str(files / "problems.jsonl"), problems=None)
    write_records(files / "prefixes.jsonl", prefixes)
    completions = [sample(p["id"], n, "# Answer\n\n2") for p in prefixes for n in range(2)]
    write_records(files / "completions.jsonl", [*completions, completions[0]])
    fields = {"method": "completions", **{n: str(files / f"{n}.jsonl") for n in ("prefixes", "completions")}}
    with pytest.raises(UserError, match=r'completions.jsonl:9: field "problem_id, sample" repeats .*"p/2#0.0", 0'):
        run(files, **fields)
    write_records(files / "completions.jsonl", completions)
    assert [r["labels"] for r in run(files, **fields)[1]] == [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    write_records(files / "samples.jsonl", [rows[0], rows[1] | {"text": solution(3, "Guess.")}])  # sampled anew
    with pytest.raises(UserError, match='"p/2#1.0" is not the beginning of that solution in .*samples.jsonl'):
        run(files, **fields)


def test_a_problem_s_prefix_begins_its_solutions(files):
    """What is sampled behind it is judged with it, and labelled alone."""
    problem = {"id": "p/9", "question": "9?", "answer": "9", "level": 1, "prefix": "Given.\n\n# Answer"}
    write_records(files / "problems.jsonl", [problem, problem | {"id": "p/8", "prefix": "Given.\n\nThen."}])
    ends = ["End.\n\n# Answer\n\n9", "So.\n\nNo.\n\n# Answer\n\n8"]
    write_records(files / "samples.jsonl", [sample("p/9", 0, "9"), *[sample("p/8", n, text) for n, text in enumerate(ends)]])
    _, records = run(files, ratio=0)
    assert [(r["prefix"], r["steps"], r["labels"]) for r in records] == [
        ("Given.\n\nThen.", ["End.", "# Answer\n\n9"], [1.0, 1.0]),
        ("Given.\n\nThen.", ["So.", "No.", "# Answer\n\n8"], [0.0, 0.0, 0.0]),
    ]
    paths = {"source": "prefixes", "path": str(files / "problems.jsonl"), "problems": None}
    _, prefixes = run(files, prepare, **paths)
    assert [(p["id"], p["prefix"]) for p in prefixes] == [
        ("p/8#0.0", "Given.\n\nThen.\n\nEnd."),
        ("p/8#1.0", "Given.\n\nThen.\n\nSo."),
        ("p/8#1.1", "Given.\n\nThen.\n\nSo.\n\nNo."),
    ]
    write_records(files / "prefixes.jsonl", prefixes)
    write_records(files / "completions.jsonl", [sample(p["id"], 0, f"# Answer\n\n{9 - n}") for n, p in enumerate(prefixes)])
    fields = {"method": "completions", **{n: str(files / f"{n}.jsonl") for n in ("prefixes", "completions")}}
    _, records = run(files, **fields)
    assert [(r["prefix"], r["steps"], r["labels"]) for r in records] == [
        ("Given.\n\nThen.", ["End.", "# Answer\n\n9"], [1.0, 1.0]),
        ("Given.\n\nThen.", ["So.", "No.", "# Answer\n\n8"], [0.0, 0.0, 0.0]),
    ]


def test_a_box_in_the_prefix_is_no_answer_where_another_follows(files):
    """By itself the prefix ends with its box, and what stands behind it would be no step of it."""
    prefix, text = "First \\boxed{3}.\n\nThen we go on.", "Add two.\n\nSo \\boxed{9}."
    write_records(files / "problems.jsonl", [{"id": "p/9", "question": "9?", "answer": "9", "level": 1, "prefix": prefix}])
    write_records(files / "samples.jsonl", [sample("p/9", 0, text), sample("p/9", 1, "more")])
    summary, records = run(files, ratio=0, template="qwen_boxed")
    assert [(r["prefix"], r["steps"], r["labels"]) for r in records] == [(prefix, ["Add two.", "So \\boxed{9}."], [1.0, 1.0])]
    assert summary["solutions without a step of their own, left out"] == 1  # "more", behind the box that is the answer
    paths = {"source": "prefixes", "path": str(files / "problems.jsonl"), "problems": None}
    _, prefixes = run(files, prepare, **paths, template="qwen_boxed")
    assert [(p["id"], p["prefix"]) for p in prefixes] == [("p/9#0.0", f"{prefix}\n\nAdd two.")]
    write_records(files / "prefixes.jsonl", prefixes)
    write_records(files / "completions.jsonl", [sample(p["id"], 0, "So \\boxed{8}.") for p in prefixes])
    fields = {"method": "completions", **{n: str(files / f"{n}.jsonl") for n in ("prefixes", "completions")}}
    _, records = run(files, **fields, template="qwen_boxed")
    assert [(r["steps"], r["labels"]) for r in records] == [(["Add two.", "So \\boxed{9}."], [0.0, 1.0])]


def test_solutions_in_another_format_are_refused(files):
    r"""Boxed answers read as e2h have none: all would be labelled wrong."""
    boxed = [sample("p/2", n, f"Way {n}.\n\nSo \\boxed{{2}}") for n in range(3)]
    write_records(files / "samples.jsonl", [*boxed, *[sample("p/2", n, solution(2, f"{n}")) for n in range(3, 10)]])
    told = r'samples.jsonl: 3 of 10 solutions have no recognised answer .30.0%, more than 20%.; they end, for example, "Way 0.'
    with pytest.raises(UserError, match=told) as refused:
        run(files)
    assert all(f'"Way {n}.\\n\\nSo \\\\boxed{{2}}"' in str(refused.value) for n in range(3))
    assert "config.template" in str(refused.value) and not list(files.glob("out*/*"))
    assert run(files, max_no_answer=0.3, ratio=0)[0]["records"] == 10
    with pytest.raises(UserError, match="config.max_no_answer=1.5 is a share"):
        run(files, max_no_answer=1.5)


def test_samples_of_another_template_than_the_field_s_are_refused(files):
    (files / "drawn").mkdir()
    write_records(files / "drawn" / "samples-00000-of-00001.jsonl", [sample("p/2", n, solution(2 + n)) for n in range(2)])
    write_template(files / "drawn" / "template.json", get_template("qwen_boxed"))
    with pytest.raises(UserError, match='drawn in the template "qwen_boxed", not "e2h"; set config.template=qwen_boxed'):
        run(files, samples=str(files / "drawn"))
    write_template(files / "drawn" / "template.json", get_template("e2h"))
    _, records = run(files, samples=str(files / "drawn"))
    assert [(record["level"], record["sample"]) for record in records] == [(3, 0), (3, 1)]


def test_answers_by_another_rule(files):
    """The rule decides what is right, and where the solution's steps end; a prefix that has such an answer counts no less."""
    texts = [f"First 1.\n\nSo the answer is **{n}**.\n\nWas it 9?" for n in (2, 3)]
    write_records(files / "samples.jsonl", [sample("p/2", n, text) for n, text in enumerate(texts)])
    with pytest.raises(UserError, match="2 of 2 solutions have no recognised answer.*or the rule .*config.answer.*, or raise"):
        run(files)
    _, records = run(files, answer="sentence")
    assert [(r["labels"], r["steps"]) for r in records] == [
        ([1.0, 1.0], ["First 1.", "So the answer is **2**."]),
        ([0.0, 0.0], ["First 1.", "So the answer is **3**."]),
    ]
    assert [r["labels"] for r in run(files, answer=r"\*\*(\d)", ratio=0)[1]] == [[1.0, 1.0], [0.0, 0.0]]
    assert [r["labels"] for r in run(files, answer="last_number", ratio=0)[1]] == [[0.0] * 3] * 2
    problems = [{"id": "p/2", "question": "?", "answer": "2", "level": 1, "prefix": "The answer is 5.\n\nOr is it?"}]
    write_records(files / "problems.jsonl", problems)
    _, records = run(files, answer="sentence")
    assert [r["steps"][0] for r in records] == ["First 1."] * 2 and [r["labels"] for r in records] == [[1.0, 1.0], [0.0, 0.0]]


def test_completions_without_an_answer_are_refused(files):
    rows = [sample("p/2", 0, solution(2)), *(sample("p/3", n, f"# Answer\n\n{n}") for n in range(2))]
    write_records(files / "samples.jsonl", rows)
    _, prefixes = run(files, prepare, source="prefixes", path=str(files / "problems.jsonl"), problems=None)
    write_records(files / "prefixes.jsonl", prefixes)
    write_records(files / "completions.jsonl", [sample(p["id"], 0, "It is \\boxed{2}") for p in prefixes])
    fields = {"method": "completions", **{n: str(files / f"{n}.jsonl") for n in ("prefixes", "completions")}}
    with pytest.raises(UserError, match="completions.jsonl: 2 of 2 solutions have no recognised answer"):
        run(files, **fields)
    summary, records = run(files, **fields, max_no_answer=1.0)
    assert [r["labels"] for r in records] == [[0.0, 0.0, 1.0]]
    assert summary["solutions without a prefix, left out"] == 2 and summary["solutions"] == 1


def test_steps_by_their_completions(files):
    """A step is as good as what follows from it."""
    rows = [sample("p/2", 0, "Good.\n\nBad.\n\n# Answer\n\n5"), sample("p/2", 1, "Only step"), sample("p/1", 0, "A.\n\nB.")]
    write_records(files / "samples.jsonl", rows)
    _, prefixes = run(files, prepare, source="prefixes", path=str(files / "problems.jsonl"), problems=None)
    assert [(p["id"], p["prefix"]) for p in prefixes] == [
        ("p/2#0.0", "Good."),
        ("p/2#0.1", "Good.\n\nBad."),
        ("p/1#0.0", "A."),
    ]
    write_records(files / "again.jsonl", [*rows, sample("p/2", 2, rows[0]["text"])])  # the text of another is passed over
    paths = {"source": "prefixes", "path": str(files / "problems.jsonl"), "samples": str(files / "again.jsonl")}
    assert run(files, prepare, **paths, problems=None)[1] == prefixes
    write_records(files / "prefixes.jsonl", prefixes)
    completions = [sample("p/2#0.0", n, f"Then.\n\n# Answer\n\n{2 if n == 0 else 9}") for n in range(4)]
    completions += [sample("p/2#0.1", n, "# Answer\n\n5") for n in range(4)]
    completions += [sample("p/1#0.0", n, "C.\n\n# Answer\n\n1") for n in range(4)]
    write_records(files / "completions.jsonl", completions)
    fields = {
        "method": "completions",
        "prefixes": str(files / "prefixes.jsonl"),
        "completions": str(files / "completions.jsonl"),
        "max_no_answer": 0.5,
    }
    with pytest.raises(UserError, match="samples.jsonl: 1 of 2 solutions have no recognised answer"):
        run(files, **fields | {"max_no_answer": 0.2})
    summary, hard = run(files, **fields)
    assert summary["solutions"] == 2
    assert [r["problem_id"] for r in run(files, **fields | {"levels": (2,), "max_no_answer": 1.0})[1]] == ["p/1"]
    _, soft = run(files, **fields, estimate="soft")
    assert [r["steps"] for r in hard] == [["Good.", "Bad.", "# Answer\n\n5"], ["A.", "B."]]
    assert [r["labels"] for r in hard] == [[1.0, 0.0, 0.0], [1.0, 0.0]]
    assert [r["labels"] for r in soft] == [[0.25, 0.0, 0.0], [1.0, 0.0]]
    problems = read_many(files / "problems.jsonl", "problem")
    write_records(files / "problems.jsonl", [problem for problem in problems if problem["id"] != "p/1"])
    for given, file in ((completions, "prefixes"), (completions[:8], "samples")):
        write_records(files / "completions.jsonl", given)
        with pytest.raises(UserError, match=f'{file}.jsonl: problem_id "p/1" is not in .*problems.jsonl'):
            run(files, **fields)
    write_records(files / "problems.jsonl", problems)
    write_records(files / "completions.jsonl", completions[:4])
    with pytest.raises(UserError, match='no completion of "p/2#0.1"; finish sampling'):
        run(files, **fields)


def test_hidden_answers_are_not_taken_for_answers(files):
    problems = read_many(files / "problems.jsonl", "problem")
    write_records(files / "problems.jsonl", [*problems[:3], problems[3] | {"answer": "Unavailable"}])
    write_records(files / "samples.jsonl", [sample(f"p/{n}", i, solution(n if i else 9)) for n in (2, 3) for i in range(2)])
    with pytest.raises(UserError, match='problem "p/3" has no answer to grade against; leave it out, by config.levels'):
        run(files)
    assert run(files, levels=(3,))[0]["records"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "outcomes"}, 'config.method="outcomes" is unknown .did you mean "outcome"'),
        ({"estimate": "medium"}, 'config.estimate="medium" must be hard or soft'),
        ({"ratio": 0.5}, "config.ratio at least 1"),
        ({"method": "completions", "prefixes": "{problems}"}, 'is not of `e2h prepare` with source "prefixes"'),
        ({"samples": "{other}"}, 'other.jsonl: problem_id "q/0" is not in'),
    ],
)
def test_wrong_settings_are_one_sentence(files, fields, message):
    write_records(files / "samples.jsonl", [sample("p/0", 0, "x")])
    write_records(files / "other.jsonl", [sample("q/0", 0, "x")])
    places = {"{problems}": str(files / "problems.jsonl"), "{other}": str(files / "other.jsonl")}
    with pytest.raises(UserError, match=message):
        run(files, **{name: places.get(value, value) for name, value in fields.items()})
