"""Accuracy with k samples, from N ≥ k samples: the average over all subsets of size k, not over the first k.

With N samples of a problem at hand, what would k samples have given? Each function returns, per problem, the expected
accuracy of a decision made on k samples drawn without replacement from the N: an unbiased estimate of the accuracy
with k fresh samples (Chen et al. 2021 introduced it for pass@k).

pass@k and best-of-k have closed forms for every k, and so have votes of one or two samples. Votes of more samples count
all subsets where there are at most `EXACT`. All this is exact: the order of the samples does not matter, and with one
sample every method has the same accuracy. Elsewhere a vote is averaged over `DRAWN` random subsets: the same ones for
all methods, so that differences between votes do not see the choice, and every problem's own, so that the error of a
mean over problems shrinks with their number and is part of what a bootstrap over problems measures (`intervals.py`).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from e2h_jax.evaluation.voting import TIE, group_accuracy, winning_accuracy

# Up to this many subsets, a vote is averaged over all of them.
EXACT = 100_000

# Above, over this many random ones: a standard error of at most 50 / sqrt(DRAWN · problems) points.
DRAWN = 1024

# Totals of votes that are held at a time: few enough for a processor's cache.
_TOTALS = 2**17


def sizes(samples: int) -> list[int]:
    """Returns 1, 2, 4, … up to and including `samples`."""
    return [2**i for i in range(samples.bit_length()) if 2**i < samples] + [samples]


def below(samples: int, k: int) -> np.ndarray:
    """Returns C(j, k) / C(N, k), j = 0 … N: the probability that k of N samples all lie among j given ones, [N + 1]."""
    ratios = np.zeros(samples + 1)
    ratios[samples] = 1.0
    for j in range(samples, k, -1):
        ratios[j - 1] = ratios[j] * (j - k) / j
    return ratios


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Returns the probability that at least one of k samples is correct, [problems], for correct [problems, N]."""
    samples = correct.shape[1]
    return 1 - below(samples, k)[samples - correct.astype(np.int64).sum(axis=1)]


def best_of_k(scores: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """Returns how right the best-scored of k samples is, [problems], for scores, correct [problems, N].

    The sample at ascending rank j is the best of the subset with probability [C(j, k) - C(j-1, k)] / C(N, k). Equal
    scores share their ranks: each of the tied samples is chosen equally often. Scores that differ by rounding alone
    are equal.

    Args:
      scores: finite, [problems, N].
      correct: verdicts, or how right each sample is (0 to 1), [problems, N].
    """
    problems, samples = scores.shape
    order = scores.argsort(axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    right = np.take_along_axis(correct, order, axis=1).astype(np.float64)
    first = np.ones((problems, samples), dtype=bool)
    first[:, 1:] = np.diff(ranked, axis=1) > TIE * np.abs(ranked[:, 1:])
    tied = np.cumsum(first.ravel()) - 1  # number of each group of equal scores, over all problems
    share = np.bincount(tied, right.ravel()) / np.bincount(tied)
    return share[tied].reshape(problems, samples) @ np.diff(below(samples, k))


def drawn(samples: int, k: int) -> int:
    """Returns how many random subsets stand for all in a vote of k of N samples; 0 where the vote is exact."""
    return 0 if k <= 2 or math.comb(samples, k) <= EXACT else DRAWN


def vote_at_k(
    answers: np.ndarray, correct: np.ndarray, weights: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns the accuracy of a vote among k samples, [methods, problems]; exact where `drawn(N, k)` is 0.

    A sample without an answer casts no vote; where nobody of the k answers, the decision is wrong.

    Args:
      answers: per sample the number of its answer within the problem, -1 for none, [problems, N].
      correct: verdicts, [problems, N].
      weights: weight of each sample's vote, none negative, [methods, problems, N]; all ones: the majority.
      rng: draws the subsets, where not all are taken.
    """
    problems, samples = answers.shape
    voted = [group_accuracy(*problem) for problem in zip(answers, correct, strict=True)]
    if k <= 2:
        # Of two votes the heavier one decides, and two for one answer decide for it: the best of the k samples, those
        # without an answer last.
        shares = np.stack([right @ votes for votes, right in voted])
        return np.stack([best_of_k(np.where(answers >= 0, weight, -1.0), shares, k) for weight in weights])
    count = drawn(samples, k)
    if count:
        # The same subsets for all methods; each problem has an order of its own, so no two problems share an error.
        chosen = rng.permuted(np.tile(np.arange(samples) < k, (count, 1)), axis=1).T.astype(np.float64)
        orders = rng.permuted(np.tile(np.arange(samples), (problems, 1)), axis=1)
    result = np.zeros(weights.shape[:2])
    for problem, (votes, right) in enumerate(voted):
        if not right.any():
            continue
        givers = [np.flatnonzero(given) for given in votes]
        own = [weights[:, problem, given] for given in givers]
        if count:
            result[:, problem] = _in_subsets(own, right, [chosen[orders[problem, given]] for given in givers])
        else:
            result[:, problem] = _in_all_subsets(own, right, samples, k)
    return result


def _in_subsets(weights: Sequence[np.ndarray], right: np.ndarray, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the accuracy of one problem's vote, averaged over the given subsets, [methods].

    Args:
      weights: of the samples that gave each answer, [answers][methods, givers].
      right: how right each answer is, [answers].
      chosen: 1 where they are in a subset, 0 where not, [answers][givers, subsets].
    """
    subsets = chosen[0].shape[1]
    accuracy = np.zeros(len(weights[0]))
    step = max(1, _TOTALS // (len(weights) * len(accuracy)))
    for start in range(0, subsets, step):
        part = [given[:, start : start + step] for given in chosen]
        totals = np.empty((len(weights), len(accuracy), part[0].shape[1]))
        for answer, (weight, given) in enumerate(zip(weights, part, strict=True)):
            np.matmul(weight, given, out=totals[answer])
        present = np.stack([given.any(axis=0) for given in part])[:, None]
        accuracy += winning_accuracy(totals, present, right).sum(axis=-1)
    return accuracy / subsets


def _in_all_subsets(weights: Sequence[np.ndarray], right: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Returns the accuracy of one problem's vote, averaged over all subsets of size k, [methods].

    Not subset by subset: for every set of samples with the same right answer, the ways to choose the rest are counted
    in which no other answer has a larger total. They are the coefficient of x^rest in a product with one factor per
    other answer, whose coefficient of x^j counts the sets of j of its samples with a smaller total, and u times those
    with the same. A win shared with t others counts 1 / (t + 1), which is the integral of u^t from 0 to 1.

    Args:
      weights: of the samples that gave each answer, [answers][methods, givers].
      right: how right each answer is, [answers].
    """
    givers = [weight.shape[1] for weight in weights]
    blank = samples - sum(givers)
    sums = functools.cache(lambda answer, size: _subset_sums(weights[answer], size))  # [methods, sets]
    won = np.zeros(len(weights[0]))
    for winner in np.flatnonzero(right):
        others = [answer for answer in range(len(weights)) if answer != winner]
        for own in range(1, min(k, givers[winner]) + 1):
            rest = k - own
            left = samples - givers[winner] - rest  # of the others' samples, those that are not chosen
            if left < 0:
                continue
            fewer = min(rest, left)  # powers count the chosen ones or those left out, whichever are fewer
            u, u_weights = _unit_legendre(min(rest, len(others)) // 2 + 1)
            totals = sums(winner, own)
            ways = np.zeros((fewer + 1, len(u), *totals.shape))  # [powers, nodes, methods, sets of the winner]
            ways += np.array([math.comb(blank, power) for power in range(fewer + 1)])[:, None, None, None]
            for answer in others:
                powers = range(min(fewer, givers[answer]) + 1)
                chosen = powers if rest <= left else [givers[answer] - power for power in powers]
                factor = [_not_larger(sums(answer, size), totals, u) if size else 1 for size in chosen]
                before, ways = ways, ways * factor[0]
                for power, ways_of_answer in enumerate(factor[1:], start=1):
                    ways[power:] += before[:-power] * ways_of_answer
            won += right[winner] * (u_weights @ ways[-1].sum(axis=-1))
    return won / math.comb(samples, k)


def _not_larger(sums: np.ndarray, totals: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns how many of sums [methods, sets] are below each of totals [methods, n], plus u times how many are equal."""
    sums, totals = sums[:, None], totals[..., None]
    smaller = (sums < totals * (1 - TIE)).sum(axis=-1)
    return smaller + u * ((sums * (1 - TIE) <= totals).sum(axis=-1) - smaller)


@functools.cache
def _unit_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes [nodes, 1, 1] and weights [nodes] that integrate polynomials of degree 2 nodes - 1 from 0 to 1."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return (points[:, None, None] + 1) / 2, weights / 2


def _subset_sums(weights: np.ndarray, size: int) -> np.ndarray:
    """Returns the sum of every subset of `size` columns, [methods, subsets], for weights [methods, columns]."""
    return sum(weights[:, column] for column in _combinations(weights.shape[1], size))


@functools.lru_cache(maxsize=512)
def _combinations(count: int, size: int) -> np.ndarray:
    """Returns all subsets of `size` numbers below `count`, int [size, subsets]."""
    return np.array(list(itertools.combinations(range(count), size))).T
