"""Grading one answer: `is_equal`, `grade` and `answer_key`, by one of three sets of rules.

`strict`   the easy-to-hard paper's (PRM800K's string rules, no algebra): for comparison with published numbers
`default`  mathematically right: values, sets, tuples, intervals, matrices, equations, units, words
`numeric`  one number, as in GSM8K: the number that the answer holds

Nothing is evaluated by Python or by a computer algebra system, and no step takes unbounded time or memory: the answer is
untrusted text. docs/grading.md has the conventions of each set, and how they compare with other graders.
"""

import functools
import numbers
import re
from decimal import Decimal
from fractions import Fraction

from e2h_jax.grading import strict
from e2h_jax.grading.answer import MAX_LENGTH, Answer, read
from e2h_jax.grading.compare import same
from e2h_jax.grading.numerals import NUMBER_WORDS, SCALES
from e2h_jax.grading.tree import Collection, Number, Quantity, Residue
from e2h_jax.grading.values import UndecidableError, exact

Answered = str | int | float | Fraction | Decimal
RULES = ("strict", "default", "numeric")
_NUMBER = re.compile(r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|-?\$?\.[0-9]+", re.ASCII)
# Words behind a number that its value depends on: `5 lakh`, `5 hundred thousandths`, `it is 5 and a half`.
_SCALED = re.compile(
    rf"[0-9](?:[\s-]+(?:{'|'.join((*SCALES, 'lakh', 'crore', 'myriad', 'googol', 'squared', 'cubed', 'factorial'))})"
    rf"|\s+and\s+(?:an?\s+)?(?:{'|'.join(NUMBER_WORDS)}))\b",
    re.IGNORECASE,
)


class Verdict(str):
    """ "correct", "wrong" or "undecided", with the reason. Compares and prints as the plain word; true when correct.

    Reasons: text (the same spelling), same, different, strict, number; empty, too_long, unparsable (of the answer),
    unparsable_reference, undecidable (neither equal nor different could be shown), memory, error (a fault of the grader).
    "undecided" comes with these four and too_long: count it as wrong, and show how many there were.
    """

    reason: str

    def __new__(cls, word: str, reason: str = "") -> "Verdict":
        verdict = super().__new__(cls, word)
        verdict.reason = reason
        return verdict

    def __bool__(self) -> bool:
        return str.__eq__(self, "correct")

    def __reduce__(self):
        return Verdict, (str(self), self.reason)


def is_equal(prediction: Answered | None, reference: Answered, rules: str = "default") -> bool:
    """Returns whether `prediction`, untrusted text, is the answer `reference`; undecided is False.

    Raises:
      ValueError: no such rules. Nothing else, whatever the texts.
    """
    return grade(prediction, reference, rules) == "correct"


def grade(prediction: Answered | None, reference: Answered, rules: str = "default") -> Verdict:
    """Returns the verdict on `prediction`, untrusted text, against `reference`.

    Numbers are read as they print: `grade(72, "72")` is correct. None (no answer) and anything else that is neither text nor
    number is wrong; as a reference it makes the answer undecided.

    Raises:
      ValueError: no such rules. Nothing else, whatever the texts.
    """
    if rules not in RULES:
        raise ValueError(f'there are no rules "{rules}"; use {", ".join(RULES)}')
    prediction, reference = as_text(prediction), as_text(reference)
    if prediction is None or not prediction.strip():
        return Verdict("wrong", "empty")
    if reference is None:
        return Verdict("undecided", "unparsable_reference")
    try:
        return _by_rules(prediction, reference, rules)
    except MemoryError:
        return Verdict("undecided", "memory")
    except Exception:  # no text may end a run; the tests look for this reason and find none
        return Verdict("undecided", "error")


def as_text(answer: object) -> str | None:
    """Returns an answer as text: a number (72, 0.5, Fraction(1, 3), NumPy's) as it is printed; None for what is neither.

    Infinite floats and nan are None, and so are True and False.
    """
    if isinstance(answer, str):
        return answer
    if not isinstance(answer, (numbers.Real, Decimal)) or isinstance(answer, bool):
        return None
    try:
        text = str(answer)
    except ValueError:  # more digits than Python prints
        return None
    return text if text.lstrip("-")[:1].isdigit() else None


def _by_rules(prediction: str, reference: str, rules: str) -> Verdict:
    if max(len(prediction), len(reference)) > MAX_LENGTH:
        given, truth = prediction.strip(), reference.strip()
        if given == truth:
            return Verdict("correct", "text")
        if max(len(given), len(truth)) > MAX_LENGTH:
            return Verdict("undecided", "too_long")
        prediction, reference = given, truth
    match rules:
        case "strict":
            return Verdict("correct" if strict.same_strictly(prediction, reference) else "wrong", "strict")
        case "numeric":
            return _numeric(prediction, reference)
    return _default(prediction, reference)


@functools.lru_cache(maxsize=1 << 16)
def _default(prediction: str, reference: str) -> Verdict:
    given, truth = read(prediction), read(reference)
    if given.problem in ("empty", "too_long") or (given.problem and not given.spelling):
        return Verdict("wrong", given.problem)
    if given.spelling == truth.spelling:
        return Verdict("correct", "text")
    if truth.problem:
        return Verdict("undecided", "unparsable_reference")
    if given.problem:
        return Verdict("wrong", given.problem)
    try:
        return Verdict("correct", "same") if _same(given, truth) else Verdict("wrong", "different")
    except (UndecidableError, RecursionError, ArithmeticError, ValueError):
        return Verdict("undecided", "undecidable")


def _same(given: Answer, truth: Answer) -> bool:
    if same(given.node, truth.node):
        return True
    for one, other in ((given, truth), (truth, given)):  # 81,256 may be a list where the other answer is one for certain
        if one.other is not None and other.other is None and type(other.node) is Collection and same(one.other, other.node):
            return True
    return False


def _numeric(prediction: str, reference: str) -> Verdict:
    try:
        given, truth = _number(prediction), _number(reference)
    except UndecidableError:
        return Verdict("undecided", "undecidable")
    if truth is None:
        return Verdict("undecided", "unparsable_reference")
    if given is None:
        return Verdict("wrong", "unparsable")
    return Verdict("correct" if given == truth else "wrong", "number")


def _number(text: str) -> Fraction | None:
    """Returns the number of an answer: after `####` where that stands, the value of the whole, or the only number in it.

    Other words do not count (`5 apples`), but UndecidableError for those that scale the number and could not be read.
    """
    text = text.rpartition("####")[2].strip()
    node, rest = read(text).node, ""
    if type(node) is Quantity:
        node, rest = node.value, f"1 {node.unit}"
    elif type(node) is Residue:
        node = node.value
    value = None if node is None or type(node) is Collection else exact(node)
    if _SCALED.search(text if value is None else rest):
        raise UndecidableError
    if value is not None:
        return value
    found = [match.replace("$", "").replace(",", "") for match in _NUMBER.findall(text.replace(r"\$", "$").replace(r"\!", ""))]
    return Fraction(found[0]) if len(found) == 1 and len(found[0]) < 400 else None


def answer_key(answer: Answered, rules: str = "default") -> str:
    """Returns a form that equal answers often share: the cheap first step of grouping (`groups.py` takes the second)."""
    answer = as_text(answer) or ""
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    match rules:
        case "strict":
            return strict.strict_key(answer)
        case "numeric":
            try:
                value = _number(answer)
            except UndecidableError:
                value = None
            return answer.strip() if value is None else f"={value.numerator:x}/{value.denominator:x}"
    seen = read(answer)
    value = exact(seen.node) if type(seen.node) is Number else None
    if value is not None:
        return f"={value.numerator:x}/{value.denominator:x}"
    return seen.spelling or answer.strip()
