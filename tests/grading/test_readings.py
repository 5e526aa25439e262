"""What an answer may say and what it may not, by kind (readings.txt); numbers as answers; no text ends a run."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_default import CASES

from e2h_jax.grading import RULES, GradingPool, answer_key, equality, grade, group_answers, is_equal
from e2h_jax.grading.numerals import number_in_words

LINES = (Path(__file__).parent / "readings.txt").read_text(encoding="utf-8").splitlines()
ROWS = [line.split("\t") for line in LINES if line and line[0] != "#"]


def test_the_readings():
    assert len(ROWS) > 200
    pairs = [(expected, *pair) for expected, one, other in ROWS for pair in ((one, other), (other, one))]
    verdicts = [(*row, str(grade(*row[1:]))) for row in pairs]
    assert [row for row in verdicts if row[3] != row[0] and (row[0] != "not" or row[3] == "correct")] == []


@pytest.mark.parametrize("number", [72, 72.0, Fraction(72), Decimal(72), Decimal("72.0"), np.int64(72), np.float32(72)])
def test_numbers_are_answers(number):
    for rules in RULES:
        assert grade(number, "72", rules) == grade("72", number, rules) == "correct"
        assert grade(number, "73", rules) == grade("73", number, rules) == "wrong"
    assert answer_key(number) == answer_key("72") and group_answers([number, "72", "73", None]) == [0, 0, 1, -1]


def test_the_number_of_a_text_and_words_that_scale_it():
    """By the numeric rules other words do not count, GSM8K's convention; but a word that scales the number is no other word."""
    for text, value in {
        "5 apples": "5",
        "5 kg": "5",
        "2 pairs": "2",
        "3 quarters": "3",
        "5 third graders": "5",
        "5 hundredths": "0.05",
        "5 dozen eggs": "60",
        "2 and a half hours": "2.5",
        r"\$5 million": "5000000",
    }.items():
        assert grade(text, value, "numeric") == grade(value, text, "numeric") == "correct", text
    for text in ("5 hundred thousandths", "-5 squared", "5 lakh", "it is 5 dozen eggs", "is 5 and a half", "-5 cubed"):
        for value in ("5", "-5", "0.005", "500000"):
            assert grade(text, value, "numeric") == grade(value, text, "numeric") == "undecided", text
        assert answer_key(text, "numeric") == text
    assert group_answers(["5 lakh", "5", "5 lakh", "500000"], "numeric") == [0, 1, 0, 2]


def test_small_and_large_numbers_as_answers():
    assert is_equal(0.1, r"\frac1{10}") and is_equal(1e-7, "0.0000001") and is_equal(-1e22, "-10^{22}") and is_equal(0, "0")
    assert is_equal(Fraction(1, 3), r"\frac13") and not is_equal(0.3333, r"\frac13")


@pytest.mark.parametrize(
    "thing",
    [True, [72], {"a": 1}, float("nan"), float("inf"), Decimal("NaN"), pytest.param(10**9000, id="10^9000"), b"72", object()],
)
def test_what_is_no_answer(thing):
    assert grade(thing, "72") == "wrong" and answer_key(thing) == ""
    assert grade("72", thing) == "undecided" and grade("72", thing).reason == "unparsable_reference"
    for rules in RULES:
        assert group_answers([thing, "5", thing, None], rules) == [-1, 0, -1, -1]  # no candidate


def test_numbers_go_through_the_pool():
    with GradingPool(workers=1) as pool:
        assert pool.grade_many([(72, "72"), ("0.5", Fraction(1, 2)), ([72], "72"), ("72", None)]) == [
            "correct",
            "correct",
            "wrong",
            "undecided",
        ]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("zero", 0),
        ("ninety nine", 99),
        ("two thousand and five", 2005),
        ("twelve hundred", 1200),
        ("three million two hundred thousand", 3_200_000),
        ("one hundredth", Fraction(1, 100)),
        ("twenty five thousandths", Fraction(1, 40)),
        ("nineteen twentieths", Fraction(19, 20)),
        ("half a dozen", 6),
        ("two and three quarters", Fraction(11, 4)),
        ("minus one half", Fraction(-1, 2)),
        ("ten thousandths", None),
        ("minus five squared", None),
        ("twenty and five", None),
        ("ten one", None),
        ("thousand million", None),
        ("five third", None),
        ("two and five halves", None),
        ("hundred hundred", None),
        ("five apples", None),
        ("and five", None),
        ("point five", None),
    ],
)
def test_number_words(words, value):
    assert number_in_words(tuple(words.split())) == value


PIECES = r"""
\mod mod \bmod \pmod{7} \pmod (mod \operatorname{mod} \equiv = < \le \in \infty - \cdot / ^ _ { } ( ) [ ] \{ \} | , ; :
! ' & \\ \begin{align} \end{align} \begin{cases} \end{cases} \begin{pmatrix} \end{pmatrix} \begin{array}{l} \end{array}
\frac \frac12 \sqrt \sqrt[ \log \log_2 \ln \sin \gcd \max \max\{\} \binom \sum_{k=1}^{n} \prod \int_0^1 dx \text{
\text{cm} \text{and} \mbox{m}^3 \pm \cup \setminus \emptyset \mathbb{R} \angle ^\circ \% $ € ** __ 1_000 1'000 1.000.000
five sixths squared dozen tenths minus half and or of per zero below apples degrees A n i I E pi 0 1 2 5 10 1,234 .5 1e9
10_2 a_{n+1} f(x) f^{-1}(x) x=1 y=2 [0,1[ ]0,1] \langle \lfloor \left( \right. \overline \hat \det \boxed{ ... \to \ne
\phantom \lim @ # ~ \! é √ ² ½ ٣ January 5th (A) 3:45 PM U""".split()
REAL = [case["prediction"] for case in CASES[::11] if len(case["prediction"]) < 60]


@st.composite
def mutated(draw):
    """A real answer with pieces put in, or characters lost."""
    text = draw(st.sampled_from(REAL))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from(PIECES)) * draw(st.booleans()) + text[start + draw(st.integers(0, 2)) :]
    return text


PUT_TOGETHER = st.lists(st.sampled_from(PIECES), max_size=8)
ANSWERS = st.one_of(mutated(), PUT_TOGETHER.map("".join), PUT_TOGETHER.map(" ".join))


@settings(max_examples=400, deadline=None)
@given(ANSWERS, ANSWERS)
@example(r"17 \mod 5", "2")
@example(r"\operatorname{mod}(5)", r"\max\{\}")
@example(r"\begin{pmatrix}1\\2\end{pmatrix}x", "5-x")
@example(r"\begin{pmatrix} -34 \\ 119 \end{pmatrx} -ix}", "5")
def test_no_text_raises_and_both_ways_round_agree(one, other):
    """Below the last guard of `grade`, which would make any exception "undecided": there must be none."""
    for rules in RULES:
        for given_text, truth in ((one, other), (other, one)):
            equality._by_rules(given_text, truth, rules)
        answer_key(one, rules)
    assert is_equal(one, other) is is_equal(other, one)


def test_an_exception_of_the_rules_is_undecided(monkeypatch):
    def failing(*_):
        raise KeyError("a fault of ours")

    monkeypatch.setattr(equality, "_default", failing)
    assert grade("1", "2") == "undecided" and grade("1", "2").reason == "error"
