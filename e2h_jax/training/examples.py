"""Reading the records to train on: of several hosts each reads and tokenises its own slice, and they share the examples."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from e2h_jax.data.batches import Example
from e2h_jax.data.parts import Examples, Part, check_records, find_parts, make_part, part_name, read_part, write_part
from e2h_jax.data.records import Kind, files_of, read_many
from e2h_jax.data.storage import digest
from e2h_jax.errors import UserError
from e2h_jax.parallel import hosts

FOLDER = ".examples"  # in the stage's folder, while it runs on several hosts

# make(records, their numbers in the data from 0, int64) -> the example of each, None where it gives none
Make = Callable[[Sequence[dict], np.ndarray], Sequence[Example | None]]


def read_examples(config: ml_collections.ConfigDict, workdir: Path, kind: Kind, make: Make) -> Examples:
    """The examples of the first `config.limit` records in `config.data` that are of `config.levels`, in their order.

    One process keeps them in memory. Several put them into the folder, where a run resumed by any number of them finds them.

    Raises:
      UserError: in every process, for a bad record, an id of two records, and a level that no record has.
    """
    index, count = jax.process_index(), jax.process_count()
    folder = Path(workdir) / FOLDER
    with hosts.together("examples"):
        origin = _origin(config, kind)
        parts = find_parts(folder, origin)
        own = folder / part_name(index, count)
        if parts is None and count == 1:
            parts = [_make_part(config, kind, make, 0, 1)]
        elif parts is None and read_part(own, origin) is None:
            write_part(_make_part(config, kind, make, index, count), own, origin)
    parts = parts or find_parts(folder, origin)
    if parts is None:
        raise UserError(f"{folder}: not all hosts see the same folder and the same config.data={config.data}; share both.")
    examples = Examples(parts)
    check_records(examples.records, config.levels, config.data)
    return examples.first(config.limit, config.levels) if config.limit else examples


def _make_part(config: ml_collections.ConfigDict, kind: Kind, make: Make, index: int, count: int) -> Part:
    records = read_many(config.data, kind, index, count)
    wanted = [place for place, record in enumerate(records) if not config.levels or record["level"] in config.levels]
    wanted = wanted[: config.limit or None]  # of one slice no more are among the first of all
    examples: list[Example | None] = [None] * len(records)
    made = make([records[place] for place in wanted], index + count * np.array(wanted, np.int64))
    for place, example in zip(wanted, made, strict=True):
        examples[place] = example
    return make_part(kind, records, examples)


def _origin(config: ml_collections.ConfigDict, kind: Kind) -> str:
    """Stands for the config and the data's files (names and sizes: hosts may have copies of their own)."""
    files = [f"{path.name} {path.stat().st_size}" for path in files_of(config.data, kind)]
    return digest(config.to_json(sort_keys=True), *files).hex()


def discard(workdir: Path) -> None:
    """Removes the examples from the folder of a stage that does not need them any more."""
    if jax.process_index() == 0:
        shutil.rmtree(Path(workdir) / FOLDER, ignore_errors=True)
