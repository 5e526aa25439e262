"""Beginnings of sampled solutions, one after each step: `sample` completes them, and the completions tell how good a step is.

The first half of automatic step labels (Wang et al. 2024, Math-Shepherd); `labels` is the second.
"""

from collections.abc import Iterator
from typing import Any

from e2h_jax.data.cards import Card
from e2h_jax.data.records import read_many, read_records
from e2h_jax.data.sources.math import MathIndex
from e2h_jax.data.steps import split_steps, steps_begun
from e2h_jax.data.templates import Template, check_written
from e2h_jax.errors import UserError

SOURCE = "Sampled solutions of our own generator."
RULES = [
    "Every step of a sampled solution but the last (mostly the final answer) gives a problem record whose `prefix` is the "
    "solution up to it; `of` names the problem, `sample` and `step` (from 0) the place.",
    "Of a problem's solutions with the same text only the first by sample number is used, and of these the first "
    "`per_problem`.",
]


def prefix_id(problem_id: str, sample: int, step: int) -> str:
    """The id of the problem record that continues a sample after a step."""
    return f"{problem_id}#{sample}.{step}"


def read(config: Any, template: Template, index: MathIndex | None, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields ("train", problem record with `prefix`); config: path (problems), samples, levels, per_problem."""
    if not config.path or not config.samples:
        raise UserError("config.path and config.samples must name the problems and their sampled solutions.")
    check_written(config.samples, template, "config.template")
    card.rules += RULES
    problems = {problem["id"]: problem for problem in read_many(config.path, "problem")}
    by_problem: dict[str, list[dict]] = {}
    for sample in read_records(config.samples, "sample"):
        problem = problems.get(sample["problem_id"])
        if problem is None:
            remedy = "give the problems that were sampled"
            raise UserError(f"{config.samples}: problem_id {sample['problem_id']!r} is not in {config.path}; {remedy}.")
        if not config.levels or problem["level"] in config.levels:
            by_problem.setdefault(problem["id"], []).append(sample)
    for identity, samples in by_problem.items():
        # By number: the order in the files is that in which they were finished, short ones first.
        different: dict[str, dict] = {}
        for sample in sorted(samples, key=lambda sample: sample["sample"]):
            different.setdefault(sample["text"], sample)
        used = list(different.values())[: config.per_problem or None]
        card.counts["solutions"] += len(used)
        card.counts["solutions left out"] += len(samples) - len(used)
        for sample in used:
            yield from _beginnings(problems[identity], sample, template)


def _beginnings(problem: dict, sample: dict, template: Template) -> Iterator[tuple[str, dict]]:
    # Where the problem has a prefix of its own, its steps are none of the sample's.
    whole = template.whole(problem, sample["text"])
    first = steps_begun(whole, len(whole) - len(sample["text"]), template)
    for number, step in enumerate(split_steps(whole, template)[first:-1]):
        record = {name: problem[name] for name in ("question", "answer", "level", "subject")}
        place = {"of": problem["id"], "sample": sample["sample"], "step": number}
        identity = prefix_id(problem["id"], sample["sample"], number)
        yield "train", {"id": identity, **record, "solution": None, "prefix": whole[: step.end], **place}
