"""Prepared data sets: read back as they were, by us and by TFDS; whole or not at all; the same for the same seed."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2h_jax.data import arrayrecord, prepare
from e2h_jax.data.arrayrecord import DatasetWriter, find_dataset, read_split, splits_of
from e2h_jax.data.cards import Card
from e2h_jax.data.dataset import show, write_dataset
from e2h_jax.data.holdout import hold_out, quotas
from e2h_jax.data.lengths import within
from e2h_jax.data.records import UNAVAILABLE, read_many, read_records
from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError

PROBLEM = {"id": "a/0", "question": "é🙂?", "answer": None, "level": 3, "subject": None, "solution": "x\n\ny"}
LABELLED = {"problem_id": None, "question": "q", "prefix": "", "steps": ["a", "b"], "labels": [1.0, None], "level": None}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def stream(records, split="train"):
    return [(split, record) for record in records]


def write(folder, records, kind="problem", name="mine", form="tfds", config=None, defaults=None):
    return write_dataset(folder, name, kind, records, Card("a test."), config or {"seed": 0}, defaults or {}, form)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {
                "problem_id": st.none() | TEXT.filter(bool),
                "question": TEXT,
                "prefix": TEXT,
                "pairs": st.lists(
                    st.tuples(TEXT.filter(str.strip), st.none() | st.sampled_from([0.0, 1.0, 0.5, 0.3, 2 / 3])), max_size=4
                ),
                "level": st.none() | st.integers(1, 5),
                "extra": st.dictionaries(st.sampled_from(["sample", "task"]), st.none() | st.integers() | TEXT),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_written_is_read(records, tmp_path_factory):
    records = [
        {k: v for k, v in r.items() if k not in ("pairs", "extra")}
        | {"steps": [text for text, _ in r["pairs"]], "labels": [label for _, label in r["pairs"]]}
        | r["extra"]
        for r in records
    ]
    folder = tmp_path_factory.mktemp("data")
    write(folder, stream(records), "labelled")
    again = read_many(folder, "labelled")
    for record in (*records, *again):
        record["labels"] = [None if label is None else round(label, 6) for label in record["labels"]]
    assert again == records


def test_tfds_reads_it_without_tensorflow(tmp_path):
    records = stream([PROBLEM, PROBLEM | {"id": "a/1", "extra": [1]}]) + stream([PROBLEM | {"id": "a/2"}], "test")
    write(tmp_path, records)
    program = f"""
import sys, tensorflow_datasets as tfds
data = tfds.data_source("mine", data_dir={str(tmp_path)!r})  # all splits
print(len(data["train"]), len(data["test"]), data["train"][1], "tensorflow" in sys.modules, "jax" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 1 {") and done.stdout.endswith("False False\n")
    assert "b'a/1'" in done.stdout and '"extra": [1]' in done.stdout


def test_every_way_to_name_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(arrayrecord, "SHARD_BYTES", 50)  # several shards
    records = [PROBLEM | {"id": f"a/{i}"} for i in range(5)]
    write(tmp_path, stream(records[:4]) + stream(records[4:], "test"))
    assert len(list((tmp_path / "mine" / "1.0.0").glob("mine-train.array_record-*-of-00004"))) == 4
    for path in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "1.0.0"):
        assert read_many(path, "problem") == records
        assert list(read_records(path / "test", "problem")) == records[4:]
        assert splits_of(find_dataset(path).folder) == {"train": 4, "test": 1}
    with pytest.raises(UserError, match='has no split "tset" .did you mean "test"..; it has train, test'):
        read_many(tmp_path / "mine" / "tset", "problem")
    with pytest.raises(UserError, match="holds problem records, and labelled records are asked for"):
        read_many(tmp_path, "labelled")
    write(tmp_path, stream([PROBLEM]), name="other")
    with pytest.raises(UserError, match="several data sets are in it"):
        read_many(tmp_path, "problem")


def test_jsonl_with_the_same_card(tmp_path):
    write(tmp_path / "a", stream([PROBLEM]))
    write(tmp_path / "b", stream([PROBLEM]), form="jsonl")
    assert read_many(tmp_path / "b" / "mine" / "train.jsonl", "problem") == read_many(tmp_path / "a", "problem")
    cards = [json.loads(path.read_text()) for path in (tmp_path / "a/mine/1.0.0/card.json", tmp_path / "b/mine/card.json")]
    assert cards[0] == cards[1]
    for path in ("a", "b", "b/mine"):
        assert "first 1 of 1 records" in show(tmp_path / path)
    with pytest.raises(UserError, match="no prepared data set is here"):
        show(tmp_path)


def test_the_same_records_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, stream([LABELLED, LABELLED | {"extra": {"b": 1, "a": 2}}]), "labelled")
    files = [sorted((tmp_path / name / "mine" / "1.0.0").iterdir()) for name in ("a", "b")]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


def test_an_error_leaves_nothing_and_a_finished_set_is_kept(tmp_path):
    def broken():
        yield "train", PROBLEM
        raise RuntimeError

    for form in ("tfds", "jsonl"):
        with pytest.raises(RuntimeError):
            write(tmp_path, broken(), form=form)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match='mine, record 1, record 1: field "level"|field "level" must be'):
        write(tmp_path, stream([PROBLEM | {"level": 9}]))
    facts = write(tmp_path, stream([PROBLEM]))
    assert write(tmp_path, broken()) == facts  # the same config: nothing is read again
    with pytest.raises(UserError, match="made with another config"):
        write(tmp_path, stream([PROBLEM]), config={"seed": 1})
    # A later version may have more fields.
    newer = {"config": {"seed": 0, "by": "steps"}}
    assert write(tmp_path, broken(), **newer, defaults={"seed": 1, "by": "steps"}) == facts
    with pytest.raises(UserError, match="made with another config"):
        write(tmp_path, broken(), **newer, defaults={"seed": 1, "by": ""})
    (tmp_path / "mine" / "1.0.0" / "card.json").unlink()
    with pytest.raises(UserError, match="was not made by this stage"):
        write(tmp_path, stream([PROBLEM]))


def test_a_killed_prepare_is_not_taken_for_finished_and_a_second_finishes(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"So {i}.\n#### {i}"} for i in range(30_000)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "e2h_jax.main", "prepare", "--config.source=gsm8k", f"--workdir={tmp_path / 'out'}"]
    command.append(f"--config.path={tmp_path / 'train.jsonl'}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list((tmp_path / "out").glob(".gsm8k.incomplete/*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "gsm8k").exists() and find_dataset(tmp_path / "out") is None
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert splits_of(tmp_path / "out" / "gsm8k" / "1.0.0") == {"train": 30_000}
    assert not (tmp_path / "out" / ".gsm8k.incomplete").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert "is done already" in again.stdout
    shown = subprocess.run([*command[:4], "--show", command[5]], capture_output=True, text=True)
    assert "first 2 of 30,000 records" in shown.stdout


PRM800K_BYTES = int(os.environ.get("E2H_PRM800K_BYTES", 12_000_000))  # 456_000_000 for the whole of it


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_prm800k_streams(shared_data, tmp_path):
    """Memory hardly grows with the file: 10 MB more of it may take 6 MB (digests of what was seen), never the whole."""
    lines = [json.loads(line) for line in open(shared_data / "prm800k" / "samples.jsonl")]

    def peak(size):
        folder = tmp_path / str(size)
        folder.mkdir()
        written = number = 0
        with open(folder / "phase2_train.jsonl", "w") as file:
            while written < size:
                line = lines[number % len(lines)]
                question = line["question"] | {"problem": f"{line['question']['problem']} ({number})"}
                written += file.write(json.dumps(line | {"question": question}) + "\n")
                number += 1
        # VmHWM, as getrusage's peak starts at the parent's: fork and exec hand on the high-water mark of pytest itself
        program = f"""
from pathlib import Path
from e2h_jax.data import prepare
config = prepare.defaults().unlock()
config.update(dict(source="prm800k", path={str(folder)!r}, math={str(shared_data / "math500.jsonl")!r}))
prepare.run(config, Path({str(tmp_path / f"out{size}")!r}))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return 1024 * int(done.stdout)

    small, large = peak(2_000_000), peak(PRM800K_BYTES)
    assert large < 1e9
    assert large - small < 0.6 * (PRM800K_BYTES - 2_000_000) + 20e6


def test_hold_out_is_mixed_like_the_whole():
    problems = [{"id": i, "subject": "ab"[i % 2], "level": i % 5 + 1} for i in range(100)]
    others, held = hold_out(problems, 20, "s", "config.valid")
    assert Counter((p["subject"], p["level"]) for p in held) == {(s, level): 2 for s in "ab" for level in range(1, 6)}
    assert sorted(p["id"] for p in others + held) == list(range(100))
    assert hold_out(problems, 20, "s", "f") == (others, held) != hold_out(problems, 20, "t", "f")
    assert hold_out(problems, 0, "s", "f") == (problems, [])
    assert sum(quotas(problems[:7], 5).values()) == 5
    with pytest.raises(UserError, match="config.valid=100 leaves no training problem of 100"):
        hold_out(problems, 100, "s", "config.valid")


def prepared(tmp_path, name, splits=("train", "valid", "test"), **fields):
    config = prepare.defaults().unlock()
    config.update({"source": "math", "valid": 500} | fields)
    summary = prepare.run(config.lock(), tmp_path / name)
    return summary, {s: read_many(tmp_path / name / "math" / s, "problem") for s in splits}


def test_math_as_the_paper_splits_it(shared_data, tmp_path):
    """12,000 and 500; validation has MATH500's subjects and levels, and does not depend on the level filter."""
    file = str(shared_data / "math_12500.jsonl.gz")
    _, full = prepared(tmp_path, "sft", path=file)
    _, rl = prepared(tmp_path, "rl", path=file, records="rl", levels=(1, 2, 3))
    _, easy = prepared(tmp_path, "easy", path=file, levels=(1, 2, 3))
    assert [len(full[s]) for s in ("train", "valid", "test")] == [11_494, 500, 500]
    mix = [Counter((p["subject"], p["level"]) for p in full[s]) for s in ("valid", "test")]
    assert mix[0] == mix[1]
    assert Counter(p["level"] for p in full["test"]) == {1: 43, 2: 90, 3: 105, 4: 128, 5: 134}
    assert {p["id"].split("/")[1] for p in full["valid"]} == {"test"}  # those PRM800K moved
    for split in ("train", "valid", "test"):
        assert [p["id"] for p in rl[split]] == [p["id"] for p in full[split]]
        hidden = [p for p in rl[split] if p["answer"] == UNAVAILABLE]
        assert {p["level"] for p in hidden} <= {4, 5, None} and all(p["gt_answer"] != UNAVAILABLE for p in hidden)
        assert not any(p["solution"] for p in rl[split])  # it would tell the answer
        assert len(hidden) == sum(p["level"] not in (1, 2, 3) for p in full[split])
    assert {p["level"] for p in easy["train"] + easy["valid"]} == {1, 2, 3} and len(easy["test"]) == 500
    _, other = prepared(tmp_path, "seed", ("valid",), path=file, seed=1)
    assert [p["id"] for p in other["valid"]] != [p["id"] for p in full["valid"]]
    hendrycks, _ = prepared(tmp_path, "h", (), path=file, split="hendrycks", valid=0)
    assert (hendrycks["train"], hendrycks["test"]) == (7_494, 5_000)
    # A split without records would keep TFDS from reading the others.
    assert splits_of(find_dataset(tmp_path / "h").folder) == {"train": 7_494, "test": 5_000}


def test_rows_that_do_not_tell_their_side_are_refused(shared_data, tmp_path):
    with pytest.raises(UserError, match="500 of 500 rows do not tell their side of prm800k; set config.test_path"):
        prepared(tmp_path, "x", path=str(shared_data / "math500.jsonl"))


def test_long_records_are_left_out_by_their_real_tokens(tmp_path, tokenizers):
    tokenizers.bpe.save_pretrained(str(tmp_path / "tok"))
    rows = [{"question": "q", "answer": "a" * n + "\n#### 1"} for n in (1, 400)] + [{"question": "r", "answer": "b\n#### 1"}]
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows[1:]).encode()))
    config = prepare.defaults().unlock()
    config.update(dict(source="gsm8k", path=str(tmp_path / "train.jsonl.gz"), tokenizer=str(tmp_path / "tok"), max_tokens=60))
    summary = prepare.run(config, tmp_path / "out")
    assert summary["train"] == 1 and summary["records of more than 60 tokens, left out"] == 1


def test_lengths_count_every_token_of_a_training_stage_once(tokenizers):
    """The prompt with its template, one BOS, the steps and their blank lines, one EOS; tests and benchmarks stay whole."""
    template = get_template("e2h")
    text = template.format_prompt("q") + template.format_solution(["a", "b"], "7")
    problem = PROBLEM | {"question": "q", "solution": template.format_solution(["a", "b"], "7")}
    labelled = LABELLED | {"question": "q", "prefix": "a", "steps": ["b", "# Answer\n\n7"]}
    for tokenizer in (tokenizers.words, tokenizers.bpe):
        tokens = 1 + len(tokenizer.encode(text, add_special_tokens=False)) + 1
        for kind, record in (("problem", problem), ("labelled", labelled)):
            rows = [(split, record) for split in ("train", "valid", "test", "omnimath")]
            for limit, kept in ((tokens, 4), (tokens - 1, 2)):
                assert list(within(rows, kind, limit, tokenizer, template, Card(""))) == rows[-kept:]


def test_a_writer_that_was_never_finished_leaves_no_data_set(tmp_path):
    writer = DatasetWriter(tmp_path, "mine", "problem")
    writer.write("train", PROBLEM)
    writer.abort()
    assert find_dataset(tmp_path) is None
    with pytest.raises(FileNotFoundError):
        list(read_split(tmp_path, "train", "problem"))
