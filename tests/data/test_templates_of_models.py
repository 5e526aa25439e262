"""The formats of public models, few-shot prompts, template files: text, answers, tokens and steps."""

import json
import time
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from e2h_jax.data import prepare
from e2h_jax.data.batches import language_model_example
from e2h_jax.data.records import read_many
from e2h_jax.data.rewrite import rewrite
from e2h_jax.data.steps import (
    READ_AT,
    encode_continuations,
    encode_prompt,
    encode_solution,
    encode_steps,
    read_positions,
    split_steps,
)
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import TEMPLATES, Template, few_shot, get_template, write_template
from e2h_jax.errors import UserError

NAMES = sorted(TEMPLATES)
LISTS = ("special", "stop")
FIELDS = [field.name for field in fields(Template)]
TEXTS = [name for name in FIELDS if name not in (*LISTS, "trim")]
FRAGMENTS = [
    "a",
    "So 4.",
    "é🙂",
    "\n\n",
    "\n",
    " ",
    "# Answer\n\n7",
    r"\boxed{4}",
    r"\boxed{",
    "}",
    " ки\n",
    "The answer is: 3",
]
texts = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join), st.text(max_size=20))


@pytest.mark.parametrize(
    ("name", "solution"),
    [
        ("e2h", "Add.\n\nSo 2.\n\n# Answer\n\n2"),
        ("qwen_boxed", "Add.\n\nSo 2.\n\nThe final answer is $\\boxed{2}$."),
        ("deepseek_boxed", " Add.\n\nSo 2.\n\nThe final answer is $\\boxed{2}$."),
        ("llama3_boxed", "Add.\n\nSo 2.\n\nThe final answer is $\\boxed{2}$."),
        ("qwen_prm", "Add.<extra_0>So 2.<extra_0>The final answer is $\\boxed{2}$.<extra_0>"),
        ("math_shepherd", "Step 1: Add. ки\nStep 2: So 2. The answer is: 2 ки"),
    ],
)
def test_a_solution_in_every_format(name, solution):
    template = get_template(name)
    assert template.format_solution(["Add.", "So 2."], "2") == solution
    assert template.extract_answer(solution) == "2"
    assert template.extract_answer(template.format_solution(["Add."], None)) is None
    steps = split_steps(solution, template)
    assert "".join(solution[step.start : step.end] for step in steps[:1]) in ("Add.", "Step 1: Add.")
    assert len(steps) == (2 if name == "math_shepherd" else 3) and steps[-1].is_answer
    assert "{question}" in template.prompt and "1+1?" in template.format_prompt("1+1?")


# What the chat templates of the models' own tokenizers make of a question with the instruction and of an answer, without BOS.
@pytest.mark.parametrize(
    ("name", "prompt", "ending"),
    [
        (
            "qwen_boxed",  # Qwen2.5-Math-Instruct; ends with its EOS
            "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n",
            "So $\\boxed{2}$.",
        ),
        (
            "deepseek_boxed",  # DeepSeekMath-Instruct: the model writes the space after "Assistant:" itself
            "User: What is 1+1?\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:",
            " So $\\boxed{2}$.",
        ),
        (
            "llama3_boxed",  # Llama-3-Instruct
            "<|start_header_id|>user<|end_header_id|>\n\nWhat is 1+1?\n"
            "Please reason step by step, and put your final answer within \\boxed{}.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "So $\\boxed{2}$.",
        ),
        ("math_shepherd", "What is 1+1? ", "Step 1: So $\\boxed{2}$. The answer is: 2 ки"),  # its data set's card
    ],
)
def test_prompts_are_those_of_the_models(name, prompt, ending):
    template = get_template(name)
    assert template.format_prompt("What is 1+1?") == prompt
    assert template.format_solution(["So $\\boxed{2}$."], "2") == ending
    shots = few_shot(template, [{"question": "What is 1+1?", "solution": ending}] * 4, "x")
    assert shots.format_prompt("What is 1+1?") == "\n\n\n".join([prompt + ending] * 4 + [prompt])


def test_a_long_run_of_white_space_takes_no_time():
    began = time.process_time()
    for name in NAMES:
        assert len(split_steps("Step 1: a" + " \t" * 100_000 + "b", get_template(name))) == 1
    assert time.process_time() - began < 5  # measured: 0.1 s; tried from each space anew it was minutes


def test_a_solution_that_has_a_box_gets_no_second():
    boxed = get_template("qwen_boxed")
    assert boxed.format_solution(["So $\\boxed{2}$."], "2") == "So $\\boxed{2}$."
    for steps in (["So $\\boxed{3}$."], ["So $\\boxed{2}$.", "Check."]):  # but one of another answer, or on the way, does
        assert boxed.format_solution(steps, "2") == "\n\n".join([*steps, "The final answer is $\\boxed{2}$."])


def test_a_box_without_braces_ends_where_its_step_does():
    text = "Step 1: The answer is: \\boxed 9ки"
    assert get_template("math_shepherd").extract_answer(text) == "9"


def test_all_boxes_of_a_step_are_hidden():
    assert get_template("qwen_boxed").find_answer(get_template("qwen_boxed").hide_answers("\\boxed{1}, \\fbox 2")) is None


def test_templates_that_differ_in_the_opening_do_not_write_alike():
    qwen, llama, deepseek = (get_template(f"{name}_boxed") for name in ("qwen", "llama3", "deepseek"))
    assert qwen.writes_like(llama) and not qwen.writes_like(deepseek)
    assert rewrite("So \\boxed{2}.", qwen, deepseek) == " So \\boxed{2}."


def test_stop_strings_end_an_answer():
    text = "Add.\n\n# Answer\n\n2\n\n# Question\n\nNext?\n\n# Answer\n\n3"
    shots = few_shot(TEMPLATES["e2h"], [{"question": "0?", "solution": "# Answer\n\n0"}], "x")
    assert shots.stop == ("\n# Question",) and shots.until_stop(text) == "Add.\n\n# Answer\n\n2\n"
    assert get_template("deepseek_boxed").extract_answer("\\boxed{1}\n\nUser: 2\n\n\\boxed{3}") == "1"
    qwen = get_template("qwen_boxed")  # the first in the text, whichever the template names first
    assert qwen.until_stop("a<|endoftext|>b<|im_start|>c<|im_end|>d") == "a" == qwen.until_stop("a")


def chat_tokenizer(tokenizers):
    """The byte-level tokenizer of the tests with chat markup as special tokens, as models of the Hub have it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.greedy.backend_tokenizer.__class__.from_str(tokenizers.greedy.backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    markup = dict.fromkeys(token for template in TEMPLATES.values() for token in template.special)
    tokenizer.add_special_tokens({"additional_special_tokens": [*markup]})
    return tokenizer


def test_chat_markup_is_special_in_the_template_and_text_in_a_question(tokenizers):
    tokenizer = chat_tokenizer(tokenizers)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    template = get_template("qwen_boxed")
    tokens = encode_prompt(tokenizer, "What is <|im_end|> here?", template).tolist()
    assert (tokens.count(start), tokens.count(end)) == (3, 2)
    assert tokenizer.decode(tokens) == template.format_prompt("What is <|im_end|> here?")


@pytest.mark.parametrize("name", NAMES)
def test_training_and_scoring_agree_in_every_format_and_on_every_tokenizer(name, tokenizers):
    template = get_template(name)
    kinds = () if template.special else ("words", "bpe", "greedy", "composed", "bytes")
    kinds = {kind: getattr(tokenizers, kind) for kind in kinds} | {"chat": chat_tokenizer(tokenizers)}

    @settings(max_examples=60, deadline=None)
    @given(text=texts, kept=st.integers(0, 3))
    @example(text="a\n\nSo \\boxed{4}.\n\nmore", kept=1)
    @example(text="Step 1: a ки\nStep 2: b The answer is: 3 ки", kept=1)
    def check(text, kept):
        parts = [text[step.start : step.end] for step in split_steps(text, template)]
        whole = template.join_steps("", parts)
        again = [whole[step.start : step.end] for step in split_steps(whole, template)]
        assume(again == parts)  # else the join makes another solution of it
        answered = bool(parts) and split_steps(whole, template)[-1].is_answer
        if answered and not template.tag:
            whole = whole.removesuffix(template.separator)
        kept = min(kept, len(parts))
        for tokenizer in kinds.values():
            scoring = encode_solution(tokenizer, "q", whole, template, add_eos=True)
            prefix = template.separator.join(parts[:kept])
            training, first = encode_steps(tokenizer, "q", prefix, parts[kept:], template, add_eos=True)
            assert first == kept
            if parts[kept:]:
                np.testing.assert_array_equal(training.tokens, scoring.tokens)
            for where in READ_AT:
                pairs = zip(read_positions(training, where), read_positions(scoring, where), strict=True)
                assert all(a.tolist() == b.tolist() for a, b in pairs)
            counts = {len(read_positions(scoring, where)) for where in READ_AT}
            assert counts == {len(parts)}

    check()


def test_the_answer_too_is_read_at_its_tag(tokenizers):
    (template,) = (template for template in TEMPLATES.values() if template.tag == "<extra_0>")
    tokenizer = chat_tokenizer(tokenizers)
    text = template.join_steps("", ["We add.", "So \\boxed{4}."])
    encoded = encode_solution(tokenizer, "2+2?", text, template, add_eos=True)
    tag = tokenizer.convert_tokens_to_ids("<extra_0>")
    assert encoded.has_answer and [encoded.tokens[read].tolist() for read in read_positions(encoded, "tag")] == [[tag], [tag]]
    (first, answer) = read_positions(encoded, "separator_last")
    assert encoded.tokens[first].tolist() == [tag] and answer.tolist() == [encoded.steps[1, 1] - 1]


def test_policy_and_evaluator_with_other_tokenizers_see_the_same_steps(tokenizers, llama2):
    """The policy samples with one tokenizer, the evaluator scores with another: as many scores, of the same words."""
    solution = "We add 3 and 4.\n\nSo\nit is 7.\n\n\n\nThus é.\n\n# Answer\n\n7"
    template = get_template("e2h")
    spans = split_steps(solution, template)
    for tokenizer in (tokenizers.bpe, tokenizers.greedy, llama2, chat_tokenizer(tokenizers)):
        encoded = encode_solution(tokenizer, "3+4?", solution, template, add_eos=True)
        assert len(encoded.steps) == len(spans)
        for span, (start, end) in zip(spans, encoded.steps, strict=True):
            assert solution[span.start : span.end] in tokenizer.decode(encoded.tokens[start:end])


def test_a_prefix_is_part_of_the_prompt(tokenizers):
    """What `sample` continues and what `sft` trains on: the same tokens as the whole solution has."""
    template, whole = get_template("e2h"), "Add.\n\nSo 2.\n\n# Answer\n\n2"
    problem = {"question": "1+1?", "solution": "So 2.\n\n# Answer\n\n2", "prefix": "Add."}
    for tokenizer in (tokenizers.bpe, tokenizers.greedy):
        full = encode_solution(tokenizer, "1+1?", whole, template, add_eos=True)
        begun, sampled = encode_continuations(tokenizer, [problem, problem | {"solution": None}], template)
        np.testing.assert_array_equal(begun.tokens, full.tokens)
        assert begun.prompt_length == full.separators[0][1] > full.prompt_length
        np.testing.assert_array_equal(sampled.tokens[: sampled.prompt_length], full.tokens[: begun.prompt_length])
        weights = language_model_example(begun, False)["loss_weights"]
        assert not weights[: begun.prompt_length - 1].any() and weights[begun.prompt_length - 1 :].all()
        assert language_model_example(begun, False, ends=False)["loss_weights"][-1] == 0


def test_few_shot_prompts_of_a_pool(tmp_path):
    problems = [
        {"id": f"p/{n}", "question": f"{n}?", "answer": str(n), "level": n % 5 + 1, "solution": f"So {n}.\n\n# Answer\n\n{n}"}
        for n in range(40)
    ]
    write_records(tmp_path / "pool.jsonl", problems)

    def made(**fields):
        config = prepare.defaults().unlock()
        config.update({"source": "few_shot", "path": str(tmp_path / "pool.jsonl")} | fields)
        folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        summary = prepare.run(config.lock(), folder)
        return get_template(str(folder / "template.json")), summary["examples"].split(", ")

    easy, chosen = made(levels=(1, 2, 3))
    levels = {problem["id"]: problem["level"] for problem in read_many(tmp_path / "pool.jsonl", "problem")}
    assert len(chosen) == 4 and {levels[identity] for identity in chosen} <= {1, 2, 3}
    assert easy.format_prompt("New?").count("# Question") == 5 and easy.format_prompt("New?").endswith("New?\n\n# Solution\n\n")
    assert easy.name == "e2h_4shot"
    hard, hard_chosen = made(levels=(4, 5), shots=2)
    assert len(hard_chosen) == 2 and {levels[identity] for identity in hard_chosen} <= {4, 5}
    assert made(levels=(1, 2, 3))[1] == chosen != made(levels=(1, 2, 3), seed=1)[1]
    write_records(tmp_path / "pool.jsonl", [problem | {"prefix": "Half of it."} for problem in problems[:-4]] + problems[-4:])
    assert sorted(made()[1]) == [f"p/{n}" for n in range(36, 40)], "what goes on from a prefix is no whole solution"
    write_records(tmp_path / "pool.jsonl", problems)
    with pytest.raises(UserError, match='of 40 problems 40 have a solution .* format "e2h"; config.shots=41'):
        made(shots=41)


def test_examples_are_of_the_prompt_s_own_format(tmp_path):
    """A MATH solution has a box on its way; with the project's answer section behind it, it is no example for a chat format."""
    solution = "So $\\boxed{2}$.\n\n# Answer\n\n2"
    texts = [solution, get_template("qwen_boxed").format_solution(["So $\\boxed{2}$."], "2"), "No answer.", None]
    problems = [{"id": f"p/{n}", "question": "?", "answer": "2", "level": 1, "solution": text} for n, text in enumerate(texts)]
    write_records(tmp_path / "pool.jsonl", problems)
    for template, chosen in (("e2h", "p/0"), ("qwen_boxed", "p/1")):
        config = prepare.defaults().unlock()
        config.update({"source": "few_shot", "path": str(tmp_path / "pool.jsonl"), "shots": 1, "template": template})
        assert prepare.run(config, tmp_path / template) == {"shots": 1, "pool": 1, "examples": chosen}


def test_template_files(tmp_path):
    write_template(tmp_path / "t.json", TEMPLATES["qwen_boxed"])
    assert get_template(str(tmp_path / "t.json")) == TEMPLATES["qwen_boxed"]
    (tmp_path / "few.json").write_text('{"name": "x", "prompt": "{question}:", "stop": ["\\n\\n\\n"], "special": []}')
    assert get_template(str(tmp_path / "few.json")) == Template(name="x", prompt="{question}:", stop=("\n\n\n",))
    with pytest.raises(UserError, match="absent.json: not a template file"):
        get_template(str(tmp_path / "absent.json"))


GOOD = {"name": "x", "prompt": "{question}:"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "x", "prompts": "y"}, 'no field "prompts" .did you mean "prompt"'),
        ({"name": "x", "prompt": "y"}, "must hold {question}"),
        ({"prompt": "{question}"}, 'needs the field "name", a text that is not empty'),
        ({"name": "", "prompt": "{question}"}, 'needs the field "name"'),
        ({"name": "x"}, 'needs the field "prompt"'),
        ({}, 'needs the field "name"'),
        ([1], "must hold one object with the fields of a template"),
        (None, "must hold one object"),
        ("x", "must hold one object"),
        *((GOOD | {name: None}, f'the field "{name}" must be a .*, not null') for name in FIELDS),
        *((GOOD | {name: 3}, f'the field "{name}" must be a .*, not 3') for name in FIELDS),
        *((GOOD | {name: {}}, f'the field "{name}" must be a .*, not {{}}') for name in FIELDS),
        *((GOOD | {name: ["a"]}, f'the field "{name}" must be a text, not ."a".') for name in TEXTS),
        *((GOOD | {name: "a"}, f'the field "{name}" must be a list of texts, none empty, not "a"') for name in LISTS),
        *((GOOD | {name: ["a", ""]}, f'the field "{name}" must be a list of texts, none empty') for name in LISTS),
        *((GOOD | {name: ["a", None]}, f'the field "{name}" must be a list of texts, none empty') for name in LISTS),
        *((GOOD | {name: [["a"]]}, f'the field "{name}" must be a list of texts, none empty') for name in LISTS),
        (GOOD | {"answer": "box"}, '"answer" is none of header and inline, and there is no rule "box" .did you mean "boxed"'),
        (GOOD | {"answer": "=> .*"}, 'the regular expression "=> .*" has no group'),
        (GOOD | {"answer": "(=>"}, 'the regular expression ".=>" cannot be compiled'),
        (GOOD | {"answer": "gsm8k"}, '"answer_header" must hold {answer}, where an answer found by "gsm8k" is written'),
        (GOOD | {"answer": "gsm8k", "answer_header": "### {answer}"}, "is not found again"),
        (GOOD | {"answer": "sentence", "answer_header": "It is {answer}."}, "is not found again"),
        (GOOD | {"answer": "=> (.*)", "answer_header": "= {answer}"}, "is not found again"),
        (GOOD | {"answer": "last_number", "answer_header": "{answer} of 9"}, "is not found again"),
        (GOOD | {"separator": ""}, '"separator" must hold a blank line'),
        (GOOD | {"separator": "\n"}, '"separator" must hold a blank line'),
        (GOOD | {"tag": "<s>"}, "\"separator\" must hold the tag '<s>'"),
        (GOOD | {"tag": " <s>", "separator": " <s>"}, '"tag" must have no white space around it'),
        (GOOD | {"answer_header": ""}, "is not found again"),
        (GOOD | {"answer_header": "# Answer "}, "is not found again"),
        (GOOD | {"answer": "inline", "answer_header": ""}, "is not found again"),
        (GOOD | {"answer": "boxed"}, '"answer_header" must hold {answer}'),
        (GOOD | {"answer": "boxed", "answer_header": "It is {answer}."}, "is not found again"),
        (GOOD | {"stop": ["# Ans"]}, "is not found again"),
    ],
)
def test_a_mistake_in_a_template_file_is_one_sentence(content, message, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        get_template(str(tmp_path / "bad.json"))
    assert str(caught.value).startswith(f"{tmp_path}/bad.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000])
def test_a_damaged_template_file_is_one_sentence(content, tmp_path):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match="bad.json: not a template file"):
        get_template(str(tmp_path / "bad.json"))


def test_header_templates_may_have_tags():
    template = Template("x", "{question}", separator="<s>", tag="<s>")
    assert template.format_solution(["a"], "7") == "a<s># Answer<s>7<s>"
    for text in ("a<s># Answer<s>7<s>", "a<s># Answer 7<s>b", "a <s>\n# Answer:<s> 7"):
        assert template.extract_answer(text) == "7" and split_steps(text, template)[-1].is_answer
    assert template.extract_answer("a # Answer<s>7") is None


def test_a_mixture_has_the_stated_shares(tmp_path):
    for name, count in (("prm", 900), ("orm", 100)):
        record = {"problem_id": None, "question": name, "prefix": "", "steps": ["a"], "labels": [1], "level": 1}
        write_records(tmp_path / f"{name}.jsonl", [record | {"number": n} for n in range(count)])
    parts = {name: {"path": str(tmp_path / f"{name}.jsonl"), "share": share} for name, share in (("prm", 3.0), ("orm", 1.0))}
    config = prepare.defaults().unlock()
    config.update({"source": "mixture", "name": "oprm", "mixture": parts, "mixture_by": "records"})
    summary = prepare.run(config, tmp_path / "out")
    records = read_many(tmp_path / "out" / "oprm" / "train", "labelled")
    shares = [sum(record["part"] == name for record in records) for name in ("prm", "orm")]
    assert summary["train"] == 400 and shares == [300, 100]
    assert len({(record["part"], record["number"]) for record in records}) == 400
    config.mixture = {"prm": parts["prm"]}
    with pytest.raises(UserError, match="config.mixture needs two parts or more"):
        prepare.run(config, tmp_path / "out2")
    for wrong in ({"path": "x"}, {"path": "x", "share": 0}, {"path": "x", "share": "much"}, {"path": 3, "share": 1}):
        config.mixture = {"prm": parts["prm"], "orm": wrong}
        with pytest.raises(UserError, match="config.mixture.orm must be a path and a positive share"):
            prepare.run(config, tmp_path / "out3")
    for share in (float("inf"), float("nan"), True):
        config.mixture = {"prm": parts["prm"], "orm": {"path": "x", "share": share}}
        with pytest.raises(UserError, match="config.mixture.orm must be a path and a positive share"):
            prepare.run(config, tmp_path / "out3")
