"""Accuracy and AUC of evaluators."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2h_jax.evaluation.quality import auc, auc_within, judge, outcome_quality, step_quality


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(pairs):
    scores, right = np.array([score for score, _ in pairs]), np.array([verdict for _, verdict in pairs])
    won = [(one > other) + (one == other) / 2 for one in scores[right] for other in scores[~right]]
    assert auc(scores, right) == (pytest.approx(np.mean(won)) if won else None)


def test_scores_that_differ_by_rounding_alone_are_tied():
    """As in best-of-k: products of the same step scores in another order, small ones and negative sums too."""
    for scale in (1, 1e-8, -50):
        scores = scale * np.array([0.1 * 0.2 * 0.3, 0.3 * 0.2 * 0.1])
        assert scores[0] != scores[1]
        assert auc(scores, np.array([True, False])) == auc(scores, np.array([False, True])) == 0.5
    scores = np.array([0.9, 0.7 + 1e-6, 0.7, 0.9 + 1e-12, 0.0, 0.0])
    # 0.9 is tied with 0.9 and above 0.7 and 0; 0.7 is below 0.9 and 0.7, above 0; 0 is tied with 0 alone
    assert auc(scores, np.array([True, False, True, False, True, False])) == pytest.approx((2.5 + 1 + 0.5) / 9)


SCORES = st.sampled_from([0.0, 0.1, 0.5, 0.9])


@given(st.lists(st.tuples(SCORES, st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_auc_within_is_the_mean_over_problems_with_right_and_wrong_ones(rows):
    scores, right, problems = (np.array(column) for column in zip(*rows, strict=True))
    shares = []
    for problem in set(problems.tolist()):
        own = problems == problem
        won = [(a > b) + (a == b) / 2 for a in scores[own & right] for b in scores[own & ~right]]
        shares += [np.mean(won)] if won else []
    found, count = auc_within(scores, right, problems)
    assert count == len(shares)
    assert found == (pytest.approx(np.mean(shares)) if shares else None)


def test_a_judge_of_difficulty_alone_is_good_pooled_and_no_use_within_problems():
    """Three problems with 4 samples: 3, 2 and 0 right; the score is a number for each problem."""
    correct = np.array([[True, True, True, False], [True, False, False, True], [False] * 4])
    difficulty = np.array([[0.9], [0.5], [0.1]]).repeat(4, axis=1)
    found = outcome_quality({"last": difficulty}, correct)["last"]
    # 5 right against 7 wrong. Three at 0.9 against 1 · 0.9 (tied), 2 · 0.5, 4 · 0.1: 3 · 6.5; two at 0.5: 2 · (0 + 2/2 + 4).
    assert found["auc"] == round((3 * 6.5 + 2 * 5) / 35, 6) == 0.842857
    assert (found["auc_within"], found["auc_problems"]) == (0.5, 2)
    # Within problems one may be perfect, and pooled bad: the hardest problem's scores are the highest.
    within = np.where(correct, 0.1, 0.0) + np.array([[0.0], [0.5], [0.8]])
    found = outcome_quality({"last": within}, correct)["last"]
    assert (found["auc_within"], found["auc_problems"]) == (1, 2)
    assert found["auc"] == round((3 * 1 + 2 * 3) / 35, 6)
    # The problems count the same, with three pairs or four: (1/3 + 1) / 2 in place of 5 / 7.
    uneven = np.array([[0.3, 0.1, 0.1, 0.2], [0.9, 0.1, 0.1, 0.9], [0.0] * 4])
    assert outcome_quality({"last": uneven}, correct)["last"]["auc_within"] == round((1 / 3 + 1) / 2, 6)


def test_steps_are_compared_within_their_problem():
    """Two solutions of problem 4, one of problem 2; each solution alone has steps of one kind."""
    scores, labels = [[0.9, 0.8], [0.7], [0.1, 0.2]], [[1.0, 1.0], [0.0], [1.0, 0.0]]
    found = step_quality(scores, labels, [4, 4, 2])
    assert (found["auc_within"], found["auc_problems"]) == (0.5, 2)  # 1 and 0
    assert found["auc"] == round((2 + 2 + 0) / 6, 6)
    assert step_quality(scores, labels, [4, 5, 2])["auc_problems"] == 1


def test_raw_and_balanced_accuracy():
    found = judge(np.array([0.9, 0.8, 0.5, 0.9]), np.array([True, True, True, False]), np.array([0, 1, 0, 0]), 0.5)
    areas = {"auc": round((0.5 + 0 + 0) / 3, 6), "auc_within": 0.25, "auc_problems": 1}
    assert found == {**areas, "accuracy": 0.75, "balanced_accuracy": 0.5}
    none = {"auc": None, "auc_within": None, "auc_problems": 0}
    one = judge(np.array([0.9]), np.array([True]), np.array([0]), 0.5)
    assert one == {**none, "accuracy": 1, "balanced_accuracy": None}
    nothing = judge(np.array([]), np.array([], dtype=bool), np.array([], dtype=int), 0.5)
    assert nothing == {**none, "accuracy": None, "balanced_accuracy": None}


def test_odds_say_right_from_one_on_and_log_probabilities_never():
    correct = np.array([[True, False]])
    found = outcome_quality({"mean_odds": np.array([[1.5, 0.7]]), "logprob": np.array([[-1.0, -2.0]])}, correct)
    assert found["samples"] == 2
    assert found["right"] == 1
    areas = {"auc": 1, "auc_within": 1, "auc_problems": 1}
    assert found["mean_odds"] == {**areas, "accuracy": 1, "balanced_accuracy": 1}
    assert found["logprob"] == {**areas, "accuracy": None, "balanced_accuracy": None}


def test_steps_without_label_are_left_out_and_other_cuts_are_counted():
    found = step_quality([[0.9, 0.2, 0.4], [0.9]], [[1.0, None, 0.0], [1.0, 1.0]], [0, 1])
    areas = {"auc": 1, "auc_within": 1, "auc_problems": 1}
    assert found == {"steps": 2, "right": 1, "skipped": 1, **areas, "accuracy": 1, "balanced_accuracy": 1}
    assert step_quality([], [], [])["auc"] is None


def test_a_soft_label_of_one_half_is_right_and_so_is_a_score_of_one_half():
    found = step_quality([[0.5, 0.4, 0.6]], [[0.5, 0.49, 0.51]], [0])
    assert (found["right"], found["accuracy"]) == (2, 1)


def test_verdicts_may_be_zeros_and_ones():
    scores, right, problems = np.array([0.9, 0.8, 0.5, 0.9]), np.array([1, 1, 1, 0]), np.array([0, 0, 0, 0])
    assert judge(scores, right, problems, 0.5) == judge(scores, right > 0, problems, 0.5)
    assert auc(scores, right.tolist()) == auc(scores, right > 0)
    assert auc_within(scores, right, [2, 1, 1, 2]) == auc_within(scores, right > 0, problems[::-1] + [2, 1, 1, 2])


def test_odds_say_right_from_one_on_and_probabilities_from_one_half():
    correct = np.array([[False, True], [False, True]])
    for name, scores in (("mean_odds", [[0.8, 1.2], [0.99, 1.0]]), ("mean", [[0.3, 0.6], [0.49, 0.5]])):
        assert outcome_quality({name: np.array(scores)}, correct)[name]["accuracy"] == 1.0
