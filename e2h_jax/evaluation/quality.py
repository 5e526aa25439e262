"""How good an evaluator is at its own task: telling right from wrong, of solutions (outcome) and of steps.

Accuracy depends on how many of the judged things are right, so it is given twice: raw, and balanced (the mean of the
accuracies on the right and on the wrong ones), which is what a set with as many right as wrong ones would give on
average; the paper's table 10 uses such sets.

The area under the ROC curve does not depend on the balance, but on what is compared, so it is given twice too: pooled
over all problems, and within problems. A judge that knows nothing but how difficult a problem is scores the solutions
of easy problems higher, and more of those are right: its pooled AUC is high, and it is no use for choosing among the
solutions of a problem, which is what re-ranking does. Within problems its AUC is 0.5.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from e2h_jax.evaluation.voting import THRESHOLDS, TIE


def auc(scores: np.ndarray, right: np.ndarray) -> float | None:
    """Returns the area under the ROC curve: the probability that a right one scores above a wrong one, ties counting
    half.

    By midranks (Mann and Whitney): O(n log n). None when all are right or all are wrong. Scores that differ by rounding
    alone are tied, as they are in `estimators.best_of_k`.

    Args:
      scores: [n].
      right: [n], boolean.
    """
    right = np.asarray(right, dtype=bool)
    positives = int(right.sum())
    negatives = right.size - positives
    if not positives or not negatives:
        return None
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores)[order]
    tied = np.cumsum(np.diff(ranked, prepend=-np.inf) > TIE * np.abs(ranked)) - 1  # number of each group of equal scores
    counts = np.bincount(tied)
    midranks = np.cumsum(counts) - (counts - 1) / 2  # ranks from 1; equal scores share the middle of theirs
    return float((midranks[tied][right[order]].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_within(scores: np.ndarray, right: np.ndarray, problems: np.ndarray) -> tuple[float | None, int]:
    """Returns the mean of each problem's own AUC, ties counting half, and of how many problems it is the mean.

    A problem whose things are all right or all wrong has none and is left out (None when that is every problem). The
    others count the same, however many pairs they have.

    Args:
      scores: [n].
      right: [n], boolean.
      problems: number of the problem that each belongs to, [n].
    """
    order = np.argsort(problems, kind="stable")
    ends = np.flatnonzero(np.diff(np.asarray(problems)[order])) + 1
    found = [auc(scores[own], right[own]) for own in np.split(order, ends)]
    values = [value for value in found if value is not None]
    return (sum(values) / len(values) if values else None), len(values)


def judge(scores: np.ndarray, right: np.ndarray, problems: np.ndarray, threshold: float | None) -> dict:
    """Returns {"auc", "auc_within", "auc_problems", "accuracy", "balanced_accuracy"} of scores [n] against right [n].

    `auc_problems` is the number of problems that `auc_within` is the mean of. A score of at least `threshold` says right;
    None, for scores that have no threshold, leaves the accuracies null. Balanced accuracy is null when all are right or
    all are wrong.

    Args:
      problems: number of the problem that each belongs to, [n].
    """
    right = np.asarray(right, dtype=bool)
    within, mixed = auc_within(scores, right, problems)
    result = {"auc": _rounded(auc(scores, right)), "auc_within": _rounded(within), "auc_problems": mixed}
    result |= {"accuracy": None, "balanced_accuracy": None}
    if threshold is None or not right.size:
        return result
    agrees = (scores >= threshold) == right
    result["accuracy"] = _rounded(agrees.mean())
    if right.any() and not right.all():
        result["balanced_accuracy"] = _rounded((agrees[right].mean() + agrees[~right].mean()) / 2)
    return result


def outcome_quality(scores: Mapping[str, np.ndarray], correct: np.ndarray) -> dict:
    """Returns {"samples", "right", aggregation: judgement …}: scores of solutions against graded correctness.

    Args:
      scores: per aggregation (or the one name "logprob", which has no threshold), [problems, samples].
      correct: verdicts, [problems, samples].
    """
    right = correct.ravel()
    problems = np.repeat(np.arange(len(correct)), correct.shape[1])
    judged = {name: judge(values.ravel(), right, problems, THRESHOLDS.get(name)) for name, values in scores.items()}
    return {"samples": right.size, "right": int(right.sum()), **judged}


def step_quality(
    scores: Sequence[Sequence[float]], labels: Sequence[Sequence[float | None]], problems: Sequence[int]
) -> dict:
    """Returns {"steps", "right", "skipped"} and the judgement: step scores against step labels.

    A soft label of at least 0.5 counts as right; null labels are left out. A solution with more or fewer scores than
    labels (cut differently into steps, or truncated before scoring) is skipped and counted.

    Args:
      scores, labels: per solution, of each step in order.
      problems: number of each solution's problem.
    """
    same = [len(given) == len(true) for given, true in zip(scores, labels, strict=True)]
    judged = [
        (score, label >= 0.5, problem)
        for given, true, problem, fits in zip(scores, labels, problems, same, strict=True)
        if fits
        for score, label in zip(given, true, strict=True)
        if label is not None
    ]
    values, right, of = np.array(judged, dtype=np.float64).reshape(-1, 3).T
    right = right.astype(bool)
    counts = {"steps": right.size, "right": int(right.sum()), "skipped": len(same) - sum(same)}
    return {**counts, **judge(values, right, of, 0.5)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
