"""MATH (Hendrycks et al. 2021): problems with levels 1 to 5, in either of its two splits, and the index of its questions.

A row has `problem`, `solution`, `level` (1 … 5, "Level 3", or null), `subject` or `type`, and `answer`; without an answer it
is what the solution's last \\boxed{…} holds. The two splits:

  hendrycks   7,500 train, 5,000 test
  prm800k     12,000 train, 500 test (MATH500): PRM800K moved 4,500 of the test problems to train

A row's side is found in this order: its own fields `split` and `in_math500`; its question is one of MATH500's, where that is
given (`test_path`); the split that its file or Hub split names.
"""

from collections.abc import Iterator
from typing import NamedTuple

from e2h_jax.data.cards import Card
from e2h_jax.data.records import check_record
from e2h_jax.data.sources.rows import Hub, Row, read_rows, text_field
from e2h_jax.data.sources.sentences import solution_steps
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError
from e2h_jax.grading.extract import extract_answer

HENDRYCKS = Hub(
    "EleutherAI/hendrycks_math",
    subsets=(
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    ),
)
MATH500 = Hub("HuggingFaceH4/MATH-500")
SPLITS = ("hendrycks", "prm800k")


class MathProblem(NamedTuple):
    """A problem of MATH and the sides it is on; a side is None where the rows do not tell."""

    record: dict
    hendrycks: str | None
    prm800k: str | None


def question_key(question: str) -> str:
    """Two questions with the same key are the same question: white space does not count."""
    return "".join(question.split())


def level_of(value: object) -> object:
    """An integer from "Level 3" or "3"; None from "Level ?"; anything else as it is, for the record check to judge."""
    if isinstance(value, str) and (word := value.removeprefix("Level ").strip()) in ("1", "2", "3", "4", "5", "?"):
        return None if word == "?" else int(word)
    return value


def read_math(
    path: str, test_path: str, template: Template, card: Card, fields: tuple[str, str] = ("config.path", "config.test_path")
) -> Iterator[MathProblem]:
    """Yields the problems of MATH, a few of which come twice; rows without an answer are counted and left out.

    Args:
      path: where the 12,500 are ("" = the Hub), see rows.py.
      test_path: where MATH500 is, needed only if the rows of `path` do not tell it; "hub" = the Hub.
      fields: the config's names for these two.
    """
    held: set[str] | None = None if test_path else set()
    names: dict[str, int] = {}
    for row in read_rows(path, HENDRYCKS, fields[0]):
        if held is None and "in_math500" not in row.value:
            rows = read_rows("" if test_path == "hub" else test_path, MATH500, fields[1])
            held = {question_key(text_field(held_row, "problem")) for held_row in rows}
        question = text_field(row, "problem").strip()
        solution = text_field(row, "solution")
        answer = row.value.get("answer")
        answer = extract_answer(solution, "boxed") if answer in (None, "") else answer
        if answer is None or not str(answer).strip():
            card.counts["rows without an answer"] += 1
            continue
        origin = row.value.get("split", row.split)
        if not isinstance(origin, str | None):
            raise UserError(f'{row.where}: field "split" must be text or null, not {origin!r}.')
        stem = f"math/{origin or 'all'}"
        number = names[stem] = names.get(stem, -1) + 1
        record = {
            "id": f"{stem}/{row.value.get('index', number)}",
            "question": question,
            "answer": answer,
            "level": level_of(row.value.get("level")),
            "subject": row.value.get("subject", row.value.get("type")),
            "solution": template.format_solution(solution_steps(solution), str(answer).strip()),
        }
        yield MathProblem(check_record(record, "problem", row.where), origin, _prm800k_side(row, question, held))


def _prm800k_side(row: Row, question: str, held: set[str] | None) -> str | None:
    if (inside := row.value.get("in_math500")) is not None:
        if type(inside) is not bool:
            raise UserError(f'{row.where}: field "in_math500" must be true or false, not {inside!r}.')
        return "test" if inside else "train"
    if held:
        return "test" if question_key(question) in held else "train"
    return row.split


class Entry(NamedTuple):
    """What the index knows of a question."""

    id: str
    level: int | None
    subject: str | None
    answer: str
    is_test: bool  # on the test side of the split


class MathIndex:
    """Finds a question of another data set in MATH, to give it its level and to keep test problems out of training."""

    def __init__(self, path: str, test_path: str, template: Template, split: str = "prm800k"):
        card = Card("")
        self.by_key: dict[str, Entry] = {}
        for problem in read_math(path, test_path, template, card, ("config.math", "config.math500")):
            side = problem.prm800k if split == "prm800k" else problem.hendrycks
            record = problem.record
            entry = Entry(record["id"], record["level"], record["subject"], record["answer"], side == "test")
            earlier = self.by_key.get(question_key(record["question"]))
            if earlier is None or not earlier.is_test:  # a question on both sides is a test question
                self.by_key[question_key(record["question"])] = entry

    def find(self, question: str) -> Entry | None:
        """The entry of a question with the same key; None if there is none."""
        return self.by_key.get(question_key(question))
