"""Writing records so that a killed run loses at most what was in flight and never leaves half a file behind."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, Self

from e2h_jax.errors import UserError


def json_line(record: Any) -> bytes:
    """One JSON line in UTF-8. Lone surrogates, which UTF-8 cannot hold, are written as \\u escapes.

    Raises UserError for a record with NaN or infinity, which JSON has not.
    """
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False).encode() + b"\n"
    except ValueError:
        text = json.dumps(record)[:200]
        raise UserError(f"a number that is not finite, NaN say, cannot be written; is the model broken? {text}") from None


class ShardWriter:
    """The append-only shard `{stem}-{index:05d}-of-{count:05d}.jsonl` of this process; a context manager.

    `done` holds the keys present in all shards of the folder, those of runs with another process count included; skip
    them and a stage resumes. The keys this writer writes are added. A torn last line (kill -9 in the middle of a write)
    is cut off the own shard; in a foreign shard, whose writer may be alive, it is only passed over.

    Args:
      folder: made if absent.
      stem: "samples", "scored", …
      key: record -> its identity, such as (problem_id, sample).

    Raises:
      UserError: a line other than the last of a shard is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        stem: str,
        *,
        process_index: int = 0,
        process_count: int = 1,
        key: Callable[[dict], Hashable],
    ):
        if not 0 <= process_index < process_count:
            raise ValueError(f"process {process_index} of {process_count}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stem}-{process_index:05d}-of-{process_count:05d}.jsonl"
        self._key = key
        self.done: set[Hashable] = set()
        name = re.compile(re.escape(stem) + r"-\d{5}-of-\d{5}\.jsonl")
        for path in sorted(p for p in folder.iterdir() if name.fullmatch(p.name)):
            self._read(path, own=path == self.path)
        self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        _sync_folder(folder)

    def _read(self, path: Path, own: bool) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if own and whole < len(content):
            with open(path, "r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        for number, line in enumerate(content[:whole].split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                self.done.add(self._key(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                remedy = "remove the line, or start with a new workdir"
                raise UserError(f"{path}:{number}: not a record that this stage wrote; {remedy}.") from None

    def write(self, records: Iterable[dict]) -> None:
        """Appends all records with one write and forces them to disk; all of them or none.

        Raises:
          ValueError: a key is there already; nothing of the call is written.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        keys: set[Hashable] = set()
        lines = []
        for record in records:
            key = self._key(record)
            if key in self.done or key in keys:
                raise ValueError(f"{self.path}: {key!r} was written already")
            keys.add(key)
            lines.append(json_line(record))
        if not lines:
            return
        content = memoryview(b"".join(lines))
        start = os.fstat(self._file).st_size
        try:
            while content:  # the system may take less than it is offered
                content = content[os.write(self._file, content) :]
            os.fsync(self._file)
        except BaseException:  # a full disk, Ctrl-C: no half line may stay in front of the next call's
            os.ftruncate(self._file, start)
            raise
        self.done |= keys

    def close(self) -> None:
        """Closes the shard; a second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    """A new or renamed name survives a power cut only when its folder is synced too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_whole(path: str | Path, lines: Iterable[bytes]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_records(path: str | Path, records: Iterable[dict]) -> int:
    """Writes a whole JSONL file under a temporary name, then renames it; returns the number of records.

    An error in the middle, also one raised by the iterable, leaves the old file as it was.
    """
    count = 0

    def lines() -> Iterable[bytes]:
        nonlocal count
        for record in records:
            count += 1
            yield json_line(record)

    _write_whole(path, lines())
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Writes one indented JSON document under a temporary name, then renames it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2).encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False, indent=2).encode()
    _write_whole(path, [text + b"\n"])


def check_same(path: str | Path, identity: Any, *, resumed: bool, write: bool, doing: str) -> None:
    """Keeps in `path` what a run was begun with; another at its resumption is refused.

    Args:
      resumed: something of the run is there already.
      write: whether this process is the one that writes.
      doing: "training on other data".

    Raises:
      UserError: a resumed run was begun with something else.
    """
    path = Path(path)
    if resumed and path.exists():
        if json.loads(path.read_text()) != identity:
            remedy = "restore what it was begun with, or delete the folder"
            raise UserError(f"{path.parent} was interrupted while {doing}; {remedy}")
    elif write:
        write_json(path, identity)


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole text file under a temporary name, then renames it."""
    _write_whole(path, [text.encode(errors="replace")])


def digest(*parts: str) -> bytes:
    """Eight bytes that stand for these texts in a set: a million different ones meet by chance once in 10^7 runs."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(part.encode(errors="surrogatepass") + b"\0")
    return hashed.digest()


def as_json(value: Any) -> Any:
    """A value as JSON would give it back: tuples as lists, so that it can be compared with what was read."""
    return json.loads(json.dumps(value))
