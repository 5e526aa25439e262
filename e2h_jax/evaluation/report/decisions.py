"""Why an answer won: the votes, weights and best scores of each answer to a problem, and every way to decide between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from e2h_jax.evaluation import voting
from e2h_jax.evaluation.inputs import LIKELIHOOD, Generator

MOST = 24  # answers to a problem that the page has: of a thousand samples hundreds may differ


@dataclass(frozen=True)
class Decision:
    """What one way of deciding came to, with all samples."""

    key: str  # "majority", "weighted prm", "best_of_n prm"
    label: str
    decoding: str  # greedy | majority | weighted | best_of_n
    evaluator: str | None
    totals: list[list[float]]  # [P][answers]: votes, summed weights, or the best score of each answer
    winner: list[int]  # [P]: index of the winning answer, -1 when nobody answered
    accuracy: list[float]  # [P]: 1 or 0; between, the share of tied winners that are right


def answers(generator: Generator) -> list[list[dict]]:
    """Returns the answers to each problem, [P][answers]: {"text", "right": share graded correct, "votes"}.

    Their order is that of their numbers; samples without an answer have none.
    """
    found = []
    for problem, drawn in enumerate(generator.samples):
        by_number: dict[int, list[dict]] = {}
        for number, sample in zip(generator.answers[problem].tolist(), drawn, strict=True):
            if number >= 0:
                by_number.setdefault(number, []).append(sample)
        found.append(
            [
                {
                    "text": samples[0]["answer"],
                    "right": sum(sample["verdict"] == "correct" for sample in samples) / len(samples),
                    "votes": len(samples),
                }
                for _, samples in sorted(by_number.items())
            ]
        )
    return found


def decide(generator: Generator, adopted: Mapping[str, str]) -> list[Decision]:
    """Returns every way of deciding, by the aggregations that the config adopted, on all N samples of each problem."""
    if generator.correct is None:
        return []
    shape = generator.correct.shape
    scores = {
        (evaluator, decoding): voting.aggregate([s for rows in step_scores for s in rows], aggregation).reshape(shape)
        for evaluator, step_scores in generator.step_scores.items()
        for decoding, aggregation in adopted.items()
    }
    if generator.logprob is not None:
        scores[LIKELIHOOD, "weighted"] = voting.likelihood_weights(generator.logprob)
        scores[LIKELIHOOD, "best_of_n"] = generator.logprob
    decisions = [_vote("majority", "majority voting", None, np.ones(shape), generator)]
    for (evaluator, decoding), values in scores.items():
        if decoding == "weighted":
            decisions.append(_vote(f"weighted {evaluator}", f"weighted voting, {evaluator}", evaluator, values, generator))
        else:
            decisions.append(_best(evaluator, values, generator))
    return decisions


def _vote(key: str, label: str, evaluator: str | None, weights: np.ndarray, generator: Generator) -> Decision:
    totals, winners, accuracy = [], [], []
    for given, correct, weight in zip(generator.answers, generator.correct, weights, strict=True):
        votes, right = voting.group_accuracy(given, correct)
        total = votes @ weight
        totals.append(total.tolist())
        winners.append(int(total.argmax()) if len(total) else -1)
        everybody = np.ones(len(total), dtype=bool)
        accuracy.append(float(voting.winning_accuracy(total, everybody, right)) if len(total) else 0.0)
    decoding = "majority" if evaluator is None else "weighted"
    return Decision(key, label, decoding, evaluator, totals, winners, accuracy)


def _best(evaluator: str, scores: np.ndarray, generator: Generator) -> Decision:
    """Best-of-N: the sample with the highest score, with an answer or without."""
    totals, winners, accuracy = [], [], []
    for given, correct, score in zip(generator.answers, generator.correct, scores, strict=True):
        numbers = np.unique(given[given >= 0])
        totals.append([float(score[given == number].max()) for number in numbers])
        tied = score.max() - score <= voting.TIE * abs(score.max())  # as best_of_k has it
        chosen = given[tied][0]
        winners.append(int(np.searchsorted(numbers, chosen)) if chosen >= 0 else -1)
        accuracy.append(float(correct[tied].mean()))
    label = f"best-of-{scores.shape[1]}, {evaluator}"
    return Decision(f"best_of_n {evaluator}", label, "best_of_n", evaluator, totals, winners, accuracy)


def kept_answers(known: Sequence[Sequence[Mapping]], made: Sequence[Decision]) -> list[list[int]]:
    """Returns the indices of the answers to each problem that the page has: the winners, and those with most votes."""
    kept = []
    for problem, row in enumerate(known):
        winners = {decision.winner[problem] for decision in made} - {-1}
        by_votes = sorted(range(len(row)), key=lambda i: (i not in winners, -row[i]["votes"]))
        kept.append(sorted(by_votes[: max(MOST, len(winners))]))
    return kept


def greedy_decision(generator: Generator, known: Sequence[Sequence[Mapping]]) -> Decision:
    """The greedy solution as a decision; its answer has an index where a sample gave it in the same words, else -1.

    Args:
      known: of `answers`; [] where the generator has no samples.
    """
    texts = [[answer["text"] for answer in row] for row in known] or [[] for _ in generator.greedy_samples]
    winner = [
        row.index(sample["answer"]) if sample["answer"] in row else -1
        for row, sample in zip(texts, generator.greedy_samples, strict=True)
    ]
    return Decision("greedy", "greedy", "greedy", None, [], winner, generator.greedy.astype(float).tolist())
