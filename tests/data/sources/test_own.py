"""Records of one's own: the level from any field, in one's own words."""

import json

import pytest

WORDS = {"easy": 1, "medium": "3", "hard": 5}


def problem(number, **fields):
    return {"id": f"p/{number}", "question": f"What is {number}?", "answer": str(number)} | fields


def levels(records):
    return {record["id"]: record["level"] for record in records}


def test_the_level_of_another_field(prepared):
    rows = [problem(n, difficulty=value, level="unread") for n, value in enumerate((1, 5, None, 3))]
    records, _ = prepared("jsonl", rows, level_field="difficulty", valid=0, test=0)
    assert levels(records) == {"p/0": 1, "p/1": 5, "p/2": None, "p/3": 3}
    assert records[0]["difficulty"] == 1  # stays, as any field


def test_a_table_of_words(prepared):
    rows = [problem(n, difficulty=value) for n, value in enumerate(("easy", "hard", "medium", 2, None, 9))]
    records, card = prepared("jsonl", rows, level_field="difficulty", level_map=WORDS | {"9": 4}, valid=0, test=0)
    assert levels(records) == {"p/0": 1, "p/1": 5, "p/2": 3, "p/3": 2, "p/4": None, "p/5": 4}
    assert card["config"]["level_map"] == WORDS | {"9": 4}
    records, _ = prepared("jsonl", rows, level_field="difficulty", level_map=WORDS | {"9": 4}, valid=0, test=0, levels=(1, 2))
    assert levels(records) == {"p/0": 1, "p/3": 2}
    # Of the field `level` itself, which would be refused as it is; in a list and of labelled records too.
    records, _ = prepared("jsonl", [problem(0, level="hard")], level_map=WORDS, valid=0, test=0)
    assert levels(records) == {"p/0": 5}
    labelled = {"question": "?", "prefix": "", "steps": ["a"], "labels": [1], "of": "easy"}
    records, _ = prepared("jsonl", [labelled], level_field="of", level_map=WORDS, records="prm")
    assert records[0]["level"] == 1


def test_a_list_and_a_prepared_data_set(prepared, tmp_path):
    rows = [problem(n, difficulty=value) for n, value in enumerate(("easy", "hard"))]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    fields = {"level_field": "difficulty", "level_map": WORDS, "valid": 0, "test": 0}
    assert levels(prepared("jsonl", str(tmp_path / "mine.json"), **fields)[0]) == {"p/0": 1, "p/1": 5}
    plain, _ = prepared("jsonl", rows, valid=0, test=0)  # without levels
    assert levels(plain) == {"p/0": None, "p/1": None}
    (folder,) = tmp_path.glob("out2/jsonl")
    assert levels(prepared("jsonl", str(folder / "train"), **fields)[0]) == {"p/0": 1, "p/1": 5}


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"difficulty": "hard"}, {}, 'train.jsonl:1: field "difficulty" must be a level from 1 to 5, or null, not "hard"; say'),
        ({"difficulty": "hrd"}, {"level_map": WORDS}, 'must be a level from 1 to 5, or null, not "hrd"'),
        ({"difficulty": 6}, {}, "must be a level from 1 to 5, or null, not 6"),
        ({"difficulty": 2.0}, {}, "or null, not 2.0"),
        ({"difficulty": True}, {}, "or null, not true"),
        ({"difficulty": "3"}, {}, 'or null, not "3"; say which it is, --config.level_map.VALUE=LEVEL'),
        ({"dificulty": 3}, {}, 'field "difficulty" .config.level_field. is missing .did you mean "dificulty"..; null is no'),
        ({"difficulty": "easy"}, {"level_map": {"easy": 6}}, "config.level_map.easy=6: a level is 1, 2, 3, 4 or 5"),
        ({"difficulty": "easy"}, {"level_map": {"easy": "low"}}, "config.level_map.easy=low: a level is"),
        ({"difficulty": "easy"}, {"level_map": {"easy": True}}, "config.level_map.easy=True: a level is"),
    ],
)
def test_what_is_no_level_is_refused_in_one_sentence(refused, row, fields, message):
    refused(message, "jsonl", [problem(0, **row)], level_field="difficulty", valid=0, test=0, **fields)


def test_another_source_does_not_read_these_fields(refused):
    refused('config.level_field is set, but source "gsm8k" does not read it', "gsm8k", [], level_field="difficulty")
    refused('config.level_map is set, but source "math" does not read it', "math", [], level_map=WORDS)
