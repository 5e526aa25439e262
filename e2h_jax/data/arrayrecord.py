"""Records as a TFDS data set in ArrayRecord files: typed features, random access, no TensorFlow.

A data set is a folder NAME/VERSION/ with dataset_info.json, features.json and shards, so

    tfds.data_source(NAME, data_dir=…, split="train")

reads it. TFDS features hold no null: it is written as "" (text), 0 (level) or nan (label) and read back as None. Fields
beyond those of the record's kind are kept as one JSON text, `extra`.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from e2h_jax.errors import UserError, nearest

VERSION = "1.0.0"
INFO = "dataset_info.json"
SHARD_BYTES = 256 * 2**20  # a shard is closed when it has grown to this size
_OPTIONS = "group_size:1"  # every record can be read alone, as TFDS writes them

# Field -> how it is stored. The stored kinds are those of records.py without `sample` and `scored`, whose writers append.
SCHEMAS = {
    "problem": {n: "text" for n in ("id", "question", "answer", "subject", "solution")} | {"level": "level"},
    "labelled": {n: "text" for n in ("problem_id", "question", "prefix")}
    | {"steps": "texts", "labels": "labels", "level": "level"},
}
_NOT_NULL = {"id", "question", "prefix"}


def _features(kind: str) -> Any:
    import numpy as np
    import tensorflow_datasets as tfds

    made = {
        "text": lambda: tfds.features.Text(),
        "texts": lambda: tfds.features.Sequence(tfds.features.Text()),
        "labels": lambda: tfds.features.Sequence(tfds.features.Scalar(np.float32)),
        "level": lambda: tfds.features.Scalar(np.int32),
    }
    schema = SCHEMAS[kind] | {"extra": "text"}
    return tfds.features.FeaturesDict({name: made[storage]() for name, storage in schema.items()})


def _encode(record: dict, schema: dict[str, str]) -> bytes:
    """A record as the serialized tf.train.Example that TFDS reads."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    fields = example.features.feature
    for name, storage in schema.items():
        value = record[name]
        if storage == "text":
            fields[name].bytes_list.value.append(_bytes(value or ""))
        elif storage == "texts":
            fields[name].bytes_list.value.extend(map(_bytes, value))
        elif storage == "labels":
            fields[name].float_list.value.extend(math.nan if label is None else label for label in value)
        else:
            fields[name].int64_list.value.append(value or 0)
    extra = {name: value for name, value in record.items() if name not in schema}
    fields["extra"].bytes_list.value.append(_bytes(json.dumps(extra, sort_keys=True)) if extra else b"")
    return example.SerializeToString(deterministic=True)


def _bytes(text: str) -> bytes:
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()  # UTF-8 has no lone surrogates


def _decode(content: bytes, schema: dict[str, str]) -> dict:
    from tensorflow_datasets.proto import tf_example_pb2

    fields = tf_example_pb2.Example.FromString(content).features.feature
    record: dict[str, Any] = {}
    for name, storage in schema.items():
        if storage == "text":
            text = fields[name].bytes_list.value[0].decode()
            record[name] = text if text or name in _NOT_NULL else None
        elif storage == "texts":
            record[name] = [text.decode() for text in fields[name].bytes_list.value]
        elif storage == "labels":
            values = fields[name].float_list.value
            record[name] = [None if math.isnan(label) else round(label, 7) for label in values]
        else:
            record[name] = fields[name].int64_list.value[0] or None
    extra = fields["extra"].bytes_list.value[0]
    return record | (json.loads(extra) if extra else {})


class DatasetWriter:
    """Writes the splits of one data set into `folder`, which must be empty; `finish` makes it readable.

    Shards get their final names, which tell how many there are, when the data set is finished. There is no split without a
    record: TFDS could not read the data set then.
    """

    def __init__(self, folder: Path, name: str, kind: str):
        self._folder, self._name, self._kind = folder, name, kind
        self._schema = SCHEMAS[kind]
        self._open: dict[str, Any] = {}  # split -> its open shard
        self._sizes: dict[str, int] = {}  # split -> bytes in its open shard
        self._lengths: dict[str, list[int]] = defaultdict(list)  # split -> records in each shard
        self._bytes: Counter[str] = Counter()

    def write(self, split: str, record: dict) -> None:
        """Appends a record to a split."""
        from array_record.python import array_record_module

        if split not in self._open or self._sizes[split] >= SHARD_BYTES:
            self._close(split)
            path = self._folder / f"{split}.{len(self._lengths[split])}.part"
            self._open[split] = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
            self._sizes[split] = 0
            self._lengths[split].append(0)
        content = _encode(record, self._schema)
        self._open[split].write(content)
        self._sizes[split] += len(content)
        self._bytes[split] += len(content)
        self._lengths[split][-1] += 1

    def _close(self, split: str) -> None:
        if split in self._open:
            self._open.pop(split).close()

    def abort(self) -> None:
        """Closes the files of a data set that will not be finished."""
        for split in list(self._open):
            self._close(split)

    def finish(self, description: str) -> None:
        """Names the shards and writes TFDS's metadata."""
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import naming

        self.abort()
        infos = []
        for split, lengths in self._lengths.items():
            template = naming.ShardedFileTemplate(
                dataset_name=self._name, data_dir=str(self._folder), split=split, filetype_suffix="array_record"
            )
            for index in range(len(lengths)):
                part = self._folder / f"{split}.{index}.part"
                part.rename(template.sharded_filepath(shard_index=index, num_shards=len(lengths)))
            infos.append(
                tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=self._bytes[split], filename_template=template)
            )
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=self._name, version=tfds.core.Version(VERSION), data_dir=str(self._folder), module_name=""
        )
        info = tfds.core.DatasetInfo(builder=identity, features=_features(self._kind), description=description)
        info.set_file_format("array_record")
        info.set_splits(tfds.core.splits.SplitDict(infos))
        info.write_to_directory(str(self._folder))


class Place(NamedTuple):
    """A data set that a path names: its folder, and the split; None = all of them."""

    folder: Path
    split: str | None


def find_dataset(path: str | Path) -> Place | None:
    """The data set at FOLDER/NAME/VERSION, FOLDER/NAME, FOLDER (with one data set in it), each also with /SPLIT behind.

    None when there is no data set there at all.

    Raises:
      UserError: the data set has no such split, or FOLDER holds several data sets.
    """
    path = Path(path)
    if (folder := _version_folder(path)) is not None:
        return Place(folder, None)
    if path.exists() or (folder := _version_folder(path.parent)) is None:
        return None
    splits = list(splits_of(folder))
    if path.name not in splits:
        known = ", ".join(splits)
        raise UserError(f'{path}: the data set has no split "{path.name}"{nearest(path.name, splits)}; it has {known}.')
    return Place(folder, path.name)


def _version_folder(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}"):
        found = sorted(p.parent for p in path.glob(pattern) if not p.parent.name.startswith("."))
        if len(found) > 1:
            raise UserError(f"{path}: several data sets are in it ({', '.join(map(str, found[:4]))}); name one of them.")
        if found:
            return found[0]
    return None


def splits_of(folder: Path) -> dict[str, int]:
    """Split -> number of records."""
    entries = json.loads((folder / INFO).read_text())["splits"]
    return {entry["name"]: sum(map(int, entry.get("shardLengths", ()))) for entry in entries}


def shards_of(folder: Path, split: str) -> list[Path]:
    """The files of a split, in their order."""
    return sorted(folder.glob(f"*-{split}.array_record-*-of-*"))


def read_split(folder: Path, split: str, kind: str, first: int = 0, step: int = 1) -> Iterator[tuple[str, dict]]:
    """Yields (address, record) of one split, in the order in which they were written.

    Records first, first + step, … (`first` < `step`) are read, and no others.

    Raises:
      UserError: the data set holds records of another kind.
    """
    from array_record.python import array_record_module

    schema = SCHEMAS.get(kind, {})
    there = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
    if set(there) != {*schema, "extra"}:
        known = next((name for name, fields in SCHEMAS.items() if set(there) == {*fields, "extra"}), "other")
        raise UserError(f"{folder}: this data set holds {known} records, and {kind} records are asked for.")
    for shard in shards_of(folder, split):
        reader = array_record_module.ArrayRecordReader(str(shard), "readahead_buffer_size:0")
        try:
            count = reader.num_records()
            numbers = range(first, count, step)
            first = (first - count) % step  # in the next shard
            for start in range(0, len(numbers), 1000):
                some = numbers[start : start + 1000]
                for number, content in zip(some, reader.read(list(some)), strict=True):
                    yield f"{shard}:{number}", _decode(content, schema)
        finally:
            reader.close()
