"""PRM800K (Lightman et al. 2023): people's ratings (+1, 0, -1) of the steps of solutions, as PRM or SFT records.

A line is one solution as it was labelled: at each step some completions with ratings, of which one was chosen, or a person
wrote another (`human_completion`), and the solution went on from there. Walking it gives, for every step, the prefix so far
and the rated completions.

  prm   labelled records. The chosen steps of a line are one record with a label each (null where a step has none); every
        other completion is a record of its own behind its prefix. So each rated completion is labelled once, and the
        steps before it are read only as often as they branch.
  sft   problem records of completions rated +1, with the steps before them as `prefix`, which is not trained on.
        Neighbouring chosen ones are one record. `eos` tells whether the solution ends there.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from e2h_jax.data.cards import Card
from e2h_jax.data.sources.math import MathIndex
from e2h_jax.data.sources.rows import Hub, Row, read_rows
from e2h_jax.data.sources.sentences import is_unfinished
from e2h_jax.data.steps import split_steps
from e2h_jax.data.storage import digest
from e2h_jax.data.templates import Template, get_template
from e2h_jax.errors import UserError

HUB = Hub(
    "tasksource/PRM800K",
    lines={
        "train": ("phase1_train.jsonl", "phase2_train.jsonl"),
        "test": ("phase1_test.jsonl", "phase2_test.jsonl"),
    },
)
SOURCE = "PRM800K, phases 1 and 2 (Lightman et al. 2023, openai/prm800k, MIT)."
RULES = [
    "Of the train files, problems of MATH's 12,000 training problems that have one of the levels are kept, and problems that "
    "are not in MATH at all (unless keep_unknown is off). Of the test files, problems of MATH500 of all levels.",
    "A solution is walked along its chosen completion, else the human one, else the only one; the walk ends where the next "
    "step is unknown, or after a step rated -1.",
    "Labels: +1 right, -1 wrong, 0 (neutral) right or not trained on (`neutral`); a completion without a rating has none.",
    "A completion that holds the answer section is two steps, the reasoning and the answer, with the same label.",
]
DEVIATIONS = [
    "C1: nothing is shuffled here, files are read in the order of their names, and the training stage shuffles by its seed "
    "(original: unseeded shuffles, unspecified file order).",
    "C2: duplicates are found per question (original: across all questions, so a first step common to two was kept once "
    "and with the label of the first).",
    "C3: nothing follows a step rated -1, and prefixes hold the repaired text that targets have.",
    "C6: the length filter counts the tokens of the whole text, template included, with the tokenizer given.",
    'A step that ends in "Mr." and the like is one step with what follows it, and is not labelled alone (original: half a '
    "step, joined by a space).",
    "Steps of one solution share a record (original: one example a step, its prefix read again each time).",
    "An empty completion is passed over (original: it also hid the completions after it).",
]


class Candidate(NamedTuple):
    """A completion at some step. Texts are steps of the template."""

    prefix: tuple[str, ...]
    steps: tuple[str, ...]
    rating: int | None
    chosen: bool  # the solution goes on from here


def walk(steps: Sequence[dict], template: Template) -> Iterator[Candidate]:
    """The completions of a line's `label.steps`, step by step; the one the solution goes on from comes last of its step.

    A human continuation is a candidate without a rating.
    """
    prefix: tuple[str, ...] = ()
    half = ""  # the beginning of a step that a period of a name cut in two
    for step in steps:
        completions = step.get("completions")
        if completions is None:
            return
        index = step.get("chosen_completion")
        human = step.get("human_completion")
        going_on: dict | None = None
        if index is not None:
            if type(index) is not int or not 0 <= index < len(completions):
                raise IndexError(f"chosen_completion {index!r} of {len(completions)} completions")
            going_on = completions[index]
        elif human is not None:
            going_on = human
        elif len(completions) == 1:
            going_on = completions[0]
        others = [completion for completion in completions if completion is not going_on]
        for completion in [*others, *([going_on] if going_on is not None else [])]:
            text = half + repair(completion["text"]) if half else repair(completion["text"]).strip()
            found = tuple(text[span.start : span.end] for span in split_steps(text, template))
            if found and not is_unfinished(found[-1]):
                yield Candidate(prefix, found, _rating(completion), completion is going_on)
        if going_on is None or going_on.get("rating") == -1:
            return
        # `text` and `found` are now the continuation's.
        if found and is_unfinished(found[-1]):
            prefix, half = prefix + found[:-1], found[-1] + " "
        else:
            prefix, half = prefix + found, ""


def _rating(completion: dict) -> Any:
    """As it is written; 1.0 is 1, for whoever has passed the lines through floats."""
    rating = completion.get("rating")
    return int(rating) if type(rating) is float and rating.is_integer() else rating


def repair(text: str) -> str:
    """Puts a blank line in front of the answer header of a completion, where it is missing."""
    body, header, answer = text.partition("# Answer\n\n")
    return body.rstrip("\n") + "\n\n" + header + answer if header else text


class _Line(NamedTuple):
    """What all records of a line share."""

    split: str
    question: str
    id: str
    problem_id: str | None
    level: int | None
    subject: str | None
    answer: str | None


def records(config: Any, template: Template, index: MathIndex, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields (split, record); config: path, records ("prm" or "sft"), levels, neutral, keep_unknown."""
    if template.answer != "header" or template != get_template("e2h"):
        raise UserError('config.template: PRM800K is written in the format "e2h"; set template="e2h".')
    card.rules += RULES
    card.deviations += DEVIATIONS
    seen: set[bytes] = set()
    for number, row in enumerate(read_rows(config.path, HUB)):
        card.counts["solutions read"] += 1
        line = _select(config, row, number, index, card)
        if line is None:
            continue
        try:
            candidates = list(walk(row.value["label"]["steps"], template))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{row.where}: label.steps is not as in PRM800K ({error!r}).") from None
        fresh = []
        for candidate in candidates:
            if candidate.rating is not None and (type(candidate.rating) is not int or not -1 <= candidate.rating <= 1):
                raise UserError(f"{row.where}: a rating must be 1, 0, -1 or null, not {candidate.rating!r}.")
            # One person's rating of a completion that has been rated before is counted and passed over.
            key = digest(line.question, *candidate.prefix, "\0", *candidate.steps)
            repeated = candidate.rating is not None and key in seen
            if candidate.rating is not None:
                card.counts["completions rated before" if repeated else _rated(candidate.rating)] += 1
                seen.add(key)
            fresh.append(not repeated)
        make = _labelled if config.records == "prm" else _demonstrations
        yield from ((line.split, record) for record in make(line, candidates, fresh, config, template))


def check(config: Any) -> None:
    """Raises UserError for a `neutral` that is unknown."""
    if config.neutral not in ("positive", "drop"):
        raise UserError(f'config.neutral="{config.neutral}" must be positive or drop.')


def _rated(rating: int) -> str:
    return f"completions rated {rating:+d}" if rating else "completions rated 0"


def _select(config: Any, row: Row, number: int, index: MathIndex, card: Card) -> _Line | None:
    """The line's problem, if the rules keep it."""
    question = row.value.get("question", {})
    if not isinstance(question, dict) or not isinstance(question.get("problem"), str):
        raise UserError(f'{row.where}: field "question.problem" is missing; is this a file of PRM800K?')
    answer = question.get("ground_truth_answer")
    if not isinstance(answer, str | None):
        raise UserError(f'{row.where}: field "question.ground_truth_answer" must be text or null, not {answer!r}.')
    split = row.split or "train"
    entry = index.find(question["problem"])
    if entry is None:
        card.counts["solutions of problems not in MATH"] += 1
        kept = split == "train" and config.keep_unknown
    elif split == "test":
        kept = entry.is_test
    else:
        kept = not entry.is_test and (not config.levels or entry.level in config.levels)
        card.counts["solutions of MATH500 problems, left out of train"] += entry.is_test
    card.counts["solutions kept"] += kept
    if not kept:
        return None
    return _Line(
        split,
        question["problem"].strip(),
        f"prm800k/{number}",
        entry.id if entry else None,
        entry.level if entry else None,
        entry.subject if entry else None,
        answer,
    )


def _labelled(line: _Line, candidates: list[Candidate], fresh: list[bool], config: Any, template: Template) -> Iterator[dict]:
    positive = {1: 1.0, 0: 1.0 if config.neutral == "positive" else None, -1: 0.0, None: None}
    shared = {"problem_id": line.problem_id, "question": line.question, "level": line.level}
    chain: list[str] = []
    labels: list[float | None] = []
    for candidate, is_fresh in zip(candidates, fresh, strict=True):
        label = positive[candidate.rating] if is_fresh else None
        if candidate.chosen:
            chain = [*candidate.prefix, *candidate.steps]
            # A half step joined with this one has no entry of its own, so what is missing is counted, not appended to.
            labels += [None] * (len(candidate.prefix) - len(labels)) + [label] * len(candidate.steps)
        elif label is not None:
            prefix = template.separator.join(candidate.prefix)
            steps = list(candidate.steps)
            yield shared | {"prefix": prefix, "steps": steps, "labels": [label] * len(steps)}
    trained = [i for i, label in enumerate(labels) if label is not None]
    if trained:
        first, end = trained[0], trained[-1] + 1
        prefix = template.separator.join(chain[:first])
        yield shared | {"prefix": prefix, "steps": chain[first:end], "labels": labels[first:end]}


def _demonstrations(
    line: _Line, candidates: list[Candidate], fresh: list[bool], config: Any, template: Template
) -> Iterator[dict]:
    count = 0

    def record(prefix: Sequence[str], steps: Sequence[str]) -> dict:
        nonlocal count
        count += 1
        return {
            "id": f"{line.id}/{count - 1}",
            "question": line.question,
            "answer": line.answer,
            "level": line.level,
            "subject": line.subject,
            "solution": template.separator.join(steps),
            "prefix": template.separator.join(prefix),
            "eos": steps[-1].startswith(template.answer_header),
            "problem_id": line.problem_id,
        }

    run: list[Candidate] = []
    for candidate, is_fresh in zip(candidates, fresh, strict=True):
        good = candidate.rating == 1 and is_fresh
        if candidate.chosen:
            if good and run and candidate.prefix == run[-1].prefix + run[-1].steps:
                run.append(candidate)
            else:
                if run:
                    yield record(run[0].prefix, [text for one in run for text in one.steps])
                run = [candidate] if good else []
        elif good:
            yield record(candidate.prefix, candidate.steps)
    if run:
        yield record(run[0].prefix, [text for one in run for text in one.steps])
