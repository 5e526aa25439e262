"""Grading: find the answer in a solution, decide whether it is right, tell which answers are the same."""

from e2h_jax.grading.equality import RULES, Verdict, answer_key, grade, is_equal
from e2h_jax.grading.extract import RULES as ANSWER_RULES
from e2h_jax.grading.extract import extract_answer
from e2h_jax.grading.groups import group_answers
from e2h_jax.grading.pool import GradingPool, grade_many

__all__ = [
    "ANSWER_RULES",
    "RULES",
    "GradingPool",
    "Verdict",
    "answer_key",
    "extract_answer",
    "grade",
    "grade_many",
    "group_answers",
    "is_equal",
]
