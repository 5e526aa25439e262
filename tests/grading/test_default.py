"""The default rules: the case file, hostile input, laws that hold for every text."""

import json
import os
import string
import time
from pathlib import Path

import pytest
from hostile import HOSTILE
from hypothesis import example, given, settings
from hypothesis import strategies as st

from e2h_jax.grading import RULES, Verdict, grade, is_equal
from e2h_jax.grading.answer import MAX_LENGTH, read

SPELLINGS = [json.loads(line) for line in (Path(__file__).parent / "spellings.jsonl").read_text(encoding="utf-8").splitlines()]
CASES = [json.loads(line) for line in (Path(__file__).parent / "cases.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_case_file():
    """Every pair that the file calls equal is equal, and no other."""
    assert len(CASES) > 4000
    wrong = [case for case in CASES if is_equal(case["prediction"], case["reference"]) != case["equal"]]
    assert wrong == []


def test_the_spellings():
    """Answers with what says the same and what only looks alike, by kind; docs/grading.md has how the first look went."""
    pairs = [(text, row["reference"], equal) for row in SPELLINGS for equal in ("same", "different") for text in row[equal]]
    assert len(pairs) > 4000
    assert [(*pair, equal) for *pair, equal in pairs if is_equal(*pair) != (equal == "same")] == []


def test_grading_is_symmetric_on_the_case_file():
    rows = [{"prediction": text, **row} for row in SPELLINGS for text in row["same"] + row["different"]]
    asymmetric = [
        (case["prediction"], case["reference"])
        for case in CASES + rows
        if is_equal(case["prediction"], case["reference"]) != is_equal(case["reference"], case["prediction"])
    ]
    assert asymmetric == []


def test_every_answer_of_math_equals_itself(shared_data):
    import gzip

    with gzip.open(shared_data / "math_12500.jsonl.gz", "rt") as file:
        answers = {json.loads(line)["answer"] for line in file}
    unequal = [answer for answer in answers if not is_equal(answer, answer)]
    assert unequal == [""]  # two problems of MATH have nothing in their box; nothing is no answer
    assert [answer for answer in answers if answer and read(answer).node is None] == []


REFERENCES = [
    "5",
    r"\frac{1}{2}",
    "x^2+1",
    r"\sqrt{2}",
    "(1,2)",
    r"\text{east}",
    r"\{1,2\}",
    r"[0,1)\cup(2,3)",
    "x=5",
    "2^{2005}",
]


@pytest.mark.parametrize("rules", RULES)
def test_hostile_answers_are_answered_at_once_and_never_correct(rules, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slow = []
    for text in HOSTILE:
        for reference in [*REFERENCES, text[:-1] + "3" if len(text) < MAX_LENGTH else "3"]:
            for prediction, truth in ((text, reference), (reference, text)):
                start = time.process_time()  # others may keep the cores busy
                verdict = grade(prediction, truth, rules)
                if (seconds := time.process_time() - start) > 0.9:
                    slow.append((text[:40], truth[:40], seconds))
                if rules == "default" and text not in HARMLESS and prediction.strip() != truth.strip():
                    assert verdict != "correct" or read(text).spelling == read(reference).spelling, (text[:80], reference[:80])
    assert slow == []
    assert os.listdir(tmp_path) == []
    assert not os.path.exists("/tmp/pwned")


# Odd, but right: \text{\text{\text{5}}} is 5, and a set forgets how often it names something.
HARMLESS = {r"\text{\text{\text{5}}}", "\\{" + "1," * 480 + "2\\}"}


def test_empty_is_wrong_whatever_the_reference():
    for nothing in ("", " ", "$$", ".", r"\,", r"\text{}", None):
        assert grade(nothing, "5") == "wrong"
        assert grade(nothing, "") == "wrong"
    assert is_equal("5", None) is False


def test_a_verdict_is_its_word_with_a_reason():
    verdict = grade("0.5", r"\frac{1}{2}")
    assert verdict == "correct" and str(verdict) == "correct" and verdict.reason == "same"
    assert bool(verdict) and not grade("1", "2")
    assert grade("7" * 2000, "7").reason == "too_long" and grade("7" * 2000, "7") == "undecided"
    assert grade("7" * 2000, "7" * 2000) == "correct"
    assert grade("5", r"\weird{5}").reason == "unparsable_reference"
    assert grade("9^{9^{9^9}}", "5") == Verdict("undecided", "undecidable")
    assert {grade("a", "b"): 1}["wrong"] == 1
    with pytest.raises(ValueError, match='no rules "lenient"'):
        grade("1", "1", "lenient")


def test_numeric_rules():
    right = [("18", "18"), ("$18.00", "18"), ("1,234", "1234"), ("18 dollars", "18"), ("#### 18", "18"), ("18.", "#### 18")]
    right += [
        ("The answer is 18.", "18"),
        ("-3", "-3"),
        ("50%", "50"),
        ("0.5", "1/2"),
        (r"\$1{,}000", "1000"),
        ("x = 18", "18"),
    ]
    for prediction, reference in right:
        assert is_equal(prediction, reference, "numeric"), (prediction, reference)
    for prediction, reference in [("18", "19"), ("1 or 18", "18"), ("eighteen apples", "19"), ("", "0"), ("18.01", "18")]:
        assert not is_equal(prediction, reference, "numeric"), (prediction, reference)
    assert grade("5", "no number", "numeric") == "undecided"


PIECES = (
    [case["prediction"] for case in CASES[::7]]
    + list(r"\{}()[]^_,.+-*/=<>|!&%$ 0123456789abcxyz")
    + ["\\frac", "\\sqrt", "\\text"]
)
ANSWERS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=string.printable, max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
)


@settings(max_examples=400, deadline=None)
@given(ANSWERS, ANSWERS)
@example("1,234", "1, 234")
def test_grading_never_raises_and_is_symmetric(one, other):
    assert is_equal(one, other) is is_equal(other, one)
    for rules in RULES:
        assert grade(one, other, rules) in ("correct", "wrong", "undecided")


@settings(max_examples=300, deadline=None)
@given(ANSWERS)
def test_grading_is_reflexive_for_what_can_be_read(text):
    seen = read(text)
    assert is_equal(text, text) is bool(text.strip() and seen.spelling)


@settings(max_examples=150, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(-999, 999), st.integers(1, 99))
def test_fractions_are_equal_exactly_when_their_values_are(a, b, c, d):
    assert is_equal(rf"\frac{{{a}}}{{{b}}}", f"{c}/{d}") is (a * d == b * c)
    assert is_equal(rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a * d}}}{{{b * d}}}")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_lists_forget_their_order_and_tuples_do_not(numbers, rng):
    shuffled = rng.sample(numbers, len(numbers))
    text, other = (", ".join(map(str, row)) for row in (numbers, shuffled))
    assert is_equal(text, other)
    assert is_equal(rf"\{{{text}\}}", rf"\{{{other}\}}")
    assert is_equal(f"({text})", f"({other})") is (numbers == shuffled)
