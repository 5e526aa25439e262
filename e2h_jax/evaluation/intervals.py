"""Bootstrap intervals over problems: what the accuracy would have been on another draw of as many problems."""

import numpy as np


class Bootstrap:
    """Resamples of a set of problems, drawn once, so that every method and every difference sees the same ones.

    Percentile intervals at 95 %. They cover the choice of problems, and with it everything that was drawn for each
    problem apart: its samples, and the random subsets of them (`estimators.py`). Such noise is part of the differences
    between the problems' values, and resampling sees only these. Intervals do not cover what is common to all problems:
    the models, and the seed that trained them.

    Args:
      problems: number of problems; 0 gives None for every interval.
      resamples: number of resamples, 2,000 or more for a percentile interval.
      rng: numpy generator.
    """

    def __init__(self, problems: int, resamples: int, rng: np.random.Generator):
        self.problems = problems
        self._shares = None
        if problems:
            drawn = rng.integers(problems, size=(resamples, problems)) + problems * np.arange(resamples)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=resamples * problems).reshape(resamples, problems)
            self._shares = counts.T / problems  # [problems, resamples]

    def statistics(self, values: np.ndarray, name: str = "accuracy") -> list[dict]:
        """Returns {name: mean, "ci95": [low, high], "problems": count} for each row of values [methods, problems]."""
        if self._shares is None:
            return [{name: None, "ci95": None, "problems": 0} for _ in values]
        bounds = np.percentile(values @ self._shares, [2.5, 97.5], axis=1)
        means = values.mean(axis=1)
        return [
            {name: _rounded(mean), "ci95": [_rounded(low), _rounded(high)], "problems": self.problems}
            for mean, low, high in zip(means, *bounds, strict=True)
        ]


def _rounded(value: float) -> float:
    return round(float(value), 6) + 0.0  # + 0.0: no "-0.0" in the file
