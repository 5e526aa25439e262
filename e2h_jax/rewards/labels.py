"""Labels: sampled solutions become labelled records, by grading their answers; for a reward model without human labels.

`method` is one of

  outcome      every step of a solution gets the solution's outcome, 1 or 0 (ORM). Of a question, `per_problem` solutions at
               most; the more frequent outcome is thinned out by the seed until there are at most `ratio` of it for one of the
               other. A question with one outcome alone has no such ratio and gives nothing.
  completions  every step gets what came of completing the solution from there (PRM; Wang et al. 2024): `hard` = 1 if any
               completion reaches the answer, `soft` = the share that does. The last step gets the solution's own outcome.

For `completions`, `e2h prepare` with source "prefixes" writes a problem for each step, and `sample` completes them.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ml_collections import ConfigDict

from e2h_jax.data.cards import Card
from e2h_jax.data.dataset import show as show_dataset
from e2h_jax.data.dataset import write_dataset
from e2h_jax.data.prefixes import prefix_id
from e2h_jax.data.records import has_answer, read_many, read_records
from e2h_jax.data.steps import split_steps
from e2h_jax.data.storage import as_json
from e2h_jax.data.templates import Template, get_template
from e2h_jax.errors import UserError, nearest
from e2h_jax.grading import grade


def defaults() -> ConfigDict:
    """Fields of the `labels` stage."""
    config = ConfigDict()
    config.method = "outcome"  # outcome | completions
    config.problems = ""  # problem records with answers
    config.samples = ""  # sampled solutions of them
    config.levels = ()  # problems of these levels only; () = all
    config.per_problem = 32  # outcome: solutions of a question at most; 0 = all
    config.ratio = 3.0  # outcome: of a question, at most so many of one outcome for one of the other; 0 = any
    config.prefixes = ""  # completions: the data set that `prepare` made of the same samples
    config.completions = ""  # completions: sampled completions of those
    config.estimate = "hard"  # completions: hard | soft
    config.seed = 0
    config.template = "e2h"
    config.name = ""  # of the data set; "" = orm or prm
    config.format = "tfds"  # tfds (ArrayRecord) | jsonl
    return config.lock()


def run(config: ConfigDict, workdir: Path) -> dict:
    """Writes a data set of labelled records and its card; returns counts. Raises UserError for bad settings or data."""
    methods = {"outcome": _outcomes, "completions": _from_completions}
    if config.method not in methods:
        raise UserError(f'config.method="{config.method}" is unknown{nearest(config.method, methods)}; {" or ".join(methods)}.')
    if config.estimate not in ("hard", "soft"):
        raise UserError(f'config.estimate="{config.estimate}" must be hard or soft.')
    if config.per_problem < 0 or (config.ratio and config.ratio < 1):
        raise UserError("config.per_problem must be at least 0, and config.ratio at least 1 (or 0).")
    card = Card(f"Our own generator's solutions of {config.problems}, graded.")
    grader = _Grader(config, card)
    stream = (("train", record) for record in methods[config.method](config, grader, card))
    name = config.name or {"outcome": "orm", "completions": "prm"}[config.method]
    facts = write_dataset(Path(workdir), name, "labelled", stream, card, as_json(config.to_dict()), config.format)
    return facts["splits"]["train"] | facts["counts"] | {"fingerprint": facts["fingerprint"]}


def show(workdir: Path) -> str:
    """What `e2h labels --show` prints."""
    return show_dataset(workdir)


class _Grader:
    """The problems, and whether a solution text of one is right."""

    def __init__(self, config: ConfigDict, card: Card):
        self.template: Template = get_template(config.template)
        self.levels = set(config.levels)
        self.problems = {problem["id"]: problem for problem in read_many(config.problems, "problem")}
        self._path, self._card = config.problems, card
        self._grade = cache(grade)

    def problem_of(self, sample: dict, path: str) -> dict | None:
        """The sample's problem; None when the level filter leaves it out."""
        problem = self.problems.get(sample["problem_id"])
        if problem is None:
            raise UserError(f'{path}: problem_id "{sample["problem_id"]}" is not in {self._path}; give its problems.')
        if self.levels and problem["level"] not in self.levels:
            return None
        if not has_answer(problem):
            remedy = "leave it out, by config.levels perhaps"
            raise UserError(f'{self._path}: problem "{problem["id"]}" has no answer to grade against; {remedy}.')
        return problem

    def is_right(self, text: str, problem: dict) -> bool:
        answer = self.template.extract_answer(text)
        verdict = "wrong" if answer is None else self._grade(answer, problem["answer"])
        self._card.counts["graded"] += 1
        self._card.counts["graded: no answer"] += answer is None
        self._card.counts["graded: undecided, taken as wrong"] += verdict == "undecided"
        return verdict == "correct"


def _outcomes(config: ConfigDict, grader: _Grader, card: Card) -> Iterator[dict]:
    card.rules += [
        f"Of a question the first {config.per_problem or 'all'} different solutions by sample number; every step has the "
        "solution's outcome.",
        f"Per question at most {config.ratio:g} solutions of one outcome for one of the other, drawn by the seed; questions "
        "with one outcome alone are left out."
        if config.ratio
        else "Outcomes as they fell.",
    ]
    by_problem: dict[str, list[dict]] = defaultdict(list)
    for sample in read_records(config.samples, "sample"):
        if grader.problem_of(sample, config.samples) is not None:
            by_problem[sample["problem_id"]].append(sample)
    for identity, samples in by_problem.items():
        problem = grader.problems[identity]
        samples = sorted(samples, key=lambda sample: sample["sample"])
        different = list({sample["text"]: sample for sample in reversed(samples)}.values())[::-1]
        card.counts["solutions with the text of another"] += len(samples) - len(different)
        kept = [s for s in different if split_steps(s["text"], grader.template)][: config.per_problem or None]
        right = {s["sample"]: grader.is_right(s["text"], problem) for s in kept}
        chosen = balance(right, config.ratio, f"labels-{config.seed}-{identity}")
        card.counts["questions"] += 1
        card.counts["questions with one outcome alone, left out"] += bool(kept) and not chosen
        card.counts["solutions left out for the ratio"] += len(kept) - len(chosen) if chosen else 0
        for sample in (s for s in kept if s["sample"] in chosen):
            steps = _texts(sample["text"], grader.template)
            yield _record(problem, sample, steps, [float(right[sample["sample"]])] * len(steps))


def balance(right: dict[int, bool], ratio: float, seed: str) -> set[int]:
    """The sample numbers that are kept so that neither outcome has more than `ratio` times as many as the other."""
    sides = [[n for n, outcome in right.items() if outcome is side] for side in (True, False)]
    if not ratio:
        return set(right)
    most = int(ratio * min(map(len, sides)))
    drawn = random.Random(seed)
    return {n for side in sides for n in (side if len(side) <= most else drawn.sample(side, most))}


def _from_completions(config: ConfigDict, grader: _Grader, card: Card) -> Iterator[dict]:
    card.rules.append(
        "A step is right if any completion from it reaches the answer."
        if config.estimate == "hard"
        else "A step's label is the share of completions from it that reach the answer."
    )
    card.rules.append("The last step, mostly the final answer, has the outcome of the solution itself.")
    wanted: dict[tuple[str, int], set[int]] = defaultdict(set)
    prefixes = {}
    for prefix in read_many(config.prefixes, "problem"):
        if not all(name in prefix for name in ("of", "sample", "step", "prefix")):
            raise UserError(f'{config.prefixes}: "{prefix["id"]}" is not of `e2h prepare` with source "prefixes".')
        prefixes[prefix["id"]] = prefix
        wanted[prefix["of"], prefix["sample"]].add(prefix["step"])
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for completion in read_records(config.completions, "sample"):
        prefix = prefixes.get(completion["problem_id"])
        if prefix is None:
            raise UserError(f'{config.completions}: "{completion["problem_id"]}" is not in {config.prefixes}.')
        problem = grader.problem_of({"problem_id": prefix["of"]}, config.prefixes)
        if problem is not None:
            whole = grader.template.join_steps(prefix["prefix"], ()) + completion["text"]
            outcomes[prefix["id"]].append(grader.is_right(whole, problem))
    for sample in read_many(config.samples, "sample"):
        key = (sample["problem_id"], sample["sample"])
        problem = grader.problem_of(sample, config.samples) if key in wanted else None
        if problem is None:
            continue
        steps = _texts(sample["text"], grader.template)
        labels = []
        for number in range(len(steps) - 1):
            found = outcomes.get(prefix_id(*key, number))
            if not found:
                raise UserError(
                    f'{config.completions}: no completion of "{prefix_id(*key, number)}"; finish sampling {config.prefixes}.'
                )
            labels.append(float(any(found)) if config.estimate == "hard" else sum(found) / len(found))
        card.counts["solutions"] += 1
        yield _record(problem, sample, steps, [*labels, float(grader.is_right(sample["text"], problem))])


def _texts(text: str, template: Template) -> list[str]:
    return [text[step.start : step.end] for step in split_steps(text, template)]


def _record(problem: dict, sample: dict, steps: Sequence[str], labels: Sequence[float]) -> dict:
    return {
        "problem_id": problem["id"],
        "question": problem["question"],
        "prefix": "",
        "steps": list(steps),
        "labels": list(labels),
        "level": problem["level"],
        "sample": sample["sample"],
    }
