"""Solutions cut into the steps that their scores belong to, small enough to go into a page by the thousand."""

import re
from collections.abc import Mapping, Sequence

from e2h_jax.data.steps import split_steps
from e2h_jax.data.templates import TEMPLATES, paragraphs
from e2h_jax.evaluation.inputs import Generator

_NUMBERED = re.compile(r"^[ \t]*(?:#+ *|\*\*)?(?:step *)?\d+ *[.:)]", re.IGNORECASE | re.MULTILINE)
_VERDICTS = {"correct": 1, "wrong": 0}


def cut(text: str, scores: int | None) -> tuple[list[str], bool]:
    """The parts of a solution, and whether they are the steps of its `scores` scores (None: it was not scored).

    The template in which a solution was scored is not written beside it, so of the ways in which public evaluators cut (at
    blank lines with an answer header, with a box, at Math-Shepherd's tags, at numbered items) the first is taken that finds a
    final answer and makes as many steps as there are scores; then the first that makes so many, or, as a solution without a
    final answer has one score more than steps (rewards/scoring.py), one fewer.
    """
    ways = []
    for name in ("e2h", "qwen_boxed", "math_shepherd"):  # cutting is half of the page's time: no more ways than needed
        steps, has_answer = _by_template(text, name)
        if has_answer and scores == len(steps):
            return steps, True
        ways.append((steps, has_answer))
    for steps, has_answer in [*ways, (_by_numbers(text), True)]:
        if scores in (len(steps), len(steps) + (not has_answer)):
            return steps, True
    return ways[0][0], False


def _by_template(text: str, name: str) -> tuple[list[str], bool]:
    found = split_steps(text, TEMPLATES[name])
    steps = [text[step.start : step.end] for step in found]
    if not found:
        return ([text] if text.strip() else []), False
    # What follows the final answer belongs to no step, and is shown all the same.
    if rest := text[found[-1].end :].strip().removeprefix(TEMPLATES[name].tag):
        steps[-1] += "\n\n" + rest
    return steps, found[-1].is_answer


def _by_numbers(text: str) -> list[str]:
    """Cut before every numbered item, and what stands before the first joined to it; paragraphs where there are no two."""
    starts = [match.start() for match in _NUMBERED.finditer(text)]
    if len(starts) < 2:
        return [text[paragraph.start : paragraph.stop] for paragraph in paragraphs(text) if paragraph.start < paragraph.stop]
    bounds = [0, *starts[1:], len(text)]
    return [text[start:end].strip() for start, end in zip(bounds, bounds[1:], strict=False)]


def packed(sample: Mapping, answer: int, scores: Mapping[str, Sequence[float]], number: int) -> dict:
    """One solution as the page reads it.

    {"n": number, "t": steps, "m": 1 where the steps are those of the scores, "v": 1 right, 0 wrong, 2 undecided, "a": index of
    the answer (-1: none), "x": the answer's text where it has no index, "l": 1 where cut off by length, "p": log-probability,
    "s": evaluator -> step scores}
    """
    counts = {len(values) for values in scores.values()}
    steps, fits = cut(sample["text"], counts.pop() if len(counts) == 1 else None)
    found = {"n": number, "t": steps, "v": _VERDICTS.get(sample["verdict"], 2), "a": answer}
    if fits:
        found["m"] = 1
    if answer < 0 and sample["answer"] is not None:
        found["x"] = sample["answer"]
    if sample["finish"] == "length":
        found["l"] = 1
    if sample["logprob"] is not None:
        found["p"] = round(sample["logprob"], 2)
    if scores:
        found["s"] = {name: [round(value, 4) for value in values] for name, values in scores.items()}
    return found


def solutions_of(generator: Generator, problem: int, kept: Sequence[int], greedy_answer: int, most: int) -> dict:
    """The generator's solutions of a problem: {"greedy": solution or null, "samples": the first `most` solutions}.

    Args:
      kept: which of the problem's answers have an index, and so a place in the tables of votes.
    """
    result: dict = {"greedy": None, "samples": []}
    if generator.greedy_samples:
        sample = generator.greedy_samples[problem]
        result["greedy"] = packed(sample, greedy_answer, {}, sample["sample"])
    if generator.correct is not None:
        numbers = sorted(set(generator.answers[problem].tolist()) - {-1})
        place = {numbers[i]: position for position, i in enumerate(kept)}
        for column, sample in enumerate(generator.samples[problem][:most]):
            answer = place.get(int(generator.answers[problem][column]), -1)
            scores = {name: by[problem][column] for name, by in generator.step_scores.items()}
            result["samples"].append(packed(sample, answer, scores, sample["sample"]))
    return result
