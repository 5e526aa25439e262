"""Bootstrap intervals."""

import json

import numpy as np
import pytest

from e2h_jax.evaluation.intervals import Bootstrap


def test_the_interval_is_about_that_of_the_normal_approximation():
    values = (np.arange(400) % 4 == 0).astype(float)[None]
    (found,) = Bootstrap(400, 4000, np.random.default_rng(0)).statistics(values)
    error = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert found["accuracy"] == 0.25
    assert found["problems"] == 400
    assert found["ci95"] == pytest.approx([0.25 - error, 0.25 + error], abs=0.006)


def test_a_method_right_everywhere_has_no_width_and_seeds_decide():
    bootstrap = Bootstrap(50, 200, np.random.default_rng(3))
    rng = np.random.default_rng(0)
    values = np.stack([np.ones(50), rng.random(50)])
    certain, other = bootstrap.statistics(values)
    assert certain["ci95"] == [1, 1]
    assert other["ci95"][0] < other["accuracy"] < other["ci95"][1]
    assert Bootstrap(50, 200, np.random.default_rng(3)).statistics(values) == [certain, other]


def test_differences_are_paired():
    """Two methods that differ by a constant differ by it in every resample, however much the problems vary."""
    values = np.random.default_rng(0).random((1, 60)) * 0.5
    bootstrap = Bootstrap(60, 500, np.random.default_rng(0))
    (difference,) = bootstrap.statistics((values + 0.125) - values, "difference")
    assert difference["difference"] == 0.125
    assert difference["ci95"] == pytest.approx([0.125, 0.125])


def test_no_problems_give_null():
    (found,) = Bootstrap(0, 100, np.random.default_rng(0)).statistics(np.zeros((1, 0)))
    assert found == {"accuracy": None, "ci95": None, "problems": 0}


def test_the_interval_is_that_of_plain_resampling():
    values = np.random.default_rng(1).random((2, 9))
    drawn = np.random.default_rng(5).integers(9, size=(300, 9))
    found = Bootstrap(9, 300, np.random.default_rng(5)).statistics(values)
    for row, statistic in zip(values, found, strict=True):
        means = sorted(row[problems].mean() for problems in drawn)
        low, high = (np.interp(share * 299, np.arange(300), means) for share in (0.025, 0.975))
        expected = [round(float(bound), 6) for bound in (low, high)]
        assert statistic == {"accuracy": round(float(row.mean()), 6), "ci95": expected, "problems": 9}


def test_a_difference_of_nothing_has_no_sign():
    (found,) = Bootstrap(3, 20, np.random.default_rng(0)).statistics(np.full((1, 3), -1e-9), "difference")
    assert json.dumps(found) == '{"difference": 0.0, "ci95": [0.0, 0.0], "problems": 3}'
