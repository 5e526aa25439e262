"""How an evaluator's scores lie: histograms of right and wrong ones, and how often a score of p is right."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from e2h_jax.evaluation import voting
from e2h_jax.evaluation.inputs import Generator

BINS = 20  # of the histograms
DECILES = 10  # of the reliability curve


def judgements(
    generator: Generator,
    aggregations: Sequence[str],
    labels: Mapping[tuple[str, int], Sequence[float | None]],
    groups: Mapping[str, np.ndarray],
) -> Iterator[dict]:
    """Yields `distribution` of each evaluator, thing judged ("steps", or an aggregation) and group, with their names.

    Args:
      labels: (problem_id, sample) -> step labels; {} for none.
      groups: name -> bool [P].
    """
    for evaluator, step_scores in generator.step_scores.items():
        named = {"generator": generator.name, "evaluator": evaluator}
        for aggregation in aggregations:
            flat = voting.aggregate([steps for problem in step_scores for steps in problem], aggregation)
            scores = flat.reshape(generator.correct.shape)
            if aggregation == "mean_odds":
                scores = scores / (1 + scores)
            for group, mask in groups.items():
                if mask.any():
                    found = distribution(scores[mask].ravel(), generator.correct[mask].ravel())
                    yield {**named, "judged": aggregation, "group": group, **found}
        for group, mask in groups.items():
            pairs = [
                (score, label >= 0.5)
                for problem in np.flatnonzero(mask)
                for sample, scores in zip(generator.samples[problem], step_scores[problem], strict=True)
                if len(true := labels.get((sample["problem_id"], sample["sample"]), ())) == len(scores)
                for score, label in zip(scores, true, strict=True)
                if label is not None
            ]
            if pairs:
                scores, right = np.array(pairs, dtype=np.float64).T
                yield {**named, "judged": "steps", "group": group, **distribution(scores, right > 0)}


def distribution(scores: np.ndarray, right: np.ndarray) -> dict:
    """Returns the histograms and the reliability curve of scores in [0, 1], both [n].

    {"right", "wrong": counts in `BINS` bins of equal width, "reliability": [mean score, share right, count] of each of
    `DECILES` bins that is not empty, "calibration_error": mean distance of the two, weighted by count}.
    """
    counts = [np.histogram(scores[which], BINS, (0.0, 1.0))[0].tolist() for which in (right, ~right)]
    index = np.minimum((scores * DECILES).astype(int), DECILES - 1)
    curve = [
        [float(scores[index == i].mean()), float(right[index == i].mean()), int((index == i).sum())]
        for i in range(DECILES)
        if (index == i).any()
    ]
    error = sum(abs(score - share) * count for score, share, count in curve) / max(1, len(scores))
    rounded = [[round(score, 4), round(share, 4), count] for score, share, count in curve]
    return {"right": counts[0], "wrong": counts[1], "reliability": rounded, "calibration_error": round(error, 4)}
