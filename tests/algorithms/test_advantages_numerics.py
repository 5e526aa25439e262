"""Advantages of numbers that floating point makes hard: dtypes, sums far from zero, deviations of the size of rounding."""

import warnings

import numpy as np
from ml_collections import ConfigDict

from e2h_jax.algorithms import presets
from e2h_jax.algorithms.advantages import advantages_of, gae, grpo, masked_mean, penalised_rewards, rloo, scale, whiten


def test_results_are_float32_whatever_came():
    totals, groups = np.array([1.0, 0.0, 0.25]), ["a", "a", "b"]
    found = [rloo(totals, groups), grpo(totals, groups), grpo(totals, groups, scale_by_std=False)]
    ones = np.ones((1, 2))
    config = ConfigDict(presets.ppo() | {"entropy": {"reward_coef": 0.5, "reward_mean": "full"}})
    for dtype in (np.float64, np.int64):
        found.append(penalised_rewards(ones.astype(dtype), ones, ones / 3, ones, ones, 0.1, config))
    assert all(array.dtype == np.float32 for array in found)


def test_a_deviation_below_one_scales_up_and_of_no_token_nothing_is_said():
    found = scale([[0.0, 1.0]], [[1, 1]])  # deviation ½
    np.testing.assert_array_equal(found, np.float32([[0, 2]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scale(np.ones((1, 2)), np.zeros((1, 2))).dtype == found.dtype == np.float32


def test_float32_rewards_far_from_zero_are_summed_in_float64():
    rewards = (1e4 + np.random.default_rng(0).random((4, 40))).astype(np.float32)
    exact = rewards.astype(np.float64)
    np.testing.assert_array_equal(scale(rewards, np.ones_like(rewards)), (exact / exact.std()).astype(np.float32))
    np.testing.assert_allclose(whiten(rewards, np.ones_like(rewards)), (exact - exact.mean()) / exact.std(), rtol=1e-6)


def test_a_deviation_of_rounding_size_is_not_blown_up():
    np.testing.assert_allclose(whiten([[2e-8, -2e-8]], [[1, 1]]), [[2 / 3, -2 / 3]], rtol=1e-6)


def test_the_mean_of_what_is_masked_in():
    assert masked_mean(np.array([3.0, 9.0]), np.array([1, 0])) == 3
    assert masked_mean(np.array([3.0, 9.0]), np.array([1, 1])) == 6 and masked_mean(np.ones(2), np.zeros(2)) == 0


def test_long_sums_of_float32_rewards_are_exact():
    rewards, mask = np.random.default_rng(1).random((2, 3000)).astype(np.float32), np.ones((2, 3000))
    sums = np.cumsum(rewards[:, ::-1].astype(np.float64), axis=1)[:, ::-1]
    advantages, _ = gae(rewards, np.zeros_like(rewards), mask)
    np.testing.assert_array_equal(advantages, sums.astype(np.float32))
    _, returns = gae(rewards, np.random.default_rng(2).normal(0, 1e5, (2, 3000)), mask)  # A + V, whatever V
    np.testing.assert_allclose(returns, sums, rtol=1e-7)

    rewards, mask = np.float32([[1e8, 1, -1e8], [0, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]])
    found, returns = advantages_of(rewards, np.zeros_like(rewards), ["a", "a"], mask, ConfigDict(presets.rloo()))
    np.testing.assert_array_equal(found, [[1, 1, 1], [-1, 0, 0]])
    assert returns.shape == found.shape and returns.dtype == found.dtype == np.float32


def test_totals_that_differ_by_rounding_alone_are_equal_and_others_are_not():
    np.testing.assert_array_equal(grpo(np.array([1e4, 1e4 + 1e-3]), [0, 0]), [0, 0])
    found = grpo(np.array([0.0, 3e-6]), [0, 0])  # 1.5 millionths from the mean, deviation 1.5 sqrt 2 of them
    np.testing.assert_allclose(found, np.array([-1.5, 1.5]) / (1.5 * np.sqrt(2) + 1), rtol=1e-5)
