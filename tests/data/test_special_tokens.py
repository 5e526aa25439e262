"""What stands in front of a prompt, what ends a solution, and markup that a tokenizer lacks: one answer for every use."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from e2h_jax.data.sampled_steps import locate
from e2h_jax.data.steps import (
    _without_dummy_prefix,
    check_tag,
    encode_continuations,
    encode_labelled,
    encode_prompt,
    encode_solution,
)
from e2h_jax.data.templates import Template, get_template
from e2h_jax.data.tokenizer import bos_ids, build_tokenizer, decode_solution, end_ids, load_tokenizer, train_bpe
from e2h_jax.errors import UserError

CHAT = Template(
    name="chat",
    prompt="<|begin|>user{question}<|turn|>",
    special=("<|begin|>", "<|turn|>"),
    stop=("<|turn|>", "\n\nUser:"),
)
PLAIN = Template(name="plain", prompt="Q {question} A ")


@pytest.fixture
def hub(tokenizers, tmp_path):
    """hub(adds, **fields): a tokenizer's folder as models of the Hub have it. Its EOS is <|end|>; <|turn|> is special, but has
    no name, as Llama 3's <|eot_id|>. `adds`: whether tokenizer.json puts BOS in front; `fields` go to tokenizer_config.json."""

    def make(adds: bool = True, generation: object = None, **fields):
        backend = Tokenizer.from_str(tokenizers.greedy.backend_tokenizer.to_str())
        backend.add_special_tokens(["<|begin|>", "<|end|>", "<|turn|>"])
        bos = backend.token_to_id("<|begin|>")
        single, special = ("<|begin|> $A", [("<|begin|>", bos)]) if adds else ("$A", [])
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
        folder = tmp_path / f"hub{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | fields))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        return folder

    return make


def of_an_earlier_version(folder):
    (folder / "model.json").write_text('{"kind": "policy", "config": {}}')
    return folder


@pytest.mark.parametrize(
    ("adds", "fields", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"add_bos_token": True}, True),
        (False, {"add_bos_token": True}, True),
        (True, {"add_bos_token": False}, False),
        (False, {"add_bos_token": False}, False),
        (True, {"add_bos_token": None}, True),
        (False, {"add_bos_token": None}, False),
        (True, {"bos_token": None}, True),
        (False, {"bos_token": None}, False),
    ],
    ids=str,
)
def test_bos_follows_the_tokenizer_wherever_a_prompt_is_made(hub, adds, fields, expected):
    tokenizer = load_tokenizer(hub(adds, **fields))
    begin = tokenizer.convert_tokens_to_ids("<|begin|>")
    record = {"question": "q", "prefix": "Add.", "steps": ["So 2."], "solution": "So 2."}
    made = [
        encode_prompt(tokenizer, "q", PLAIN),  # try
        encode_solution(tokenizer, "q", "So 2.", PLAIN, add_eos=True).tokens,  # scoring, DPO
        encode_labelled(tokenizer, [record], PLAIN, add_eos=True)[0][0].tokens,  # reward models
        encode_continuations(tokenizer, [record], PLAIN)[0].tokens,  # training
        encode_continuations(tokenizer, [record | {"solution": None}], PLAIN)[0].tokens,  # sampling, reinforcement learning
    ]
    assert [tokens.tolist().count(begin) for tokens in made] == [int(expected)] * 5
    assert {tokens[0] == begin for tokens in made} == {expected}
    assert bool(bos_ids(tokenizer)) == expected == (tokenizer.encode("q")[0] == begin)
    # A prompt that writes BOS itself has it once in any case.
    assert encode_prompt(tokenizer, "q", CHAT).tolist()[:2].count(begin) == 1


def test_pieces_beside_tokenizer_json_say_nothing_of_bos(hub):
    folder = hub(False)
    (folder / "tokenizer.model").write_text("of another library")
    assert bos_ids(load_tokenizer(folder)) == []


def test_padding_in_front_is_no_reason_to_miss_bos(hub):
    tokenizer = load_tokenizer(hub(True))
    tokenizer.backend_tokenizer.enable_padding(direction="left", length=16, pad_id=0)
    assert bos_ids(tokenizer) == [tokenizer.bos_token_id]


@pytest.mark.parametrize("make", [lambda f: build_tokenizer(["w"], f), lambda f: train_bpe(["w"], 300, f)])
def test_tokenizers_of_ours_begin_with_bos_those_of_earlier_versions_too(tmp_path, make):
    for tokenizer in (make(tmp_path), load_tokenizer(tmp_path)):
        assert encode_prompt(tokenizer, "w", PLAIN)[0] == 1 == tokenizer.encode("w")[0]
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["post_processor"] = None  # as they were
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = load_tokenizer(tmp_path)
    assert encode_prompt(tokenizer, "w", PLAIN)[0] == 1 == tokenizer.encode("w")[0]


@pytest.mark.parametrize("fields", [{}, {"add_bos_token": False}], ids=str)
def test_a_model_of_an_earlier_version_reads_what_it_has_learned(hub, fields):
    """BOS in front in any case, twice where the prompt has one of its own."""
    tokenizer = load_tokenizer(of_an_earlier_version(hub(False, **fields)))
    begin = tokenizer.bos_token_id
    assert encode_prompt(tokenizer, "q", PLAIN).tolist().count(begin) == 1
    assert encode_prompt(tokenizer, "q", CHAT).tolist()[:2] == [begin, begin]
    nameless = load_tokenizer(of_an_earlier_version(hub(False, bos_token=None)))
    assert begin not in encode_prompt(nameless, "q", PLAIN)


@pytest.mark.parametrize(
    ("generation", "template", "others"),
    [
        (None, PLAIN, ()),
        (None, CHAT, ("<|turn|>",)),
        ([], PLAIN, ()),
        ("<|end|>", PLAIN, ()),
        ("<|turn|>", PLAIN, ("<|turn|>",)),
        (["<|end|>", "<|turn|>"], PLAIN, ("<|turn|>",)),
        (["<|turn|>", "a"], CHAT, ("<|turn|>", "a")),
    ],
)
def test_a_solution_ends_at_every_end_token_that_is_known(hub, generation, template, others):
    ids = load_tokenizer(hub()).convert_tokens_to_ids
    folder = hub(generation=ids(generation) if generation else generation)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids) == ["<|begin|>", "<|end|>"]  # <|turn|> has no name
    ends = end_ids(tokenizer, template)
    assert ends[0] == ids("<|end|>") and sorted(ends[1:]) == sorted(ids(list(others)))
    text = ids(["S", "o", "<|end|>"])
    for end in ends:
        tokens = np.array([*text[:2], end], np.int32)
        assert decode_solution(tokenizer, tokens, template, ends) == "So"
        assert decode_solution(tokenizer, tokens[:2], template, ends) == "So"
        # Rewards are placed on the same text.
        found = locate(tokenizer, np.zeros(3, np.int32), tokens, template)
        assert found.steps.tolist() == [[3, 5]] and len(found.tokens) == 6


def test_stop_texts_that_are_no_tokens_still_cut(hub):
    tokenizer = load_tokenizer(hub())
    tokens = tokenizer.encode("So 4.\n\nUser: and 5?", add_special_tokens=False)
    assert decode_solution(tokenizer, tokens, CHAT, end_ids(tokenizer, CHAT)).strip() == "So 4."


@pytest.mark.parametrize("generation", ["</s>", [2, "3"], [True], -1, [[2]], 2.0], ids=str)
def test_end_ids_that_are_none_are_refused(hub, generation):
    folder = hub(generation=generation)
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id holds .*; make it the id of a token"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "model.json"])
@pytest.mark.parametrize("content", ["{", "[1]", ""], ids=repr)
def test_a_damaged_file_beside_the_tokenizer_is_named(hub, name, content):
    folder = hub()
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged|cannot load {folder}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (("<|begun|>",), r'no special token <\|begun\|> \(did you mean "<\|begin\|>"\?\), which the template mine names'),
        (("<|begin|>", "[X]"), r"no special token \[X\], which the template mine names"),
    ],
)
def test_markup_that_the_tokenizer_lacks_is_refused(hub, special, message):
    tokenizer = load_tokenizer(hub())
    template = Template(name="mine", prompt=f"{special[0]}user {{question}}", special=special)
    record = {"question": "q", "prefix": "", "steps": ["a"], "solution": "a"}
    for make in (
        lambda: encode_prompt(tokenizer, "q", template),
        lambda: encode_solution(tokenizer, "q", "a", template, add_eos=True),
        lambda: encode_labelled(tokenizer, [record], template, add_eos=True),
        lambda: encode_continuations(tokenizer, [record], template),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_chats_of_qwen_have_no_bos_and_those_of_llama_one(tokenizers):
    """The built-in templates, with tokenizers that have the models' markup: Qwen's names no BOS, Llama 3's puts it in front."""
    for name, bos in (("qwen_boxed", None), ("llama3_boxed", "<s>")):
        template = get_template(name)
        backend = Tokenizer.from_str(tokenizers.greedy.backend_tokenizer.to_str())
        backend.add_special_tokens(list(dict.fromkeys((*template.special, *template.stop))))
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=bos, eos_token="</s>", **({"add_bos_token": True} if bos else {})
        )
        first = tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, "q", template)[:3].tolist())
        assert first[: 2 if bos else 1] == ([bos, template.special[0]] if bos else [template.special[0]])
        assert first.count(template.special[0]) == 1
        assert end_ids(tokenizer, template)[1:] == tuple(sorted(tokenizer.convert_tokens_to_ids(list(template.stop))))


def test_a_description_without_a_space_in_front():
    """Nothing is changed in what makes no tokens of text, or is large."""

    def parts(prepend, metaspace, bytelevel):
        cut = [{"type": "Metaspace", **metaspace}, {"type": "ByteLevel", "add_prefix_space": bytelevel}]
        return {
            "normalizer": {"type": "Sequence", "normalizers": [prepend, {"type": "Replace", "content": " "}]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True},
            "model": {"type": "Metaspace"},
            "added_tokens": [{"type": "Prepend"}],
            "truncation": None,
        }

    description = parts({"type": "Prepend", "prepend": "_"}, {"prepend_scheme": "always", "split": True}, True)
    expected = parts({"type": "Sequence", "normalizers": []}, {"prepend_scheme": "never", "split": True}, False)
    assert _without_dummy_prefix(description) == expected


def test_a_problem_without_a_prefix_or_a_solution_is_its_prompt(hub):
    tokenizer = load_tokenizer(hub())
    prompt = encode_prompt(tokenizer, "q", PLAIN)
    assert prompt.dtype == np.int32
    problems = [{"question": "q", "solution": None}, {"question": "q", "prefix": None, "solution": "a"}]
    blank, whole = encode_continuations(tokenizer, problems, PLAIN)
    assert blank.tokens.tolist() == [*prompt, tokenizer.eos_token_id] and blank.prompt_length == len(prompt)
    assert whole.tokens.tolist() == encode_solution(tokenizer, "q", "a", PLAIN, add_eos=True).tokens.tolist()
    assert whole.prompt_length == len(prompt)


def tagged(backend, **fields):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **fields)


def test_a_tag_that_is_text_must_be_one_known_token(tokenizers):
    """With its space in front, as it stands between steps; Math-Shepherd's is " ки"."""
    template = get_template("math_shepherd")
    for vocabulary, refused in (((" ки", "<unk>", "</s>"), False), (("ки", "ки\n", " ки\n", "<unk>", "</s>"), True)):
        words = models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>")
        tokenizer = tagged(Tokenizer(words), unk_token="<unk>")
        if refused:
            with pytest.raises(UserError, match="no token 'ки', which ends the steps of the template math_shepherd"):
                check_tag(tokenizer, template)
        else:
            check_tag(tokenizer, template)
    with pytest.raises(UserError, match="no token 'ки'"):  # several bytes
        check_tag(tokenizers.greedy, template)
    check_tag(tokenizers.greedy, get_template("e2h"))  # no tag


def test_a_tag_is_its_special_token_where_the_template_says_so_and_text_has_it(tokenizers):
    backend = Tokenizer.from_str(tokenizers.greedy.backend_tokenizer.to_str())
    backend.add_special_tokens(["<end>"])
    tokenizer, number = tagged(backend), backend.token_to_id("<end>")
    special = Template("x", "Q {question} A ", separator="<end>", tag="<end>", special=("<end>",))
    check_tag(tokenizer, special)
    with pytest.raises(UserError, match="no token '<end>'"):
        check_tag(tokenizers.greedy, special)
    for text, ends in (("a<end>b", 1), ("a<end>b<end>", 2), ("a", 0)):  # a last step may be cut off before its tag
        assert encode_solution(tokenizer, "q", text, special, add_eos=False).tokens.tolist().count(number) == ends
    written = Template("x", "Q {question} A ", separator="<end>", tag="<end>")
    assert number not in encode_solution(tokenizer, "q", "a<end>b", written, add_eos=False).tokens
    with pytest.raises(UserError, match="no token '<end>'"):
        check_tag(tokenizer, written)


def test_steps_that_are_one_character_apart_are_two(tokenizers):
    template = Template("x", "Q {question}", separator="#", tag="#")
    record = {"question": "q", "prefix": "", "steps": ["a", "b"]}
    encoded, first = encode_labelled(tokenizers.words, [record], template, add_eos=False)[0]
    begin = encoded.prompt_length
    assert first == 0 and (encoded.steps - begin).tolist() == [[0, 1], [2, 3]]
    assert (encoded.separators - begin).tolist() == [[1, 2], [3, 4]]


def test_the_last_space_of_a_prompt_is_the_solution_s(tokenizers, hub):
    """Any other space stays where it is, before markup too."""
    template = Template("x", "q {question} a ")
    for tokenizer in (tokenizers.words, tokenizers.greedy):
        prompt = encode_prompt(tokenizer, "b", template)
        whole = encode_solution(tokenizer, "b", "c", template, add_eos=False).tokens
        assert whole[: len(prompt)].tolist() == prompt.tolist()
        assert tokenizer.decode(prompt, skip_special_tokens=True).endswith("q b a")
        assert tokenizer.decode(whole[len(prompt) :]) == " c"
    chat = Template("x", " a <|turn|> b{question} c ", special=("<|turn|>",))
    tokenizer = load_tokenizer(hub(False, bos_token=None))
    assert tokenizer.decode(encode_prompt(tokenizer, "q", chat)).lstrip() == "a <|turn|> bq c"


def test_only_the_beginning_of_a_prompt_gets_the_space_of_sentencepiece(tokenizers):
    tokenizer, template = tokenizers.bytes, Template("x", "q {question}")
    tokens = tokenizer.convert_ids_to_tokens(encode_solution(tokenizer, "a", "b", template, add_eos=False).tokens.tolist())
    assert "".join(tokens) == "▁<0x71>▁a<0x62>"
