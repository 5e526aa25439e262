"""Examples made in parts: whichever processes made them, they come back as one process has them; damaged parts do not."""

from mmap import mmap

import numpy as np
import pytest

from e2h_jax.data import parts
from e2h_jax.data.cards import Card
from e2h_jax.data.dataset import write_dataset
from e2h_jax.data.parts import Examples, check_records, find_parts, make_part, part_name, read_part, write_part
from e2h_jax.data.records import files_of, read_many
from e2h_jax.data.storage import write_records
from e2h_jax.errors import UserError

RECORDS = [{"id": f"r/{n}", "question": str(n), "level": (None, 1, 3)[n % 3]} for n in range(11)]


def example(n):
    """None for every fourth record."""
    length = 1 + n % 5
    tokens, positions = np.arange(n, n + length, dtype=np.int32), np.arange(length, dtype=np.int32) + n
    weights = (tokens % 2).astype(np.float32)
    return None if n % 4 == 3 else {"tokens": tokens, "positions": positions, "label_weights": weights}


def part(index, count, records=RECORDS):
    return make_part("problem", records[index::count], [example(int(r["question"])) for r in records[index::count]])


def write(folder, count, origin="data", indices=None):
    for index in range(count) if indices is None else indices:
        write_part(part(index, count), folder / part_name(index, count), origin)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])
            assert array.dtype == other[name].dtype


@pytest.mark.parametrize(
    ("count", "levels", "numbers"), [(5, (), [0, 1, 2, 4]), (2, (1, 3), [1, 2]), (3, (3,), [2, 5, 8]), (99, (), None)]
)
def test_the_first_records_are_counted_before_what_gives_no_example(count, levels, numbers):
    found = Examples([part(index, 2) for index in range(2)]).first(count, levels)
    assert_same(found, EXPECTED if numbers is None else [example(number) for number in numbers])


EXPECTED = [made for made in map(example, range(11)) if made is not None]


@pytest.mark.parametrize("count", [1, 2, 3, 11, 13])
def test_the_order_is_the_records_whatever_the_number_of_parts(tmp_path, count):
    write(tmp_path, count)
    found = Examples(find_parts(tmp_path, "data"))
    assert_same(found, EXPECTED)
    whole = Examples([part(0, 1)])
    np.testing.assert_array_equal(found.records, whole.records)
    np.testing.assert_array_equal(found.about["digest"], parts.about(EXPECTED)["digest"])
    np.testing.assert_array_equal(found.about["reach"], [e["positions"][-1] + 1 for e in EXPECTED])
    np.testing.assert_array_equal(found.about["labels"], [(e["label_weights"] > 0).sum() for e in EXPECTED])
    assert_same(parts.choose(found, found.about["length"] <= 3), [e for e in EXPECTED if len(e["tokens"]) <= 3])
    assert isinstance(found[0]["tokens"].base.base.base, mmap)


def test_a_digest_tells_every_field_apart():
    changes = ({}, {"positions": np.arange(5)}, {"more": np.ones(5)})
    assert len({parts.about([example(4) | change])["digest"].item() for change in changes}) == 3


@pytest.mark.parametrize("name", ["part.json", "records.npy", "tokens.npy"])
def test_a_part_that_is_not_whole_is_none_and_can_be_made_again(tmp_path, name):
    write(tmp_path, 2)
    path = tmp_path / part_name(1, 2) / name
    content = path.read_bytes()
    for damage in (lambda: path.unlink(), lambda: path.write_bytes(b""), lambda: path.write_bytes(content[:-3])):
        damage()
        assert find_parts(tmp_path, "data") is None and read_part(path.parent, "data") is None
        assert read_part(tmp_path / part_name(0, 2), "data") is not None
    write(tmp_path, 2, indices=[1])
    assert_same(Examples(find_parts(tmp_path, "data")), EXPECTED)


def test_a_kill_while_a_part_is_written_leaves_none(tmp_path, monkeypatch):
    """Also of a part that replaces another one."""
    write(tmp_path, 1, origin="other data")
    saved = np.save
    for writes in range(4):
        left = iter(range(writes))

        def save(file, array, left=left):
            next(left)  # raises StopIteration: killed here
            saved(file, array)

        monkeypatch.setattr(np, "save", save)
        with pytest.raises(StopIteration):
            write(tmp_path, 1)
        assert find_parts(tmp_path, "data") is None and find_parts(tmp_path, "other data") is None


def test_parts_of_other_data_or_of_other_numbers_of_records_are_no_whole(tmp_path):
    write(tmp_path, 2)
    assert find_parts(tmp_path, "other data") is None
    write(tmp_path / "mixed", 3, indices=[0, 1])
    write_part(part(2, 3, RECORDS[:8]), tmp_path / "mixed" / part_name(2, 3), "data")
    assert find_parts(tmp_path / "mixed", "data") is None
    write(tmp_path / "mixed", 2, indices=[0])  # two of three, one of two
    assert find_parts(tmp_path / "mixed", "data") is None and find_parts(tmp_path / "nowhere", "data") is None


def test_what_no_slice_shows_alone():
    twice = [*RECORDS[:7], RECORDS[2], *RECORDS[7:]]  # an even record and an odd one
    records = Examples([part(index, 2, twice) for index in range(2)]).records
    with pytest.raises(UserError, match=r'data: records 3 and 8 \(counted from 1\) have the same "id"'):
        check_records(records, (), "data")
    records = Examples([part(index, 2) for index in range(2)]).records
    check_records(records, (1, 3), "data")
    with pytest.raises(UserError, match="no problem has level 2; the levels present are: 1, 3"):
        check_records(records, (3, 2), "data")
    check_records(make_part("labelled", [{"level": 1}] * 3, [None] * 3).records, (1,), "data")  # records without a key


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A data set of two splits and many shards, and the 25 records in it."""
    monkeypatch.setattr("e2h_jax.data.arrayrecord.SHARD_BYTES", 4)
    nothing = {"answer": None, "level": None, "subject": None, "solution": None}
    written = [{"id": str(n), "question": "q" * 9} | nothing for n in range(25)]
    stream = [("train" if n < 14 else "test", record) for n, record in enumerate(written)]
    write_dataset(tmp_path, "mine", "problem", stream, Card("a test."), {"seed": 0}, {}, "tfds")
    return tmp_path / "mine", written


@pytest.mark.parametrize("step", [1, 2, 3, 30])
def test_slices_of_a_data_set_are_all_that_is_read(data_set, monkeypatch, step):
    from array_record.python import array_record_module

    folder, written = data_set
    reads = []

    class Counting(array_record_module.ArrayRecordReader):
        def read(self, numbers=None):
            reads.extend(numbers)
            return super().read(numbers)

    monkeypatch.setattr(array_record_module, "ArrayRecordReader", Counting)
    for first in range(min(step, 25)):
        reads.clear()
        assert [r["id"] for r in read_many(folder, "problem", first, step)] == [r["id"] for r in written[first::step]]
        assert len(reads) == len(written[first::step])
    assert len(read_many(folder / "test", "problem", 1, 2)) == 5


def test_of_json_lines_the_others_are_not_parsed(tmp_path):
    write_records(tmp_path / "a.jsonl", RECORDS[:4])
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b"\n{no JSON}\n")
    assert [r["id"] for r in read_many(tmp_path / "a.jsonl", "problem", 1, 2)] == ["r/1", "r/3"]
    with pytest.raises(UserError, match=r"a\.jsonl:6: not valid JSON"):
        read_many(tmp_path / "a.jsonl", "problem", 0, 2)
    write_records(tmp_path / "problems-00000-of-00002.jsonl", RECORDS[:4])
    write_records(tmp_path / "problems-00001-of-00002.jsonl", RECORDS[4:])
    for first in range(3):
        assert [r["id"] for r in read_many(tmp_path, "problem", first, 3)] == [r["id"] for r in RECORDS[first::3]]
    assert [path.name[9:14] for path in files_of(tmp_path, "problem")] == ["00000", "00001"]
