"""The estimators against the definition: every subset of size k, every decision, one by one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2h_jax.evaluation import estimators
from e2h_jax.evaluation.estimators import below, best_of_k, drawn, pass_at_k, sizes, vote_at_k
from e2h_jax.evaluation.intervals import Bootstrap
from e2h_jax.evaluation.voting import group_accuracy, winning_accuracy

RNG = np.random.default_rng


@st.composite
def problems(draw):
    """One problem with N samples: answers (-1 for none), verdicts, few distinct scores so that ties abound.

    Nearly always the samples of an answer have one verdict; here now and then they differ.
    """
    count = draw(st.integers(1, 7))
    answers = draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    right = draw(st.sets(st.integers(0, 3), max_size=2))
    doubted = draw(st.sets(st.integers(0, 6), max_size=2))
    scores = draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0]), min_size=count, max_size=count))
    correct = [answer in right and index not in doubted for index, answer in enumerate(answers)]
    return np.array([answers]), np.array([correct]), np.array([scores])


def one_vote(answers, weights, share):
    """Accuracy of one vote; share: answer -> how right it is."""
    totals = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer >= 0:
            totals[answer] = totals.get(answer, 0) + weight
    tied = [answer for answer, total in totals.items() if total >= max(totals.values()) - 1e-12]
    return sum(share[answer] for answer in tied) / len(tied) if tied else 0


def shares(answers, correct):
    return {answer: correct[answers == answer].mean() for answer in set(answers.tolist())}


def one_best(scores, correct):
    top = [verdict for score, verdict in zip(scores, correct, strict=True) if score == max(scores)]
    return sum(top) / len(top)


def average(samples, k, decide):
    chosen = list(itertools.combinations(range(samples), k))
    return sum(decide(list(subset)) for subset in chosen) / len(chosen)


@settings(deadline=None, max_examples=150)
@given(problems())
def test_estimators_are_the_average_over_all_subsets(problem):
    answers, correct, scores = problem
    samples, ones = answers.shape[1], np.ones_like(scores)
    share = shares(answers[0], correct[0])
    for k in range(1, samples + 1):
        found = [*vote_at_k(answers, correct, np.stack([ones, scores]), k, RNG(0))]
        found += [best_of_k(scores, correct, k), pass_at_k(correct, k)]
        expected = [
            average(samples, k, lambda s: one_vote(answers[0, s], ones[0, s], share)),
            average(samples, k, lambda s: one_vote(answers[0, s], scores[0, s], share)),
            average(samples, k, lambda s: one_best(scores[0, s], correct[0, s])),
            average(samples, k, lambda s: bool(correct[0, s].any())),
        ]
        np.testing.assert_allclose(np.ravel(found), expected, atol=1e-12)


@settings(deadline=None, max_examples=100)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_and_the_scale_of_the_weights_change_nothing(problem, random):
    answers, correct, scores = problem
    order = random.sample(range(answers.shape[1]), answers.shape[1])
    names = random.sample(range(4), 4) + [-1]  # the last for an answer of -1
    for k in range(1, answers.shape[1] + 1):
        (before,) = vote_at_k(answers, correct, scores[None], k, RNG(0))
        shuffled = np.array(names)[answers[:, order]], correct[:, order]
        (after,) = vote_at_k(*shuffled, 0.3 * scores[None, :, order], k, RNG(1))
        np.testing.assert_allclose(after, before, atol=1e-12)
        np.testing.assert_allclose(
            best_of_k(scores[:, order], correct[:, order], k), best_of_k(scores, correct, k), atol=1e-12
        )


@settings(deadline=None, max_examples=100)
@given(problems())
def test_all_samples_give_the_plain_vote_and_giving_each_twice_changes_nothing(problem):
    answers, correct, scores = problem
    votes, right = group_accuracy(answers[0], correct[0])
    plain = winning_accuracy(votes @ scores[0], np.ones(len(right), bool), right) if len(right) else 0
    samples = answers.shape[1]
    ((once,),) = vote_at_k(answers, correct, scores[None], samples, RNG(0))
    twice = [np.repeat(array, 2, axis=1) for array in (answers, correct, scores)]
    ((doubled,),) = vote_at_k(*twice[:2], twice[2][None], 2 * samples, RNG(0))
    np.testing.assert_allclose([once, doubled], plain, atol=1e-12)


def test_votes_of_two_and_of_three_worked_by_hand():
    """Answers a a b -, of which a is right; weights 0.2 0.2 0.3 0.9."""
    answers, correct = np.array([[0, 0, 1, -1]]), np.array([[True, True, False, False]])
    weights = np.array([[[1.0, 1, 1, 1]], [[0.2, 0.2, 0.3, 0.9]], [[0.0, 0, 0, 0.9]]])
    # Pairs: aa ab ab a- a- b-. Majority 1 ½ ½ 1 1 0; by weight b wins both ab; of weights 0 all are tied.
    np.testing.assert_allclose(vote_at_k(answers, correct, weights, 2, RNG(0))[:, 0], [4 / 6, 3 / 6, 4 / 6])
    # aab aa- ab- ab-: majority 1 1 ½ ½; by weight 1 1 0 0; weights 0: ½ 1 ½ ½.
    np.testing.assert_allclose(vote_at_k(answers, correct, weights, 3, RNG(0))[:, 0], [3 / 4, 2 / 4, 2.5 / 4])


def made_up(count=40, samples=16, seed=0):
    rng = np.random.default_rng(seed)
    answers = rng.integers(-1, 4, size=(count, samples))
    return answers, answers == 0, rng.random((count, samples))


@pytest.mark.parametrize("samples", [1, 16, 513, 1024])
def test_one_sample_gives_the_mean_whatever_the_method(samples):
    answers, correct, scores = made_up(samples=samples)
    mean = correct.mean(axis=1)
    votes = vote_at_k(answers, correct, np.stack([scores, scores**0, scores * 0]), 1, RNG(0))
    for estimate in (*votes, best_of_k(scores, correct, 1), pass_at_k(correct, 1)):
        np.testing.assert_allclose(estimate, mean, atol=1e-12)


def test_two_samples_are_exact_however_many_there_are():
    answers, correct, scores = made_up(count=3, samples=700)  # 244,650 pairs
    scores[:, ::3] = 0.5  # ties
    weights = np.stack([scores**0, scores])
    found = vote_at_k(answers, correct, weights, 2, RNG(0))
    for method, problem in itertools.product(range(2), range(3)):
        pairs = np.triu_indices(700, 1)
        one, other = (answers[problem, side] for side in pairs)
        by_one, by_other = (np.where(answers >= 0, weights[method], -1)[problem, side] for side in pairs)
        tied = ((one == 0) * 0.5 + (other == 0) * 0.5) * (by_one == by_other)
        won = (one == 0) * (by_one > by_other) + (other == 0) * (by_other > by_one) + tied
        assert found[method, problem] == pytest.approx(won.mean(), abs=1e-12)


@pytest.mark.parametrize(("samples", "k"), [(32, 4), (19, 16)])
def test_four_of_32_and_most_of_19_are_exact(samples, k):
    answers, correct, scores = made_up(count=2, samples=samples)
    chosen = np.array(list(itertools.combinations(range(samples), k)))
    found = vote_at_k(answers, correct, np.stack([scores**0, scores]), k, RNG(0))
    for problem in range(2):
        for method, weight in enumerate((scores**0, scores)):
            given = answers[problem, chosen][None] == np.arange(4)[:, None, None]
            totals = (given * weight[problem, chosen]).sum(axis=-1)
            expected = winning_accuracy(totals, given.any(axis=-1), np.array([1.0, 0, 0, 0])).mean()
            assert found[method, problem] == pytest.approx(expected, abs=1e-12)


def test_up_to_100_000_subsets_all_are_taken_beyond_some_are_drawn():
    exact = [(1024, 1), (1024, 2), (1024, 1024), (32, 4), (40, 4), (19, 8), (36, 32), (85, 3)]
    assert [drawn(*case) for case in exact] == [0] * len(exact)
    beyond = [(32, 8), (41, 4), (20, 8), (37, 32), (86, 3), (1024, 512)]
    assert [drawn(*case) for case in beyond] == [1024] * len(beyond)


def test_more_samples_never_lower_pass_at_k_and_an_oracle_reaches_it():
    answers, correct, _ = made_up()
    values = [pass_at_k(correct, k) for k in range(1, 17)]
    assert (np.diff(values, axis=0) >= -1e-12).all()
    np.testing.assert_array_equal(values[-1], correct.any(axis=1))
    for k in (2, 5, 16):
        oracle = correct.astype(float)
        np.testing.assert_allclose(best_of_k(oracle, correct, k), pass_at_k(correct, k))
        (by_votes,) = vote_at_k(answers, correct, oracle[None], k, RNG(0))
        assert (by_votes >= pass_at_k(correct, k) - 1e-12).all()  # weights 0 tie where nobody is right


def test_constant_scores_choose_at_random():
    _, correct, scores = made_up()
    for k in (1, 3, 16):
        np.testing.assert_allclose(best_of_k(scores * 0, correct, k), correct.mean(axis=1))


def test_scores_that_differ_by_rounding_alone_are_tied():
    scores = np.array([[0.1 * 0.2 * 0.3, 0.3 * 0.2 * 0.1], [-0.1 - 0.2 - 0.3, -0.3 - 0.2 - 0.1]])
    assert (scores[:, 0] != scores[:, 1]).all()
    correct = np.array([[True, False]] * 2)
    np.testing.assert_array_equal(best_of_k(scores, correct, 2), [0.5, 0.5])
    np.testing.assert_array_equal(best_of_k(scores * [1, 1 + 1e-6], correct, 2), [0, 1])


def test_random_subsets_estimate_what_all_subsets_give(monkeypatch):
    answers, correct, scores = made_up(count=300)
    weights = np.stack([scores * 0 + 1, scores, scores * 0 + 0.3])
    exact = vote_at_k(answers, correct, weights, 4, RNG(0))
    monkeypatch.setattr(estimators, "EXACT", 1000)
    random = vote_at_k(answers, correct, weights, 4, RNG(0))
    assert 0 < np.abs(exact - random).max() < 0.08  # five standard errors of 1,024 draws
    assert np.abs(exact.mean(axis=1) - random.mean(axis=1)).max() < 5 * 0.5 / np.sqrt(1024 * 300)
    np.testing.assert_allclose(random[0], random[2], atol=1e-12)  # constant weights are the majority: the same subsets
    np.testing.assert_array_equal(random, vote_at_k(answers, correct, weights, 4, RNG(0)))


def test_in_drawn_subsets_too_answers_of_weight_0_are_tied():
    answers = np.arange(64)[None] % 2
    assert drawn(64, 8) == 1024
    (found,) = vote_at_k(answers, answers == 0, np.zeros((1, 1, 64)), 8, RNG(0))
    assert found == pytest.approx(0.5, abs=0.02)


def test_every_drawn_subset_has_k_samples_and_counts_once(monkeypatch):
    """Three right answers of four: any three samples vote for them. Three of three more problems' samples answer alike."""
    monkeypatch.setattr(estimators, "EXACT", 0)
    answers = np.array([[0, 0, 0, 1], [0, 0, 0, -1], [0, 1, 1, 1]])
    correct = np.array([[True, True, True, False], [True, True, True, False], [True, False, False, False]])
    np.testing.assert_array_equal(vote_at_k(answers, correct, np.ones((1, 3, 4)), 3, RNG(0)), [[1, 1, 0]])


def test_the_vote_of_given_subsets_by_hand(monkeypatch):
    """Answers a (two samples, right) and b (one): of the four subsets a, b, both of a against b, and a tie."""
    chosen = [np.array([[1.0, 0, 1, 1], [0, 0, 1, 0]]), np.array([[0.0, 1, 1, 1]])]
    weights = [np.ones((2, 2)), np.array([[1.0], [3.0]])]  # the second method lets b outweigh both
    for held in (1, 2**17):
        monkeypatch.setattr(estimators, "_TOTALS", held)
        found = estimators._in_subsets(weights, np.array([1.0, 0.0]), chosen)
        np.testing.assert_allclose(found, [(1 + 0 + 1 + 0.5) / 4, (1 + 0 + 0 + 0) / 4], rtol=1e-15)


def test_intervals_include_the_noise_of_drawn_subsets():
    """Many problems with the same samples differ by the subsets alone; shared subsets would give an interval without width."""
    samples, k, right, count = 64, 8, 33, 400
    answers = np.tile(np.arange(samples) >= right, (count, 1)).astype(int)
    assert drawn(samples, k) == 1024
    (found,) = vote_at_k(answers, answers == 0, np.ones((1, count, samples)), k, RNG(0))
    ways = [math.comb(right, j) * math.comb(samples - right, k - j) for j in range(k + 1)]
    exact = (sum(ways[5:]) + ways[4] / 2) / math.comb(samples, k)
    spread = np.sqrt((sum(ways[5:]) + ways[4] / 4) / math.comb(samples, k) - exact**2)
    assert found.std() == pytest.approx(spread / np.sqrt(1024), rel=0.2)
    (row,) = Bootstrap(count, 2000, RNG(0)).statistics(found[None])
    low, high = row["ci95"]
    assert low < exact < high
    assert high - low == pytest.approx(2 * 1.96 * spread / np.sqrt(1024 * count), rel=0.2)


def test_binomial_ratios():
    expected = [math.comb(j, 5) / math.comb(12, 5) for j in range(13)]
    np.testing.assert_allclose(below(12, 5), expected, atol=1e-15)
    assert np.isfinite(below(1024, 512)).all()


def test_sizes():
    assert sizes(1) == [1]
    assert sizes(16) == [1, 2, 4, 8, 16]
    assert sizes(20) == [1, 2, 4, 8, 16, 20]
