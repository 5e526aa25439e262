"""Aggregations of step scores and single votes, worked by hand."""

import numpy as np
import pytest

from e2h_jax.evaluation.voting import AGGREGATIONS, aggregate, group_accuracy, likelihood_weights, winning_accuracy


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("prod", [0.4, 0.9]),
        ("min", [0.5, 0.9]),
        ("max", [0.8, 0.9]),
        ("last", [0.8, 0.9]),
        ("mean", [0.65, 0.9]),
        ("mean_logit", [2 / 3, 0.9]),  # odds 1 and 4: the mean log-odds is log 2
        ("mean_odds", [2.5, 9.0]),
    ],
)
def test_aggregations(aggregation, expected):
    np.testing.assert_allclose(aggregate([[0.5, 0.8], [0.9]], aggregation), expected, rtol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_certain_scores_stay_finite_and_a_solution_without_steps_scores_nothing(aggregation):
    scores = aggregate([[1.0, 1.0], [], [0.0], [1.0, 0.0]], aggregation)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert scores[1] == 0
    assert aggregate([[], []], aggregation).tolist() == [0, 0]
    assert aggregate([], aggregation).shape == (0,)


def test_a_certain_score_counts_as_one_in_a_million_from_certainty():
    assert aggregate([[1.0], [0.0]], "mean_odds") == pytest.approx([999_999, 1 / 999_999], rel=1e-9)
    assert aggregate([[0.0, 1.0], [1.0]], "mean_logit") == pytest.approx([0.5, 1 - 1e-6], rel=1e-9)


def test_products_are_float64_also_of_float32_scores():
    scores = np.float32([0.1, 0.7, 0.3])
    assert aggregate([scores], "prod")[0] == pytest.approx(float(scores[0]) * float(scores[1]) * float(scores[2]), rel=1e-14)


def test_unknown_aggregation():
    with pytest.raises(ValueError, match="median"):
        aggregate([[0.5]], "median")


def test_ties_are_broken_in_expectation():
    correct = np.array([1.0, 0.0, 0.0])
    everybody = np.array([True, True, True])
    assert winning_accuracy(np.array([2.0, 1.0, 1.0]), everybody, correct) == 1
    assert winning_accuracy(np.array([1.0, 2.0, 1.0]), everybody, correct) == 0
    assert winning_accuracy(np.array([2.0, 2.0, 1.0]), everybody, correct) == 0.5
    assert winning_accuracy(np.array([1.0, 1.0, 1.0]), everybody, correct) == pytest.approx(1 / 3)


def test_sums_that_differ_by_rounding_alone_are_tied():
    totals = np.array([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1])
    assert totals[0] != totals[1]
    assert winning_accuracy(totals, np.array([True, True]), np.array([1.0, 0.0])) == 0.5
    assert winning_accuracy(np.array([1.0, 1 - 1e-6]), np.array([True, True]), np.array([1.0, 0.0])) == 1
    for scale in (1e-12, 1e12):  # products of many steps are small: what counts is the share
        assert winning_accuracy(scale * np.array([2.0, 1.0]), np.array([True, True]), np.array([1.0, 0.0])) == 1
        assert winning_accuracy(scale * totals, np.array([True, True]), np.array([1.0, 0.0])) == 0.5


def test_every_column_of_totals_is_a_vote_of_its_own():
    totals = np.array([[2.0, 1.0, 0.0, 0.5], [1.0, 1.0, 0.0, 3.0], [0.0, 1.0, 0.0, 0.5]])
    present = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1]], bool)
    np.testing.assert_allclose(winning_accuracy(totals, present, np.array([1.0, 0.0, 0.0])), [1, 1 / 3, 0, 0])
    np.testing.assert_allclose(winning_accuracy(totals, present, np.array([1.0, 0.25, 0.0])), [1, 1.25 / 3, 0.25, 0.25])


def test_absent_answers_never_win():
    nothing = np.zeros(2)
    assert winning_accuracy(nothing, np.array([True, False]), np.array([1.0, 0.0])) == 1
    assert winning_accuracy(nothing, np.array([False, True]), np.array([1.0, 0.0])) == 0
    assert winning_accuracy(nothing, np.array([False, False]), np.array([1.0, 0.0])) == 0


def test_groups():
    votes, right = group_accuracy(np.array([4, -1, 4, 0, 4]), np.array([True, False, True, False, False]))
    assert votes.tolist() == [[0, 0, 0, 1, 0], [1, 0, 1, 0, 1]]
    np.testing.assert_allclose(right, [0, 2 / 3])


def test_likelihood_weights_are_probabilities_without_underflow():
    weights = likelihood_weights(np.array([[-5000.0, -5000.0 + np.log(3)], [0.0, -1e6]]))
    np.testing.assert_allclose(weights, [[0.25, 0.75], [1, 0]])
