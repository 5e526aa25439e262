"""All ways to decide on an answer from a generator's samples, at every number of samples: rows of `results.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from e2h_jax.data.levels import group_of
from e2h_jax.evaluation import estimators, quality, voting
from e2h_jax.evaluation.inputs import LIKELIHOOD, Generator
from e2h_jax.evaluation.intervals import Bootstrap


@dataclass(frozen=True)
class Method:
    """One row: how the answer was decided, and how often it was right."""

    generator: str
    decoding: str  # greedy | majority | weighted | best_of_n | pass
    evaluator: str | None
    aggregation: str | None
    n: int
    accuracy: np.ndarray  # float [P]: expected accuracy on each problem
    drawn: int = 0  # random subsets of n samples that stand for all of them; 0: all, the accuracy is exact

    def named(self) -> dict:
        """Returns the fields that name the row in `results.json`."""
        return {
            "generator": self.generator,
            "decoding": self.decoding,
            "evaluator": self.evaluator,
            "aggregation": self.aggregation,
            "n": self.n,
        }


def solution_scores(generator: Generator, aggregations: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Returns evaluator -> aggregation -> score of each solution, float [P, N]."""
    scores = {}
    for evaluator, step_scores in generator.step_scores.items():
        flat = [steps for problem in step_scores for steps in problem]
        scores[evaluator] = {
            name: voting.aggregate(flat, name).reshape(generator.correct.shape) for name in aggregations
        }
    return scores


def methods(
    generator: Generator, scores: Mapping[str, Mapping[str, np.ndarray]], rng: np.random.Generator
) -> list[Method]:
    """Returns every method at every number of samples 1, 2, 4 … N, in the order of the table."""
    found = []
    if generator.greedy is not None:
        found.append(Method(generator.name, "greedy", None, None, 1, generator.greedy.astype(np.float64)))
    if generator.correct is None:
        return found
    correct, answers = generator.correct, generator.answers
    rankings = [(evaluator, name, values) for evaluator, by in scores.items() for name, values in by.items()]
    votes = [("majority", None, None, np.ones(correct.shape))]
    votes += [("weighted", evaluator, name, values) for evaluator, name, values in rankings]
    if generator.logprob is not None:
        rankings.append((LIKELIHOOD, None, generator.logprob))
        votes.append(("weighted", LIKELIHOOD, None, voting.likelihood_weights(generator.logprob)))
    weights = np.stack([weight for *_, weight in votes])
    for k in estimators.sizes(correct.shape[1]):
        drawn = estimators.drawn(correct.shape[1], k)
        accuracies = estimators.vote_at_k(answers, correct, weights, k, rng)
        for (decoding, evaluator, name, _), accuracy in zip(votes, accuracies, strict=True):
            found.append(Method(generator.name, decoding, evaluator, name, k, accuracy, drawn))
        for evaluator, name, values in rankings:
            accuracy = estimators.best_of_k(values, correct, k)
            found.append(Method(generator.name, "best_of_n", evaluator, name, k, accuracy))
        found.append(Method(generator.name, "pass", None, None, k, estimators.pass_at_k(correct, k)))
    return found


class Groups:
    """The groups of problems that are reported, each with its resamples.

    Args:
      levels: level of each problem, None where it has none.
      easy, hard: levels of these groups. A problem of no level, or of a level in neither, counts in "all" alone.
      subjects: subject of each problem, None where it has none.
    """

    def __init__(
        self,
        levels: Sequence[int | None],
        easy: Sequence[int],
        hard: Sequence[int],
        subjects: Sequence[str | None],
        resamples: int,
        seed: int,
    ):
        def members(values: Sequence, wanted: Sequence) -> np.ndarray:
            return np.array([value in wanted for value in values])

        rng = np.random.default_rng(seed)
        present = sorted({level for level in levels if level is not None})
        named = sorted({subject for subject in subjects if subject is not None})
        named_easy_or_hard = [group_of(level, easy, hard) for level in levels]
        main = {name: members(named_easy_or_hard, [name]) for name in ("easy", "hard")}
        main["all"] = np.ones(len(levels), dtype=bool)
        by_level = {str(level): members(levels, [level]) for level in present}
        by_subject = {subject: members(subjects, [subject]) for subject in named}
        self.main, self.levels, self.subjects = (
            {name: (mask, Bootstrap(int(mask.sum()), resamples, rng)) for name, mask in masks.items()}
            for masks in (main, by_level, by_subject)
        )


def statistics(
    rows: Sequence[np.ndarray], groups: Mapping[str, tuple], name: str = "accuracy"
) -> list[dict[str, dict]]:
    """Returns for each row [P] its {group: {name, "ci95", "problems"}}."""
    if not rows:
        return []
    values = np.stack(rows)
    columns = [(group, bootstrap.statistics(values[:, mask], name)) for group, (mask, bootstrap) in groups.items()]
    return [{group: found[index] for group, found in columns} for index in range(len(rows))]


def results_rows(found: Sequence[Method], groups: Groups) -> list[dict]:
    """Returns the "rows" of results.json."""
    accuracy = [method.accuracy for method in found]
    main, levels = statistics(accuracy, groups.main), statistics(accuracy, groups.levels)
    return [
        {**method.named(), "drawn": method.drawn, **by_group, "levels": by_level}
        for method, by_group, by_level in zip(found, main, levels, strict=True)
    ]


def paired_rows(found: Sequence[Method], groups: Groups) -> list[dict]:
    """Returns the "paired" rows: each re-ranking minus its generator's majority at the same n, same resamples.

    Where subsets were drawn, weighted voting and majority voting see the same ones; best-of-n has seen all of them, so its
    difference has the error of the majority, which the interval includes (`estimators.py`).
    """
    majority = {(method.generator, method.n): method for method in found if method.decoding == "majority"}
    compared = [method for method in found if method.decoding in ("weighted", "best_of_n")]
    differences = [method.accuracy - majority[method.generator, method.n].accuracy for method in compared]
    return [
        {**method.named(), "minus": "majority", **by_group}
        for method, by_group in zip(compared, statistics(differences, groups.main, "difference"), strict=True)
    ]


def compared_rows(found: Sequence[Method], pairs: Sequence[tuple[str, str]], groups: Groups) -> list[dict]:
    """Returns the "compared" rows: greedy accuracy of the first generator of each pair minus the second's, same resamples."""
    greedy = {method.generator: method.accuracy for method in found if method.decoding == "greedy"}
    differences = [greedy[first] - greedy[second] for first, second in pairs]
    return [
        {"generator": first, "decoding": "greedy", "minus": second, **by_group}
        for (first, second), by_group in zip(pairs, statistics(differences, groups.main, "difference"), strict=True)
    ]


def quality_rows(
    generator: Generator,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    problem_ids: Sequence[str],
    labels: Mapping[tuple[str, int], Sequence[float | None]],
    adopted: Sequence[str],
    groups: Groups,
) -> list[dict]:
    """Returns the "quality" rows: per evaluator, outcome and step accuracy and AUC for each group.

    Args:
      adopted: aggregations to judge beside the final answer's own score ("last").
      labels: (problem_id, sample) -> step labels; empty for none.
    """
    judged = {
        evaluator: {name: by[name] for name in dict.fromkeys(["last", *adopted]) if name in by}
        for evaluator, by in scores.items()
    }
    if generator.logprob is not None:
        judged[LIKELIHOOD] = {"logprob": generator.logprob}
    rows = []
    for evaluator, by in judged.items():
        row = {"generator": generator.name, "evaluator": evaluator, "outcome": {}, "steps": None}
        for group, (mask, _) in groups.main.items():
            values = {name: array[mask] for name, array in by.items()}
            row["outcome"][group] = quality.outcome_quality(values, generator.correct[mask])
        if labels and evaluator in generator.step_scores:
            row["steps"] = {}
            for group, (mask, _) in groups.main.items():
                judged_steps = [
                    (generator.step_scores[evaluator][problem][index], labels[problem_ids[problem], sample["sample"]], problem)
                    for problem in np.flatnonzero(mask)
                    for index, sample in enumerate(generator.samples[problem])
                    if (problem_ids[problem], sample["sample"]) in labels
                ]
                columns = [list(column) for column in zip(*judged_steps, strict=True)] or [[], [], []]
                row["steps"][group] = quality.step_quality(*columns)
        rows.append(row)
    return rows


def no_answer_rows(generators: Sequence[Generator], groups: Groups) -> list[dict]:
    """Returns the "no_answer" rows: per generator, of each level and subject the solutions graded and those without an answer.

    {"generator", "levels" and "subjects": {name: {"graded", "no_answer"}}}, of samples and greedy as `Generator.counts` are.
    """
    rows = []
    for generator in generators:
        drawn = [[*row] for row in generator.samples] or [[] for _ in generator.greedy_samples]
        for row, sample in zip(drawn, generator.greedy_samples, strict=False):
            row.append(sample)
        counts = np.array([[len(row), sum(sample["answer"] is None for sample in row)] for row in drawn])
        row = {"generator": generator.name}
        for field, by in (("levels", groups.levels), ("subjects", groups.subjects)):
            sums = {name: counts[mask].sum(axis=0).tolist() for name, (mask, _) in by.items()}
            row[field] = {name: {"graded": graded, "no_answer": none} for name, (graded, none) in sums.items()}
        rows.append(row)
    return rows
