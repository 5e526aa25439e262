"""The final answer of tests/answer_cases.py in other formats: rewritten for an evaluator, and in few-shot prompts."""

import pytest
from answer_cases import FORMATS

from e2h_jax.data import few_shot
from e2h_jax.data.rewrite import as_read, rewrite
from e2h_jax.data.steps import split_steps
from e2h_jax.data.templates import TEMPLATES, Template, get_template, with_answer, write_template
from e2h_jax.data.templates import few_shot as few_shot_template
from e2h_jax.grading import ANSWER_RULES


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_few_shot_examples_are_solved(name, rule):
    template = with_answer(get_template(name), rule)
    for text, answer in FORMATS[name, rule]:
        assert answer is not None or not few_shot._is_solved(text, template)
        # With nothing behind its answer, it is an example.
        begun = text[: split_steps(text, template)[-1].end] if answer else ""
        assert not answer or few_shot._is_solved(begun + template.tag, template)


# How each rule's answer is written.
WRITTEN = {"boxed": "It is $\\boxed{{answer}}$.", "section": "", "gsm8k": "#### {answer}", "any": "\\boxed{{answer}}"}
WRITTEN |= {"sentence": "The answer is {answer}.", "last_number": "It is {answer}.", r"=> (\S+)": "=> {answer}"}
OTHERS = [Template("x", "{question}", answer=rule, answer_header=header) for rule, header in WRITTEN.items()]


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_rewriting_keeps_the_answer(name, rule):
    """In every other format, as an evaluator of another system reads it; also where there is none."""
    source = with_answer(get_template(name), rule)
    for text, answer in FORMATS[name, rule]:
        if answer in ("{", "a\n\nb", "1\n\n2"):  # which no box, and no section, can hold
            continue
        for target in TEMPLATES.values():
            assert target.extract_answer(rewrite(text, source, target)) == answer, (text, target.name)
        if answer in (None, "42"):  # others can some of these rules not hold: words, a blank
            for target in OTHERS:
                assert target.extract_answer(rewrite(text, source, target)) == answer, (text, target.answer)


def test_an_evaluator_reads_the_same_text_where_the_rule_alone_differs():
    """And rewrites it, with the answer that the rule finds, where its own format is another."""
    text, e2h = "We add.\n\nSo the answer is 42.\n\nDone.", get_template("e2h")
    for rule in ("sentence", "last_number", "any"):
        source = with_answer(e2h, rule)
        target = as_read(e2h, source)
        assert rewrite(text, source, target) == text
        assert [step.is_answer for step in split_steps(text, target)] == [False, True]
        boxed = get_template("qwen_boxed")
        assert as_read(boxed, source) == boxed
        assert rewrite(text, source, boxed).endswith("So the answer is 42.\n\nThe final answer is $\\boxed{42}$.")
    assert as_read(e2h, e2h) == e2h and as_read(e2h, get_template("math_shepherd")) == e2h
    named = with_answer(few_shot_template(e2h, [{"question": "0?", "solution": "# Answer\n\n0"}], "shots"), "sentence")
    assert as_read(e2h, named) == with_answer(e2h, "sentence")  # its own prompt


def test_every_rule_can_be_a_template_s_own(tmp_path):
    """What it writes is found again, also where the last step states it already."""
    assert {*ANSWER_RULES, r"=> (\S+)"} == set(WRITTEN)
    for template in OTHERS:
        write_template(tmp_path / "t.json", template)
        assert get_template(str(tmp_path / "t.json")) == template
        for steps in ([], ["a"], ["a 1", "b 2"]):
            whole = template.format_solution(steps, "7")
            assert template.extract_answer(whole) == "7"
            assert split_steps(whole, template)[-1].is_answer and len(split_steps(whole, template)) == len(steps) + 1
            again = template.format_steps([whole], "7")
            assert len(again) == (2 if template.answer == "section" else 1)


def test_rewriting_an_answer_that_announces_itself():
    """`grade` calls the section's text right; an evaluator that reads another format must find an answer in it too."""
    rewritten = rewrite("We add.\n\n# Answer\n\nThe answer is: 5", get_template("e2h"), get_template("math_shepherd"))
    assert get_template("math_shepherd").extract_answer(rewritten) == "5"
