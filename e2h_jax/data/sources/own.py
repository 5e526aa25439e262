"""The user's own records, as JSON Lines or as a data set, into training, validation and test splits with a card."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from e2h_jax.data.cards import Card
from e2h_jax.data.holdout import hold_out
from e2h_jax.data.records import Kind, check_rows, read_many, read_records, select_levels
from e2h_jax.data.sources.math import MathIndex, question_key
from e2h_jax.data.sources.rows import Hub, read_rows
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError

SOURCE = "The user's own records."
RULES = [
    "Test and validation problems are held out by the seed, mixed like the whole in subjects and levels; `levels` filters "
    "training and validation.",
    "A question of the test is in no other split, and one of validation not in training; white space does not count.",
]


def read(config: Any, template: Template, index: MathIndex | None, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields (split, record); config: path, test_path, records, levels, valid, test, seed."""
    if not config.path:
        raise UserError('config.path is empty; source "jsonl" needs the file to read.')
    if config.records == "prm":
        card.rules.append("Labelled records as they came, of `levels`.")
        for record in _records(config.path, "labelled"):
            if config.levels and record["level"] not in config.levels:
                card.counts["records of other levels"] += 1
                continue
            yield "train", record
        return
    card.rules += RULES
    problems = list(_records(config.path, "problem"))
    if config.test_path:
        test = list(_records(config.test_path, "problem"))
    else:
        problems, test = hold_out(problems, config.test, f"test-{config.seed}", "config.test")
    outside = _without(problems, test)
    card.counts["problems whose question is in the test"] = len(problems) - len(outside)
    chosen = select_levels(outside, tuple(config.levels))
    rest, valid = hold_out(chosen, config.valid, f"valid-{config.seed}", "config.valid")
    train = _without(rest, valid)
    for split, records in (("train", train), ("valid", valid), ("test", test)):
        yield from ((split, record) for record in records)


def _records(path: str, kind: Kind) -> Iterable[dict]:
    """The records of a file of any format that sources are read from, or of a data set."""
    if Path(path).is_file() and path.endswith((".parquet", ".json", ".json.gz")):
        return check_rows(((row.where, row.value) for row in read_rows(path, Hub(""))), kind)
    return read_records(path, kind) if kind == "labelled" else read_many(path, kind)


def _without(problems: list[dict], held: list[dict]) -> list[dict]:
    asked = {question_key(problem["question"]) for problem in held}
    return [problem for problem in problems if question_key(problem["question"]) not in asked]
