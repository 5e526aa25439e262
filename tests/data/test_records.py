import gzip
import json
import time
from pathlib import Path

import pytest

from e2h_jax.data.records import check_records, read_many, read_records, select_levels
from e2h_jax.data.storage import write_records
from e2h_jax.errors import UserError

PROBLEM = {"id": "my/0", "question": "1+1?", "answer": "2", "level": 1, "subject": None, "solution": None}
SAMPLE = {"problem_id": "my/0", "sample": 0, "text": "2", "finish": "stop", "logprob": -0.5}
SCORED = SAMPLE | {"step_scores": [0.5, 1]}
LABELLED = {
    "problem_id": None,
    "question": "1+1?",
    "prefix": "",
    "steps": ["a", "b", "c"],
    "labels": [1, 0.5, None],
    "level": None,
}
GOOD = {"problem": PROBLEM, "sample": SAMPLE, "scored": SCORED, "labelled": LABELLED}


@pytest.mark.parametrize("kind", GOOD)
def test_good_records_come_back_with_their_extra_fields(kind, tmp_path):
    record = GOOD[kind] | {"extra": {"kept": [1, 2]}, "text2": "é\u2028🙂"}
    write_records(tmp_path / "a.jsonl", [record])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_many(tmp_path / "a.jsonl", kind) == [record]
    assert list(read_records(tmp_path / "b.jsonl.gz", kind)) == [record]


def test_absent_nullable_fields_read_as_none(tmp_path):
    write_records(tmp_path / "a.jsonl", [{"id": "x", "question": "q"}])
    assert read_many(tmp_path / "a.jsonl", "problem")[0] == {
        "id": "x",
        "question": "q",
        "answer": None,
        "level": None,
        "subject": None,
        "solution": None,
    }


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("problem", {"id": 7}, 'field "id" must be text that is not empty, not 7; write it as text, "7"'),
        ("problem", {"level": 6}, 'field "level" must be an integer from 1 to 5, or null, not 6'),
        ("problem", {"level": "Level 3"}, 'field "level" must be an integer from 1 to 5, or null, not "Level 3"'),
        ("problem", {"level": True}, 'field "level" must be an integer'),
        ("problem", {"answer": 2}, 'field "answer" must be text or null, not 2'),
        ("sample", {"sample": -1}, 'field "sample" must be an integer from 0, not -1'),
        ("sample", {"finish": "eos"}, 'field "finish" must be "stop" or "length", not "eos"'),
        ("sample", {"finish": ["stop"]}, 'field "finish" must be "stop" or "length"'),
        ("sample", {"logprob": float("nan")}, 'field "logprob" must be a finite number or null'),
        ("sample", {"logprob": -(10**400)}, 'field "logprob" must be a finite number or null'),
        ("problem", {"gt_answer": 1}, 'field "gt_answer" must be text, not 1; write it as text, "1"'),
        ("problem", {"gt_answer": 0}, 'field "gt_answer" must be text, not 0; write it as text, "0"'),
        ("problem", {"gt_answer": ["1"]}, 'field "gt_answer" must be text, not ["1"]'),
        ("problem", {"answer": 0.5}, 'field "answer" must be text or null, not 0.5; write it as text, "0.5"'),
        ("problem", {"answer": False}, 'field "answer" must be text or null, not false.'),
        ("problem", {"prefix": 5}, 'field "prefix" must be text, not 5'),
        ("problem", {"eos": 0}, 'field "eos" must be true or false, not 0.'),
        ("problem", {"eos": "false"}, 'field "eos" must be true or false, not "false"'),
        ("labelled", {"eos": 1}, 'field "eos" must be true or false, not 1.'),
        ("scored", {"step_scores": [0.5, 1.5]}, "probabilities in [0, 1], not 1.5 at index 1"),
        ("scored", {"step_scores": 0.5}, "probabilities in [0, 1], not 0.5"),
        ("labelled", {"labels": [1, 0]}, "one label per step; there are 3 steps but 2 labels"),
        ("labelled", {"labels": [1, -0.1, 0]}, "numbers in [0, 1] or null, not -0.1 at index 1"),
        ("labelled", {"labels": [1, True, 0]}, "numbers in [0, 1] or null, not true at index 1"),
        ("labelled", {"steps": ["a", " \n", "c"]}, 'not blank, not " \\n" at index 1'),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(kind, change, message, tmp_path):
    good = GOOD[kind] | ({"id": "my/1"} if kind == "problem" else {"sample": 1} if kind == "sample" else {})
    lines = [json.dumps(good), "", json.dumps(GOOD[kind] | change)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        read_many(tmp_path / "a.jsonl", kind)
    assert str(error.value).startswith(f"{tmp_path / 'a.jsonl'}:3: ")
    assert message in str(error.value)


def test_an_optional_field_that_is_null_reads_as_left_out(tmp_path):
    """Tables with a column for every field of any row have null in the others."""
    for kind, fields in (("problem", ("prefix", "eos", "gt_answer")), ("labelled", ("eos",))):
        write_records(tmp_path / "a.jsonl", [GOOD[kind] | dict.fromkeys([*fields, "note"])])
        assert read_many(tmp_path / "a.jsonl", kind) == [GOOD[kind] | {"note": None}]
        kept = GOOD[kind] | dict.fromkeys(fields, "x") | {"eos": False}
        write_records(tmp_path / "b.jsonl", [kept])
        assert read_many(tmp_path / "b.jsonl", kind) == [kept]


@pytest.mark.parametrize("half", [b"\\ud800", b"\\uDFFF", b"\xed\xa0\x80", b"\\udc00\\ud83d"])
def test_a_lone_surrogate_reads_as_the_replacement_character(half, tmp_path):
    line = b'{"id": "a%b", "question": "\\ud83d\\ude42 %b", "tags": ["%b"], "x%b": {"y": "%b"}}\n' % ((half,) * 5)
    (tmp_path / "a.jsonl").write_bytes(line)
    (record,) = read_many(tmp_path / "a.jsonl", "problem")
    seen = "\ufffd" * (half.count(b"\\u") or 1)
    assert record["id"] == f"a{seen}" and record["question"] == f"🙂 {seen}"
    assert record["tags"] == [seen] and record[f"x{seen}"] == {"y": seen}
    json.dumps(record, ensure_ascii=False).encode()  # raises for a surrogate


@pytest.mark.parametrize("kind", GOOD)
def test_a_file_without_a_record_is_refused(kind, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=f"a.jsonl: no record is in it; give a file of {kind} records"):
        read_many(tmp_path / "a.jsonl", kind)
    write_records(tmp_path / "b.jsonl", [GOOD[kind]])
    assert read_many(tmp_path / "b.jsonl", kind, 1, 2) == []  # a slice may be empty


def test_a_file_of_another_format_is_told(tmp_path):
    for suffix, remedy in ((".parquet", "`e2h prepare` with source jsonl"), (".csv", "convert it"), (".zst", "convert it")):
        (tmp_path / f"a{suffix}").write_bytes(b"PAR1\xff")
        with pytest.raises(UserError, match=rf"a\{suffix}: a \{suffix} file, where JSON Lines are read .*{remedy}"):
            read_many(tmp_path / f"a{suffix}", "sample")


def test_a_misspelt_field_is_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "queston": "q"}\n')
    with pytest.raises(UserError, match='a.jsonl:1: field "question" is missing .*"queston"'):
        read_many(tmp_path / "a.jsonl", "problem")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x"', "not valid JSON .* The line has no end"),
        (b'{"id": "x",}\n', "not valid JSON"),
        (b"[1]\n", r"must be one JSON object, .* not \[1\]"),
        (b'{"id": "\xff"}\n', "not UTF-8 at byte 8"),
        (b"[" * 100_000 + b"\n", "not valid JSON"),
        (b"9" * 10_000 + b"\n", "not valid JSON"),
    ],
)
def test_a_malformed_line_is_named(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(PROBLEM).encode() + b"\n" + line)
    with pytest.raises(UserError, match=f"a.jsonl:2: .*{message}"):
        read_many(tmp_path / "a.jsonl", "problem")


def test_a_damaged_gzip_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(PROBLEM).encode() * 99)[:-20])
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"{name}.jsonl.gz: not a complete gzip file"):
            read_many(tmp_path / f"{name}.jsonl.gz", "problem")


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    write_records(tmp_path / "train.jsonl", [PROBLEM])
    with pytest.raises(UserError, match='did you mean "train.jsonl"'):
        read_many(tmp_path / "trian.jsonl", "problem")
    with pytest.raises(UserError, match='nor a folder "nowhere"'):
        read_many(tmp_path / "nowhere" / "deep" / "train.jsonl", "problem")
    with pytest.raises(UserError, match="has no samples-.*.jsonl; it has train.jsonl"):
        read_many(tmp_path, "sample")


def test_a_relative_path_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        read_many(Path("a.jsonl"), "problem")


def test_a_folder_gives_all_its_shards_in_order(tmp_path):
    for shard in (1, 0):
        records = [SAMPLE | {"sample": 10 * shard + i} for i in range(2)]
        write_records(tmp_path / f"samples-{shard:05d}-of-00002.jsonl", records)
    write_records(tmp_path / "scored-00000-of-00001.jsonl", [SCORED])
    assert [record["sample"] for record in read_many(tmp_path, "sample")] == [0, 1, 10, 11]
    assert read_many(tmp_path, "scored") == [SCORED]


@pytest.mark.parametrize("kind", ["problem", "sample", "scored"])
def test_the_same_key_twice_is_refused(kind, tmp_path):
    write_records(tmp_path / "a.jsonl", [GOOD[kind], GOOD[kind]])
    with pytest.raises(UserError, match=r"a.jsonl:2: field .* repeats .*my/0.* of .*a.jsonl:1"):
        read_many(tmp_path / "a.jsonl", kind)
    with pytest.raises(UserError, match="repeats"):
        list(read_records(tmp_path / "a.jsonl", kind))
    with pytest.raises(UserError, match=r"the pool, record 2: field .* repeats .* of the pool, record 1"):
        check_records([GOOD[kind], GOOD[kind]], kind, "the pool")


def test_records_made_in_memory_are_checked():
    assert check_records([PROBLEM], "problem", "the pool") == [PROBLEM]
    with pytest.raises(UserError, match='the pool, record 2: field "id"'):
        check_records([PROBLEM, PROBLEM | {"id": ""}], "problem", "the pool")


def test_select_levels():
    problems = [PROBLEM | {"level": level} for level in (3, 1, None, 3)]
    assert select_levels(problems, ()) == problems
    assert select_levels(problems, (3, 1)) == [problems[0], problems[1], problems[3]]
    with pytest.raises(UserError, match="no problem has level 2; the levels present are: 1, 3"):
        select_levels(problems, (1, 2))


def test_100_000_lines_take_seconds(tmp_path):
    write_records(tmp_path / "a.jsonl", (LABELLED for _ in range(100_000)))
    began = time.process_time()
    assert len(read_many(tmp_path / "a.jsonl", "labelled")) == 100_000
    assert time.process_time() - began < 6  # measured: about 1 s
