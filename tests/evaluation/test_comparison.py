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
    some = [row for row in rows if row["n"] in (1, 4, 16)]
    same = [row | {"generator": "same"} for row in some]
    assert "but for votes at N = 4 and 16: 1,024 random" in tables.subsets_line([*some, *same])
    four = [row | {"generator": "four", "drawn": 0} for row in rows if row["n"] in (1, 2, 4)]  # of 4 samples all are taken
    assert "but for votes of g at N = 4 and 16: 1,024 random" in tables.subsets_line([*four, *some])
    fewer = [row | {"generator": "fewer"} for row in some if row["n"] < 16]
    assert "votes of fewer at N = 4; of g at N = 4 and 16: 1,024" in tables.subsets_line([*four, *fewer, *some])


def test_each_generator_is_compared_with_its_own_majority():
    """One is always right, the other never; their weighted votes decide as their majorities do."""
    found = []
    for name, right in (("good", True), ("bad", False)):
        correct = np.full((4, 2), right)
        of = Generator(name, None, correct, np.zeros((4, 2), int), None, [], [], {"prm": [[[0.5], [0.5]]] * 4}, {})
        found += comparison.methods(of, comparison.solution_scores(of, ("prod",)), np.random.default_rng(0))
    groups = comparison.Groups([1] * 4, (1,), (5,), [None] * 4, 200, 0)
    rows = comparison.paired_rows(found, groups)
    assert {row["generator"] for row in rows} == {"good", "bad"}
    assert [row["all"]["difference"] for row in rows] == [0.0] * len(rows)


def test_step_labels_go_by_the_sample_s_number_not_by_its_place():
    samples = [[{"sample": 3}, {"sample": 0}]]
    correct = np.array([[True, False]])
    of = Generator("g", None, correct, np.array([[0, 1]]), None, samples, [], {"prm": [[[0.9, 0.8], [0.1, 0.2]]]}, {})
    groups = comparison.Groups([1], (1,), (5,), [None], 200, 0)
    labels = {("p", 3): [1.0, 1.0], ("p", 0): [0.0, 0.0], ("p", 1): [None, None], ("q", 0): [1.0, 1.0]}
    scores = comparison.solution_scores(of, ("prod",))
    (row,) = comparison.quality_rows(of, scores, ["p"], labels, ("prod",), groups)
    assert (row["steps"]["all"]["steps"], row["steps"]["all"]["right"], row["steps"]["all"]["auc"]) == (4, 2, 1.0)
