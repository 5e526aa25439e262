"""Rows of all methods, from arrays."""

import numpy as np

from e2h_jax.evaluation import comparison, tables
from e2h_jax.evaluation.inputs import Generator


def test_methods_agree_on_one_sample_and_rows_tell_which_subsets_were_drawn():
    """A generator with 600 samples of each of 30 problems: with one sample nothing is left to decide."""
    rng = np.random.default_rng(0)
    answers = rng.integers(-1, 5, (30, 600))
    steps = rng.random((30, 600, 2)).tolist()
    logprob = rng.normal(-30, 9, (30, 600))
    of = Generator("g", None, answers == 0, answers, logprob, [], [], {"prm": steps}, {})
    found = comparison.methods(of, comparison.solution_scores(of, ("prod", "min")), np.random.default_rng(0))
    groups = comparison.Groups([1, 5] * 15, (1,), (5,), [None] * 30, 200, 0)
    single = [method for method in found if method.n == 1]
    assert len(single) == 1 + 2 + 1 + 2 + 1 + 1
    for method in single:
        np.testing.assert_allclose(method.accuracy, (answers == 0).mean(axis=1), atol=1e-12)
    rows = comparison.results_rows(found, groups)
    drawn = {row["n"]: row["drawn"] for row in rows if row["decoding"] in ("majority", "weighted")}
    assert drawn == {1: 0, 2: 0, 600: 0} | dict.fromkeys((4, 8, 16, 32, 64, 128, 256, 512), 1024)
    assert {row["drawn"] for row in rows if row["decoding"] in ("best_of_n", "pass")} == {0}
    for row in comparison.paired_rows(found, groups):
        if row["n"] == 1:
            assert row["all"] == {"difference": 0, "ci95": [0, 0], "problems": 30}
    line = tables.subsets_line(rows)
    assert "votes at N = 4, 8, 16, 32, 64, 128, 256 and 512: 1,024 random subsets" in line
    assert "at most 0.29 points" in line  # 50 / sqrt(1024 · 30)
    assert tables.subsets_line([row for row in rows if row["n"] in (1, 2)]) == "All accuracies are averages over all subsets."
