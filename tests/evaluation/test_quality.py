"""Accuracy and AUC of evaluators."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2h_jax.evaluation.quality import auc, judge, outcome_quality, step_quality


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(pairs):
    scores, right = np.array([score for score, _ in pairs]), np.array([verdict for _, verdict in pairs])
    won = [(one > other) + (one == other) / 2 for one in scores[right] for other in scores[~right]]
    assert auc(scores, right) == (pytest.approx(np.mean(won)) if won else None)


def test_raw_and_balanced_accuracy():
    found = judge(np.array([0.9, 0.8, 0.5, 0.9]), np.array([True, True, True, False]), 0.5)
    assert found == {"auc": round((0.5 + 0 + 0) / 3, 6), "accuracy": 0.75, "balanced_accuracy": 0.5}
    assert judge(np.array([0.9]), np.array([True]), 0.5) == {"auc": None, "accuracy": 1, "balanced_accuracy": None}
    assert judge(np.array([]), np.array([], dtype=bool), 0.5)["accuracy"] is None


def test_odds_say_right_from_one_on_and_log_probabilities_never():
    correct = np.array([[True, False]])
    found = outcome_quality({"mean_odds": np.array([[1.5, 0.7]]), "logprob": np.array([[-1.0, -2.0]])}, correct)
    assert found["samples"] == 2
    assert found["right"] == 1
    assert found["mean_odds"] == {"auc": 1, "accuracy": 1, "balanced_accuracy": 1}
    assert found["logprob"] == {"auc": 1, "accuracy": None, "balanced_accuracy": None}


def test_steps_without_label_are_left_out_and_other_cuts_are_counted():
    found = step_quality([[0.9, 0.2, 0.4], [0.9]], [[1.0, None, 0.0], [1.0, 1.0]])
    assert found == {"steps": 2, "right": 1, "skipped": 1, "auc": 1, "accuracy": 1, "balanced_accuracy": 1}
    assert step_quality([], [])["auc"] is None


def test_a_soft_label_of_one_half_is_right_and_so_is_a_score_of_one_half():
    assert step_quality([[0.5, 0.4, 0.6]], [[0.5, 0.49, 0.51]])["right"] == 2
    assert step_quality([[0.5, 0.4, 0.6]], [[0.5, 0.49, 0.51]])["accuracy"] == 1


def test_verdicts_may_be_zeros_and_ones():
    scores, right = np.array([0.9, 0.8, 0.5, 0.9]), np.array([1, 1, 1, 0])
    assert judge(scores, right, 0.5) == judge(scores, right > 0, 0.5)
    assert auc(scores, right.tolist()) == auc(scores, right > 0)
