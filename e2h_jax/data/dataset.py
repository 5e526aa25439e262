"""Writing a prepared data set: as TFDS/ArrayRecord or as JSON Lines, whole or not at all, with its card.

Everything is written into a hidden folder beside the final place and renamed when complete, so an interrupted run leaves
nothing that could be taken for finished: the next one starts the data set from its beginning. (The largest source takes two
minutes, and what is a duplicate depends on all that came before: taking up half a data set would have to read it anyway.)
A finished data set is never overwritten, nor is any other file.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from e2h_jax.data.arrayrecord import VERSION, DatasetWriter, find_dataset
from e2h_jax.data.cards import Card, render, write_card
from e2h_jax.data.records import check_record, read_records
from e2h_jax.data.storage import json_line
from e2h_jax.errors import UserError, nearest

FORMATS = ("tfds", "jsonl")


def write_dataset(
    workdir: Path,
    name: str,
    kind: str,
    stream: Iterable[tuple[str, dict]],
    card: Card,
    config: dict,
    defaults: dict,
    form: str,
) -> dict:
    """Writes a stream of (split, record) and the card into `dataset_folder`; returns the card's facts.

    If the data set is there already from the same config, nothing is written. An older version's may lack fields of `config`:
    they had their `defaults`.

    Raises:
      UserError: another data set of this name is there, or nothing at all came of the source.
    """
    check_format(form)
    final = dataset_folder(workdir, name, form)
    if (final / "card.json").is_file():
        facts = json.loads((final / "card.json").read_text(encoding="utf-8"))
        if defaults | facts["config"] != config:
            raise UserError(f"{final} holds a data set made with another config; use another --workdir, or delete it.")
        return facts
    if final.exists():
        raise UserError(f"{final} is there already and was not made by this stage; use another --workdir.")
    partial = workdir / f".{name}.incomplete"
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
    partial.mkdir(parents=True)
    writer = _Lines(partial) if form == "jsonl" else DatasetWriter(partial, name, kind)
    try:
        for number, (split, record) in enumerate(stream, start=1):
            writer.write(split, check_record(record, kind, f"{name}, record {number}"))
            card.add(split, record)
        if not card.splits:
            reasons = ", ".join(f"{count} {reason}" for reason, count in card.counts.items() if count) or "it has no row"
            source = card.source.rstrip(".")
            raise UserError(f"{name}: no record is left of {source}: {reasons}; change the filters of the config.")
    except BaseException:
        writer.abort()
        shutil.rmtree(partial)
        raise
    facts = card.facts(name, kind, config)
    writer.finish("\n".join([card.source, *card.rules]))
    write_card(partial, facts)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(final)
    return facts


def check_format(form: str) -> None:
    """Raises UserError for a format that there is not."""
    if form not in FORMATS:
        raise UserError(f'config.format="{form}" is unknown{nearest(form, FORMATS)}; there are {", ".join(FORMATS)}.')


def dataset_folder(workdir: Path, name: str, form: str) -> Path:
    """Where a data set of this format lies: WORKDIR/NAME/1.0.0 ("tfds") or WORKDIR/NAME with its SPLIT.jsonl ("jsonl")."""
    return workdir / name / VERSION if form == "tfds" else workdir / name


def read_split_of(folder: Path, split: str, kind: str) -> Iterator[dict]:
    """The records of one split of a data set that `write_dataset` put into `folder`."""
    return read_records(folder / split if find_dataset(folder) else folder / f"{split}.jsonl", kind)


class _Lines:
    """DatasetWriter's counterpart for JSON Lines: one file a split."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict = {}

    def write(self, split: str, record: dict) -> None:
        if split not in self._files:
            self._files[split] = open(self._folder / f"{split}.jsonl", "wb")
        self._files[split].write(json_line(record))

    def abort(self) -> None:
        for file in self._files.values():
            file.close()

    def finish(self, description: str) -> None:
        self.abort()


def show(path: str | Path, count: int = 2) -> str:
    """The card of a prepared data set and the first records of each split, as text.

    Raises:
      UserError: there is none.
    """
    path = Path(path)
    place = find_dataset(path)
    cards = [place.folder / "card.json"] if place else [*path.glob("card.json"), *path.glob("[!.]*/card.json")]
    if len(cards) != 1 or not cards[0].is_file():
        raise UserError(f"{path}: no prepared data set is here (no card.json); give the --workdir of `e2h prepare`.")
    folder = cards[0].parent
    facts = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    lines = [render(facts)]
    for split in (place.split,) if place and place.split else facts["splits"]:
        total = facts["splits"][split]["records"]
        lines.append(f"## {split}: the first {min(count, total)} of {total:,} records\n")
        for record in islice(read_split_of(folder, split, facts["kind"]), count):
            lines.append(json.dumps(record, ensure_ascii=False, indent=2) + "\n")
    return "\n".join(lines)
