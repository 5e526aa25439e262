"""Advantages against the original's figures (original-system.md A.7), by hand, and against plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2h_jax.algorithms.advantages import (
    KL_ESTIMATORS,
    gae,
    grpo,
    kl,
    masked_mean,
    rloo,
    whiten,
)  # fmt: skip
from e2h_jax.errors import UserError

REWARDS = np.array([[0, -0.01, 0, 0.9], [0.1, 0, -0.2, 0.25]])
VALUES = np.array([[0.1, 0.2, 0.3, 0.4], [0, -0.1, 0.2, 0.1]])
ALL = np.ones_like(REWARDS)


@pytest.mark.parametrize(
    "scope, whitened, returns, advantages",
    [
        (
            "batch",
            [[-0.28437, -0.31625, -0.28437, 2.58436], [0.03438, -0.28437, -0.92187, 0.5125]],
            [[1.69937, 1.98374, 2.29999, 2.58436], [-0.65937, -0.69374, -0.40937, 0.5125]],
            [[0.70664, 0.86273, 1.0458, 1.20189], [-1.20559, -1.15004, -1.16327, -0.29816]],
        ),
        (
            "row",
            [[-0.3463, -0.37186, -0.3463, 1.95446], [0.41986, -0.19192, -1.41547, 1.33752]],
            None,
            [[-1.33246, -0.47386, 0.47386, 1.33246], [-0.14158, -0.67481, -0.855, 1.67139]],
        ),
    ],
)
def test_the_originals_figures(scope, whitened, returns, advantages):
    rewards = whiten(REWARDS, ALL, scope, keep_mean=True)
    np.testing.assert_allclose(rewards, whitened, atol=6e-6)
    found, found_returns = gae(rewards, VALUES, ALL)
    if returns is not None:
        np.testing.assert_allclose(found_returns, returns, atol=6e-6)
    np.testing.assert_allclose(whiten(found, ALL, scope), advantages, atol=6e-6)


def test_gae_by_hand():
    rewards, values, mask = [[1.0, 2.0, 4.0, 99.0]], [[0.5, 1.0, 2.0, 77.0]], [[1, 1, 1, 0]]
    # γ = λ = ½: δ = (1 + .5 - .5, 2 + 1 - 1, 4 - 2) = (1, 2, 2); A3 = 2, A2 = 2 + 2/4, A1 = 1 + 2.5/4
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    np.testing.assert_array_equal(advantages, np.float32([[1.625, 2.5, 2.0, 0.0]]))
    np.testing.assert_array_equal(returns, np.float32([[2.125, 3.5, 4.0, 0.0]]))


def test_whitening_by_hand():
    x, mask = [[1.0, 3.0, 50.0], [5.0, 50.0, 50.0]], [[1, 1, 0], [1, 0, 0]]
    batch = whiten(x, mask)  # mean 3, variance 8/3
    np.testing.assert_allclose(batch, np.array([[-2, 0, 0], [2, 0, 0]]) / math.sqrt(8 / 3), rtol=1e-6)
    np.testing.assert_allclose(whiten(x, mask, keep_mean=True), np.where(mask, batch + 3, 0), rtol=1e-6)
    np.testing.assert_allclose(whiten(x, mask, "row"), [[-1, 1, 0], [0, 0, 0]], rtol=1e-6)
    assert np.isfinite(whiten(x, np.zeros((2, 3)), "row")).all()  # a row without a token
    with pytest.raises(UserError, match="row"):
        whiten(x, mask, "rows")


def _loop_gae(rewards, values, length, gamma, lam):
    out, following, next_value = [0.0] * len(rewards), 0.0, 0.0
    for t in range(length - 1, -1, -1):
        following = rewards[t] + gamma * next_value - values[t] + gamma * lam * following
        next_value, out[t] = values[t], following
    return out


@pytest.mark.parametrize("seed", range(5))
def test_random_inputs_against_loops(seed):
    rng = np.random.default_rng(seed)
    rows, slots = 7, 23
    rewards, values = rng.normal(size=(2, rows, slots))
    lengths = rng.integers(1, slots + 1, rows)
    mask = np.arange(slots) < lengths[:, None]
    gamma, lam = rng.uniform(0.5, 1, 2)

    advantages, returns = gae(rewards, values, mask, gamma, lam)
    expected = np.array([_loop_gae(r, v, n, gamma, lam) for r, v, n in zip(rewards, values, lengths, strict=True)])
    np.testing.assert_allclose(advantages, expected, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), atol=1e-6, rtol=1e-6)
    assert not advantages[~mask].any() and not returns[~mask].any()
    changed = np.where(mask, rewards, 1e6), np.where(mask, values, -1e6)  # what lies in the padding is never read
    np.testing.assert_array_equal(gae(*changed, mask, gamma, lam)[0], advantages)

    for scope in ("batch", "row"):
        for keep_mean in (False, True):
            found = whiten(rewards, mask, scope, keep_mean=keep_mean)
            assert not found[~mask].any() and found.dtype == np.float32
            np.testing.assert_array_equal(whiten(changed[0], mask, scope, keep_mean=keep_mean), found)
            for row, length in enumerate(lengths):
                drawn = rewards[row, :length].tolist() if scope == "row" else rewards[mask].tolist()
                mean = math.fsum(drawn) / len(drawn)
                std = math.sqrt(math.fsum((x - mean) ** 2 for x in drawn) / len(drawn))
                again = [(x - mean) / (std + 1e-8) + keep_mean * mean for x in rewards[row, :length].tolist()]
                np.testing.assert_allclose(found[row, :length], again, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_group_advantages_against_loops(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 6, 30)
    totals = rng.normal(size=30)
    leave_one_out, centred, scaled = rloo(totals, groups), grpo(totals, groups, scale_by_std=False), grpo(totals, groups)
    for i, group in enumerate(groups):
        others = [t for j, t in enumerate(totals) if groups[j] == group and j != i]
        members = [t for j, t in enumerate(totals) if groups[j] == group]
        mean = sum(members) / len(members)
        spread = math.sqrt(sum((t - mean) ** 2 for t in members) / max(1, len(members) - 1))
        assert leave_one_out[i] == pytest.approx(totals[i] - sum(others) / len(others) if others else 0, abs=1e-6)
        assert centred[i] == pytest.approx(totals[i] - mean, abs=1e-6)
        assert scaled[i] == pytest.approx((totals[i] - mean) / (spread + 1e-6), abs=1e-6)


def test_group_advantages_by_hand():
    totals, groups = [1.0, 0.0, 0.7, 0.0, 0.0], ["a", "a", "b", "a", "a"]
    np.testing.assert_allclose(rloo(totals, groups), [1, -1 / 3, 0, -1 / 3, -1 / 3], rtol=1e-6)
    np.testing.assert_allclose(grpo(totals, groups, scale_by_std=False), [0.75, -0.25, 0, -0.25, -0.25], rtol=1e-6)
    np.testing.assert_allclose(grpo(totals, groups), [1.5, -0.5, 0, -0.5, -0.5], rtol=1e-5)  # sample std ½
    np.testing.assert_allclose(grpo([0.1, 0.1, 0.1], [4, 4, 4]), 0, atol=1e-9)  # all alike: nothing to learn


def test_kl_by_hand():
    logp, ref = np.log([0.5, 0.25]), np.log([0.25, 0.5])
    expected = {
        "k1": [math.log(2), -math.log(2)],
        "k2": [0.5 * math.log(2) ** 2] * 2,
        "k3": [0.5 - 1 + math.log(2), 2 - 1 - math.log(2)],
        "k1_clamped": [math.log(2), 0],
        "logp": logp,
    }
    assert set(expected) == set(KL_ESTIMATORS)
    for name, values in expected.items():
        np.testing.assert_allclose(kl(name, logp, ref), values, rtol=1e-12)
        traced = jax.jit(kl, static_argnums=0)(name, jnp.float32(logp), jnp.float32(ref))
        np.testing.assert_allclose(traced, values, rtol=1e-6)
        assert traced.dtype == kl(name, np.float32(logp), np.float32(ref)).dtype == np.float32
    with pytest.raises(UserError, match="k1"):
        kl("kl", logp, ref)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_unbiased_estimators_have_the_divergence_as_their_mean(name):
    rng = np.random.default_rng(0)
    policy, reference = rng.dirichlet(np.ones(6), 2)
    mean = np.sum(policy * kl(name, np.log(policy), np.log(reference)))
    assert mean == pytest.approx(np.sum(policy * np.log(policy / reference)), abs=1e-12)


def test_explained_means():
    assert masked_mean(np.array([[1.0, 5.0], [3.0, 7.0]]), np.array([[1, 0], [1, 0]])) == 2
    assert masked_mean(np.ones((1, 2)), np.zeros((1, 2))) == 0
