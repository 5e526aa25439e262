"""Where the final answer of a solution is found, in texts of other systems; tests/answer_cases.py has the table."""

import time

import pytest
from answer_cases import ANY, BOX, SECTION

from e2h_jax.grading import TEMPLATES, extract_answer, grade


@pytest.mark.parametrize(("rule", "rows"), [("any", ANY), ("section", SECTION), ("boxed", BOX)])
def test_the_table(rule, rows):
    assert [(text, extract_answer(text, rule)) for text, _ in rows] == rows
    assert len(rows) >= 190


def test_without_a_rule_it_is_any():
    assert extract_answer("\\boxed{4}\n\n# Answer\n\n3") == "3" and extract_answer("\\boxed{4}") == "4"


@pytest.mark.parametrize(
    ("text", "rule", "answer"),
    [
        ("5 + 5 = 10\n#### 10", "gsm8k", "10"),
        ("#### 9\n#### 10\r\n", "gsm8k", "10"),
        ("#### \\boxed{10}", "gsm8k", "10"),
        ("#### 9\n####", "gsm8k", None),
        ("no answer", "gsm8k", None),
        ("####", "gsm8k", None),
        ("So the answer is 3.5. Then more.", "sentence", "3.5"),
        ("the answer is 3. No, the answer is 4.\r\n", "sentence", "4"),
        ("the answer is $\\boxed{4}$.", "sentence", "4"),
        ("Final answer: x = 2", "sentence", "x = 2"),
        (r"so \boxed{7}", "sentence", "7"),
        (r"so \boxed{7}. The answer is 8.", "sentence", "8"),
        (r"The answer is 8, not \fbox", "sentence", None),
        (r"so \boxed{7}, the answer is \boxed{", "sentence", None),
        ("", "sentence", None),
    ],
)
def test_rules_of_other_data_sets(text, rule, answer):
    assert extract_answer(text, rule) == answer


@pytest.mark.parametrize("rules", ["default", "strict", "numeric"])
def test_a_box_in_the_answer_section_is_graded_by_what_it_holds(rules):
    for text in ("# Answer\n\n\\boxed{42}", "# Answer\n\n$\\boxed{42}$.", "# Answer \\boxed 42", "# Answer\n\n42"):
        assert grade(extract_answer(text), "42", rules) == "correct"
    for text in ("# Answer\n\n\\boxed{42", "\\boxed{42} no wait, \\boxed{", "# Answer"):
        assert grade(extract_answer(text), "42", rules) == "wrong"


def test_a_million_open_boxes_take_no_time():
    """Once quadratic: every open box was read to the end of the text."""
    start = time.process_time()
    for rule in TEMPLATES:
        extract_answer("\\boxed{" * 150_000 + "5", rule)
        extract_answer("\\boxed{5}" + "{" * 500_000 + "answer: " * 60_000, rule)
        extract_answer("\\" * 1_000_000, rule)
        extract_answer("# Answer" + "\n" * 300_000 + (" " * 300_000 + "\n") * 2, rule)
        extract_answer("# Answer\n" * 100_000, rule)
    assert time.process_time() - start < 5


def test_an_unknown_rule():
    with pytest.raises(ValueError, match='no template "xml"'):
        extract_answer("", "xml")
