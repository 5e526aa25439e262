"""Chat templates: prompts with the very tokens of transformers, what they record, and what cannot be had in this way."""

import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors

from e2h_jax.data import chat, prepare
from e2h_jax.data.chat import INSTRUCTIONS, chat_template, policy_template
from e2h_jax.data.records import read_many
from e2h_jax.data.steps import encode_prompt
from e2h_jax.data.storage import write_json, write_records
from e2h_jax.data.templates import (
    RECORD,
    TEMPLATES,
    Template,
    as_record,
    check_written,
    few_shot,
    get_template,
    recorded_template,
    write_template,
)
from e2h_jax.data.tokenizer import end_ids, load_tokenizer
from e2h_jax.errors import UserError

CHATML = """{% for m in messages -%}
{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor -%}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}{{
m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{
'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\\n\\n' %}{%
set turns = messages[1:] %}{% else %}{% set said = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}{%
if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('first the user, then the assistant, in turn') }}{%
elif m.role == 'user' %}{{ '[INST] ' + (said if loop.first else '') + m.content + ' [/INST]' }}{%
else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns.') }}{% endif %}{%
for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' + m['content'] | trim +
'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
PLAIN = """{% for m in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}{{ m.role | capitalize + ': ' + m.content }}{%
endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"""

# style: (chat template, base tokenizer, its special tokens, bos, eos, whether the tokenizer itself puts BOS in front)
STYLES = {
    "smollm2": (CHATML, "bpe", ["<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>", False),
    "qwen": (CHATML, "bpe", ["<|im_start|>", "<|im_end|>", "<|im|>"], None, "<|im_end|>", False),
    "llama3": (LLAMA3, "bpe", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<s>", "<|eot_id|>", True),
    "mistral": (MISTRAL, "bytes", [], "<s>", "</s>", True),
    "gemma": (GEMMA, "bpe", ["<start_of_turn>", "<end_of_turn>"], "<s>", "</s>", True),
    "spaced": (CHATML, "greedy", ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", False),  # a space behind special tokens
    "plain": (PLAIN, "bpe", [], "<s>", "</s>", True),  # writes no BOS, though the tokenizer does
}
ENDINGS = {  # what a solution begins with, and what ends it
    "smollm2": ("", ("<|im_end|>",)),
    "qwen": ("", ("<|im_end|>",)),
    "llama3": ("", ("<|eot_id|>",)),
    "mistral": (" ", ("</s>",)),
    "gemma": ("", ("<end_of_turn>",)),
    "spaced": ("", ("<|im_end|>",)),
    "plain": (" ", ("\n\nUser:",)),
}
FRAGMENTS = [
    "What is 2 + 3?",
    "\n\n",
    " ",
    "\t",
    "{{ 7 * 7 }}",
    "{% endfor %}",
    "{question}",
    "é🙂",
    r"\boxed{4}",
    "[INST]",
    "Ä",
]
questions = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join).filter(str.strip)


@pytest.fixture(scope="module")
def folders(tokenizers, tmp_path_factory):
    """folders(style, **others): the folder of a tokenizer of that style; `others` go to tokenizer_config.json."""

    def make(style, added=(), **others):
        text, base, special, bos, eos, adds = STYLES[style]
        backend = Tokenizer.from_str(getattr(tokenizers, base).backend_tokenizer.to_str())
        backend.add_special_tokens([*special, *added])
        single, marks = ("<s> $A", [("<s>", backend.token_to_id("<s>"))]) if adds else ("$A", [])
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)
        folder = tmp_path_factory.mktemp(style)
        backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "chat_template": text}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | others))
        return folder

    return make


@pytest.fixture(scope="module")
def styles(folders):
    return {style: load_tokenizer(folders(style)) for style in STYLES}


def by_transformers(tokenizer, question, system=""):
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": question})
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("instruction", ["", "gsm8k", "Solve {question} at once."])
@pytest.mark.parametrize("system", ["", "Be\n\nbrief. "])
def test_prompts_have_the_tokens_of_transformers(styles, style, instruction, system):
    tokenizer = styles[style]
    if system and style == "gemma":
        with pytest.raises(UserError, match="takes no system text; leave the system text empty, or write it into the instr"):
            chat_template(tokenizer, system, instruction)
        return
    template = chat_template(tokenizer, system, instruction)
    turn = {"": "{}", "gsm8k": "{}\n\n" + INSTRUCTIONS["gsm8k"]}.get(instruction, "Solve {} at once.")
    before, after = turn.split("{}", 1)
    bos = [tokenizer.bos_token_id] if style == "plain" else []

    @settings(max_examples=40, deadline=None)
    @given(question=questions)
    @example(question=" \nWhat is <b> 2 + 3?\n ")
    def check(question):
        said = before + (question.strip() if template.trim else question) + after
        assert encode_prompt(tokenizer, question, template).tolist() == bos + by_transformers(tokenizer, said, system)

    check()
    assert template.trim == (style in ("llama3", "gemma"))


@pytest.mark.parametrize("style", STYLES)
def test_what_is_recorded_is_all_there_is_to_it(styles, style, tmp_path):
    template = chat_template(styles[style], instruction="math")
    assert (template.name, template.answer, template.separator, template.tag) == ("chat", "boxed", "\n\n", "")
    assert (template.opening, template.stop) == ENDINGS[style]
    assert set(template.special) == {token for token in chat._Chat(styles[style], "", "").special if token in template.prompt}
    solution = template.format_solution(["We add."], "5")
    assert template.extract_answer(solution + template.stop[0] + r"\boxed{6}") == "5"
    write_template(tmp_path / RECORD, template)
    write_json(tmp_path / "model" / "model.json", {"reads": {"template": as_record(template)}})
    assert recorded_template(tmp_path) == recorded_template(tmp_path / "model") == template
    assert get_template("chat", tmp_path) == get_template("chat", tmp_path / "model") == template
    check_written(tmp_path, template, "config.template")
    with pytest.raises(UserError, match='drawn in the template "chat", not "e2h"; set config.template=chat'):
        check_written(tmp_path, TEMPLATES["e2h"], "config.template")
    write_json(tmp_path / "model" / "model.json", {"reads": {"template": as_record(TEMPLATES["qwen_boxed"])}})
    assert json.loads((tmp_path / "model" / "model.json").read_text())["reads"] == {"template": "qwen_boxed"}
    assert get_template("chat", tmp_path / "model") == TEMPLATES["qwen_boxed"]


@pytest.mark.parametrize("answer", chat.ANSWERS)
def test_every_rule_finds_what_is_written_by_it(styles, answer, tmp_path):
    write_json(tmp_path / "mine.json", {"chat": {}, "answer": answer})
    template = get_template(str(tmp_path / "mine.json"), tokenizer=styles["qwen"])
    assert template == chat_template(styles["qwen"], answer=answer)
    assert template.extract_answer(template.format_solution(["We add 2 and 3."], "5")) == "5"


def test_solutions_end_where_a_turn_does(styles):
    for style, ends in (("qwen", ["<|im_end|>"]), ("gemma", ["</s>", "<end_of_turn>"]), ("mistral", ["</s>"])):
        found = end_ids(styles[style], chat_template(styles[style]))
        assert styles[style].convert_ids_to_tokens(list(found)) == ends


@pytest.mark.parametrize("style", ["smollm2", "llama3", "gemma", "spaced"])
def test_a_question_stays_text_whatever_it_holds(styles, style):
    """… the names of special tokens, which transformers would take for them, and the mark that is looked for."""
    tokenizer = styles[style]
    template = chat_template(tokenizer, instruction="gsm8k")
    plain = encode_prompt(tokenizer, "What?", template).tolist()
    for question in (*template.special, tokenizer.eos_token, *chat._MARKS, chat._ANSWER):
        tokens = encode_prompt(tokenizer, f"What {question} is?", template).tolist()
        special = set(tokenizer.convert_tokens_to_ids([*template.special, tokenizer.eos_token]))
        assert [token for token in tokens if token in special] == [token for token in plain if token in special]
        assert f"What {question} is?" in tokenizer.decode(tokens)


def test_bos_is_there_once(styles):
    for style in ("llama3", "gemma", "mistral", "plain"):
        tokens = encode_prompt(styles[style], "1 + 1?", chat_template(styles[style])).tolist()
        assert tokens[0] == styles[style].bos_token_id and tokens.count(styles[style].bos_token_id) == 1


USER = "{{ '<s>' + messages[-1].content + '</s>' }}"
REFUSED = {
    "strips one side": (USER.replace("content", "content.lstrip()"), "changes the white space around the question"),
    "lowers": (USER.replace("content", "content.lower()"), "changes the question or what is said with it"),
    "doubles": (USER + USER, "changes the question"),
    "squeezes": (USER.replace("content", "content.split() | join(' ')"), "changes the question"),
    "escapes": (USER.replace("content", "content | e"), "changes the question"),
    "leaves out": ("{{ '<s>' }}", "changes the question"),
    "depends on it": (USER + "{{ messages[-1].content | length }}", "changes the question"),
    "other roles": (
        "{% if messages | length < 2 %}{{ raise_exception('An example\\ncomes first.') }}{% endif %}" + USER,
        r"fails for a single question \(An example comes first\.\)",
    ),
    "bug": ("{{ messages[3].content }}", "fails for a single question"),
    "syntax": ("{% if %}", "fails for a single question"),
    "sandbox": ("{{ ''.__class__.__mro__ }}" + USER, "fails for a single question"),
    "placeholder": ("{{ '{question}' }}" + USER, "holds {question}, which stands for the question"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_chat_template_that_cannot_be_had_is_one_sentence(styles, name, monkeypatch):
    text, message = REFUSED[name]
    monkeypatch.setattr(styles["plain"], "chat_template", text)
    with pytest.raises(UserError, match=message) as caught:
        chat_template(styles["plain"])
    assert "\n" not in str(caught.value) and str(caught.value).startswith(styles["plain"].name_or_path)
    if name != "placeholder":
        assert "write the prompt as a template file (docs/data.md, Templates)" in str(caught.value)


def test_mistakes_of_the_user_are_one_sentence(styles, monkeypatch):
    tokenizer = styles["plain"]
    for asked, message in (
        ({"instruction": "gms8k"}, 'no ready instruction "gms8k" .did you mean "gsm8k"'),
        ({"instruction": "{question} and {question}"}, "more than once"),
        ({"system": "Of {question}."}, "holds {question}"),
        ({"answer": "box"}, 'there is no rule "box" .did you mean "boxed"'),
    ):
        with pytest.raises(UserError, match=message):
            chat_template(tokenizer, **asked)
    assert "/no_think" in chat_template(tokenizer, instruction="/no_think").prompt
    monkeypatch.setattr(tokenizer, "chat_template", USER)
    with pytest.raises(UserError, match="leaves out or changes the system text; leave the system text empty"):
        chat_template(tokenizer, system="Be brief.")
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        chat_template(tokenizer)


def test_a_prompt_with_other_tokens_than_those_of_transformers_is_refused(folders):
    """A special token that takes the newline behind it with it, as Phi-3's."""
    folder = folders("plain", [AddedToken("<|user|>", special=True, rstrip=True)])
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{{ '<|user|>\\n' + messages[-1].content }}"
    with pytest.raises(UserError, match="cut into other tokens"):
        chat_template(tokenizer)


def test_a_file_may_leave_the_prompt_to_the_chat_template(styles, tmp_path):
    path = str(tmp_path / "mine.json")
    write_json(path, {"chat": {"system": "Be brief.", "instruction": "math"}, "stop": ["\n\nNext"]})
    for style in ("qwen", "llama3"):
        built = chat_template(styles[style], "Be brief.", "math")
        assert get_template(path, tokenizer=styles[style]) == replace(built, stop=(*built.stop, "\n\nNext"))
    with pytest.raises(UserError, match='mine.json: "chat" needs the tokenizer of a model'):
        get_template(path)
    for content, message in (
        ({"chat": "math"}, '"chat" must be an object of texts with the names system and instruction'),
        ({"chat": {"instructions": ""}}, '"chat" must be an object'),
        ({"chat": {"system": 3}}, '"chat" must be an object'),
        ({"chat": {}, "prompt": "{question}"}, '"prompt" comes from the chat template'),
        ({"chat": {}, "name": "x"}, '"name" comes from the chat template'),
        ({"chat": {}, "stops": []}, 'no field "stops"'),
        ({"chat": {}, "answer": 3}, 'the field "answer" must be a text'),
        ({"chat": {}, "separator": " "}, '"separator" must hold a blank line'),
    ):
        write_json(path, content)
        with pytest.raises(UserError, match=message):
            get_template(path, tokenizer=styles["qwen"])


def test_chat_is_what_is_recorded_and_nothing_else(tmp_path):
    with pytest.raises(UserError, match='"chat" is what a model or samples record, and none are named here'):
        get_template("chat")
    with pytest.raises(UserError, match="records no text format"):
        get_template("chat", tmp_path)
    write_json(tmp_path / "model.json", {"kind": "policy"})
    assert recorded_template(tmp_path) is None
    with pytest.raises(UserError, match='records no text format, which "chat" would be; convert the model again'):
        get_template("chat", tmp_path)
    write_json(tmp_path / "model.json", {"reads": {"template": {"name": "x"}}})
    with pytest.raises(UserError, match=r'model.json: reads.template: a template needs the field "prompt"'):
        recorded_template(tmp_path)


def test_a_chat_model_in_another_template_is_refused_unless_told(styles, tmp_path, capsys):
    tokenizer, get = styles["qwen"], lambda name: policy_template(name, tmp_path, styles["qwen"], tell=True)
    own = chat_template(tokenizer, instruction="gsm8k")
    write_json(tmp_path / "model.json", {"reads": {"template": as_record(own)}})
    with pytest.raises(UserError, match="is a chat model .* config.template=e2h is another .* set config.template=chat or"):
        get("e2h")
    assert get("chat") == own
    write_json(tmp_path / "mine.json", {"chat": {"instruction": "math"}})
    assert get(str(tmp_path / "mine.json")) == chat_template(tokenizer, instruction="math")
    shots = few_shot(own, [{"question": "1 + 1?", "solution": r"\boxed{2}"}], "chat_1shot")
    write_template(tmp_path / "shots.json", shots)
    assert get(str(tmp_path / "shots.json")) == shots
    write_json(tmp_path / "model.json", {"reads": {"template": "e2h"}})  # told
    assert get("e2h") == get("chat") == TEMPLATES["e2h"]
    assert capsys.readouterr().err == ""


def test_a_folder_that_does_not_say_goes_on_with_one_line(styles, tmp_path, capsys):
    write_json(tmp_path / "model.json", {"kind": "policy"})
    for tell in (True, True, False):
        assert policy_template("e2h", tmp_path, styles["qwen"], tell=tell) == TEMPLATES["e2h"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the tokenizer has a chat template, and config.template=e2h is another" in said


def test_data_is_prepared_in_the_text_format_of_a_model_or_of_samples(styles, folders, tmp_path):
    folder = folders("qwen")
    write_json(folder / "model.json", {"bos": "tokenizer", "reads": {"template": as_record(chat_template(styles["qwen"]))}})
    write_records(tmp_path / "train.jsonl", [{"question": "2 + 3?", "answer": "We add.\n#### 5"}])
    config = prepare.defaults()
    config.update({"source": "gsm8k", "path": str(tmp_path / "train.jsonl"), "format": "jsonl"})
    config.update({"template": "chat", "tokenizer": str(folder)})
    prepare.run(config, tmp_path / "out")
    (record,) = read_many(tmp_path / "out" / "gsm8k" / "train.jsonl", "problem")
    assert record["solution"] == "We add.\n\nThe final answer is $\\boxed{5}$."
    config.tokenizer = ""
    with pytest.raises(UserError, match='"chat" is what a model or samples record, and none are named'):
        prepare.run(config, tmp_path / "other")
    write_template(tmp_path / "drawn" / RECORD, TEMPLATES["qwen_boxed"])
    config.update({"source": "few_shot", "path": str(tmp_path / "out" / "gsm8k" / "train.jsonl"), "shots": 1})
    config.samples = str(tmp_path / "drawn")
    prepare.run(config, tmp_path / "shots")
    shots = few_shot(TEMPLATES["qwen_boxed"], [record], "chat_1shot")
    assert get_template(str(tmp_path / "shots" / "template.json")) == shots


def test_the_documentation_has_a_whole_template_and_every_field(tmp_path):
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "shown.json").write_text(shown)
    template, names = get_template(str(tmp_path / "shown.json")), [field.name for field in fields(Template)]
    assert list(json.loads(shown)) == names and template.extract_answer(template.format_solution(["a"], "7")) == "7"
    table = page[page.index("| field | what it says |") :].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", table, flags=re.MULTILINE))
    assert set(rows) == {*names, "chat"}
    left_out = asdict(Template(name="x", prompt="{question}"))
    stated = {name: json.loads(value.strip("`")) for name, value in rows.items() if value.startswith("`") and name in names}
    assert stated == {name: json.loads(json.dumps(left_out[name])) for name in names if name not in ("name", "prompt")}
