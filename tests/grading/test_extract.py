"""Where the final answer of a solution is found, in texts of other systems; tests/answer_cases.py has the table."""

import gzip
import json
import time

import pytest
from answer_cases import ANY, BOX, FOUND_BY, RULED, SECTION
from hypothesis import given
from hypothesis import strategies as st

from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError
from e2h_jax.grading import ANSWER_RULES, extract_answer, grade
from e2h_jax.grading.extract import find_answer, rule_of

TABLES = {"any": ANY, "section": SECTION, "boxed": BOX} | {rule: rows for (name, rule), rows in RULED.items() if name == "e2h"}


@pytest.mark.parametrize("rule", TABLES)
def test_the_table(rule):
    assert [(text, extract_answer(text, rule)) for text, _ in TABLES[rule]] == TABLES[rule]


def test_the_table_has_every_rule():
    assert set(TABLES) > set(ANSWER_RULES) and min(len(TABLES[rule]) for rule in ANSWER_RULES) >= 19


def test_without_a_rule_it_is_any():
    assert extract_answer("\\boxed{4}\n\n# Answer\n\n3") == "4" and extract_answer("# Answer\n\n3") == "3"
    assert extract_answer("The answer is 3.") == "3" and extract_answer("#### 3") is None


@pytest.mark.parametrize(("text", "rule"), FOUND_BY)
def test_any_says_which_rule_found_it(text, rule):
    found = find_answer(text)
    assert (found and found.rule) == rule


@pytest.mark.parametrize(
    ("text", "rule"), [("We add.\n\nSo the answer is **42**.", "sentence"), ("#### 42", "gsm8k"), ("=> 42", "=> (.*)")]
)
def test_what_announces_it_begins_it(text, rule):
    found = find_answer(text, rule)
    assert text[found.begin :].startswith(("answer is", "####", "=>")) and found.rule == rule


@pytest.mark.parametrize("rules", ["default", "strict", "numeric"])
def test_a_box_in_the_answer_section_is_graded_by_what_it_holds(rules):
    for text in ("# Answer\n\n\\boxed{42}", "# Answer\n\n$\\boxed{42}$.", "# Answer \\boxed 42", "# Answer\n\n42"):
        assert grade(extract_answer(text), "42", rules) == "correct"
    for text in ("# Answer\n\n\\boxed{42", "\\boxed{42} no wait, \\boxed{", "# Answer"):
        assert grade(extract_answer(text), "42", rules) == "wrong"


ODD = (
    "\\boxed{" * 30_000 + "5",
    "\\boxed{5}" + "{" * 100_000 + "answer: " * 12_000,
    "\\" * 200_000,
    "# Answer" + "\n" * 60_000 + (" " * 60_000 + "\n") * 2,
    "# Answer\n" * 20_000,
    "answer" + " " * 100_000 + "answer is" + "\n" * 100_000,
    "answer is " + "*" * 100_000 + "_`\"" * 20_000,
    "answer is " + "\"`$\\(" * 20_000 + "5" + "\\)$`\"" * 20_000,
    "answer is $$" * 20_000,
    "answer: " + ".)*'" * 40_000,
    "#" * 200_000,
    "#### " * 40_000,
    "1" * 200_000,
    "1,234" * 40_000,
    "1/2" * 60_000,
    "1 " * 100_000 + "1" * 100_000 + "/",
    "-$" * 100_000,
    "." * 200_000,
    "\\frac{1}" * 20_000 + "{" + "2" * 100_000,
    "1e" * 100_000,
)


def test_odd_texts_take_linear_time():
    """Once quadratic: every open box was read to the end of the text."""
    start = time.process_time()
    for rule in ANSWER_RULES:
        for text in ODD:
            extract_answer(text, rule)
            rule_of(rule).hide(text)
    assert time.process_time() - start < 10  # 1.4 on one core


@given(st.text(st.sampled_from("5-+,./$%\\{}*_ \n\r#answeris:bodx\u2212\ud800"), max_size=40))
def test_no_text_raises_and_what_is_found_is_in_it(text):
    for rule in (*ANSWER_RULES, r"a(.*)", r"(\d)|(?:x)", r"(?=(a))", r"(?<=(5))b"):
        found = find_answer(text, rule)
        if found:
            assert 0 <= found.begin <= found.start < found.stop <= len(text)
            answer = text[found.start : found.stop]
            assert answer == answer.strip()
        assert find_answer(rule_of(rule).hide(text), rule) is None


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("xml", 'there is no rule "xml"; use boxed, section, gsm8k, sentence, last_number, any, or a regular expression with '),
        ("Boxed", 'there is no rule "Boxed" (did you mean "boxed"?)'),
        ("last number", 'there is no rule "last number" (did you mean "last_number"?)'),
        ("gsm-8k", 'there is no rule "gsm-8k" (did you mean "gsm8k"?)'),
        ("", 'there is no rule ""; use'),
        ("(", 'the regular expression "(" cannot be compiled (missing ), unterminated subpattern at position 0); use boxed'),
        ("(a{99999999999})", "cannot be compiled (the repetition number is too large)"),
        ("(" * 5000, "cannot be compiled"),
        ("=> .*", 'the regular expression "=> .*" has no group; put the answer in one (…), and other parts in (?:…).'),
        ("(?:=>) .*", "has no group"),
        ("(=>|:) (.*)", "has 2 groups"),
    ],
)
def test_an_unknown_rule(rule, sentence):
    with pytest.raises(UserError) as caught:
        extract_answer("", rule)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_all_of_gsm8k(shared_data):
    """Each raw row has its answer behind ####, and the prepared record's number is that of the text's last line."""
    for split, count in (("train", 7473), ("test", 1319)):
        texts = [json.loads(line)["answer"] for line in open(shared_data / "gsm8k" / f"{split}.jsonl")]
        assert len(texts) == count
        for text in texts:
            answer = text.splitlines()[-1].removeprefix("#### ")
            assert extract_answer(text, "gsm8k") == answer
            assert grade(extract_answer(text, "last_number"), answer, "numeric") == "correct", text[-80:]


def test_all_of_math(shared_data):
    """The box of each solution holds the file's answer, but for two, which are empty in both."""
    rows = [json.loads(line) for line in gzip.open(shared_data / "math_12500.jsonl.gz")]
    found = [(extract_answer(row["solution"], "boxed"), extract_answer(row["solution"]), row["answer"]) for row in rows]
    assert len(found) == 12500 and all(boxed == anyhow and (boxed or "") == answer.strip() for boxed, anyhow, answer in found)
    assert [boxed for boxed, _, _ in found].count(None) == 2


def test_raw_rows_of_prm800k_and_math_shepherd(shared_data):
    """Of the eight real samples of PRM800K the five that end in a solution have an answer; all of Math-Shepherd have."""
    for line in open(shared_data / "prm800k" / "samples.jsonl"):
        row = json.loads(line)
        steps = [step for step in row["label"]["steps"] if step["completions"]]
        chosen = [step["completions"][step["chosen_completion"] or 0]["text"] for step in steps]
        answer, truth = extract_answer("\n\n".join(chosen), "section"), row["question"]["ground_truth_answer"]
        assert (answer is not None) == (row["label"]["finish_reason"] == "solution")
        assert answer is None or truth is None or answer == truth
    for line in open(shared_data / "math_shepherd" / "samples.jsonl"):
        text = json.loads(line)["input"]
        assert text.endswith(f"The answer is: {get_template('math_shepherd').extract_answer(text)} ки")


def test_processbench_s_solutions_by_models(shared_data):
    """Of GSM8K's questions, by the set's own verdicts: what any rule finds is right as the file says, but for five of 341."""
    truths = {}
    for split in ("train", "test"):
        for line in open(shared_data / "gsm8k" / f"{split}.jsonl"):
            row = json.loads(line)
            truths["".join(row["question"].split())] = extract_answer(row["answer"], "gsm8k")
    counts = {"any": [0, 0], "last_number": [0, 0]}
    for line in gzip.open(shared_data / "processbench" / "gsm8k.jsonl.gz"):
        row = json.loads(line)
        text, truth = "\n\n".join(row["steps"]), truths["".join(row["problem"].split())]
        for rule, count in counts.items():
            if answer := extract_answer(text, rule):
                count[0] += 1
                count[1] += (grade(answer, truth) == "correct") == row["final_answer_correct"]
    assert counts == {"any": [341, 336], "last_number": [400, 390]}
