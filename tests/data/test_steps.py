import copy
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from e2h_jax.data.batches import step_label_example
from e2h_jax.data.steps import (
    READ_AT,
    EncodedSolution,
    encode_labelled,
    encode_prompt,
    encode_solution,
    encode_solutions,
    encode_steps,
    read_positions,
    split_steps,
    steps_begun,
    truncate,
)
from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError

TEMPLATE = get_template("e2h")
KINDS = ("words", "bpe", "greedy", "composed", "bytes")

# Texts that meet every rule of steps.py often, and any text at all.
FRAGMENTS = [
    "a",
    "So it is 4.",
    "é",
    "🙂",
    "b=3",
    " ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\n \t\n",
    "\r\n\r\n",
    "# Answer",
    "</s>",
    "<s>",
]
FRAGMENTS += [
    "# Answer\n\n",
    "\n\n# Answer\n\n42",
    "\u2028",
    "\u00a0",
    "\ud800",
    "We add 3 and 4.\n\n",
    "▁",
    "# Question\n\n",
    "e\u0301",  # e and a combining accent: one character or two, by the tokenizer
    "\u0301",
    "\u1112\u1161\u11ab",
    "👩\u200d👧",
    "\r\n",
    "\x85",
    "\ufeff",
    "\x00",
    "# Answer in a step",
    "\n# Answer\n",
    "\r\n\r\n# Answer\r\n\r\n6\r\n",
]
texts = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), st.text(max_size=30))


def pieces_of(text):
    """Steps of a text, and the text that holds just them with one blank line between."""
    steps = split_steps(text, TEMPLATE)
    parts = [text[step.start : step.end] for step in steps]
    answered = bool(steps) and steps[-1].is_answer
    return parts, "\n\n".join(parts) + ("" if answered or not parts else "\n\n")


@settings(max_examples=400, deadline=None)
@given(question=texts, text=texts, kept=st.integers(0, 4))
@example(question="", text="a\n\n# Answer\n\n", kept=0)
@example(question="q", text="a\n\n# Answer", kept=1)
@example(question="q", text="", kept=0)
def test_training_and_scoring_see_the_same_tokens_and_positions(tokenizers, question, text, kept):
    parts, canonical = pieces_of(text)
    kept = min(kept, len(parts))
    for kind in KINDS:
        tokenizer = getattr(tokenizers, kind)
        scoring = encode_solution(tokenizer, question, canonical, TEMPLATE, add_eos=True)
        prefix = "\n\n".join(parts[:kept])
        training, first = encode_steps(tokenizer, question, prefix, parts[kept:], TEMPLATE, add_eos=True)
        assert first == kept
        if parts[kept:]:
            np.testing.assert_array_equal(training.tokens, scoring.tokens)
            np.testing.assert_array_equal(training.steps, scoring.steps)
            np.testing.assert_array_equal(training.separators, scoring.separators)
            assert training.has_answer == scoring.has_answer
            assert_scores_are_read_where_labels_are_trained(training, kept, scoring)
        # A step is read at the same place whatever follows it.
        for count in range(len(parts)):
            part, _ = encode_steps(tokenizer, question, "", parts[:count], TEMPLATE, add_eos=False)
            np.testing.assert_array_equal(part.tokens, scoring.tokens[: len(part.tokens)])
            for where in READ_AT:
                assert_same_positions(read_positions(part, where), read_positions(scoring, where)[:count])


def assert_scores_are_read_where_labels_are_trained(training, first, scoring):
    """Every token at which a step of the text is scored carries, in training, that very step's label."""
    labels = [(1 + step) / 100 for step in range(len(training.steps) - first)]
    for label_tokens in ("all", "end"):
        example = step_label_example(training, first, labels, label_tokens)
        for where in READ_AT:
            for label, read in zip(labels, read_positions(scoring, where)[first:], strict=True):
                assert (example["labels"][read] == np.float32(label)).all() and example["label_weights"][read].all()
                np.testing.assert_array_equal(example["tokens"][read], scoring.tokens[read])


@settings(max_examples=100, deadline=None)
@given(text=texts, limit=st.integers(0, 60))
def test_cut_off_training_and_scoring_agree(tokenizers, text, limit):
    parts, canonical = pieces_of(text)
    for kind in KINDS:
        scoring = truncate(encode_solution(getattr(tokenizers, kind), "q", canonical, TEMPLATE, add_eos=True), limit)
        whole, _ = encode_steps(getattr(tokenizers, kind), "q", "", parts, TEMPLATE, add_eos=True)
        training = truncate(whole, limit)
        for name in ("tokens", "steps", "separators"):
            np.testing.assert_array_equal(getattr(training, name), getattr(scoring, name))
        assert (training.has_answer, training.prompt_length) == (scoring.has_answer, scoring.prompt_length)


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_blank_lines_as_they_were_sampled_change_no_step(tokenizers, text):
    """Training joins the steps of a sample by one blank line each; scoring reads the sample as it is: the same steps."""
    parts, canonical = pieces_of(text)
    again = split_steps(canonical, TEMPLATE)
    assert [canonical[step.start : step.end] for step in again] == parts
    assert [step.is_answer for step in again] == [step.is_answer for step in split_steps(text, TEMPLATE)]
    for kind in KINDS:
        encoded = [encode_solution(getattr(tokenizers, kind), "q", t, TEMPLATE, add_eos=True) for t in (text, canonical)]
        assert [len(solution.steps) for solution in encoded] == [len(parts)] * 2


def assert_same_positions(left, right):
    assert [x.tolist() for x in left] == [x.tolist() for x in right]


@settings(max_examples=400, deadline=None)
@given(question=texts, text=texts, limit=st.integers(0, 60))
def test_spans_hold_the_step_for_any_text(tokenizers, question, text, limit):
    steps = split_steps(text, TEMPLATE)
    for kind in KINDS:
        tokenizer = getattr(tokenizers, kind)
        prompt = encode_prompt(tokenizer, question, TEMPLATE)
        encoded = encode_solution(tokenizer, question, text, TEMPLATE, add_eos=True)
        assert encoded.tokens.dtype == encoded.steps.dtype == encoded.separators.dtype == np.int32
        np.testing.assert_array_equal(prompt, encoded.tokens[: encoded.prompt_length])
        assert encoded.tokens[-1] == tokenizer.eos_token_id
        assert (encoded.tokens[1:-1] >= 2).all()  # text that looks like BOS or EOS stays text
        assert encoded.steps.shape == encoded.separators.shape == (len(steps), 2)
        assert encoded.has_answer == bool(steps and steps[-1].is_answer)
        for step, (start, end), (gap, gap_end) in zip(steps, encoded.steps, encoded.separators, strict=True):
            assert encoded.prompt_length <= start < end <= gap_end < len(encoded.tokens)
            assert gap >= end - 1
            if kind != "words":
                wanted = re.sub("[\ud800-\udfff]", "\ufffd", text[step.start : step.end])
                wanted = {"composed": unicodedata.normalize("NFC", wanted), "bytes": wanted.replace("▁", " ")}.get(kind, wanted)
                assert wanted in tokenizer.decode(encoded.tokens[start:end])
                assert gap == gap_end or "\n" in tokenizer.decode(encoded.tokens[gap:gap_end])
        cut = truncate(encoded, limit)
        assert len(cut.tokens) <= limit and cut.prompt_length <= limit
        for where in READ_AT:
            positions = read_positions(encoded, where)
            assert all(1 <= len(read) <= 3 for read in positions)
            assert_same_positions(read_positions(cut, where), positions[: len(cut.steps)])
            assert all(read.max() < limit for read in read_positions(cut, where))


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_solution_decodes_to_itself(tokenizers, text):
    for kind in ("bpe", "greedy"):  # `composed` composes, and bytes that fell back are one character only together
        tokenizer = getattr(tokenizers, kind)
        encoded = encode_solution(tokenizer, "q", text, TEMPLATE, add_eos=True)
        assert tokenizer.decode(encoded.tokens[encoded.prompt_length : -1]) == text


@settings(max_examples=100, deadline=None)
@given(question=texts, prefix=texts, steps=st.lists(texts, max_size=4))
def test_labelled_steps_have_one_row_each_for_any_text(tokenizers, question, prefix, steps):
    for kind in KINDS:
        encoded, first = encode_steps(getattr(tokenizers, kind), question, prefix, steps, TEMPLATE, add_eos=True)
        assert len(encoded.steps) == first + len(steps)
        for where in READ_AT:
            for index, read in enumerate(read_positions(encoded, where)[first:]):
                assert len(read) <= 3 and all(read < len(encoded.tokens) - 1)
                if not steps[index].strip():
                    assert not len(read)


# Positions measured on the original code (original-system.md A.2, A.3): offsets in the solution; each word and each
# newline is a token. Ours differ by choice: every step is read, a last one without a blank line at its last token,
# and any number of blank lines is one separator.
@pytest.mark.parametrize(
    ("text", "first", "least_of"),
    [
        ("s1 a b⏎⏎s2 c d⏎⏎s3 e⏎⏎# Answer⏎⏎42 7", [3, 8, 12, 19], [[2, 3, 4], [7, 8, 9], [11, 12, 13], [19]]),
        ("x⏎⏎s2 c d⏎⏎s3 e⏎⏎# Answer⏎⏎42", [1, 6, 10, 16], [[0, 1, 2], [5, 6, 7], [9, 10, 11], [16]]),
        ("s1 a b⏎⏎s2 c d", [3, 7], [[2, 3, 4], [7]]),
        ("s1 a b", [2], [[2]]),
        ("⏎⏎s1 a⏎⏎", [4], [[3, 4, 5]]),
        ("s1 a b⏎⏎# Answer⏎⏎42", [3, 9], [[2, 3, 4], [9]]),
        ("s1 a b⏎⏎⏎s2 c d⏎⏎⏎⏎s3 e", [3, 9, 14], [[2, 3, 5], [8, 9, 12], [14]]),
        ("s1 a b⏎⏎# Answer⏎⏎42⏎⏎s2 c⏎⏎e", [3, 9], [[2, 3, 4], [9]]),
        ("s1 a b⏎⏎# Answer⏎⏎", [3, 7], [[2, 3, 4], [6, 7, 8]]),
        ("# Answer⏎⏎42", [4], [[4]]),
        ("", [], []),
    ],
)
def test_positions_of_the_original(words_and_newlines, text, first, least_of):
    encoded = encode_solution(words_and_newlines, "x", text.replace("⏎", "\n"), TEMPLATE, add_eos=True)
    offsets = lambda where: [(read - encoded.prompt_length).tolist() for read in read_positions(encoded, where)]  # noqa: E731
    assert offsets("separator_first") == [[position] for position in first]
    assert offsets("min3") == least_of
    assert offsets("last_token") == [[read[0]] for read in least_of]


@pytest.fixture(scope="module")
def words_and_newlines(tmp_path_factory):
    from e2h_jax.data.tokenizer import build_tokenizer

    words = [
        "#",
        " Question",
        " Solution",
        " Answer",
        "\n",
        "x",
        "42",
        " 7",
        "s1",
        "s2",
        "s3",
        *(" " + c for c in "abcde"),
    ]
    return build_tokenizer([*words, "e"], tmp_path_factory.mktemp("words"))


def test_a_token_that_holds_step_end_and_blank_line_is_in_both_spans(tokenizers):
    encoded = encode_solution(tokenizers.greedy, "What is 3 + 4?", "We add 3 and 4.\n\nSo it is 7.", TEMPLATE, add_eos=False)
    (_, end), (gap, gap_end) = encoded.steps[0], encoded.separators[0]
    assert tokenizers.greedy.decode(encoded.tokens[end - 1]).endswith(".\n\n")
    assert (gap, gap_end) == (end - 1, end)
    for where in READ_AT:
        assert read_positions(encoded, where)[0].tolist() == [end - 1]


def test_split_steps_by_the_rules():
    def split(text):
        return [(text[s.start : s.end], s.is_answer) for s in split_steps(text, TEMPLATE)]

    assert split("a\n\nb\n\n# Answer\n\n6") == [("a", False), ("b", False), ("# Answer\n\n6", True)]
    assert split("\n\n a \n\n\n\n\u00a0\n \n b\n\n") == [("a", False), ("b", False)]
    assert split("# Answer\n\n1\n\nmore\n\n# Answer\n\n2") == [("# Answer\n\n1", True)]
    assert split("# Answer: 6\n\n# Answer\n6") == [("# Answer: 6", True)]
    assert split("a\n# Answer\n6\n\nmore") == [("a", False), ("# Answer\n6", True)]
    assert split("a\n\n# Answer\n\n") == [("a", False), ("# Answer", False)]
    assert split("# Answers\n\n## Answer\n\n6") == [("# Answers", False), ("## Answer", False), ("6", False)]
    assert split(" \n\n\n") == split("") == []


def test_a_labelled_step_with_blank_lines_is_one_row(tokenizers):
    steps = ["a", "b\n\nc", "d\n\n# Answer\n\n4", "e"]
    encoded, first = encode_steps(tokenizers.words, "q", "p", steps, TEMPLATE, add_eos=True)
    assert first == 1
    texts = [tokenizers.words.decode(encoded.tokens[start:end]) for start, end in encoded.steps]
    assert texts == ["p", "a", "b\n\nc", "d\n\n# Answer\n\n4", ""]
    assert [len(read) for read in read_positions(encoded, "separator_last")] == [1, 1, 1, 1, 0]


def test_many_at_once_equals_one_by_one(tokenizers):
    questions, solutions = ["q", "r", "q"], ["a\n\nb", "", "a\n\n# Answer\n\n1"]
    for encoded, question, solution in zip(
        encode_solutions(tokenizers.bpe, questions, solutions, TEMPLATE, add_eos=True),
        questions,
        solutions,
        strict=True,
    ):
        one = encode_solution(tokenizers.bpe, question, solution, TEMPLATE, add_eos=True)
        np.testing.assert_array_equal(encoded.tokens, one.tokens)
        np.testing.assert_array_equal(encoded.steps, one.steps)
    records = [{"question": q, "prefix": "x", "steps": s.split("\n\n")} for q, s in zip(questions, solutions, strict=True)]
    for (encoded, first), record in zip(encode_labelled(tokenizers.bpe, records, TEMPLATE, add_eos=True), records, strict=True):
        one, one_first = encode_steps(tokenizers.bpe, **record, template=TEMPLATE, add_eos=True)
        np.testing.assert_array_equal(encoded.tokens, one.tokens)
        assert first == one_first == 1


def test_policy_and_evaluator_may_have_different_tokenizers(tokenizers):
    text = "a=3.\n\nb=4.\n\n# Answer\n\n7"
    counts = {len(encode_solution(getattr(tokenizers, k), "q", text, TEMPLATE, add_eos=True).steps) for k in KINDS}
    assert counts == {3}


def test_a_step_begins_behind_the_blank_lines_before_it(words_and_newlines):
    encoded = encode_solution(words_and_newlines, "x", "\n\n# Answer\n\n42", TEMPLATE, add_eos=True)
    assert (encoded.steps - encoded.prompt_length).tolist() == [[2, 7]]  # "#", " Answer", two newlines, "42"
    encoded = encode_solution(words_and_newlines, "x", "\n\na b\n\n\n# Answer\n\n42", TEMPLATE, add_eos=True)
    assert (encoded.steps - encoded.prompt_length).tolist() == [[2, 4], [7, 12]]
    assert (encoded.separators - encoded.prompt_length).tolist() == [[4, 7], [12, 12]]


def test_an_answer_of_two_pieces_begins_behind_the_white_space_of_the_first(tokenizers):
    """White space in front of the header is in its piece, and of no step; the second piece, the answer, has none."""
    for kind in ("bpe", "bytes"):
        tokenizer = getattr(tokenizers, kind)
        encoded = encode_solution(tokenizer, "q", "a\n\n\t\t# Answer\n\n7", TEMPLATE, add_eos=False)
        (start, end), (before, _) = encoded.steps[1], encoded.separators[1]
        assert tokenizer.decode(encoded.tokens[start:end]) == "# Answer\n\n7" and before == end == len(encoded.tokens)
        assert start > encoded.separators[0, 1]


def test_a_step_of_dropped_characters_is_read_at_the_token_before_it(tokenizers):
    tokenizer = copy.deepcopy(tokenizers.words)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    encoded = encode_solution(tokenizer, "q", "a\n\n~\n\nb", TEMPLATE, add_eos=True)
    assert len(encoded.steps) == 3
    (_, (start, end), _), (before, *_) = encoded.steps, encoded.separators
    assert (start, end) == (before[1] - 1, before[1])


def test_a_step_stays_when_its_blank_lines_just_fit(tokenizers):
    encoded = encode_solution(tokenizers.words, "q", "a\n\nb\n\n# Answer\n\n4", TEMPLATE, add_eos=True)
    ends = encoded.separators[:, 1].tolist()
    for kept, end in enumerate(ends, start=1):
        assert len(truncate(encoded, end).steps) == kept and len(truncate(encoded, end - 1).steps) == kept - 1
    assert truncate(encoded, ends[-1]).has_answer and not truncate(encoded, ends[-1] - 1).has_answer


@pytest.mark.parametrize(
    ("where", "step", "answer"),
    [("separator_first", 2, 6), ("separator_last", 4, 6), ("min3", (1, 2, 4), 6), ("last_token", 1, 6), ("tag", 2, 7)],
)
def test_positions_behind_a_step_and_behind_the_answer(where, step, answer):
    """Tokens 0 1 are a step and 2 3 4 its blank lines, 5 6 the answer and 7 8 9 what follows it."""
    spans = [np.array(rows, np.int32) for rows in ([[0, 2], [5, 7]], [[2, 5], [7, 10]])]
    positions = read_positions(EncodedSolution(np.arange(10), 0, *spans, has_answer=True), where)
    assert [p.tolist() for p in positions] == [[*np.atleast_1d(step)], [answer]]
    assert {p.dtype for p in positions} == {np.dtype(np.int32)}


def test_a_blank_first_step_has_empty_spans_behind_the_prompt(tokenizers):
    encoded, first = encode_steps(tokenizers.words, "q", "", ["", "a"], TEMPLATE, add_eos=True)
    prompt = encoded.prompt_length
    assert first == 0 and encoded.steps.tolist() == [[prompt] * 2, [prompt + 1, prompt + 2]]  # its blank line stands before a
    assert encoded.separators[0].tolist() == [prompt] * 2


@pytest.mark.parametrize(("length", "begun"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_a_step_has_begun_with_its_first_character(length, begun):
    assert steps_begun("a\n\nb\n\nc", length, TEMPLATE) == begun  # a, b and c stand at 0, 3 and 6


def test_unknown_reading_position_is_refused(tokenizers):
    encoded = encode_solution(tokenizers.words, "q", "a", TEMPLATE, add_eos=True)
    with pytest.raises(UserError, match='did you mean "separator_last"'):
        read_positions(encoded, "seperator_last")


def test_a_new_tokenizer_is_not_mistaken_for_an_old_one_and_keeps_its_settings(tokenizers):
    before = tokenizers.bpe.backend_tokenizer.to_str()
    encode_solution(tokenizers.bpe, "q", "</s>", TEMPLATE, add_eos=True)
    assert tokenizers.bpe.backend_tokenizer.to_str() == before
    assert tokenizers.bpe.encode("</s>") == [tokenizers.bpe.bos_token_id, tokenizers.bpe.eos_token_id]


def test_27000_short_solutions_take_seconds(tokenizers):
    import time

    questions = [f"what is {i % 97} + {i % 89}" for i in range(27_000)]
    solutions = [f"a={i % 9}+{i % 7}\n\nb=a*{i % 5}\n\nc={i % 83}\n\n# Answer\n\n{i % 10}" for i in range(27_000)]
    began = time.process_time()
    encoded = encode_solutions(tokenizers.words, questions, solutions, TEMPLATE, add_eos=True)
    assert sum(len(read_positions(e, "separator_last")) for e in encoded) == 4 * 27_000
    assert time.process_time() - began < 8  # measured: about 1.5 s; a loop over single calls takes more
