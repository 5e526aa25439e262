"""The corrected rules: by hand, and what they promise for any scores and settings."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from e2h_jax.data.rollout import Rollout
from e2h_jax.data.steps import EncodedSolution
from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError
from e2h_jax.rewards import shaping
from e2h_jax.rewards.shaping import Verdict, charges

E2H, BOXED = get_template("e2h"), get_template("qwen_boxed")
FINISHED = "s1\n\nso 42\n\n# Answer\n\n42"
PARTS = ("outcome", "process", "bonus", "format", "length")


def settings(**fields):
    config = shaping.defaults()
    config.update(fields)
    shaping.check(config)
    return config


def rollout(text=FINISHED, length=14, stopped=True):
    zeros = np.zeros(length, np.float32)
    return Rollout({}, 0, np.zeros(3, np.int32), np.arange(length, dtype=np.int32), zeros, zeros, stopped, text)


def shape(config, template, rollout, *judged):
    """Of a problem without a prefix."""
    return shaping.shape(config, template, rollout, rollout.text, template.extract_answer(rollout.text), *judged)


def located(steps, separators, has_answer=True, prompt=3):
    spans = np.array([steps, separators], np.int32).reshape(2, -1, 2) + prompt
    return EncodedSolution(np.zeros(0, np.int32), prompt, spans[0], spans[1], has_answer)


# Tokens: step 1 [0, 3), blank lines [3, 5); step 2 [5, 8), with its blank line in its last token; answer [8, 13); EOS.
STEPS = located([[0, 3], [5, 8], [8, 13]], [[3, 5], [7, 8], [13, 13]])


def test_places_by_hand():
    shaped = shape(settings(upper_bound=1.0, scale=2.0, bonus=0.125), E2H, rollout(), STEPS, [0.75, 0.5, 0.7], Verdict(True))
    expected = np.zeros(14)
    expected[4], expected[7], expected[12] = 2 * -0.25, 2 * -0.25, 0.0
    expected[13] = 1 + 0.125  # EOS
    np.testing.assert_allclose(shaped.rewards, expected, atol=1e-7)
    assert shaped.rewards.dtype == np.float32 and shaped.trained == 14
    assert shaped.parts == pytest.approx(
        {"outcome": 1, "process": -1, "bonus": 0.125, "format": 0, "length": 0, "scorable": 1, "undecided": 0, "accuracy": 1}
    )
    at_end = shape(settings(upper_bound=1.0, process_at="end"), E2H, rollout(), STEPS, [0.75, 0.5, 0.7], Verdict(True))
    np.testing.assert_array_equal(at_end.rewards, np.float32([0] * 13 + [0.5]))


@pytest.mark.parametrize("text", ["s1\n\nso 42", "s1\n\nso 42\n\n# Answer\n\n", ""])
def test_without_a_final_answer(text):
    steps = STEPS if text else located([], [])
    shaped = shape(settings(), E2H, rollout(text), steps, [0.9, 0.4, 0.9] if text else None, Verdict(False, hidden=True))
    expected = np.zeros(14)
    expected[7], expected[13] = (-0.1, -0.4 - 1) if text else (0, -0.5 - 1)  # a missing answer is a step that is surely wrong
    np.testing.assert_allclose(shaped.rewards, expected, atol=1e-7)
    assert shaped.parts["scorable"] == shaped.parts["outcome"] == 0
    shaped = shape(settings(bonus=0.5), E2H, rollout(text), steps, [0.9, 0.4, 0.9] if text else None, Verdict(True))
    assert shaped.parts["bonus"] == 0


def test_cut_off_by_the_limit():
    shaped = shape(settings(), E2H, rollout(length=13, stopped=False), STEPS, [0.9, 0.9, 0.9], Verdict(True))
    np.testing.assert_allclose(shaped.rewards, [0] * 12 + [-1.5], atol=1e-7)  # at the last token; right or not
    assert shaped.parts["accuracy"] == 1


def test_what_could_not_be_scored_counts_as_one_wrong_step():
    shaped = shape(settings(), E2H, rollout(), STEPS, None, Verdict(True))
    np.testing.assert_allclose(shaped.rewards, [0] * 13 + [-0.5 - 1], atol=1e-7)
    with pytest.raises(ValueError):
        shape(settings(), E2H, rollout(), STEPS, [0.9, 0.4], Verdict(True))  # a score is missing: no step gets another's


@pytest.mark.parametrize("scores", [None, [0.1, 0.1, 0.1]])
def test_without_process_rewards_scores_are_not_looked_at(scores):
    config = settings(process="none")
    assert shape(config, E2H, rollout(), STEPS, scores, Verdict(True)).rewards.tolist() == [0.0] * 13 + [1.0]
    assert shape(config, E2H, rollout("s1\n\nso 42"), STEPS, scores, Verdict(False)).rewards.tolist() == [0.0] * 13 + [-1.0]


def test_a_reward_of_0_7_stays_0_7():
    config = settings(process="none", format="none", unavailable=0.7)
    shaped = shape(config, E2H, rollout(), STEPS, None, Verdict(None, hidden=True))
    assert shaped.rewards.tolist() == [0.0] * 13 + [float(np.float32(0.7))]
    assert shaped.parts["outcome"] == 0.7 and "accuracy" not in shaped.parts
    config = settings(process="delta", outcome="none", upper_bound=0.0)
    assert shape(config, E2H, rollout(), STEPS, [0.7, 0.7, 0.7], Verdict(True)).rewards[4] == np.float32(0.7)


@pytest.mark.parametrize(
    "fields, verdict, expected",
    [
        ({}, Verdict(False), 0),
        ({}, Verdict(True, hidden=True), 0.25),
        ({"outcome": "all"}, Verdict(True, hidden=True), 1),
        ({"outcome": "none"}, Verdict(True), 0),
        ({}, Verdict(False, undecided=True), 0),
    ],
)
def test_outcomes(fields, verdict, expected):
    shaped = shape(settings(process="none", **fields), E2H, rollout(), STEPS, None, verdict)
    assert shaped.rewards[-1] == shaped.parts["outcome"] == expected
    assert shaped.parts["undecided"] == verdict.undecided


@pytest.mark.parametrize(
    "template, text, penalty",
    [
        (E2H, FINISHED, 0.75),
        (E2H, "s1\n\nso $42$\n\n# Answer\n\n42 ", 0.5),  # the space is no part of the answer
        (E2H, "so \\boxed{42}\n\ns2\n\n# Answer\n\n42", 0),
        (E2H, "42\n\ns2\n\n# Answer\n\n42", 1),
        (E2H, "s1\n\nso $42$\n\ns3\n\n# Answer\n\n42", 1),  # the last paragraph alone counts
        (E2H, "s1\n\nso 42", 1),
        (BOXED, "s1\n\nso \\boxed{42}", 0),
        (BOXED, "s1\n\nso 42", 1),
    ],
)
def test_format_tiers(template, text, penalty):
    config = settings(process="none", format="tiers", format_value=-2.0)
    assert shape(config, template, rollout(text), STEPS, None, Verdict(True)).parts["format"] == -2 * penalty
    config.format_replaces = True
    parts = shape(config, template, rollout(text), STEPS, None, Verdict(True)).parts
    assert (parts["outcome"], parts["format"]) == ((0, -2) if penalty else (1, 0))
    config.format = "none"
    assert shape(config, template, rollout(text), STEPS, None, Verdict(True)).parts["format"] == 0


def test_length_charges():
    config = settings(process="none", min_length=20, min_length_coef=0.25, soft_limit=10, hard_limit=18, overlong_coef=2.0)
    for length, charge in [(4, 4.0), (10, 2.5), (14, 1.5 + 1), (18, 0.5 + 2), (25, 2.0)]:
        assert shape(config, E2H, rollout(length=length), STEPS, None, Verdict(True)).parts["length"] == -charge
    unscorable = shape(config, E2H, rollout("", length=12), located([], []), None, Verdict(False))
    assert unscorable.parts["length"] == -7  # as much as any length is charged


def loop_charges(scheme, scores, upper_bound):
    found, bound, product = [], upper_bound, 1.0
    for score in scores:
        if scheme == "delta":
            found.append(score - bound)
            bound = score
            continue
        product = score if scheme == "min" else product * score
        found.append(product - bound if product < bound else 0.0)
        bound = min(bound, product)
    return found


probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=8)
schemes = st.sampled_from(["min", "prod", "delta"])


@given(schemes, probabilities, st.floats(0, 1))
def test_charges_against_a_loop(scheme, scores, upper_bound):
    np.testing.assert_allclose(charges(scheme, scores, upper_bound), loop_charges(scheme, scores, upper_bound), atol=1e-12)


def test_charges_are_float64_also_of_float32_scores():
    scores = np.float32([0.9, 0.7, 0.6])
    first, second, third = (float(score) for score in scores)
    expected = [first - 1, first * second - first, first * second * third - first * second]
    np.testing.assert_allclose(charges("prod", scores, 1.0), expected, rtol=1e-14)


@given(schemes, probabilities, st.floats(0, 1), st.data())
def test_splitting_a_step_never_pays(scheme, scores, upper_bound, data):
    """One step becomes two: one with its old score, and one with any other; the final answer stays the last."""
    at = data.draw(st.integers(0, len(scores) - 1))
    more = [*scores[:at], data.draw(st.floats(0, 1)), *scores[at:]]
    total, split = (math.fsum(charges(scheme, steps, upper_bound)) for steps in (scores, more))
    assert split <= total + 1e-12
    places = located([[i, i + 1] for i in range(len(more))], [[i + 1, i + 1] for i in range(len(more))])
    config = settings(process=scheme, upper_bound=upper_bound, bonus=0.5)
    shaped = shape(config, E2H, rollout(), places, more, Verdict(True))
    assert shaped.parts["bonus"] == 0.5  # the same for any number of steps
    assert shaped.parts["process"] <= total + 1e-12


configs = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from(["easy", "all", "none"]),
        "unavailable": st.floats(0, 1),
        "process": st.sampled_from(["min", "prod", "delta", "none"]),
        "process_at": st.sampled_from(["steps", "end"]),
        "upper_bound": st.floats(0, 1),
        "scale": st.floats(0, 3),
        "bonus": st.floats(0, 1),
        "format": st.sampled_from(["answer", "tiers", "none"]),
        "format_value": st.floats(-3, 0),
        "format_replaces": st.booleans(),
        "min_length": st.integers(0, 30),
        "min_length_coef": st.floats(0, 1),
        "soft_limit": st.integers(0, 20),
        "hard_limit": st.integers(21, 40),
        "overlong_coef": st.floats(0, 1),
    }
)
endings = st.sampled_from(["\n\n# Answer\n\n42", "\n\n# Answer\n\n", ""])


responses = st.tuples(probabilities, endings, st.booleans(), st.integers(9, 40))


@hypothesis_settings(max_examples=300, deadline=None)
@given(configs, st.floats(0, 1), st.integers(9, 40), responses)
def test_unscorable_text_is_never_worth_more_than_the_worst_that_is_scored(fields, worst, length, response):
    config = settings(**fields)
    verdict = Verdict(False, hidden=bool(worst < 0.5))
    spans = located([[0, 2], [2, 9]], [[1, 2], [9, 9]])
    good = shape(config, E2H, rollout("so 42\n\n# Answer\n\n42", length), spans, [worst, 0.0], verdict)
    scores, ending, stopped, other = response
    answered = "Answer\n\n42" in ending
    assume(not (stopped and answered))
    spans = located([[i, i + 1] for i in range(len(scores))], [[i + 1, i + 1] for i in range(len(scores))], answered)
    bad = shape(config, E2H, rollout("so 42" + ending, other, stopped), spans, scores, verdict)
    assert good.parts["scorable"] == 1 and bad.parts["scorable"] == 0
    assert math.fsum(bad.rewards) <= math.fsum(good.rewards) + 1e-5
    for shaped in (good, bad):
        assert math.fsum(shaped.rewards) == pytest.approx(math.fsum(shaped.parts[name] for name in PARTS), abs=1e-5)


def test_presets_are_valid_and_of_the_same_fields():
    assert shaping.corrected() == shaping.defaults().to_dict()
    assert shaping.paper().keys() == shaping.corrected().keys()
    for preset in (shaping.corrected(), shaping.paper()):
        settings(**preset)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"process": "mim"}, 'process="mim".*did you mean "min".*; use min, prod, delta, none'),
        ({"scale": -1.0}, "scale=-1"),
        ({"format_value": 1.0}, "format_value=1"),
        ({"upper_bound": 1.5}, "upper_bound=1.5"),
        ({"soft_limit": 10, "hard_limit": 5}, "hard_limit=5"),
        ({"soft_limit": 10, "hard_limit": 10}, "hard_limit=10 must be above soft_limit=10"),
    ],
)
def test_mistakes_in_one_sentence(fields, message):
    with pytest.raises(UserError, match=message):
        settings(**fields)
