"""Steps in tokens as they were sampled: where encoding gives the same, the same spans; elsewhere, the step's characters."""

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from e2h_jax.data.sampled_steps import locate
from e2h_jax.data.steps import encode_solution, split_steps
from e2h_jax.data.templates import TEMPLATES, get_template

TEMPLATE = get_template("e2h")
KINDS = ("words", "bpe", "greedy", "composed", "bytes", "llama2")
FRAGMENTS = ["a", "So it is 4.", "é", "🙂", "≤", "b=3", " ", "\n", "\n\n", "\n\n\n", "\n \t\n", "\r\n\r\n", "# Answer"]
FRAGMENTS += ["b.\n\n", "# Answer\n\n", "\n\n# Answer\n\n42", "\u2028", "We add 3 and 4.\n\n", "# Question\n\n", "👩\u200d👧"]
FRAGMENTS += ["\ufffd"]
texts = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), st.text(max_size=30))


@pytest.fixture(scope="module")
def kinds(tokenizers, llama2):
    """Of every kind one; the bytes of `bytes` are made ordinary tokens, as SentencePiece's are."""
    from transformers import PreTrainedTokenizerFast

    description = json.loads(tokenizers.bytes.backend_tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Tokenizer.from_str(json.dumps(description))
    ordinary = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return {name: getattr(tokenizers, name) for name in KINDS[:4]} | {"bytes": ordinary, "llama2": llama2}


def response(encoded):
    return encoded.tokens[: encoded.prompt_length], encoded.tokens[encoded.prompt_length :]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
@example(text="We 🙂 é.\n\n\n\nb≤3\n\n# Answer\n\n4🙂")
def test_canonical_tokens_have_the_spans_of_encode_solution(kinds, text):
    for kind, tokenizer in kinds.items():
        encoded = encode_solution(tokenizer, "q", text, TEMPLATE, add_eos=True)
        prompt, tokens = response(encoded)
        # What a tokenizer cannot write (unknown words, composed characters), it cannot sample either.
        text = tokenizer.backend_tokenizer.decode(tokens.tolist()) if kind != "llama2" else text
        again = encode_solution(tokenizer, "q", text, TEMPLATE, add_eos=True)
        if again.tokens.tolist() != encoded.tokens.tolist():
            continue
        found = locate(tokenizer, prompt, tokens, TEMPLATE)
        for name in ("tokens", "steps", "separators"):
            np.testing.assert_array_equal(getattr(found, name), getattr(again, name), err_msg=f"{kind} {name} {text!r}")
        assert (found.prompt_length, found.has_answer) == (again.prompt_length, again.has_answer)


def test_the_property_is_not_empty(kinds):
    text = "We add.\n\nSo 4 = 2 + 2.\n\n\n# Answer\n\n4"
    for tokenizer in kinds.values():
        encoded = encode_solution(tokenizer, "q", text, TEMPLATE, add_eos=True)
        found = locate(tokenizer, *response(encoded), TEMPLATE)
        assert len(found.steps) in (2, 3) and found.has_answer  # words has no capitals
        np.testing.assert_array_equal(found.separators, encoded.separators[-len(found.steps) :])


@pytest.mark.parametrize("kind", ["bpe", "greedy", "bytes", "llama2"])
def test_a_response_spelt_in_odd_tokens_has_its_steps(kinds, kind):
    """Byte by byte (or character by character), as no encoder would: every span holds just its characters."""
    tokenizer = kinds[kind]
    text = "We 🙂 add.\n\nSo é ≤ 4.\n\n\n# Answer\n\n4½"
    before = tokenizer.encode("🙂", add_special_tokens=False)  # merges with nothing
    tokens = []
    for character in text:
        tokens += tokenizer.encode("🙂" + character, add_special_tokens=False)[len(before) :]
    prompt = np.array([1, 5, 6], np.int32)
    found = locate(tokenizer, prompt, np.array([*tokens, tokenizer.eos_token_id], np.int32), TEMPLATE)
    ids = found.tokens.tolist()
    spell = lambda start, end: tokenizer.backend_tokenizer.decode(ids[start:end]).strip(" ")  # noqa: E731
    whole = tokenizer.backend_tokenizer.decode(ids[3:])
    steps = [whole[step.start : step.end] for step in split_steps(whole, TEMPLATE)]
    assert len(steps) == 3 and [spell(*span) for span in found.steps] == steps
    assert [spell(*span) for span in found.separators] == ["\n\n", "\n\n\n", ""]
    assert found.steps[-1, 1] == len(ids) - 1  # EOS belongs to no step


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), length=st.integers(1, 60))
def test_any_tokens_at_all(kinds, seed, length):
    rng = random.Random(seed)
    for tokenizer in kinds.values():
        newline = tokenizer.encode("a\n\n", add_special_tokens=False)[-1]
        tokens = [newline if rng.random() < 0.2 else rng.randrange(len(tokenizer) + 3) for _ in range(length)]
        found = locate(tokenizer, np.array([1], np.int32), np.array(tokens, np.int32), rng.choice(list(TEMPLATES.values())))
        assert found.tokens.dtype == found.steps.dtype == found.separators.dtype == np.int32
        end = 1
        for (start, stop), (gap, gap_end) in zip(found.steps.tolist(), found.separators.tolist(), strict=True):
            assert end - 1 <= start < stop <= gap_end <= length + 1 and stop - 1 <= gap <= gap_end
            end = gap_end


def test_what_follows_a_stop_text_belongs_to_no_step(kinds):
    template = get_template("deepseek_boxed")
    tokenizer = kinds["bpe"]
    solution = " We add.\n\nIt is \\boxed{4}."
    tokens = tokenizer.encode(solution + "\n\nUser:", add_special_tokens=False)
    found = locate(tokenizer, np.zeros(2, np.int32), np.array(tokens, np.int32), template)
    assert len(found.steps) == 2 and found.has_answer
    assert tokenizer.decode(found.tokens[slice(*found.steps[1])]) == "It is \\boxed{4}."
    assert found.separators[1, 0] == found.separators[1, 1]


def test_a_thousand_tokens_take_a_millisecond_or_so(kinds):
    import time

    tokens = np.array(kinds["bpe"].encode("So 3 + 4 = 7 é.\n\n" * 200, add_special_tokens=False)[:1000], np.int32)
    began = time.process_time()
    for _ in range(10):
        assert len(locate(kinds["bpe"], tokens[:0], tokens, TEMPLATE).steps) > 50
    assert time.process_time() - began < 1
