import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2h_jax.data.cards import Card
from e2h_jax.data.records import json_lines
from e2h_jax.data.sources.math import read_math
from e2h_jax.data.sources.sentences import is_unfinished, line_steps, solution_steps
from e2h_jax.data.steps import split_steps
from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError
from e2h_jax.grading import extract_answer

TEMPLATE = get_template("e2h")
LINE = {"problem": "What is $1+1$?", "solution": "We add. So $2.$", "answer": "2", "subject": "Algebra", "level": 1}


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        ("First. Then $x=1$. Done.", ["First.", "Then $x=1$.", "Done."]),
        ("Since $x=3.$  We get \\[y=4.\\]Therefore $z$.", ["Since $x=3.$", "We get \\[y=4.\\]", "Therefore $z$."]),
        ("It is $2.5$. $x$ is odd! (See above.) Why?", ["It is $2.5$.", "$x$ is odd!", "(See above.)", "Why?"]),
        ("We use i.e. $x$, vs. $y$, and Mr. Smith.", ["We use i.e. $x$, vs. $y$, and Mr. Smith."]),
        ("1. Add.\n2. Multiply.", ["1. Add.\n2. Multiply."]),
        ("$\\text{Yes. No. Maybe}$ and 3.5 m.", ["$\\text{Yes. No. Maybe}$ and 3.5 m."]),
        ("One\n\n\ntwo\n \nthree", ["One", "two", "three"]),
        ("See\n[asy]\na;\n\n// Now. Then\nb;\n[/asy]\n\nSo", ["See\n[asy]\na;\n// Now. Then\nb;\n[/asy]", "So"]),
        ("\\begin{align}a. \\\\\n\nC.\\end{align}Thus e.", ["\\begin{align}a. \\\\\nC.\\end{align}", "Thus e."]),
        ("It costs \\$5. He pays \\$6. Done.", ["It costs \\$5.", "He pays \\$6.", "Done."]),
        ("An odd $ sign. Still fine.", ["An odd $ sign.", "Still fine."]),
        ("", []),
    ],
)  # fmt: skip
def test_solution_steps(solution, steps):
    assert solution_steps(solution) == steps


@given(
    st.lists(
        st.sampled_from(["So. ", "A", "$", "$$", "\\[", "\\]", "\n\n", ".", " B", "[asy]", "[/asy]", "1. "]),
        max_size=14,
    )
)
def test_steps_hold_the_whole_solution(parts):
    solution = "".join(parts)
    steps = solution_steps(solution)
    assert "".join("".join(steps).split()) == "".join(solution.split())
    assert all(step.strip() == step != "" and not re.search(r"\n\s*\n", step) for step in steps)


def read(path, test_path=""):
    card = Card("")
    return list(read_math(str(path), str(test_path), TEMPLATE, card)), card.counts


def test_read_math(tmp_path):
    boxed = {"problem": "q?", "solution": "So \\boxed{7}", "level": "Level ?", "type": "Algebra"}
    lines = [LINE, LINE | {"answer": None}, {"type": "Geometry", **LINE} | {"level": "Level 4"}, boxed]
    del lines[2]["subject"]
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    problems, counts = read(tmp_path / "train.jsonl.gz")
    assert counts == {"rows without an answer": 1}
    assert problems[0].record == {
        "id": "math/train/0",
        "question": "What is $1+1$?",
        "answer": "2",
        "level": 1,
        "subject": "Algebra",
        "solution": "We add.\n\nSo $2.$\n\n# Answer\n\n2",
    }
    assert (problems[1].record["level"], problems[1].record["subject"]) == (4, "Geometry")
    assert (problems[2].record["answer"], problems[2].record["level"]) == ("7", None)
    assert {(p.hendrycks, p.prm800k) for p in problems} == {("train", "train")}


def test_the_sides_of_the_two_splits(tmp_path):
    """PRM800K's test is told by MATH500; all else of Hendrycks' test moves to train."""
    for name, count in (("train", 2), ("test", 3)):
        lines = [LINE | {"problem": f"{name} {i}?"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "five.json").write_text(json.dumps([{"problem": "test  1?"}]))
    (tmp_path / "math").mkdir()
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / "math" / f"{name}.jsonl")
    problems, _ = read(tmp_path / "math", tmp_path / "five.json")
    sides = {p.record["id"]: (p.hendrycks, p.prm800k) for p in problems}
    assert sides == {
        "math/train/0": ("train", "train"),
        "math/train/1": ("train", "train"),
        "math/test/0": ("test", "train"),
        "math/test/1": ("test", "test"),
        "math/test/2": ("test", "train"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": None}, 'math.jsonl:1: field "problem" is missing'),
        ({"answer": 2}, 'math.jsonl:1.*field "answer" must be text'),
        ({"level": "Level 9"}, 'math.jsonl:1.*field "level" must be an integer'),
    ],
)
def test_bad_lines_are_named(change, message, tmp_path):
    (tmp_path / "math.jsonl").write_text(json.dumps(LINE | change))
    with pytest.raises(UserError, match=message):
        read(tmp_path / "math.jsonl")
    with pytest.raises(UserError, match='did you mean "math.jsonl"'):
        read(tmp_path / "maths.jsonl")


# Vectors of the original's MetaMath script (original-system.md A.6); formulas and abbreviations stay whole.
@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (
            "Mr. Smith has 3 apples. He buys 2.5 more, so 5.5.\nThen $x=1$. Done.\n",
            ["Mr. Smith has 3 apples.", "He buys 2.5 more, so 5.5.", "Then $x=1$.", "Done."],
        ),
        ("Step one.\nStep two,\nstep three.\n", ["Step one.", "Step two, step three."]),
        ("We use i.e. $x$\nso it is 3", ["We use i.e. $x$", "so it is 3"]),
        ("We have\n\\[x\n\n=1.\\]\nThus 2", ["We have \\[x\n=1.\\]", "Thus 2"]),
    ],
)
def test_lines_are_steps(text, steps):
    assert line_steps(text) == steps


def test_half_a_step():
    assert [is_unfinished(text) for text in ("S3 by Mr.", "see Prof.", "Amr.", "So 3.")] == [True, True, False, False]


def test_all_of_math(shared_data):
    """Every reference solution keeps its text, its formulas stay whole, and the answer is read back."""
    file = shared_data / "math_12500.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    problems, counts = read(file)
    assert (len(problems), counts["rows without an answer"]) == (12_498, 2)
    assert len({problem.record["id"] for problem in problems}) == 12_498
    cut_formulas = 0
    for problem in (problem.record for problem in problems):
        assert TEMPLATE.extract_answer(problem["solution"]) == problem["answer"].strip()
        steps = split_steps(problem["solution"], TEMPLATE)
        assert steps[-1].is_answer
        texts = [problem["solution"][step.start : step.end] for step in steps[:-1]]
        assert extract_answer(problem["solution"].rpartition("\n\n# Answer")[0], "boxed") == problem["answer"].strip()
        cut_formulas += sum(len(re.findall(r"(?<!\\)\$", text)) % 2 for text in texts)
    assert cut_formulas == 2  # solutions whose own dollar signs are odd
    assert sum(1 for _ in json_lines(file)) == 12_500
