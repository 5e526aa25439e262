"""Every consumer finds the same final answer in the same text: all of tests/answer_cases.py through each of them."""

import io
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from answer_cases import ANY, CASES, CONTINUED, FORMATS, FOUND_BY, RULED, TAGGED
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from e2h_jax import interactive, stage
from e2h_jax.algorithms import rounds, validation
from e2h_jax.data import arithmetic, prefixes
from e2h_jax.data.cards import Card
from e2h_jax.data.records import read_many
from e2h_jax.data.rollout import Rollout
from e2h_jax.data.steps import encode_solution, split_steps
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import RECORD, TEMPLATES, get_template, with_answer, write_template
from e2h_jax.data.templates import few_shot as few_shot_template
from e2h_jax.errors import UserError
from e2h_jax.evaluation import evaluate, inputs, tables
from e2h_jax.grading import extract_answer
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards import judge, labels
from e2h_jax.rewards.scoring import step_scores

ROWS = {name: FORMATS[name, "template"] for name in sorted(TEMPLATES)}


def written(name, rule):
    return with_answer(get_template(name), rule)


class Pool:
    """In place of the grading pool: keeps what it is asked, and says that each answer is right that there is."""

    def __init__(self, *_):
        self.answers = []

    def grade_many(self, pairs, rules="default"):
        pairs = list(pairs)
        self.answers += [answer for answer, _ in pairs]
        return ["wrong" if answer is None else "correct" for answer, _ in pairs]

    def close(self):
        pass


def problem(number, answer="x"):
    return {"id": f"p/{number}", "question": "a=1", "answer": answer, "level": 1, "subject": None, "solution": None}


def sample(number, text, index=0):
    return {"problem_id": f"p/{number}", "sample": index, "text": text, "finish": "stop", "logprob": None}


def write(folder, rows):
    """A problem with one sample for each (text, answer)."""
    write_records(folder / "problems.jsonl", [problem(n, answer or "none") for n, (_, answer) in enumerate(rows)])
    write_records(folder / "samples" / "samples-00000-of-00001.jsonl", [sample(n, text) for n, (text, _) in enumerate(rows)])
    return inputs.read_problems(str(folder / "problems.jsonl"))


def evaluated(problems, folder, **paths):
    found = inputs.read_generator("g", paths or {"samples": str(folder / "samples")}, problems, 0)
    return [row[0]["answer"] for row in found.samples or [[sample] for sample in found.greedy_samples]]


def test_the_table_is_long_enough():
    assert len(CASES) >= 400 and len(ROWS["e2h"]) >= 190 and min(map(len, ROWS.values())) >= 20
    assert all(answer is None or answer == answer.strip() != "" for _, _, answer in CASES)


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_templates_and_steps(name, rule):
    template = written(name, rule)
    for text, answer in FORMATS[name, rule]:
        assert (text, template.extract_answer(text)) == (text, answer)
        steps = split_steps(text, template)
        assert [step.is_answer for step in steps] == [False] * (len(steps) - 1) + [answer is not None] * bool(steps)
        assert answer is None or answer in text[steps[-1].start : steps[-1].end]


@pytest.mark.parametrize("name", ROWS)
def test_evaluate(name, tmp_path):
    """By the template that `sample` records beside its shards, by the config's, and by neither."""
    rows = ROWS[name]
    problems, expected = write(tmp_path, rows), [answer for _, answer in rows]
    samples = str(tmp_path / "samples")
    anyhow = [extract_answer(text) for text, _ in rows]
    assert evaluated(problems, tmp_path) == anyhow
    for path in (samples, f"{samples}/samples-00000-of-00001.jsonl"):
        assert evaluated(problems, tmp_path, samples=path, template=name) == expected
        assert evaluated(problems, tmp_path, greedy=path, template=name) == expected
    write_template(tmp_path / "samples" / RECORD, get_template(name))
    for path in (samples, f"{samples}/samples-00000-of-00001.jsonl"):
        assert evaluated(problems, tmp_path, samples=path) == expected
        assert evaluated(problems, tmp_path, greedy=path) == expected
        assert evaluated(problems, tmp_path, samples=path, template="any") == anyhow
    other = "qwen_boxed" if name == "e2h" else "e2h"
    found = evaluated(problems, tmp_path, samples=samples, template=other)
    assert found == [get_template(other).extract_answer(text) for text, _ in rows]


def test_evaluate_texts_of_other_systems(tmp_path):
    assert evaluated(write(tmp_path, ANY), tmp_path) == [answer for _, answer in ANY]


def test_a_template_json_of_another_tool_in_the_current_directory(tmp_path, monkeypatch):
    """Greedy solutions that are not given have no record beside them, least of all here."""
    problems = write(tmp_path, ANY)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / RECORD).write_text('{"compilerOptions": {}}')
    monkeypatch.chdir(tmp_path / "here")
    assert evaluated(problems, tmp_path) == [answer for _, answer in ANY]


@pytest.mark.parametrize(("name", "rule"), RULED)
def test_evaluate_by_another_rule(name, rule, tmp_path):
    """Behind the template of the config, behind the one that was recorded, and of a text whose template nobody knows."""
    rows = RULED[name, rule]
    problems, expected = write(tmp_path, rows), [answer for _, answer in rows]
    samples = str(tmp_path / "samples")
    assert evaluated(problems, tmp_path, samples=samples, template=name, answer=rule) == expected
    assert evaluated(problems, tmp_path, greedy=samples, template=name, answer=rule) == expected
    write_template(tmp_path / "samples" / RECORD, get_template(name))
    assert evaluated(problems, tmp_path, samples=samples, answer=rule) == expected
    own = [get_template(name).extract_answer(text) for text, _ in rows]
    assert evaluated(problems, tmp_path, samples=samples, answer="template") == own
    assert evaluated(problems, tmp_path, samples=samples, answer="") == own
    plain = [extract_answer(text, rule) for text, _ in rows]
    assert evaluated(problems, tmp_path, samples=samples, template="any", answer=rule) == plain


def test_evaluate_tells_which_rule_found_how_many(tmp_path):
    problems = write(tmp_path, [(text, None) for text, _ in FOUND_BY])
    samples = str(tmp_path / "samples")
    counts = inputs.read_generator("g", {"samples": samples, "greedy": samples}, problems, 0).counts
    times = Counter(found for _, found in FOUND_BY * 2)
    assert counts["found_by"] == {rule: times[rule] for rule in ("boxed", "section", "sentence")}
    assert counts["no_answer"] == times[None]
    assert counts["graded"] == sum(counts["found_by"].values()) + counts["no_answer"]
    told = tables.summary_line({"graded": {"g": counts}})
    assert told.endswith("(counted as wrong). Answers found by: boxed 4, section 6, sentence 2.")
    for fields in ({"template": "e2h"}, {"answer": "boxed"}):  # one rule: there is nothing to tell
        assert "found_by" not in inputs.read_generator("g", {"samples": samples} | fields, problems, 0).counts


def test_a_math_shepherd_generator_evaluates_right(tmp_path):
    rows = [(text, answer) for text, answer in TAGGED["math_shepherd"] if answer]
    problems = write(tmp_path, rows)
    without = inputs.read_generator("g", {"samples": str(tmp_path / "samples")}, problems, 0)
    write_template(tmp_path / "samples" / RECORD, get_template("math_shepherd"))
    found = inputs.read_generator("g", {"samples": str(tmp_path / "samples")}, problems, 0)
    assert found.correct.all() and found.counts["no_answer"] == 0 and without.correct.sum() == 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("math_shepard", 'config.generators.g.template: there is no template "math_shepard" .did you mean "math_shepherd"'),
        ("none.json", "config.generators.g.template: none.json: not a template file"),
        (3, "config.generators.g.template must hold a template's name as text, not 3"),
    ],
)
def test_a_mistake_in_the_template_is_one_sentence(template, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluated(write(tmp_path, ANY[:3]), tmp_path, samples=str(tmp_path / "samples"), template=template)


MISTAKES = [
    ("sentense", 'there is no rule "sentense" .did you mean "sentence"..; use boxed, section, gsm8k, sentence,'),
    ("header", 'there is no rule "header"'),
    ("####", 'the regular expression "####" has no group; put the answer in one'),
    ("(a)|(b)", "the regular expression .* has 2 groups; put the answer in one .…., and other parts in"),
    ("#### (.*", r'the regular expression "#### \(.\*" cannot be compiled .missing \)'),
]


@pytest.mark.parametrize(("rule", "message"), [*MISTAKES, (3, "must hold a rule as text, not 3")])
def test_a_mistake_in_the_rule_is_one_sentence(rule, message, tmp_path):
    """In `evaluate` before anything is read."""
    with pytest.raises(UserError, match=f"config.generators.g.answer.*{message}"):
        evaluated([], tmp_path, samples="nowhere", answer=rule)
    config = evaluate.defaults()
    config.problems = "nowhere.jsonl"
    config.generators = {"g": {"samples": "nowhere", "answer": rule}}
    with pytest.raises(UserError, match=f"config.generators.g.answer.*{message}"):
        evaluate.check_values(config)


@pytest.mark.parametrize(("rule", "message"), MISTAKES)
def test_a_mistake_in_the_rule_of_another_stage_is_one_sentence(rule, message):
    stages = {"labels": {}, "score": {"model": "m"}}
    stages |= dict.fromkeys(("ppo", "rest_em", "dpo"), {"init": "m", "questions": "q", "reward_model": "m"})
    for name, fields in stages.items():
        module = stage.load(name)
        config = module.defaults()
        if name == "ppo":
            fields = {"init": "m", "questions": "q"}
        config.update(fields | {"answer": rule})
        with pytest.raises(UserError, match=f"^config.answer: {message}"):
            module.check_values(config)


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_labels(name, rule, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(labels, "grade", lambda answer, truth: asked.append(answer) or "correct")
    rows = FORMATS[name, rule]
    write(tmp_path, rows)
    config = labels.defaults()
    config.update({"problems": str(tmp_path / "problems.jsonl"), "template": name, "answer": rule})
    grader = labels._Grader(config, Card(""))
    right = [grader.is_right(text, problem(number)) for number, (text, _) in enumerate(rows)]
    assert right == [answer is not None for _, answer in rows]
    assert set(asked) == {answer for _, answer in rows} - {None}


def test_labels_in_another_template_than_the_samples_are_refused(tmp_path):
    """Else evaluation, which reads the record, would grade right what is labelled wrong."""
    write(tmp_path, ROWS["e2h"][:3])
    paths = {"problems": str(tmp_path / "problems.jsonl"), "samples": str(tmp_path / "samples")}
    config = labels.defaults()
    config.update(paths)
    beginnings = SimpleNamespace(path=paths["problems"], samples=paths["samples"], levels=(), per_problem=0)

    def both():
        labels._Grader(config, Card(""))
        return list(prefixes.read(beginnings, get_template(config.template), None, Card("")))

    whole = both()
    shots = few_shot_template(get_template("e2h"), [{"question": "0?", "solution": "# Answer\n\n0"}], "e2h_1shot")
    write_template(tmp_path / "samples" / RECORD, shots)
    assert both() == whole  # other prompts, the same solutions
    for name in ("qwen_boxed", "math_shepherd"):
        write_template(tmp_path / "samples" / RECORD, get_template(name))
        for run in (lambda: labels._Grader(config, Card("")), both):
            with pytest.raises(UserError, match=f'drawn in the template "{name}", not "e2h"; set config.template={name}'):
                run()
    write_template(tmp_path / "samples" / RECORD, replace(get_template("qwen_boxed"), name="mine"))
    config.update({"samples": f"{paths['samples']}/samples-00000-of-00001.jsonl"})
    with pytest.raises(UserError, match=f"set config.template={tmp_path / 'samples' / RECORD}"):  # the file that is there
        labels._Grader(config, Card(""))
    write_template(tmp_path / "samples" / RECORD, get_template("math_shepherd"))
    config.template = "chat"  # that of the samples
    for fields in ({}, {"samples": "", "completions": paths["samples"]}):
        config.update(fields)
        assert labels._Grader(config, Card("")).template == get_template("math_shepherd")
    problems, fields = [problem(n) for n in range(3)], {"samples": paths["samples"], "template": "chat"}
    assert inputs.read_generator("g", fields, problems, 0).counts["no_answer"] == 3  # no "The answer is:"
    config.template = "e2h"
    with pytest.raises(UserError, match="set config.template=math_shepherd"):
        labels._Grader(config, Card(""))


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_validation(name, rule, tmp_path):
    rows, pool = FORMATS[name, rule], Pool()
    write(tmp_path, rows)
    config = validation.defaults()
    config.update({"problems": str(tmp_path / "problems.jsonl"), "shown": 0})
    found = validation.Validation(config, written(name, rule), tmp_path, pool)
    found.record(0, {f"p/{n}": text for n, (text, _) in enumerate(rows)})
    assert pool.answers == [answer for _, answer in rows]


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_rounds_of_rest_em_and_dpo(name, rule):
    rows, pool = FORMATS[name, rule], Pool()
    problems = {f"p/{number}": problem(number) for number in range(len(rows))}
    found = rounds.judge(problems, [sample(n, text) for n, (text, _) in enumerate(rows)], written(name, rule), "prod", pool)
    assert pool.answers == [answer for _, answer in rows]
    assert [solution.right for solution in found] == [answer is not None for _, answer in rows]


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_rewards_of_reinforcement_learning(name, rule, tokenizers, monkeypatch):
    """The grade, and what is scorable: a text without an answer earns nothing."""
    monkeypatch.setattr(judge, "GradingPool", Pool)
    config = judge.defaults()
    config.update({"process": "none"})
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    rows, none = FORMATS[name, rule], np.zeros(1, np.float32)
    with judge.Judge(config, mesh, tokenizers["bpe"], written(name, rule)) as rewards:
        for text, answer in rows:
            tokens = np.array([*tokenizers["bpe"].encode(text, add_special_tokens=False), 1], np.int32)
            rollout = Rollout(problem(0), 0, np.ones(1, np.int32), tokens, none, none, True, text)
            (shaped,) = rewards([rollout])
            assert shaped.parts["scorable"] == shaped.parts["outcome"] == (answer is not None), text
        assert rewards._pool.answers == [answer for _, answer in rows]


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_the_last_score_is_0_where_there_is_no_answer(name, rule, tokenizers):
    template = written(name, rule)
    backend = Tokenizer.from_str(tokenizers["bpe"].backend_tokenizer.to_str())
    backend.add_special_tokens(list(template.special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    for text, answer in FORMATS[name, rule]:
        encoded = encode_solution(tokenizer, "q", text, template, add_eos=True)
        scores = step_scores(encoded, np.zeros(len(encoded.tokens)), "separator_last")
        assert (scores[-1] == 0.0) == (answer is None), text


@pytest.mark.parametrize(("name", "rule"), FORMATS)
def test_try(name, rule, monkeypatch):
    asked = []
    monkeypatch.setattr(interactive, "group_answers", lambda given: asked.extend(given) or [-1] * len(given))
    for text, answer in FORMATS[name, rule]:
        out = io.StringIO()
        policy = SimpleNamespace(template=written(name, rule), draw=lambda question, turn, text=text: [[(text, True)] * 2])
        interactive.solve(Console(file=out, width=80), policy, None, "?", 0)
        assert ("no final answer" in out.getvalue()) == (answer is None), text
    assert asked == [answer for _, answer in FORMATS[name, rule] for _ in range(2)]


@pytest.mark.parametrize("name", ["e2h", "qwen_boxed", "math_shepherd"])
def test_a_solution_that_goes_on_from_a_beginning_is_one_text(name, tmp_path, tokenizers, monkeypatch):
    template, rows = get_template(name), [(begun, text, answer) for begun, text, of, answer in CONTINUED if of == name]
    expected = [answer for *_, answer in rows]
    problems = [problem(n, answer or "none") | {"prefix": begun} for n, (begun, _, answer) in enumerate(rows)]
    samples = [sample(n, text) for n, (_, text, _) in enumerate(rows)]
    assert [template.extract_answer(template.whole(p, s["text"])) for p, s in zip(problems, samples, strict=True)] == expected

    write_records(tmp_path / "problems.jsonl", problems)
    write_records(tmp_path / "samples" / "samples-00000-of-00001.jsonl", samples)
    assert evaluated(problems, tmp_path, samples=str(tmp_path / "samples"), template=name) == expected
    if name != "math_shepherd":
        assert evaluated(problems, tmp_path, samples=str(tmp_path / "samples")) == expected

    pool = Pool()
    rounds.judge({p["id"]: p for p in problems}, samples, template, "prod", pool)
    config = validation.defaults()
    config.update({"problems": str(tmp_path / "problems.jsonl"), "shown": 0})
    found = validation.Validation(config, template, tmp_path, pool)
    found.record(0, {s["problem_id"]: s["text"] for s in samples})
    assert pool.answers == expected * 2

    monkeypatch.setattr(judge, "GradingPool", Pool)
    config, none = judge.defaults(), np.zeros(1, np.float32)
    config.update({"process": "none", "format": "tiers"})
    with judge.Judge(config, make_mesh((1, 1, 1), jax.devices()[:1]), tokenizers["bpe"], template) as rewards:
        for (_, text, answer), asked in zip(rows, problems, strict=True):
            tokens = np.array([*tokenizers["bpe"].encode(text, add_special_tokens=False), 1], np.int32)
            (shaped,) = rewards([Rollout(asked, 0, np.ones(1, np.int32), tokens, none, none, True, text)])
            assert shaped.parts["scorable"] == (answer is not None)
        assert rewards._pool.answers == expected


def test_labels_of_the_built_in_curriculum(tmp_path):
    rows = [(text, answer) for text, answer in ROWS["e2h"] if text.isascii()]
    write(tmp_path, rows)
    config = SimpleNamespace(problems=str(tmp_path / "problems.jsonl"), samples=(str(tmp_path / "samples"),))
    config.oprm_outcomes, config.repeats, config.seed = 0.5, True, 0
    found = arithmetic.prepare_labels(SimpleNamespace(arithmetic=config), tmp_path)
    assert found["right_outcomes"] == sum(answer is not None for _, answer in rows) / len(rows)
    for (text, answer), record in zip(rows, read_many(tmp_path / "orm.jsonl", "labelled"), strict=True):
        assert set(record["labels"]) <= {float(answer is not None)}, text


FRAGMENTS = ["a", " ", "\n", "\n\n", "\r\n", "# Answer", "# Answer\n", ": ", "42", "\\boxed", "{", "}", "\\}"]
FRAGMENTS += ["\\fbox{", "$", ".", "The answer is:", " ки\n", "<extra_0>", "## Answer", "<|im_end|>", "#### ", "-3", "=> 5"]


@settings(max_examples=600, deadline=None)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join), format=st.sampled_from(sorted(FORMATS)))
def test_properties_for_any_text(text, format):
    name, rule = format
    template = written(name, rule)
    answer, steps = template.extract_answer(text), split_steps(text, template)
    assert [step.is_answer for step in steps] == [False] * (len(steps) - 1) + [answer is not None] * bool(steps)
    unix = text.replace("\r\n", "\n")
    windows = template.extract_answer(unix.replace("\n", "\r\n"))
    assert template.extract_answer(unix) == (windows and windows.replace("\r\n", "\n"))
    step = text.replace(template.tag, "") if template.tag else text
    assert template.extract_answer(template.hide_answers(step)) is None
    if name == "e2h":
        assert answer == extract_answer(text, "section" if rule == "template" else rule)
        parts = [extract_answer(text, part) for part in ("boxed", "section", "sentence")]
        assert extract_answer(text) == (parts[0] or parts[1] or parts[2])
    if rule == "template":
        whole = template.format_solution(["a", "b"], "42")
        assert template.extract_answer(whole) == "42"


def test_templates_survive_the_record(tmp_path):
    for template in TEMPLATES.values():
        write_template(tmp_path / RECORD, template)
        assert get_template(str(tmp_path / RECORD)) == template
        assert json.loads((tmp_path / RECORD).read_text())["name"] == template.name
