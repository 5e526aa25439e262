"""GSM8K, MetaMath, Math-Shepherd, PRMBench, ProcessBench: their rules on small rows, and their real samples."""

import gzip
import json
import re
from collections import Counter

import pytest

from e2h_jax.data.sources.math_shepherd import parse
from e2h_jax.data.templates import get_template

TEMPLATE = get_template("e2h")
EASY = "Easy train question, what is one plus one in plain numbers?"
HARD = "Hard train question, what is the ninth root of sixty-four?"
HELD = "One of the five hundred, what is two to the power of ten?"


def test_gsm8k(prepared):
    row = {"question": "How many?", "answer": "She has 48/2 = <<48/2=24>>24.\nSo 1,024.\n#### 1,024"}
    records, card = prepared("gsm8k", [row, row, {"question": "x", "answer": "no marker"}])
    assert [record["solution"] for record in records] == ["She has 48/2 = 24.\n\nSo 1,024.\n\n# Answer\n\n1024"]
    assert records[0]["id"] == "gsm8k/train/0" and records[0]["level"] == 1
    assert card["counts"] == {"rows whose question came before": 1, "rows without an answer": 1}


def test_levels_of_gsm8k_are_by_the_lines_of_the_solution(prepared, tmp_path, rows_file):
    """A blank line is none, and a line without a calculator's mark is one; the test keeps all levels."""
    steps = [1, 2, 3, 4, 5, 6, 7, 12]
    rows = [{"question": f"{n}?", "answer": "\n".join(["x <<1=1>>", "", *["y"] * (n - 1), "#### 3"])} for n in steps]
    assert [record["level"] for record in prepared("gsm8k", rows)[0]] == [1, 1, 2, 3, 4, 5, 5, 5]
    for split in ("train", "test"):
        rows_file(tmp_path / "both" / f"{split}.jsonl", [row | {"question": split + row["question"]} for row in rows])
    records, card = prepared("gsm8k", str(tmp_path / "both"), levels=(1, 2))
    assert [record["level"] for record in records if record["split"] == "train"] == [1, 1, 2]
    assert len([record for record in records if record["split"] == "test"]) == 8
    assert card["counts"] == {"problems of other levels": 5}


def test_all_of_gsm8k(prepared, shared_data):
    records, _ = prepared("gsm8k", str(shared_data / "gsm8k"))
    assert [sum(record["split"] == split for record in records) for split in ("train", "test")] == [7473, 1319]
    assert all(TEMPLATE.extract_answer(record["solution"]) == record["answer"] for record in records)
    assert not any("<<" in record["solution"] for record in records)
    levels = {split: Counter(r["level"] for r in records if r["split"] == split) for split in ("train", "test")}
    assert levels["train"] == {1: 1961, 2: 2149, 3: 1659, 4: 955, 5: 749}  # docs/data.md
    assert levels["test"] == {1: 326, 2: 371, 3: 297, 4: 175, 5: 150}


@pytest.mark.parametrize("template", ["qwen_boxed", "math_shepherd", "llama3_boxed"])
def test_gsm8k_s_answers_are_found_in_other_templates(prepared, shared_data, template):
    records, _ = prepared("gsm8k", str(shared_data / "gsm8k" / "test.jsonl"), template=template)
    assert [get_template(template).extract_answer(r["solution"]) for r in records] == [r["answer"] for r in records]


def meta(original, response, kind="MATH_Rephrased", query="q?"):
    return {"query": query, "response": response, "type": kind, "original_question": original}


def test_metamath_on_the_original_s_vectors(prepared):
    text = "Mr. Smith has 3 apples. He buys 2.5 more, so 5.5.\nThen $x=1$. Done.\n#### 5.5\nThe answer is: 5.5"
    rows = [meta(EASY, text), meta(EASY, "One.\nTwo,\nthree.\n\nThe answer is: $2$", query="r?"), meta(EASY, "no answer")]
    records, card = prepared("metamath", rows)
    assert [record["solution"] for record in records] == [
        "Mr. Smith has 3 apples.\n\nHe buys 2.5 more, so 5.5.\n\nThen $x=1$.\n\nDone.\n\n# Answer\n\n5.5",
        "One.\n\nTwo, three.\n\n# Answer\n\n$2$",  # the original loses the marker of such an answer
    ]
    assert records[0]["level"] == 1 and card["counts"]["rows without an answer"] == 1


def test_metamath_keeps_what_the_levels_allow(prepared):
    rows = [meta(q, f"{n}\nThe answer is: {n}", query=f"{n}?") for n, q in enumerate((EASY, HARD, HELD, "unknown"))]
    rows += [meta("any", f"x{n}\nThe answer is: 7", "GSM_AnsAug", "g?") for n in (0, 0, 1, 2)]

    def ids(**fields):
        return [record["id"] for record in prepared("metamath", rows, **fields)[0]]

    assert ids() == [f"metamath/{n}" for n in (0, 1, 4, 6, 7)]
    assert ids(levels=(1, 2, 3), per_question=2) == ["metamath/0", "metamath/4", "metamath/6"]
    assert ids(levels=(1,), keep_unknown=False) == ["metamath/0"]


SHEPHERD = "What is 1+1? Step 1: Add one and one. ки\nStep 2: We get 2. The answer is: 2 ки"


def test_shepherd_on_the_original_s_vector():
    label = SHEPHERD.replace("one. ки", "one. +").replace("2 ки", "2 -")
    question, steps, labels = parse(SHEPHERD, label, TEMPLATE)
    assert (question, steps) == ("What is 1+1?", ["Add one and one.", "We get 2.", "# Answer\n\n2"])
    assert labels == [1.0, 0.0, 0.0]
    trailing = " Step 3: unlabelled"
    assert parse(SHEPHERD + trailing, label + trailing, TEMPLATE)[1] == steps
    assert parse(SHEPHERD, label.replace("+", "?"), TEMPLATE) is None
    assert parse(SHEPHERD, label.replace("We", "He"), TEMPLATE) is None
    assert parse("no steps", "no steps", TEMPLATE) is None


def shepherd(question, task="MATH"):
    text = f"{question} Step 1: Add. ки\nStep 2: So 2. The answer is: 2 ки"
    return {"input": text, "label": text.replace("ки", "+"), "task": task}


def test_levels_of_shepherd_come_from_the_exact_question_first(prepared):
    rows = [
        shepherd(EASY.replace(" ", "  ")),  # exact but for white space
        shepherd(EASY[:40] + " something else"),  # the same beginning
        shepherd(HARD),
        shepherd(HELD),
        shepherd("Easy but nothing like any question there is?"),
        shepherd(EASY, "GSM8K"),
    ]
    records, card = prepared("math_shepherd", rows)
    assert [record["level"] for record in records] == [1, 1, 5, None]
    easy, easy_card = prepared("math_shepherd", rows, levels=(1, 2, 3))
    assert [record["level"] for record in easy] == [1, 1]
    assert card["counts"]["levels found: exact"] == 2 and card["counts"]["levels found: beginning"] == 1
    assert easy_card["counts"]["rows of another level, of none, or of MATH500"] == 3
    both, _ = prepared("math_shepherd", rows, tasks=("MATH", "GSM8K"))
    assert len(both) == 5


def test_a_beginning_that_easy_and_hard_questions_share_is_not_easy(prepared, tmp_path, rows_file):
    start = "A beginning that is shared by some questions of MATH, "
    shared = {"solution": "s", "answer": "1", "split": "train"}
    rows = [shared | {"problem": start + end, "level": level} for end, level in (("a", 1), ("b", 5))]
    math = rows_file(tmp_path / "two.jsonl", rows)
    _, card = prepared("math_shepherd", [shepherd(start + "c"), shepherd(start + "a")], math=math, levels=(1,))
    assert card["splits"]["train"]["records"] == 1


def test_a_solution_that_shepherd_has_twice_is_kept_once(prepared):
    wrong = shepherd(EASY) | {"label": shepherd(EASY)["label"].replace("+", "-")}
    records, card = prepared("math_shepherd", [shepherd(EASY), wrong, shepherd(HARD)])
    assert [(record["question"], record["labels"][0]) for record in records] == [(EASY, 1.0), (HARD, 1.0)]
    assert card["counts"]["rows that came before"] == 1


def test_a_beginning_of_math500_is_left_out_whatever_the_levels(prepared):
    rows = [shepherd(HELD[:45] + " something else"), shepherd(EASY)]
    records, card = prepared("math_shepherd", rows)
    assert [record["question"] for record in records] == [EASY] and card["counts"]["levels found: test"] == 1


def test_real_shepherd_lines(prepared, shared_data):
    records, card = prepared("math_shepherd", str(shared_data / "math_shepherd" / "samples.jsonl"), tasks=("MATH", "GSM8K"))
    assert len(records) == 7 and "malformed rows" not in card["counts"]
    assert all(record["steps"][-1].startswith("# Answer\n\n") for record in records)
    assert records[0]["labels"] == [1.0] * 4 + [0.0] * 2 and set(records[1]["labels"]) == {0.0}


def test_prmbench(prepared):
    row = {
        "idx": "x/0",
        "classification": "circular",
        "question": EASY,
        "original_process": ["1. a", "2. b"],
        "modified_process": ["1. a", "2. wrong\n\nstill", "3. c"],
        "error_steps": [2],
    }
    records, card = prepared("prmbench", [row, row | {"question": HELD}, row | {"question": HARD, "error_steps": [9, 1]}, row])
    found = [(r["split"], r["process"], r["steps"], r["labels"]) for r in records]
    modified = ["a", "wrong\nstill", "c"], [1.0, 0.0, 1.0]
    assert found == [
        ("train", "modified", *modified),
        ("train", "original", ["a", "b"], [1.0, 1.0]),
        ("train", "modified", ["a", "wrong\nstill", "c"], [0.0, 1.0, 1.0]),  # beyond the last step there is nothing to label
        ("train", "original", ["a", "b"], [1.0, 1.0]),
        ("train", "modified", *modified),
        ("test", "modified", *modified),
        ("test", "original", ["a", "b"], [1.0, 1.0]),
    ]
    assert card["counts"]["rows with a wrong step beyond the last"] == 1
    assert prepared("prmbench", [row, row | {"question": HARD}], levels=(1, 2, 3))[1]["counts"]["rows of another level"] == 1


def test_real_prmbench(prepared, shared_data):
    path, math = str(shared_data / "prmbench"), str(shared_data / "math_12500.jsonl.gz")
    records, card = prepared("prmbench", path, math=math, levels=(1, 2, 3), keep_unknown=False)
    train = [r for r in records if r["split"] == "train" and r["process"] == "modified"]
    dropped = card["counts"].get("solutions with a blank wrong step, or without a step, left out", 0)
    assert len(train) == 1558 - dropped and dropped <= 3 and {r["level"] for r in train} == {1, 2, 3}
    assert card["counts"]["rows of another level"] == 1645
    assert {r["problem_id"].split("/")[0] for r in records} == {"math"}


def test_prmbench_judges_the_modified_solution_of_the_modified_question(prepared):
    """As its own files have both; the original solution is of the original question, and MATH's text tells the level."""
    row = {
        "idx": "x/0",
        "classification": "missing_condition",
        "question": EASY,
        "original_question": "Easy?",
        "modified_question": " Two conditions fewer? ",
        "original_process": ["a", "b"],
        "modified_process": ["Step 1. a", "step 2: b", "3. 3.5 is c", "4.5 is d"],
        "error_steps": [2, 4, 7],
    }
    records, _ = prepared("prmbench", [row, row | {"modified_question": "Other?", "classification": "deception"}])
    wrong = ["a", "b", "3.5 is c", "4.5 is d"], [1.0, 0.0, 1.0, 0.0]
    assert [(r["question"], r["process"], r["steps"], r["labels"], r["level"]) for r in records] == [
        ("Two conditions fewer?", "modified", *wrong, 1),
        ("Easy?", "original", ["a", "b"], [1.0, 1.0], 1),
        ("Other?", "modified", *wrong, 1),
    ]
    # An original is no duplicate of a modified solution with the same text, whose labels are others.
    same = {"question": EASY, "original_process": ["a", "b"], "modified_process": ["a", "b"], "error_steps": [2]}
    blank = same | {"original_process": ["a", " ", "c"]}
    records, card = prepared("prmbench", [same, same, blank, blank])
    originals = [r["steps"] for r in records if r["process"] == "original"]
    assert originals == [["a", "b"], ["a", "c"]] and len(records) == 6
    assert card["counts"]["blank steps, left out"] == 1  # an original is read once


def test_the_real_files_of_prmbench_s_own_task(prepared, shared_data):
    """Counted with a reader of our own: the first test part of eight classes, and multi_solutions without a wrong step."""
    path, math = shared_data / "prmbench" / "classified", str(shared_data / "math_12500.jsonl.gz")
    rows = [json.loads(line) for file in sorted(path.glob("*.gz")) for line in gzip.open(file)]
    records, card = prepared("prmbench", str(path), math=math)
    modified = sorted((r["idx"], r["classification"], r["question"]) for r in records if r["process"] == "modified")
    assert modified == sorted((row["idx"], row["classification"], row["modified_question"].strip()) for row in rows)
    wrong = sum(len({n for n in row["error_steps"] if n <= len(row["modified_process"])}) for row in rows)
    assert sum(r["labels"].count(0.0) for r in records) == wrong
    assert card["counts"]["rows with a wrong step beyond the last"] == 21
    originals = [r for r in records if r["process"] == "original"]
    bare = lambda step: re.sub(r"^(?:Step|[\d.:\s])+|\s", "", step)  # noqa: E731  (no number in front, no white space)
    found = [(r["question"], *filter(None, map(bare, r["steps"]))) for r in originals]
    expected = {(row["original_question"].strip(), *filter(None, map(bare, row["original_process"]))) for row in rows}
    assert set(found) == expected and all(set(r["labels"]) == {1.0} for r in originals)
    assert len(originals) == len({(r["question"], *r["steps"]) for r in originals})


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_benchmark_s_label_of_a_blank_step_is_not_lost_silently(prepared, blank):
    """Left out and counted: without its wrong step a wrong solution would read as one without an error, or cut short."""
    row = {"id": "math-1", "problem": "q?", "steps": ["a", blank, "c"]}
    records, card = prepared("processbench", [row | {"label": label} for label in (1, 2, 0, -1)])
    assert [(r["steps"], r["labels"]) for r in records] == [
        (["a", "c"], [1.0, 0.0]),
        (["a", "c"], [0.0, None]),
        (["a", "c"], [1.0, 1.0]),
    ]
    assert card["counts"]["solutions with a blank wrong step, or without a step, left out"] == 1
    assert card["counts"]["blank steps, left out"] == 3
    row = {"question": EASY, "original_process": ["o"], "modified_process": ["a", blank], "error_steps": [2]}
    records, card = prepared("prmbench", [row, row | {"error_steps": [1]}])
    assert [(r["process"], r["labels"]) for r in records] == [("original", [1.0]), ("modified", [0.0])]
    assert card["counts"]["solutions with a blank wrong step, or without a step, left out"] == 1
    good = shepherd(EASY)
    empty = {name: text.replace("So 2. The answer is: 2", "") for name, text in good.items()}
    records, card = prepared("math_shepherd", [good, empty])
    assert len(records) == 1 and card["counts"]["malformed rows"] == 1


def test_processbench(prepared):
    row = {"id": "gsm8k-0", "problem": "q?", "steps": ["a\n\nb", "c", "d"], "label": 1, "generator": "x"}
    records, _ = prepared("processbench", [row, row | {"id": "math-1", "label": -1, "final_answer_correct": True}])
    found = sorted((r["split"], r["steps"], r["labels"], r["final_answer_correct"]) for r in records)
    assert found == [("gsm8k", ["a\nb", "c", "d"], [1.0, 0.0, None], None), ("math", ["a\nb", "c", "d"], [1.0, 1.0, 1.0], True)]


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        ("gsm8k", {"questions": "x"}, 'train.jsonl:1: field "question" is missing or not text .did you mean "questions"'),
        ("metamath", {"query": "x"}, 'field "response" is missing'),
        ("math_shepherd", {"input": "x"}, 'field "task" is missing'),
        ("prmbench", {"question": "x", "error_steps": [1]}, 'field "modified_process" must be a list of texts'),
        (
            "processbench",
            {"problem": "x", "steps": ["a"], "label": 3},
            'field "label" must be the index of a step, or -1, not 3',
        ),
        ("processbench", {"problem": "x", "steps": ["a"], "label": True}, 'field "label" must be the index of a step'),
        ("processbench", {"problem": "x", "steps": "a", "label": 0}, 'field "steps" must be a list of texts'),
        (
            "prmbench",
            {"question": "x", "error_steps": "", "modified_process": ["a"], "original_process": ["a"]},
            'field "error_steps" must be a list of step numbers from 1',
        ),
        ("math", {"problem": "x", "solution": "y", "answer": "1", "in_math500": "false"}, "must be true or false, not 'false'"),
        ("math", {"problem": "x", "solution": "y", "answer": "1", "split": 1}, 'field "split" must be text or null, not 1'),
        ("math", {"problem": "x", "solution": r"So \boxed{1}", "answer": 0}, 'field "answer" must be text or null, not 0'),
    ],
)
def test_rows_of_another_source_are_refused(refused, source, row, message):
    refused(message, source, [row])


def test_nothing_left_is_an_error_and_leaves_nothing(refused, tmp_path):
    refused("gsm8k: no record is left of GSM8K.*1 rows without an answer", "gsm8k", [{"question": "x", "answer": "y"}])
    assert not list(tmp_path.glob("out*/*"))
