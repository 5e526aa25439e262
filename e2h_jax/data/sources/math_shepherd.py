"""Math-Shepherd (Wang et al. 2024): steps labelled by whether completions from them reach the answer, as PRM records.

Its questions are MATH's, with small changes of writing, and it does not tell their levels. A question gets the level of the
MATH problem with the same text (white space apart); failing that, of those that share its longest beginning, from 49 down to
20 characters, if they all agree on what the level filter asks. If one of them is of MATH500, the question is left out.
"""

from collections.abc import Iterator
from typing import Any

from e2h_jax.data.cards import Card
from e2h_jax.data.sources.math import MathIndex, question_key
from e2h_jax.data.sources.rows import Hub, Row, read_rows, text_field
from e2h_jax.data.sources.sentences import one_paragraph
from e2h_jax.data.storage import digest
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError

HUB = Hub("peiyi9979/Math-Shepherd")
SOURCE = "Math-Shepherd (Wang et al. 2024, peiyi9979/Math-Shepherd, MIT)."
RULES = [
    "Rows of task MATH, and of GSM8K when `tasks` names it; each solution is one record with a label for every step.",
    'The tags and "Step 1: " go; "The answer is: x" becomes the answer section, with the label of the step it was in. A last '
    "step without a label is left out.",
    "Levels: by the exact question, then by the longest shared beginning of 49 to 20 characters; a question whose matches "
    "disagree, or that has none, has no level and is left out by a level filter; one with MATH500 among its matches is "
    "always left out.",
]
DEVIATIONS = [
    "C1: nothing is shuffled here; the training stage shuffles by its seed.",
    "C8: levels come from an exact match before beginnings, the longest beginning before shorter ones, and from none "
    "shorter than 20 characters (original: any unlisted beginning of 5 to 49 characters could make a hard question easy).",
    "Every solution has its level as a number where the matches agree (original: easy or hard).",
    "A malformed row is counted and passed over (original: it stopped the run).",
    "A solution that comes twice is kept once.",
]
TAG = "ки"
PREFIXES = range(49, 19, -1)


class Levels:
    """Levels of MATH's problems by question, exact or by beginning."""

    def __init__(self, index: MathIndex):
        self._exact: dict[str, set[int | str | None]] = {
            key: {"test" if entry.is_test else entry.level} for key, entry in index.by_key.items()
        }
        self._beginnings: dict[str, set[int | str | None]] = {}
        for key, found in self._exact.items():
            for length in PREFIXES:
                if length < len(key):
                    self._beginnings.setdefault(key[:length], set()).update(found)

    def find(self, question: str) -> tuple[set[int | None], str]:
        """The possible levels of a question, and how they were found: "exact", "beginning", "test" or "none"."""
        key = question_key(question)
        found, how = self._exact.get(key, set()), "exact"
        if not found:
            longest = next((key[:n] for n in PREFIXES if key[:n] in self._beginnings), "")
            found, how = (self._beginnings[longest], "beginning") if longest else (set(), "none")
        return (set(), "test") if "test" in found else (found, how)


def parse(text: str, label: str, template: Template) -> tuple[str, list[str], list[float]] | None:
    """Question, steps and labels of one row; None when tags and labels do not fit together, or a labelled step has no text."""
    question, marker, rest = text.partition(" Step 1: ")
    label_question, label_marker, label_rest = label.partition(" Step 1: ")
    if not marker or not label_marker or question != label_question:
        return None
    steps: list[str] = []
    labels: list[float] = []
    at = 0
    for number, piece in enumerate(rest.split(TAG), start=1):
        if label_rest[at : at + len(piece)] != piece:
            return None
        at += len(piece)
        mark = label_rest[at : at + 1]
        body = piece.strip().removeprefix(f"Step {number}:").strip()
        if not mark:  # what follows the last tag has no label
            break
        if mark not in "+-":
            return None
        at += 1
        reasoning, announced, answer = body.partition("The answer is:")
        parts = [one_paragraph(reasoning)] if reasoning.strip() else []
        if announced and answer.strip():
            parts += template.format_steps([], answer.strip())
        if not parts:  # a label of nothing
            return None
        steps += parts
        labels += [1.0 if mark == "+" else 0.0] * len(parts)
    return (question.strip(), steps, labels) if steps else None


def records(config: Any, template: Template, index: MathIndex, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields ("train", labelled record); config: path, levels, tasks."""
    card.rules += RULES
    card.deviations += DEVIATIONS
    if not config.tasks or set(config.tasks) - {"MATH", "GSM8K"}:
        raise UserError(f"config.tasks={tuple(config.tasks)!r} must name MATH, GSM8K or both.")
    levels_of, seen = Levels(index), set()
    for row in read_rows(config.path, HUB):
        card.counts["rows read"] += 1
        task = text_field(row, "task")
        if task not in config.tasks:
            card.counts["rows of another task"] += 1
            continue
        parsed = parse(text_field(row, "input"), text_field(row, "label"), template)
        if parsed is None:
            card.counts["malformed rows"] += 1
            continue
        question, steps, labels = parsed
        found, how = levels_of.find(question) if task == "MATH" else (set(), "none")
        if task == "MATH":
            card.counts[f"levels found: {how}"] += 1
        if how == "test" or not _kept(found, config.levels):
            card.counts["rows of another level, of none, or of MATH500"] += 1
            continue
        if (key := digest(question, *steps)) in seen:
            card.counts["rows that came before"] += 1
            continue
        seen.add(key)
        level = next(iter(found)) if len(found) == 1 else None
        yield "train", _record(row, index, question, steps, labels, level) | {"task": task}


def _kept(found: set[int | None], levels: tuple[int, ...]) -> bool:
    return not levels or bool(found) and found <= set(levels)


def _record(row: Row, index: MathIndex, question: str, steps: list, labels: list, level: int | None) -> dict:
    entry = index.find(question)
    return {
        "problem_id": entry.id if entry else None,
        "question": question,
        "prefix": "",
        "steps": steps,
        "labels": labels,
        "level": level,
    }
