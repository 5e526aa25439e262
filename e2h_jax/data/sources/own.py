"""The user's own records, as JSON Lines or as a data set, into training, validation and test splits with a card."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from e2h_jax.data.cards import Card
from e2h_jax.data.holdout import hold_out
from e2h_jax.data.records import Kind, check_rows, json_lines, read_many, read_records, select_levels
from e2h_jax.data.sources.math import MathIndex, question_key
from e2h_jax.data.sources.rows import Hub, read_rows
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError, nearest

SOURCE = "The user's own records."
RULES = [
    "Test and validation problems are held out by the seed, mixed like the whole in subjects and levels; `levels` filters "
    "training and validation.",
    "A question of the test is in no other split, and one of validation not in training; white space does not count.",
]


def check(config: Any) -> None:
    """Raises UserError for a `level_map` that maps to what is no level."""
    _Levels(config.level_field, config.level_map)


def read(config: Any, template: Template, index: MathIndex | None, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields (split, record); config: path, test_path, records, levels, level_field, level_map, valid, test, seed."""
    if not config.path:
        raise UserError('config.path is empty; source "jsonl" needs the file to read.')
    levels = _Levels(config.level_field, config.level_map)
    if config.records == "prm":
        card.rules.append("Labelled records as they came, of `levels`.")
        for record in _records(config.path, "labelled", levels):
            if config.levels and record["level"] not in config.levels:
                card.counts["records of other levels"] += 1
                continue
            yield "train", record
        return
    card.rules += RULES
    problems = list(_records(config.path, "problem", levels))
    if config.test_path:
        test = list(_records(config.test_path, "problem", levels))
    else:
        problems, test = hold_out(problems, config.test, f"test-{config.seed}", "config.test")
    outside = _without(problems, test)
    card.counts["problems whose question is in the test"] = len(problems) - len(outside)
    chosen = select_levels(outside, tuple(config.levels))
    rest, valid = hold_out(chosen, config.valid, f"valid-{config.seed}", "config.valid")
    train = _without(rest, valid)
    for split, records in (("train", train), ("valid", valid), ("test", test)):
        yield from ((split, record) for record in records)


class _Levels:
    """Levels of records whose own say it in another field, or in other words."""

    def __init__(self, field: str, levels: Mapping[str, object]):
        """UserError for a level that is none in the table `levels`."""
        self._field, self._levels, self.needed = field or "level", {}, bool(field or levels)
        for value, level in levels.items():
            if str(level) not in ("1", "2", "3", "4", "5"):
                raise UserError(f"config.level_map.{value}={level}: a level is 1, 2, 3, 4 or 5.")
            self._levels[value] = int(level)

    def set(self, record: object, where: str) -> object:
        """The record with its level; UserError for a value that stands for none. What is no record is left to its check."""
        if not self.needed or not isinstance(record, dict):
            return record
        if self._field not in record:
            close = nearest(self._field, record)
            raise UserError(f'{where}: field "{self._field}" (config.level_field) is missing{close}; null is no level.')
        value = record[self._field]
        level = self._levels.get(str(value), value)
        if level is not None and (type(level) is not int or not 1 <= level <= 5):
            shown, remedy = json.dumps(value, ensure_ascii=False)[:60], "say which it is, --config.level_map.VALUE=LEVEL"
            raise UserError(f'{where}: field "{self._field}" must be a level from 1 to 5, or null, not {shown}; {remedy}.')
        return record | {"level": level}


def _records(path: str, kind: Kind, levels: _Levels) -> Iterable[dict]:
    """The records of a file of any format that sources are read from, or of a data set."""
    if Path(path).is_file() and path.endswith((".parquet", ".json", ".json.gz")):
        rows = ((row.where, row.value) for row in read_rows(path, Hub("")))
    elif Path(path).is_file() and levels.needed:  # before its `level` is checked
        rows = ((f"{path}:{number}", value) for number, value in json_lines(path))
    elif levels.needed:
        rows = ((f"{path}: record {number}", record) for number, record in enumerate(read_records(path, kind), start=1))
    else:
        return read_records(path, kind) if kind == "labelled" else read_many(path, kind)
    return check_rows(((where, levels.set(record, where)) for where, record in rows), kind)


def _without(problems: list[dict], held: list[dict]) -> list[dict]:
    asked = {question_key(problem["question"]) for problem in held}
    return [problem for problem in problems if question_key(problem["question"]) not in asked]
