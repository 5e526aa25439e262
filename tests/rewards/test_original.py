"""The rules of the paper's code: all figures that were measured on it (original-system.md A.2, A.4, A.5), the whole by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from e2h_jax.data.rollout import Rollout
from e2h_jax.errors import UserError
from e2h_jax.rewards import original, shaping
from e2h_jax.rewards.original import StepPair, extract_answer, format_penalty, newline_token, shape, step_pairs, step_values
from e2h_jax.rewards.shaping import Verdict

NEWLINE, ONE = 13, -4.44


def settings(**fields):
    config = shaping.defaults()
    config.update(shaping.paper() | fields)
    shaping.check(config)
    return config


def tokens_of(text):
    """A word is a token, a newline is a token."""
    words = text.replace("⏎", " ⏎ ").split()
    return np.array([NEWLINE if word == "⏎" else 100 + i for i, word in enumerate(words)], np.int32)


ANSWER = "⏎⏎# Answer⏎⏎42"


@pytest.mark.parametrize(
    "text, expected",  # (offset of the pair, response tokens whose logits are read), or (offset, -4.44)
    [
        (f"s1 a b⏎⏎s2 c d⏎⏎s3 e{ANSWER}", [(3, {2, 3, 4}), (8, {7, 8, 9}), (12, {11, 12, 13})]),
        (f"x⏎⏎s2 c d⏎⏎s3 e{ANSWER}", [(1, ONE), (6, {5, 6, 7}), (10, {9, 10, 11})]),
        (f"x y⏎⏎s2 c d⏎⏎s3 e{ANSWER}", [(2, {1, 2, 3}), (7, {6, 7, 8}), (11, {10, 11, 12})]),
        (f"⏎⏎s1 a{ANSWER}", [(0, ONE), (4, {3, 4, 5})]),
        ("s1 a b⏎⏎s2 c d⏎⏎", [(3, {2, 3, 4})]),
        ("s1 a b⏎⏎s2 c d⏎⏎s3⏎", [(3, {2, 3, 4})]),
        ("s1 a b⏎⏎s2 c d", []),
        ("s1 a b⏎⏎s2 c d⏎⏎s3 e", [(3, {2, 3, 4})]),
        (f"s1 a b{ANSWER}", [(3, {2, 3, 4})]),
        ("s1 a b", []),
        ("", []),
        (f"s1 a b⏎⏎⏎s2 c d{ANSWER}", [(3, {2, 3, 4}), (9, {8, 9, 10})]),
        (f"s1 a b⏎⏎⏎⏎s2 c d{ANSWER}", [(3, {2, 3, 4}), (5, {4, 5, 6}), (10, {9, 10, 11})]),
        (
            f"s1 a b⏎⏎s2 c d{ANSWER}⏎⏎extra stuff⏎⏎more",
            [(3, {2, 3, 4}), (8, {7, 8, 9}), (12, {11, 12, 13}), (15, {14, 15, 16})],
        ),
    ],
)
def test_step_positions_of_the_original(text, expected):
    tokens, plain = tokens_of(text), text.replace("⏎", "\n")
    read = [set() for _ in expected]
    for at in range(len(tokens)):
        logits = np.zeros(len(tokens) + 1)
        logits[at + 1] = -1  # [0] is at the prompt's last token
        for which, pair in enumerate(step_pairs(tokens, logits, NEWLINE, plain)):
            read[which] |= {at} if pair.logit == -1 else set()
    pairs = step_pairs(tokens, np.zeros(len(tokens) + 1), NEWLINE, plain)
    assert [pair.offset for pair in pairs] == [offset for offset, _ in expected]
    assert [ONE if pair.logit == ONE else which for pair, which in zip(pairs, read, strict=True)] == [e for _, e in expected]


def test_tokens_that_do_not_match_the_text_are_not_scored():
    assert step_pairs(tokens_of(f"a b c{ANSWER}"), np.zeros(20), NEWLINE, "a b c\n\nd\n\n# Answer\n\n42") == []


@pytest.mark.parametrize(
    "scheme, upper_bound, logits, expected, total",
    [
        ("min", 0.5, [2, 1, -1, 0.5], [0.0625, 0.0625, -0.168559, 0.0625], 0.018941),
        ("min", 0.5, [3, 3, 3], [0.083333] * 3, 0.25),
        ("min", 0.5, [-4.44, 3, -6], [-0.405008, 0.083333, 0.074148], -0.247527),
        ("min", 0.5, [0, 0], [0.125, 0.125], 0.25),
        ("min", 1.0, [2, 1, -1, 0.5], [-0.056703, -0.087239, -0.399617, 0.0625], -0.481059),
        ("prod", 0.5, [2, 1, -1, 0.5], [0.0625, 0.0625, -0.264325, -0.002881], -0.142206),
        ("prod", 0.5, [0, 0], [0.125, -0.125], 0.0),
        ("prod", 1.0, [3, 3, 3], [0.035907, 0.038157, 0.040299], None),
    ],
)
def test_step_values_of_the_original(scheme, upper_bound, logits, expected, total):
    values = step_values(settings(process=scheme, upper_bound=upper_bound), logits)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    if total is not None:
        assert values.sum() == pytest.approx(total, abs=1e-6)


def test_step_values_are_float64_whatever_the_logits():
    logits = np.float32([0.3, -0.7, 1.9])
    first, second, third = (1 / (1 + math.exp(-float(logit))) for logit in logits)
    charges = np.array([first - 1, second - first, 0]) + 0.25 / 3.000001
    np.testing.assert_allclose(step_values(settings(upper_bound=1.0), logits), charges, rtol=1e-13)
    assert third > second and step_values(settings(), []).shape == (0,)


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"We get \boxed{42}.⏎⏎# Answer⏎⏎42", 0.0),
        (r"We get \boxed{42}.⏎⏎so it is.⏎⏎# Answer⏎⏎42", 0.0),
        ("a⏎⏎so $42$⏎⏎# Answer⏎⏎42", 0.5),
        ("a⏎⏎so $42.$⏎⏎# Answer⏎⏎42", 0.5),
        ("a⏎⏎so 42 it is⏎⏎# Answer⏎⏎42", 0.75),
        ("a⏎⏎so $x=42$⏎⏎# Answer⏎⏎42", 0.75),
        ("a⏎⏎so it is⏎⏎# Answer⏎⏎42", 1.0),
        ("it is $42$⏎⏎so it is⏎⏎# Answer⏎⏎42", 1.0),
        ("so $42$⏎⏎# Answer⏎⏎", 1.0),
        ("so $42$⏎⏎# Answer⏎⏎ \n", 1.0),
        ("so $42$", 1.0),
        ("so $42$⏎⏎# Answer⏎⏎42 ", 1.0),
        ("so 42⏎⏎# Answer⏎⏎42⏎⏎so $43$⏎⏎# Answer⏎⏎43", 1.0),  # the answer is all that follows the first marker
    ],
)
def test_format_penalty_of_the_original(text, expected):
    assert format_penalty(text.replace("⏎", "\n")) == expected


def test_answers_of_the_original():
    assert extract_answer("a\n\n# Answer\n\n42") == "42"
    assert extract_answer("a\n\n# Answer\n\n42\n\nand\n\n# Answer\n\n43") == "42\n\nand"
    assert extract_answer("a\n\n# Answer: 42") == "No answer found."


TEXT = "s1 a b\n\ns2 c\n\nso 42 it is\n\n# Answer\n\n42"
STEPS = [StepPair(3, 0.0), StepPair(7, -1.0)]


def rollout(text=TEXT, length=20):
    tokens, zeros = np.arange(length, dtype=np.int32), np.zeros(length, np.float32)
    return Rollout({}, 0, tokens[:5], tokens, zeros, zeros, True, text)


def test_the_whole_by_hand():
    shaped = shape(settings(), rollout(), 19, STEPS, Verdict(True))
    charge = 1 / (1 + np.e) - 0.5
    expected = np.zeros(20)
    expected[[3, 4]] = 0.125 / 2
    expected[[7, 8]] = (charge + 0.125) / 2
    expected[18] = 1 - 0.75  # the last token before EOS, [19]
    np.testing.assert_allclose(shaped.rewards, expected, atol=1e-6)
    assert shaped.rewards.dtype == np.float32 and shaped.trained == 19
    assert shaped.parts == pytest.approx(
        {"process": charge + 0.25, "outcome": 1, "format": -0.75, "length": 0, "scorable": 1, "undecided": 0, "accuracy": 1},
        abs=1e-6,
    )


@pytest.mark.parametrize(
    "fields, verdict, terminal",
    [
        ({}, Verdict(False), -0.75),
        ({}, Verdict(True, hidden=True), 0.25 - 0.75),
        ({"outcome": "all"}, Verdict(True, hidden=True), 1 - 0.75),
        ({"outcome": "none"}, Verdict(True), 0.25 - 0.75),  # 0.25 for all
        ({"format": "none"}, Verdict(True), 1),
        ({"format_replaces": True}, Verdict(True), -1),  # whatever the tier
        ({"format": "none", "format_replaces": True}, Verdict(True), 1),
        ({"min_length": 20, "min_length_coef": 0.1}, Verdict(True), 0.25 - 0.2),  # the terminal index is 18
        ({"min_length": 10, "min_length_coef": 0.1}, Verdict(True), 0.25),
        ({"format_replaces": True, "min_length": 20, "min_length_coef": 0.1}, Verdict(True), -1 - 0.2),
        ({"format_value": -2.0}, Verdict(True), 1 - 1.5),
    ],
)
def test_terminal_rewards(fields, verdict, terminal):
    shaped = shape(settings(**fields), rollout(), 19, STEPS, verdict)
    assert shaped.rewards[18] == pytest.approx(terminal, abs=1e-6)
    at_end = shape(settings(process_at="end", scale=2.0, **fields), rollout(), 19, STEPS, verdict)
    assert at_end.rewards[18] == pytest.approx(terminal + 2 * (1 / (1 + np.e) - 0.25), abs=1e-6)
    assert not at_end.rewards[:18].any() and at_end.rewards[19] == shaped.rewards[19] == 0


def test_the_unscorable_is_better_off_than_the_badly_scored():
    """A17: a quirk that is kept here, and that `shaping.py` is free of."""
    bad = shape(settings(), rollout(), 19, [StepPair(3, -9.0)], Verdict(False))
    none = shape(settings(), rollout(), 19, [], Verdict(False))
    assert none.rewards.sum() > bad.rewards.sum() + 0.2


def test_a_response_of_eos_alone():
    shaped = shape(settings(), rollout("", 1), 0, [], Verdict(False))
    assert shaped.rewards.tolist() == [-1.0] and shaped.trained == 0


def test_special_tokens_are_no_part_of_a_newline():
    def encode(text, add_special_tokens=True):
        ids = [NEWLINE if character == "\n" else ord(character) for character in text]
        return [1, *ids, 2] if add_special_tokens else ids

    assert newline_token(SimpleNamespace(encode=encode, unk_token_id=0)) == NEWLINE
    with pytest.raises(UserError, match="newline"):
        newline_token(SimpleNamespace(encode=encode, unk_token_id=NEWLINE))


def test_tokenizers_without_newline_pairs_are_refused(tokenizers, llama2_like):
    assert newline_token(llama2_like) == llama2_like.convert_tokens_to_ids("\n")
    for tokenizer in tokenizers.values():
        with pytest.raises(UserError, match="newline"):
            newline_token(tokenizer)


@pytest.mark.parametrize("field, value", [("process", "delta"), ("format", "answer"), ("soft_limit", 5)])
def test_what_the_original_has_not_is_refused(field, value):
    with pytest.raises(UserError, match=f"config.reward.{field}.*original"):
        settings(**{field: value, "hard_limit": 9})


def test_the_paper_s_preset_is_its_recipe():
    assert original.MARKER == "\n\n# Answer\n\n"
    config = settings()
    assert (config.outcome, config.unavailable, config.process, config.process_at) == ("easy", 0.25, "min", "steps")
    assert (config.upper_bound, config.scale, config.bonus) == (0.5, 1.0, 0.25)
    assert (config.format, config.format_value, config.format_replaces) == ("tiers", -1.0, False)
