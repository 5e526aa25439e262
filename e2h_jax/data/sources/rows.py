"""Raw rows of a source, one at a time: from the Hugging Face Hub by name, or from a local file or folder.

What `config.path` may name:

  ""                        the source's usual data set on the Hub (`Hub` below; each source module has one)
  "owner/name"              another data set of the Hub with the same fields
  a file                    .jsonl, .json (one list), .parquet, each of them also with .gz
  a folder                  all such files in it and below, by name

Hub data sets and Parquet files are streamed by the `datasets` library, JSON Lines line by line, so memory stays small
whatever the size. A file's split is its name's: "phase2_train.jsonl" is of "train", "test-00000-of-00001.parquet" of "test".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from e2h_jax.data.records import json_lines, without_surrogates
from e2h_jax.errors import UserError, nearest

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_ABOUT = ("dataset_info.json", "dataset_infos.json")  # of the Hub, about the rows
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT = re.compile(r"(?<![a-z])(train|test|valid|validation)(?![a-z])")


@dataclass(frozen=True)
class Hub:
    """Where a source lives on the Hugging Face Hub.

    Attributes:
      name: "owner/name".
      subsets: the Hub's "configs", () = the only one.
      lines: files of JSON Lines to read as text, line by line, because their nested fields change type between lines,
        which the Hub's own JSON reader cannot stream; {split: file names}; None = let the Hub's description decide.
    """

    name: str
    subsets: tuple[str, ...] = ()
    lines: dict[str, tuple[str, ...]] | None = None


class Row(NamedTuple):
    """One row, with its address for error messages ("file:line") and the split its file or Hub split names."""

    where: str
    split: str | None
    value: dict


def read_rows(path: str, hub: Hub, field: str = "config.path") -> Iterator[Row]:
    """Yields all rows that `path` names (top of this file); files in the order of their names.

    Args:
      field: the config's name for `path`, for the remedies of errors.

    Raises:
      UserError: nothing is there, the Hub cannot be reached, or a row is not an object.
    """
    local = Path(path)
    if path and local.is_file():
        yield from _file(local, field)
    elif path and local.is_dir():
        files = sorted(p for p in local.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES) and p.name not in _ABOUT)
        if not files:
            raise UserError(f"{path}: no {', '.join(SUFFIXES)} file is in this folder or below.")
        for file in files:
            yield from _file(file, field)
    elif not path or (_HUB_NAME.fullmatch(path) and not local.parent.is_dir()):
        yield from _hub(hub if path in ("", hub.name) else Hub(path), field)
    else:
        others = [p.name for p in local.parent.iterdir()] if local.parent.is_dir() else []
        raise UserError(f"{path}: there is no such file or folder{nearest(local.name, others)}.")


def split_of(name: str) -> str | None:
    """The split a file name tells; None when it tells none, or more than one."""
    found = {"valid" if split == "validation" else split for split in _SPLIT.findall(name.lower())}
    return found.pop() if len(found) == 1 else None


def _file(path: Path, field: str) -> Iterator[Row]:
    split = split_of(path.name)
    if path.suffix == ".parquet":
        for row in _stream("parquet", str(path), field, files={"all": str(path)}):
            yield row._replace(split=split)
        return
    for number, value in json_lines(path) if ".jsonl" in path.name else _json_list(path):
        yield Row(f"{path}:{number}", split, _object(value, f"{path}:{number}"))


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, entry) of a .json file that holds one list."""
    import gzip
    import json

    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        entries = without_surrogates(json.loads(content))
    except (OSError, ValueError, EOFError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: a .json file must hold one list of objects; name files of one object per line .jsonl.")
    yield from enumerate(entries, start=1)


def _hub(hub: Hub, field: str) -> Iterator[Row]:
    if hub.lines is not None:
        files = {split: [f"hf://datasets/{hub.name}/{file}" for file in names] for split, names in hub.lines.items()}
        yield from _stream("text", hub.name, field, files=files)
        return
    for subset in hub.subsets or (None,):
        yield from _stream(hub.name, hub.name, field, subset=() if subset is None else (subset,))


def _stream(builder: str, shown: str, field: str, subset: Sequence[str] = (), files: Any = None) -> Iterator[Row]:
    """Rows of `datasets.load_dataset(builder, *subset, data_files=files, streaming=True)`, split by split."""
    import json
    import logging

    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
    try:
        loaded = datasets.load_dataset(builder, *subset, data_files=files, streaming=True)
        for split, rows in loaded.items():
            for number, value in enumerate(rows, start=1):
                where = f"{shown} ({'/'.join([*subset, split])}):{number}"
                if builder == "text":
                    value = without_surrogates(json.loads(value["text"]))
                yield Row(where, "valid" if split == "validation" else split, _object(value, where))
    except UserError:
        raise
    except Exception as error:  # no network, no such data set, not its fields: the classes are the HTTP client's and Arrow's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if Path(shown).is_file():
            raise UserError(f"{shown}: cannot be read ({reason}).") from error
        remedy = f"check the name and the network, or download it (hf download --repo-type dataset {shown} --local-dir DIR)"
        raise UserError(f"{shown}: cannot be read from the Hub ({reason}); {remedy} and set {field}=DIR.") from error


def _object(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a row must be one JSON object, not {str(value)[:40]!r}.")
    return value


def text_field(row: Row, *names: str) -> str:
    """The text in the first of `names` that the row has.

    Raises:
      UserError: there is none, or it is not text.
    """
    for name in names:
        if isinstance(row.value.get(name), str):
            return row.value[name]
    close = nearest(names[0], [name for name in row.value if name not in names])
    raise UserError(f'{row.where}: field "{names[0]}" is missing or not text{close}; is this the right source?')
