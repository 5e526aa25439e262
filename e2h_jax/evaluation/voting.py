"""One number per solution, and one decision per set of solutions.

Step scores p_1 … p_n (probabilities that a step is right, the final answer's last) become the score of the solution
by one of the aggregations of the easy-to-hard paper (section 4.2.1 and appendix L; adopted there: prod for weighted
voting, min for best-of-N):

    prod        p_1 · p_2 · … · p_n
    min         the smallest p_i
    max         the largest p_i
    last        p_n
    mean        (p_1 + … + p_n) / n
    mean_logit  sigmoid of the mean of log(p_i / (1 - p_i))
    mean_odds   the mean of p_i / (1 - p_i); the paper's ReLU around it changes nothing, for odds are never negative

Probabilities are kept `EDGE` away from 0 and 1 for the last two, so that a score stored as exactly 1.0 does not
decide alone.
"""

from collections.abc import Sequence

import numpy as np

AGGREGATIONS = ("prod", "min", "last", "mean", "max", "mean_logit", "mean_odds")

# Score from which on an aggregation says "right": all are probabilities, except the odds.
THRESHOLDS = {aggregation: 0.5 for aggregation in AGGREGATIONS} | {"mean_odds": 1.0}

EDGE = 1e-6

# Sums and products of the same numbers in another order differ by rounding; such totals and scores are the same.
TIE = 1e-9


def aggregate(step_scores: Sequence[Sequence[float]], aggregation: str) -> np.ndarray:
    """Returns the score of each solution, float64 [solutions]; 0 for a solution without any step.

    Args:
      step_scores: per solution its step scores in order, of any number.
      aggregation: one of `AGGREGATIONS`.
    """
    counts = np.array([len(scores) for scores in step_scores], dtype=np.int64)
    result = np.zeros(len(counts))
    if not counts.any():
        return result
    flat = np.concatenate([np.asarray(scores, dtype=np.float64) for scores in step_scores])
    scored = counts > 0
    counts = counts[scored]
    starts = np.cumsum(counts) - counts
    if aggregation in ("mean_logit", "mean_odds"):
        flat = np.clip(flat, EDGE, 1 - EDGE)
        flat = flat / (1 - flat)
    match aggregation:
        case "prod":
            result[scored] = np.multiply.reduceat(flat, starts)
        case "min":
            result[scored] = np.minimum.reduceat(flat, starts)
        case "max":
            result[scored] = np.maximum.reduceat(flat, starts)
        case "last":
            result[scored] = flat[starts + counts - 1]
        case "mean" | "mean_odds":
            result[scored] = np.add.reduceat(flat, starts) / counts
        case "mean_logit":
            result[scored] = 1 / (1 + np.exp(-np.add.reduceat(np.log(flat), starts) / counts))
        case _:
            raise ValueError(f"unknown aggregation {aggregation!r}")
    return result


def likelihood_weights(logprob: np.ndarray) -> np.ndarray:
    """Returns the probability of each sample among the samples of its problem, [problems, samples]; rows sum to 1.

    The control for an evaluator: the same vote, weighted by what the generator itself knows. `logprob` holds sums of
    token log-probabilities, [problems, samples].
    """
    weights = np.exp(logprob - logprob.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def winning_accuracy(totals: np.ndarray, present: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Returns how often the answer with the largest total is right, [...].

    Ties are broken in expectation: as if one of the tied answers were drawn, so the value is the share of them that is
    right. Where no answer is present (nobody answered), 0.

    Args:
      totals: votes or summed weights per answer, none negative, 0 where the answer is absent, [answers, ...].
      present: whether anybody gave the answer, broadcast to the shape of totals; others cannot win, not even with all
        totals 0.
      correct: 1 where the answer is right, 0 where wrong, [answers] (a share in between is allowed).
    """
    tied = totals >= totals.max(axis=0) * (1 - TIE)
    tied &= present
    right = sum(correct[answer] * tied[answer] for answer in np.flatnonzero(correct))
    return right / np.maximum(tied.sum(axis=0, dtype=np.int32), 1)


def group_accuracy(answers: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the answers of one problem as votes: who gave which, [answers, samples], and how right each is,
    [answers].

    An answer is as right as the share of its samples that were graded correct: 0 or 1 nearly always, since samples
    grouped as the same answer nearly always get the same verdict.

    Args:
      answers: number of each sample's answer, -1 where it gave none, [samples].
      correct: verdict of each sample, [samples].
    """
    given = answers >= 0
    numbers, position = np.unique(answers[given], return_inverse=True)
    votes = np.zeros((len(numbers), len(answers)))
    votes[position, np.flatnonzero(given)] = 1
    return votes, (votes @ correct) / votes.sum(axis=1)
