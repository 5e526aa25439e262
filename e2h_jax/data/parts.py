"""Training examples that several processes make together, each from its own slice of the records.

Process p of P makes a *part* from records p, p + P, p + 2P, … A part on disk is a folder `0000p-of-0000P`:

    records.npy    a row of dtype RECORD for each record of the slice
    tokens.npy …   one flat array for each field of the examples, all of its examples one after the other
    part.json      what the part was made from; written last, so a part is there as a whole or not at all

`Examples` puts the parts of any number of processes together again, in the order of the records.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e2h_jax.data.batches import Example
from e2h_jax.data.records import Kind, check_present
from e2h_jax.data.storage import digest, write_json
from e2h_jax.errors import UserError

# What is known of an example without reading its arrays.
FACTS = [
    ("length", np.int32),  # tokens; 0 = the record gives no example
    ("reach", np.int32),  # last position + 1; 0 without positions
    ("labels", np.int32),  # tokens with a step's label
    ("digest", "V16"),  # of all its arrays
]
RECORD = np.dtype([("level", np.int8), ("key", np.uint64), *FACTS])  # level 0 = null; key: stands for a problem's id, else 0


class Part(NamedTuple):
    """What one process has made of its slice."""

    records: np.ndarray  # RECORD [records of the slice]
    fields: dict[str, np.ndarray]  # name -> its arrays of all examples, one after the other


class Examples(Sequence[Example]):
    """The examples of all parts, in the order of the records; records without an example are left out.

    `about` [len] and `records` [records] have dtype RECORD: a row for each example, for each record.
    """

    def __init__(self, parts: Sequence[Part], chosen: np.ndarray | None = None):
        self._parts = parts
        self.records = _in_turn([part.records for part in parts])
        self._starts = _in_turn([np.cumsum(part.records["length"], dtype=np.int64) for part in parts]) - self.records["length"]
        self._chosen = np.flatnonzero(self.records["length"]) if chosen is None else chosen
        self.about = self.records[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        record = self._chosen[index]
        start = self._starts[record]
        where = slice(start, start + self.records["length"][record])
        return {name: array[where] for name, array in self._parts[record % len(self._parts)].fields.items()}

    def first(self, count: int, levels: Sequence[int]) -> "Examples":
        """Those of the first `count` records of these levels (() = of all)."""
        allowed = np.isin(self.records["level"], levels) if levels else np.ones(len(self.records), bool)
        return self.where(np.isin(self._chosen, np.flatnonzero(allowed)[:count]))

    def where(self, mask: np.ndarray) -> "Examples":
        """Those for which the mask, bool [len], is true."""
        return Examples(self._parts, self._chosen[mask])


def _in_turn(slices: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.empty(sum(map(len, slices)), slices[0].dtype)
    for index, values in enumerate(slices):
        whole[index :: len(slices)] = values
    return whole


def about(examples: Sequence[Example]) -> np.ndarray:
    """FACTS [len] of any examples; of `Examples`, what was written down when they were made."""
    if isinstance(examples, Examples):
        return examples.about
    return np.array([_facts(example) for example in examples], FACTS)


def choose(examples: Sequence[Example], mask: np.ndarray) -> Sequence[Example]:
    """`Examples.where` of any examples."""
    if isinstance(examples, Examples):
        return examples.where(mask)
    return [examples[index] for index in np.flatnonzero(mask)]


def _facts(example: Example | None) -> tuple[int, int, int, bytes]:
    if example is None:
        return 0, 0, 0, bytes(16)
    hashed = hashlib.blake2b(digest_size=16)
    for name, array in example.items():
        hashed.update(name.encode() + array.tobytes())
    reach = int(example.get("positions", (-1,))[-1]) + 1
    return len(example["tokens"]), reach, np.count_nonzero(example.get("label_weights", ())), hashed.digest()


def make_part(kind: Kind, records: Sequence[dict], examples: Sequence[Example | None]) -> Part:
    """The part of a slice: its records, and of each its example, None where it gives none."""
    rows = [
        (record["level"] or 0, int.from_bytes(digest(record["id"])) if kind == "problem" else 0, *_facts(example))
        for record, example in zip(records, examples, strict=True)
    ]
    made = [example for example in examples if example is not None]
    names = made[0] if made else ()
    return Part(np.array(rows, RECORD), {name: np.concatenate([example[name] for example in made]) for name in names})


def write_part(part: Part, folder: Path, origin: str) -> None:
    """Writes a part; one that is there is replaced. `origin` tells of everything that it was made from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part.json").unlink(missing_ok=True)
    for name, array in {"records": part.records, **part.fields}.items():
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    write_json(folder / "part.json", {"origin": origin, "fields": list(part.fields)})


def read_part(folder: Path, origin: str) -> Part | None:
    """The part in `folder`, its fields memory-mapped; None when it is not finished, damaged, or of another origin."""
    try:
        told = json.loads((folder / "part.json").read_text())
        if told["origin"] != origin:
            return None
        records = np.load(folder / "records.npy")
        fields = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in told["fields"]}
    except (OSError, ValueError, EOFError, KeyError):
        return None
    whole = records["length"].sum()
    return Part(records, fields) if all(len(array) == whole for array in fields.values()) else None


def find_parts(folder: Path, origin: str) -> list[Part] | None:
    """All parts that some number of processes has made in `folder`; None when there is no number of which all are there."""
    for count in sorted({int(path.name[-5:]) for path in folder.glob("*-of-*")}):
        parts = [read_part(folder / part_name(index, count), origin) for index in range(count)]
        if all(part is not None for part in parts) and _fit(parts):
            return parts
    return None


def _fit(parts: list[Part]) -> bool:
    """Whether the slices are of the same number of records."""
    sizes = [len(part.records) for part in parts]
    return sizes == [len(range(index, sum(sizes), len(parts))) for index in range(len(parts))]


def part_name(index: int, count: int) -> str:
    """The name of the folder of process `index` of `count`."""
    return f"{index:05d}-of-{count:05d}"


def check_records(records: np.ndarray, levels: Sequence[int], path: str) -> None:
    """Checks what no slice shows alone.

    Raises:
      UserError: no record has one of the `levels`, or two records of `path` have one id.
    """
    check_present({level or None for level in np.unique(records["level"]).tolist()}, levels)
    order = np.argsort(records["key"], kind="stable")
    keys = records["key"][order]
    for at in np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] > 0))[:1]:
        first, second = order[at : at + 2] + 1
        raise UserError(f'{path}: records {first} and {second} (counted from 1) have the same "id"; remove one of them.')
