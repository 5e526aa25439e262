import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2h_jax.data.storage import ShardWriter, write_json, write_records
from e2h_jax.errors import UserError


def key(record):
    return record["problem_id"], record["sample"]


def sample(index, text="x"):
    return {"problem_id": "p/0", "sample": index, "text": text}


def open_writer(folder, index=0, count=1):
    return ShardWriter(folder, "samples", process_index=index, process_count=count, key=key)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_second_run_continues_after_the_first(tmp_path):
    with open_writer(tmp_path / "new" / "folder") as writer:
        writer.write([sample(0), sample(1)])
        assert writer.done == {("p/0", 0), ("p/0", 1)}
    with open_writer(tmp_path / "new" / "folder") as writer:
        assert writer.done == {("p/0", 0), ("p/0", 1)}
        writer.write(sample(i) for i in (2, 3))
        writer.write([])
    assert [record["sample"] for record in lines(writer.path)] == [0, 1, 2, 3]
    assert writer.path.name == "samples-00000-of-00001.jsonl"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 400))
def test_wherever_a_killed_write_stopped_nothing_is_lost_or_doubled(tmp_path, cut):
    path = tmp_path / "samples-00000-of-00001.jsonl"
    path.unlink(missing_ok=True)
    with open_writer(tmp_path) as writer:
        writer.write([sample(i, "é\n" * i) for i in range(6)])
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    with open_writer(tmp_path) as writer:
        assert len(writer.done) == content.count(b"\n")
        writer.write(sample(i) for i in range(6) if ("p/0", i) not in writer.done)
    assert sorted(record["sample"] for record in lines(path)) == list(range(6))


def test_a_foreign_torn_line_is_passed_over_and_left_alone(tmp_path):
    foreign = tmp_path / "samples-00001-of-00002.jsonl"
    foreign.write_text(json.dumps(sample(7)) + "\n" + '{"problem_id": "p/0", "sam')
    before = foreign.read_bytes()
    with open_writer(tmp_path, 0, 2) as writer:
        assert writer.done == {("p/0", 7)}
    assert foreign.read_bytes() == before


def test_shards_of_another_process_count_are_read(tmp_path):
    for index in range(4):
        with open_writer(tmp_path, index, 4) as writer:
            writer.write([sample(index)])
    (tmp_path / "scored-00000-of-00001.jsonl").write_text("another stem\n")
    with open_writer(tmp_path, 0, 1) as writer:
        assert writer.done == {("p/0", index) for index in range(4)}


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "samples-00000-of-00001.jsonl"
    path.write_text(json.dumps(sample(0)) + '\n{"problem_id": \n' + json.dumps(sample(1)) + "\n")
    with pytest.raises(UserError, match="samples-00000-of-00001.jsonl:2: not a record"):
        open_writer(tmp_path)


def test_a_key_twice_is_refused_and_nothing_of_the_call_is_written(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write([sample(0)])
        for records in ([sample(1), sample(0)], [sample(2), sample(2)]):
            with pytest.raises(ValueError, match="was written already"):
                writer.write(records)
        with pytest.raises(UserError, match='not finite, NaN say, cannot be written.*"sample": 4'):
            writer.write([sample(3), sample(4) | {"logprob": float("nan")}])
        writer.write([sample(1)])
    assert [record["sample"] for record in lines(writer.path)] == [0, 1]
    with pytest.raises(ValueError, match="is closed"):
        writer.write([sample(5)])


def test_a_failed_write_leaves_no_half_line(tmp_path, monkeypatch):
    with open_writer(tmp_path) as writer:
        writer.write([sample(0)])
        real = os.write

        def full_disk(handle, content):
            if len(content) < 10:
                raise OSError("no space left")
            return real(handle, content[:10])

        monkeypatch.setattr(os, "write", full_disk)
        with pytest.raises(OSError, match="no space left"):
            writer.write([sample(1)])
        monkeypatch.undo()
        writer.write([sample(1)])
    assert [record["sample"] for record in lines(writer.path)] == [0, 1]


def test_a_lone_surrogate_survives(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write([sample(0, "\ud800 é")])
    assert lines(writer.path)[0]["text"] == "\ud800 é"


def test_kill_9_loses_nothing_that_was_written(tmp_path):
    program = f"""
import itertools
from e2h_jax.data.storage import ShardWriter
with ShardWriter({str(tmp_path)!r}, "samples", key=lambda r: r["sample"]) as writer:
    for i in itertools.count(len(writer.done)):
        writer.write([{{"sample": i, "text": "x" * 5000}}])
        print(i, flush=True)
"""
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        acknowledged = int(process.stdout.readline())
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        with ShardWriter(tmp_path, "samples", key=lambda record: record["sample"]) as writer:
            assert writer.done >= set(range(acknowledged + 1))
            assert writer.done == set(range(len(writer.done)))
        assert len(lines(writer.path)) == len(writer.done)


def test_whole_files_appear_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.jsonl"
    assert write_records(path, ({"i": i} for i in range(3))) == 3

    def broken():
        yield {"i": 9}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert lines(path) == [{"i": 0}, {"i": 1}, {"i": 2}]
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": [1, None]}
    assert [p.name for p in tmp_path.rglob("*") if p.name.endswith(".tmp")] == []
