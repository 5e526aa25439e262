"""From the judge's rewards to advantages: each preset by hand, and what holds of every estimator."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from e2h_jax.algorithms import presets
from e2h_jax.algorithms.advantages import advantages_of, grpo, penalised_rewards, scale, whiten
from e2h_jax.errors import UserError


def config_of(preset, **fields):
    """The fields of the `ppo` stage that these functions read."""
    config = ConfigDict(preset | {"entropy": {"loss_coef": 0.0, "reward_coef": 0.0, "reward_mean": "full"}})
    for name, value in fields.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config


GROUP = {"grpo": presets.grpo(), "dr_grpo": presets.dr_grpo(), "rloo": presets.rloo()}
every_group_estimator = pytest.mark.parametrize("preset", GROUP.values(), ids=GROUP)


def laid(rows, slots=None):
    """Lists of rewards of responses as [B, R], and their mask."""
    slots = slots or max(map(len, rows))
    rewards, mask = np.zeros((2, len(rows), slots), np.float32)
    for row, values in enumerate(rows):
        rewards[row, : len(values)], mask[row, : len(values)] = values, 1
    return rewards, mask


def group_advantages(preset, rows, groups, **fields):
    rewards, mask = laid(rows)
    rewards[mask == 0] = 99  # nothing outside of the response counts
    advantages, returns = advantages_of(rewards, np.full_like(rewards, 7.0), groups, mask, config_of(preset, **fields))
    assert not returns.any() and not advantages[mask == 0].any()
    for row, values in enumerate(rows):
        assert (advantages[row, : len(values)] == advantages[row, 0]).all()  # one for the whole response
    return advantages[:, 0]


# Two responses of three and one tokens. Policy less reference: 0.5, -1, 2 and 1.
OLD = np.array([[-1.0, -2.0, -0.5], [-1.0, 0.0, 0.0]], np.float32)
REFERENCE = np.array([[-1.5, -1.0, -2.5], [-2.0, 0.0, 0.0]], np.float32)
JUDGED = np.array([[0.0, -0.25, 1.0], [-1.0, 0.0, 0.0]], np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
ENTROPY = np.array([[0.3, 0.6, 0.9], [2.0, 5.0, 5.0]], np.float32)


@pytest.mark.parametrize(
    ("estimator", "charges"),
    [
        ("k1", [[0.5, -1, 2], [1, 0, 0]]),
        ("k1_clamped", [[0.5, 0, 2], [1, 0, 0]]),
        ("logp", [[-1, -2, -0.5], [-1, 0, 0]]),
        ("k2", [[0.125, 0.5, 2], [0.5, 0, 0]]),
    ],
)
def test_the_penalty_is_taken_off_token_by_token(estimator, charges):
    config = config_of(presets.ppo(), kl__estimator=estimator, kl__coef=0.7)
    before = JUDGED.copy()
    found = penalised_rewards(JUDGED, OLD, REFERENCE, ENTROPY, MASK, 0.1, config)  # the adaptive coefficient, not the first
    np.testing.assert_allclose(found, JUDGED - 0.1 * np.array(charges), atol=1e-7)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(JUDGED, before)
    np.testing.assert_array_equal(penalised_rewards(JUDGED, OLD, REFERENCE, ENTROPY, MASK, 0.0, config), JUDGED)
    config.kl.place = "loss"
    np.testing.assert_array_equal(penalised_rewards(JUDGED, OLD, REFERENCE, ENTROPY, MASK, 0.1, config), JUDGED)


def test_the_padding_costs_nothing():
    padded = np.where(MASK, REFERENCE, -9.0)  # whatever the models say of it
    found = penalised_rewards(JUDGED, OLD, padded, ENTROPY, MASK, 0.1, config_of(presets.ppo(), entropy__reward_coef=1.0))
    np.testing.assert_array_equal(found[1, 1:], [0, 0])


@pytest.mark.parametrize(
    ("mean", "bonus"),  # 10 x the entropy: per token; over the length; or its mean at the last token
    [
        ("none", [[3, 6, 9], [20, 0, 0]]),
        ("full", [[1, 2, 3], [20, 0, 0]]),
        ("merged", [[0, 0, 6], [20, 0, 0]]),
    ],
)
def test_the_entropy_bonus_is_added(mean, bonus):
    config = config_of(presets.ppo(), kl__coef=0.0, entropy__reward_coef=10.0, entropy__reward_mean=mean)
    found = penalised_rewards(JUDGED, OLD, REFERENCE, ENTROPY, MASK, 0.0, config)
    np.testing.assert_allclose(found, JUDGED + np.array(bonus), atol=1e-5)


def test_scaling_by_hand():
    # Four tokens: 3, -1, 1, 1; mean 1, deviation sqrt((4 + 4) / 4). The padding's 50 is not seen.
    rewards, mask = np.array([[3.0, -1.0, 1.0], [1.0, 50.0, 50.0]]), [[1, 1, 1], [1, 0, 0]]
    root = math.sqrt(2)
    np.testing.assert_allclose(scale(rewards, mask), [[3 / root, -1 / root, 1 / root], [1 / root, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(scale([[0.7, 0.7, 9.0]], [[1, 1, 0]]), [[0.7, 0.7, 0]], rtol=1e-6)  # nothing to divide by
    assert not scale(rewards, np.zeros((2, 3))).any()


def test_reward_scale_and_whitening_by_hand():
    """γ = λ = 1 and values 0: a token's advantage is the sum of the rewards from it on."""
    rewards, mask = laid([[1.0, 3.0], [0.0]])
    zeros, found = np.zeros_like(rewards), {}
    for name, fields in {
        "plain": {},
        "times 50": {"reward_scale": 50.0},
        "scale": {"whiten_rewards": "scale"},
        "original": {"whiten_rewards": "original"},
        "unmasked": {"whiten_rewards": "original", "mask_padding": False},
        "scale unmasked": {"whiten_rewards": "scale", "mask_padding": False},
    }.items():
        config = config_of(presets.ppo() | {"whiten_advantages": "none"}, **fields)
        found[name], returns = advantages_of(rewards, zeros, [0, 1], mask, config)
        np.testing.assert_array_equal(found[name], returns)
    np.testing.assert_allclose(found["plain"], [[4, 3], [0, 0]])
    np.testing.assert_allclose(found["times 50"], [[200, 150], [0, 0]])
    std = math.sqrt(14 / 9)  # of 1, 3, 0 around 4/3
    np.testing.assert_allclose(found["scale"], np.array([[4, 3], [0, 0]]) / std, rtol=1e-6)
    one, three, zero = ((x - 4 / 3) / std + 4 / 3 for x in (1, 3, 0))
    np.testing.assert_allclose(found["original"], [[one + three, three], [zero, 0]], rtol=1e-6)
    # With padding: 1, 3, 0, 0 around 1, deviation sqrt(6 / 4); the padded slot is paid too.
    std = math.sqrt(1.5)
    one, three, zero = ((x - 1) / std + 1 for x in (1, 3, 0))
    np.testing.assert_allclose(found["unmasked"], [[one + three, three], [2 * zero, zero]], rtol=1e-6)
    np.testing.assert_allclose(found["scale unmasked"], np.array([[4, 3], [0, 0]]) / std, rtol=1e-6)


def test_whitened_advantages_with_and_without_padding_by_hand():
    rewards, mask = laid([[0.0, 3.0], [0.0]])  # advantages 3, 3, 0 (and 0 in the padding)
    for masked, mean, std in ((True, 2, math.sqrt(2)), (False, 1.5, 1.5)):
        config = config_of(presets.ppo(), mask_padding=masked)
        found, returns = advantages_of(rewards, np.zeros_like(rewards), [0, 1], mask, config)
        padding = 0 if masked else -1
        np.testing.assert_allclose(found, [[(3 - mean) / std] * 2, [-mean / std, padding]], rtol=1e-6)
        np.testing.assert_allclose(returns, [[3, 3], [0, 0]])


def test_the_value_model_is_the_baseline_and_gamma_and_lam_are_used():
    rewards, mask = laid([[1.0, 2.0, 4.0]])
    values = np.array([[0.5, 1.0, 2.0]])
    config = config_of(presets.ppo(), whiten_advantages="none", gamma=0.5, lam=0.25)
    advantages, returns = advantages_of(rewards, values, ["a"], mask, config)
    # δ = 1 + .5 - .5, 2 + 1 - 1, 4 - 2 = 1, 2, 2; γλ = 1/8
    np.testing.assert_allclose(advantages, [[1 + 2.25 / 8, 2.25, 2]])
    np.testing.assert_allclose(returns, [[1.5 + 2.25 / 8, 3.25, 4]])


def test_the_paper_s_preset_has_the_original_s_figures():
    """original-system.md, appendix A.7: whitening in both places over all slots, padding or not."""
    rewards = np.array([[0, -0.01, 0, 0.9], [0.1, 0, -0.2, 0.25]])
    values = np.array([[0.1, 0.2, 0.3, 0.4], [0, -0.1, 0.2, 0.1]])
    mask = np.triu(np.ones_like(rewards))
    advantages, returns = advantages_of(rewards, values, [0, 1], mask, config_of(presets.paper()))
    expected = [[1.69937, 1.98374, 2.29999, 2.58436], [-0.65937, -0.69374, -0.40937, 0.5125]]
    np.testing.assert_allclose(returns, expected, atol=6e-6)
    expected = [[0.70664, 0.86273, 1.0458, 1.20189], [-1.20559, -1.15004, -1.16327, -0.29816]]
    np.testing.assert_allclose(advantages, expected, atol=6e-6)


def test_each_group_estimator_by_hand():
    # Question a: totals 1, 0, 0, 0 (deviation ½); b: 2, 0 (deviation sqrt 2). The values of a value model are not looked at.
    rows, groups = [[0, 1.0], [0.0], [0.0, 0, 0], [0.5, -0.5], [2.0], [1.0, -1.0]], ["a", "a", "a", "a", "b", "b"]
    third, root = 1 / 3, math.sqrt(0.5)
    expected = {
        "grpo": [1.5, -0.5, -0.5, -0.5, root, -root],
        "dr_grpo": [0.75, -0.25, -0.25, -0.25, 1, -1],
        "rloo": [1, -third, -third, -third, 2, -2],
    }
    for name, preset in GROUP.items():
        np.testing.assert_allclose(group_advantages(preset, rows, groups), expected[name], rtol=1e-5, err_msg=name)
    tenfold = group_advantages(presets.rloo(), rows, groups, reward_scale=10.0)
    np.testing.assert_allclose(tenfold, 10 * np.array(expected["rloo"]), rtol=1e-5)


def test_an_unknown_advantage_or_whitening_is_no_other_one():
    rewards, mask = laid([[1.0], [0.0]])
    for fields, message in (
        ({"advantage": "gpro"}, 'advantage="gpro".*did you mean "grpo"'),
        ({"advantage": ""}, "use gae, rloo, grpo"),
        ({"whiten_rewards": "batch"}, 'whiten_rewards="batch" is unknown; use none, scale, original'),
        ({"whiten_advantages": "rows"}, "rows"),
    ):
        with pytest.raises(UserError, match=message):
            advantages_of(rewards, rewards, [0, 0], mask, config_of(presets.ppo(), **fields))


# What holds of every estimator, on random responses

reward = st.floats(-3, 3, width=32).map(lambda x: round(x, 3))
response = st.lists(reward, min_size=1, max_size=12)


def split(total, length, rng):
    """`length` rewards that sum to `total`."""
    parts = rng.normal(size=length)
    return (parts + (total - parts.sum()) / length).tolist()


@every_group_estimator
@settings(max_examples=40, deadline=None)
@given(total=reward, lengths=st.lists(st.integers(1, 15), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_equal_totals_have_no_advantage_whatever_the_lengths(preset, total, lengths, seed):
    rng = np.random.default_rng(seed)
    rows = [split(total, length, rng) for length in lengths]
    # Beside another question, whose rewards are not for this one.
    found = group_advantages(preset, [*rows, [5.0], [-5.0, 0.0]], [*["a"] * len(rows), "b", "b"])
    np.testing.assert_allclose(found[: len(rows)], 0, atol=1e-5)
    assert found[-2] > 0.5 and found[-1] == pytest.approx(-found[-2])


@every_group_estimator
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(response, min_size=2, max_size=6), shift=reward)
def test_shifting_the_rewards_of_a_group_changes_nothing(preset, rows, shift):
    groups = ["a"] * len(rows)
    shifted = [[*values[:-1], values[-1] + shift] for values in rows]
    spread = np.ptp([sum(values) for values in rows])
    expected = group_advantages(preset, rows, groups)
    if spread == 0 or spread > 1e-2:  # a deviation of the size of float32's rounding is none
        np.testing.assert_allclose(group_advantages(preset, shifted, groups), expected, atol=1e-3)


SOUND = {"ppo": presets.ppo(), "scale": presets.ppo() | {"whiten_rewards": "scale"}} | GROUP


@pytest.mark.parametrize("preset", SOUND.values(), ids=SOUND)
@settings(max_examples=40, deadline=None)
@given(rights=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=2, max_size=8))
def test_length_alone_never_ranks_a_right_answer_below_a_wrong_one(preset, rights):
    """Outcome 1 or 0 at the last token, one question: every token's advantage tells right from wrong, not long from short."""
    rewards, mask = laid([[0.0] * (length - 1) + [float(right)] for length, right in rights])
    found, _ = advantages_of(rewards, np.zeros_like(rewards), ["a"] * len(rights), mask, config_of(preset))
    right = np.array([right for _, right in rights])
    for good in found[right]:
        for bad in found[~right]:
            assert good[0] > bad[0]
    for alike in (found[right, 0], found[~right, 0]):
        assert not len(alike) or np.ptp(alike) < 1e-5


def test_the_original_s_whitening_ranks_by_length():
    """Why it is no default: lengths 150, 1200, 60 and 400, the first two right (the review's example)."""
    rows = [[0.0] * (length - 1) + [right] for length, right in ((150, 1.0), (1200, 1.0), (60, 0.0), (400, 0.0))]
    rewards, mask = laid(rows)
    paid = whiten(rewards, mask, keep_mean=True)
    np.testing.assert_allclose(grpo(paid.sum(1), [0] * 4), [1.45, -0.52, -0.14, -0.78], atol=6e-3)
    for preset in GROUP.values():
        found = group_advantages(preset, rows, [0] * 4)
        assert found[0] == found[1] > 0 > found[2] == found[3]


@pytest.mark.parametrize("preset", {**SOUND, "paper": presets.paper()}.values(), ids=[*SOUND, "paper"])
@settings(max_examples=40, deadline=None)
@given(step=st.floats(0.1, 3.0), row=st.integers(0, 2), column=st.integers(0, 2), seed=st.integers(0, 99))
def test_a_token_further_from_the_reference_has_a_lower_advantage(preset, step, row, column, seed):
    """Raising one token's old - ref (above 0, for the clamped estimate) lowers that response's, next to the others'."""
    config = config_of(preset, whiten_advantages="none")
    if preset["advantage"] != "gae":
        config.grpo_std = False  # its deviation grows as well
    config.update({"whiten_rewards": "none", "kl": {"coef": 0.1, "place": "reward"}})
    config.kl.estimator = "k1" if config.kl.estimator == "k3" else config.kl.estimator
    rng = np.random.default_rng(seed)
    mask = np.ones((3, 3), np.float32)
    old = np.log(rng.uniform(0.1, 1, (3, 3))).astype(np.float32)
    judged = rng.normal(size=(3, 3)).astype(np.float32)

    def advantages(reference):
        rewards = penalised_rewards(judged, old, reference, np.zeros_like(old), mask, 0.1, config)
        return advantages_of(rewards, np.zeros_like(old), ["a"] * 3, mask, config)[0]

    near, far = old.copy(), old.copy()
    far[row, column] -= step
    change = advantages(far) - advantages(near)
    assert (change[row, : column + 1] < 0).all()
    others = np.delete(change, row, 0)
    assert (others >= 0).all()  # group baselines go down; a value model's do not move
