"""The four records that pass between stages, and reading them with every record checked.

They lie in JSON Lines, or in a data set made by `prepare` (arrayrecord.py). One line is one JSON object, UTF-8. Unknown extra
fields are kept. A field whose type allows null may be left out: it reads as None. An optional field (`_OPTIONAL`) that is null
reads as left out. Types are checked, never converted: a number is no text. A lone surrogate, half of a character that UTF-8
cannot hold, reads as U+FFFD. No two records of a source have the same key (`_KEYS`). Whatever is wrong with a line, the
`UserError` names file, line, field and what to write instead.
"""

import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict

from e2h_jax.data.arrayrecord import Place, find_dataset, read_split, shards_of, splits_of
from e2h_jax.errors import UserError, nearest

UNAVAILABLE = "unavailable"  # stands for the answer of a problem that reinforcement learning may not see; see `has_answer`

Kind = Literal["problem", "sample", "scored", "labelled"]


class Problem(TypedDict):
    """A question, with what is known about its answer."""

    id: str  # unique, e.g. "math500/0"
    question: str
    answer: str | None
    level: int | None  # difficulty, 1 (easiest) to 5
    subject: str | None
    solution: str | None  # a reference solution in the template's text format


class Sample(TypedDict):
    """One solution text a generator wrote for a problem."""

    problem_id: str
    sample: int  # 0, 1, 2 … within the problem
    text: str  # what followed the prompt, without the end-of-sequence token
    finish: Literal["stop", "length"]
    logprob: float | None  # sum of the token log-probabilities


class Scored(Sample):
    """A sample with an evaluator's score of every step."""

    step_scores: list[float]  # probabilities, one per step in order; the last one is the final answer's


class Labelled(TypedDict):
    """The training record of all reward models: a labelled continuation of a (possibly empty) prefix of a solution."""

    problem_id: str | None
    question: str
    prefix: str  # steps already made, not trained on
    steps: list[str]
    labels: list[float | None]  # per step: 1 right, 0 wrong, soft in between, null = not trained on
    level: int | None


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # false for nan, and for integers beyond floats


def _is_probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # false for nan


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_level(value: Any) -> bool:
    return value is None or (type(value) is int and 1 <= value <= 5)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(check, value))


_NULLABLE_TEXT = (_or_null(_is_text), "text or null")
_TEXT = (_is_text, "text")
_BOOL = (lambda v: type(v) is bool, "true or false")
_LEVEL = (_is_level, "an integer from 1 to 5, or null")

# Field -> (check, what to write). A field whose check accepts None may be absent.
_PROBLEM = {
    "id": (lambda v: type(v) is str and v != "", "text that is not empty"),
    "question": _TEXT,
    "answer": _NULLABLE_TEXT,
    "level": _LEVEL,
    "subject": _NULLABLE_TEXT,
    "solution": _NULLABLE_TEXT,
}
_SAMPLE = {
    "problem_id": _TEXT,
    "sample": (lambda v: type(v) is int and v >= 0, "an integer from 0"),
    "text": _TEXT,
    "finish": (lambda v: v in ("stop", "length"), '"stop" or "length"'),
    "logprob": (_or_null(_is_finite), "a finite number or null"),
}
_SCORED = _SAMPLE | {"step_scores": (_list_of(_is_probability), "a list of probabilities in [0, 1]")}
_LABELLED = {
    "problem_id": _NULLABLE_TEXT,
    "question": _TEXT,
    "prefix": _TEXT,
    "steps": (_list_of(lambda v: type(v) is str and not v.isspace() and v != ""), "a list of texts that are not blank"),
    "labels": (_list_of(_or_null(_is_probability)), "a list of numbers in [0, 1] or null"),
    "level": _LEVEL,
}
_FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "problem": _PROBLEM,
    "sample": _SAMPLE,
    "scored": _SCORED,
    "labelled": _LABELLED,
}
# Fields that a stage reads where they are there; null = left out.
_OPTIONAL: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "problem": {"prefix": _TEXT, "eos": _BOOL, "gt_answer": _TEXT},
    "sample": {},
    "scored": {},
    "labelled": {"eos": _BOOL},
}
# What no two records of a source share. A problem twice would count twice in an accuracy, a sample twice would vote twice.
_KEYS: dict[str, tuple[str, ...]] = {"problem": ("id",), "sample": ("problem_id", "sample"), "scored": ("problem_id", "sample")}
_STEMS = {"problem": "problems", "sample": "samples", "scored": "scored", "labelled": "labelled"}
_ABSENT = object()


def _check(record: Any, kind: str, where: Callable[[], str]) -> dict:
    """Returns `record` with absent nullable fields set to None and without optional ones that are null; raises UserError for
    the first field that is wrong.

    `where` is called only for a bad record, so that good ones pay nothing for their address.
    """
    if type(record) is not dict:
        raise UserError(f'{where()}: a line must be one JSON object, such as {{"id": "my/0", …}}, not {_shown(record)}.')
    for field, (check, wanted) in _FIELDS[kind].items():
        value = record.get(field, _ABSENT)
        if value is _ABSENT:
            if not check(None):
                close = nearest(field, [name for name in record if name not in _FIELDS[kind]])
                raise UserError(f'{where()}: field "{field}" is missing{close}: it must be {wanted}.')
            record[field] = None
        elif not check(value):
            raise _wrong(where, field, value, check, wanted)
    for field, (check, wanted) in _OPTIONAL[kind].items():
        value = record.get(field)
        if value is None:
            record.pop(field, None)
        elif not check(value):
            raise _wrong(where, field, value, check, wanted)
    if kind == "labelled" and len(record["steps"]) != len(record["labels"]):
        counts = f"{len(record['steps'])} steps but {len(record['labels'])} labels"
        raise UserError(f'{where()}: field "labels" must hold one label per step; there are {counts} (write null to skip one).')
    return record


def _wrong(where: Callable[[], str], field: str, value: Any, check: Callable[[Any], bool], wanted: str) -> UserError:
    as_text = f'; write it as text, "{_shown(value)}"' if type(value) in (int, float) and check("0") else ""
    return UserError(f'{where()}: field "{field}" must be {wanted}, not {_shown(value, check)}{as_text}.')


def _shown(value: Any, check: Callable[[Any], bool] | None = None) -> str:
    """A short rendering of a refused value; of a list, the first element that is refused on its own."""
    if type(value) is list and check is not None and check([]):
        for index, item in enumerate(value):
            if not check([item]):
                return f"{_shown(item)} at index {index}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


_OTHER_FORMATS = (".parquet", ".arrow", ".feather", ".csv", ".tsv", ".xlsx", ".npz", ".zip", ".tar", ".zst", ".xz", ".bz2")


def _files(path: Path, kind: str) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() in _OTHER_FORMATS:
            remedy = "`e2h prepare` with source jsonl reads Parquet" if path.suffix == ".parquet" else "convert it"
            raise UserError(f"{path}: a {path.suffix} file, where JSON Lines are read (.jsonl, .jsonl.gz); {remedy}.")
        return [path]
    if path.is_dir():
        shards = sorted(path.glob(f"{_STEMS[kind]}-*.jsonl")) + sorted(path.glob(f"{_STEMS[kind]}-*.jsonl.gz"))
        if shards:
            return shards
        found = ", ".join(sorted(p.name for p in path.glob("*.jsonl*"))[:8]) or "no .jsonl file"
        raise UserError(f"{path}: this folder has no {_STEMS[kind]}-*.jsonl; it has {found}. Name the file itself.")
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    missing = path.relative_to(parent).parts[0]
    hint = nearest(missing, (p.name for p in parent.iterdir()))
    if parent == path.parent:
        raise UserError(f"{path}: there is no such file or folder{hint}.")
    raise UserError(f'{path}: there is no such file, nor a folder "{missing}" in {parent.resolve()}{hint}.')


def json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yields (line number from 1, parsed value) of a .jsonl or .jsonl.gz file; blank lines are skipped."""
    path = Path(path)
    for number, line in _lines(path):
        yield number, _parsed(path, number, line)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        # Binary, so that only b"\n" ends a line: str.splitlines would also cut at U+2028 inside a text.
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip file after line {number} ({error}).") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _parsed(path: Path, number: int, line: bytes) -> Any:
    try:
        value = json.loads(line)
        return without_surrogates(value) if _SURROGATE.search(line) else value
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:  # also integers of thousands of digits, deep nesting
        torn = not line.endswith(b"\n")
        hint = " The line has no end: was its writer killed? Run that stage again." if torn else ""
        raise UserError(f"{path}:{number}: not valid JSON ({error}).{hint}") from None


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # half of an escaped pair, too; json.loads takes both
_LONE = re.compile("[\ud800-\udfff]")


def without_surrogates(value: Any) -> Any:
    """A JSON value with U+FFFD for each lone surrogate in its texts: UTF-8 has none, so that no tokenizer reads them."""
    if isinstance(value, str):
        return value if value.isascii() else _LONE.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(name): without_surrogates(item) for name, item in value.items()}
    return value


def _dataset(path: str | Path, kind: str) -> Place | None:
    if not str(path):
        raise UserError(f"no path of {kind} records is given; set the field of the config that names it.")
    return find_dataset(path)


def files_of(path: str | Path, kind: Kind) -> list[Path]:
    """The files that `read_records` reads, in their order. Raises UserError if there are none."""
    if (place := _dataset(path, kind)) is not None:
        splits = [place.split] if place.split else splits_of(place.folder)
        return [shard for split in splits for shard in shards_of(place.folder, split)]
    return _files(Path(path), kind)


def _read(path: str | Path, kind: str, first: int = 0, step: int = 1) -> Iterator[tuple[Callable[[], str], dict]]:
    if kind not in _FIELDS:
        raise ValueError(f"unknown kind of record {kind!r}")
    if (place := _dataset(path, kind)) is not None:
        counts = splits_of(place.folder)
        for split in [place.split] if place.split else counts:
            for address, record in read_split(place.folder, split, kind, first, step):
                yield partial(str, address), _check(record, kind, partial(str, address))
            first = (first - counts[split]) % step  # in the next split
        return
    lines = ((file, number, line) for file in _files(Path(path), kind) for number, line in _lines(file))
    for file, number, line in islice(lines, first, None, step):
        where = partial("{}:{}".format, file, number)
        yield where, _check(_parsed(file, number, line), kind, where)


def _unique(kind: str, records: Iterable[tuple[Callable[[], str], dict]]) -> Iterator[dict]:
    """The records; UserError for one with the key (`_KEYS`) of an earlier one, with both addresses."""
    names = _KEYS.get(kind, ())
    seen: dict[Hashable, Callable[[], str]] = {}
    for where, record in records:
        if names:
            key = tuple(record[name] for name in names)
            if seen.setdefault(key, where) is not where:
                field, shown = ", ".join(names), _shown(list(key) if len(key) > 1 else key[0])
                raise UserError(f'{where()}: field "{field}" repeats {shown} of {seen[key]()}; remove one of them.')
        yield record


def read_records(path: str | Path, kind: Kind, first: int = 0, step: int = 1) -> Iterator[dict]:
    """Yields the checked records of a .jsonl or .jsonl.gz file, of all shards of a folder (`samples-*.jsonl`, …), or of
    a prepared data set: its folder (all splits) or FOLDER/SPLIT.

    With `first` < `step` it is a slice: records first, first + step, … (from 0). Of JSON Lines the others are passed over, of a
    data set they are not read.

    Raises:
      UserError: names file:line and field, and the remedy; also for a record with the key of an earlier one of the slice (a
        problem's id, a sample's problem_id and number).
    """
    yield from _unique(kind, _read(path, kind, first, step))


def read_many(path: str | Path, kind: Kind, first: int = 0, step: int = 1) -> list[dict]:
    """`read_records` as a list. UserError also where there is no record at all."""
    records = list(read_records(path, kind, first, step))
    if not records and next(_read(path, kind), None) is None:
        raise UserError(f"{path}: no record is in it; give a file of {kind} records.")
    return records


def check_record(record: dict, kind: Kind, where: str) -> dict:
    """Checks one record made in memory; an error begins with `where`."""
    return _check(record, kind, lambda: where)


def check_rows(rows: Iterable[tuple[str, dict]], kind: Kind) -> list[dict]:
    """Checks (where, record) from elsewhere, as `read_records` does; an error begins with the record's `where`."""
    return list(_unique(kind, ((partial(str, where), _check(record, kind, partial(str, where))) for where, record in rows)))


def check_records(records: Iterable[dict], kind: Kind, origin: str) -> list[dict]:
    """Checks records made in memory, as by a converter; errors name `origin` and the record's number from 1."""
    return check_rows(((f"{origin}, record {n}", record) for n, record in enumerate(records, start=1)), kind)


def has_answer(problem: Mapping[str, Any]) -> bool:
    """Whether a problem has an answer to grade against: it is not null, blank, or hidden ("unavailable", in any letters)."""
    return (problem["answer"] or "").strip().lower() not in ("", UNAVAILABLE)


def select_levels(problems: list[dict], levels: tuple[int, ...]) -> list[dict]:
    """The problems (or any records with a level) of these levels in their order; () = all.

    Raises:
      UserError: when a level has no problem.
    """
    if not levels:
        return list(problems)
    check_present({problem["level"] for problem in problems}, levels)
    wanted = set(levels)
    return [problem for problem in problems if problem["level"] in wanted]


def check_present(present: Set[int | None], levels: Sequence[int]) -> None:
    """Raises UserError when one of `levels` is not among the levels that are present."""
    for level in levels:
        if level not in present:
            known = ", ".join(str(p) for p in sorted(p for p in present if p is not None)) or "none"
            raise UserError(f"levels: no problem has level {level}; the levels present are: {known}.")
