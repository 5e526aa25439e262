"""Labels: sampled solutions become labelled records, by grading their answers; for a reward model without human labels.

`method` is one of

  outcome      every step of a solution gets the solution's outcome, 1 or 0 (ORM). Of a question, `per_problem` solutions at
               most; the more frequent outcome is thinned out by the seed until there are at most `ratio` of it for one of the
               other. A question with one outcome alone has no such ratio and gives nothing. Of solutions with the same text
               the first by sample number is used.
  completions  every step gets what came of completing the solution from there (PRM; Wang et al. 2024): `hard` = 1 if any
               completion reaches the answer, `soft` = the share that does. The last step gets the solution's own outcome.

For `completions`, `e2h prepare` with source "prefixes" writes a problem for each step, and `sample` completes them. Where a
problem has a `prefix`, that is the beginning of each of its solutions: it is read, and not labelled.
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
from e2h_jax.data.steps import Step, split_steps, steps_begun
from e2h_jax.data.storage import as_json
from e2h_jax.data.templates import Template, check_answer, check_written, get_template, with_answer
from e2h_jax.data.unanswered import Unanswered
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
    # Refuse if more than this share of the solutions, or of the completions, has no answer that the template recognises: each
    # would be labelled wrong, whatever it says. 1 = never refuse.
    config.max_no_answer = 0.2
    config.seed = 0
    config.template = "e2h"  # in which the solutions are written; chat = the one that `sample` recorded beside them
    # How a solution's answer is found: template = as the template says | a rule (boxed, section, gsm8k, sentence, last_number,
    # any; docs/grading.md) | a regular expression with one group.
    config.answer = "template"
    config.name = ""  # of the data set; "" = orm or prm
    config.format = "tfds"  # tfds (ArrayRecord) | jsonl
    return config.lock()


def run(config: ConfigDict, workdir: Path) -> dict:
    """Writes a data set of labelled records and its card; returns counts. Raises UserError for bad settings or data."""
    check_values(config)
    card = Card(f"Our own generator's solutions of {config.problems}, graded.")
    grader = _Grader(config, card)
    stream = (("train", record) for record in METHODS[config.method](config, grader, card))
    name = config.name or {"outcome": "orm", "completions": "prm"}[config.method]
    asked, preset = as_json(config.to_dict()), as_json(defaults().to_dict())
    facts = write_dataset(Path(workdir), name, "labelled", stream, card, asked, preset, config.format)
    return facts["splits"]["train"] | facts["counts"] | {"fingerprint": facts["fingerprint"]}


def check_values(config: ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    if config.method not in METHODS:
        raise UserError(f'config.method="{config.method}" is unknown{nearest(config.method, METHODS)}; {" or ".join(METHODS)}.')
    if config.estimate not in ("hard", "soft"):
        raise UserError(f'config.estimate="{config.estimate}" must be hard or soft.')
    if config.per_problem < 0 or (config.ratio and config.ratio < 1):
        raise UserError("config.per_problem must be at least 0, and config.ratio at least 1 (or 0).")
    if not 0 <= config.max_no_answer <= 1:
        raise UserError(f"config.max_no_answer={config.max_no_answer} is a share from 0 to 1 (1 = never refuse).")
    check_answer(config.answer)


def show(workdir: Path) -> str:
    """What `e2h labels --show` prints."""
    return show_dataset(workdir)


class _Grader:
    """The problems, and whether a solution text of one is right."""

    def __init__(self, config: ConfigDict, card: Card):
        self.template: Template = get_template(config.template, config.samples or config.completions)
        for path in filter(None, (config.samples, config.completions)):
            check_written(path, self.template, "config.template")
        self.template = with_answer(self.template, config.answer)
        self.levels = set(config.levels)
        self.problems = {problem["id"]: problem for problem in read_many(config.problems, "problem")}
        self._path, self._card, self._most = config.problems, card, config.max_no_answer
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

    def answer(self, text: str) -> str | None:
        """The answer of a whole solution as it is written."""
        return self.template.extract_answer(text)

    def steps(self, text: str, problem: dict) -> tuple[str, list[Step]]:
        """The whole solution, and those of its steps that are not of the problem's prefix."""
        whole = self.template.whole(problem, text)
        return whole, split_steps(whole, self.template)[steps_begun(whole, len(whole) - len(text), self.template) :]

    def check(self, found: Unanswered, path: str) -> None:
        """Raises UserError if too many solutions of `path` have no answer."""
        if sentence := found.sentence(self._most):
            remedy = (
                "name the template that they are written in (config.template) or the rule by which their answers are found "
                "(config.answer), or raise config.max_no_answer"
            )
            raise UserError(f"{path}: {sentence}; {remedy}.")

    def is_right(self, text: str, problem: dict) -> bool:
        """Whether a whole solution has the problem's answer."""
        answer = self.answer(text)
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
    found = Unanswered()
    for sample in read_many(config.samples, "sample"):
        if (problem := grader.problem_of(sample, config.samples)) is not None:
            by_problem[problem["id"]].append(sample)
            found.add(sample["text"], grader.answer(grader.template.whole(problem, sample["text"])) is not None)
    grader.check(found, config.samples)
    for identity, samples in by_problem.items():
        problem = grader.problems[identity]
        different: dict[str, dict] = {}
        for sample in sorted(samples, key=lambda sample: sample["sample"]):
            different.setdefault(sample["text"], sample)
        card.counts["solutions with the text of another"] += len(samples) - len(different)
        written = [(sample, *grader.steps(sample["text"], problem)) for sample in different.values()]
        stepped = [(sample, whole, steps) for sample, whole, steps in written if steps]
        card.counts["solutions without a step of their own, left out"] += len(written) - len(stepped)
        kept = stepped[: config.per_problem or None]
        right = {sample["sample"]: grader.is_right(whole, problem) for sample, whole, _ in kept}
        chosen = balance(right, config.ratio, f"labels-{config.seed}-{identity}")
        card.counts["questions"] += 1
        card.counts["questions with one outcome alone, left out"] += bool(kept) and not chosen
        card.counts["solutions left out for the ratio"] += len(kept) - len(chosen) if chosen else 0
        for sample, whole, steps in kept:
            if (number := sample["sample"]) in chosen:
                yield _record(problem, sample, whole, steps, [float(right[number])] * len(steps))


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
    prefixes = {}
    for prefix in read_many(config.prefixes, "problem"):
        fields = {"of": str, "sample": int, "step": int, "prefix": str}
        if any(type(prefix.get(name)) is not kind for name, kind in fields.items()):
            raise UserError(f'{config.prefixes}: "{prefix["id"]}" is not of `e2h prepare` with source "prefixes".')
        prefixes[prefix["id"]] = prefix
    wanted = {(prefix["of"], prefix["sample"]) for prefix in prefixes.values()}
    outcomes: dict[str, list[bool]] = defaultdict(list)
    found = Unanswered()
    for completion in read_records(config.completions, "sample"):
        prefix = prefixes.get(completion["problem_id"])
        if prefix is None:
            raise UserError(f'{config.completions}: "{completion["problem_id"]}" is not in {config.prefixes}.')
        problem = grader.problem_of({"problem_id": prefix["of"]}, config.prefixes)
        if problem is not None:
            whole = grader.template.whole(prefix, completion["text"])
            found.add(whole, grader.answer(whole) is not None)
            outcomes[prefix["id"]].append(grader.is_right(whole, problem))
    grader.check(found, config.completions)
    solutions, found = [], Unanswered()
    for sample in read_many(config.samples, "sample"):
        if (sample["problem_id"], sample["sample"]) not in wanted:
            card.counts["solutions without a prefix, left out"] += 1
            continue
        if (problem := grader.problem_of(sample, config.samples)) is None:
            continue
        solutions.append((sample, problem))
        found.add(sample["text"], grader.answer(grader.template.whole(problem, sample["text"])) is not None)
    grader.check(found, config.samples)
    for sample, problem in solutions:
        whole, steps = grader.steps(sample["text"], problem)
        labels = []
        for number, step in enumerate(steps[:-1]):
            identity = prefix_id(sample["problem_id"], sample["sample"], number)
            if identity in prefixes and prefixes[identity]["prefix"] != whole[: step.end]:
                raise UserError(
                    f'{config.prefixes}: "{identity}" is not the beginning of that solution in {config.samples}; prepare the '
                    "prefixes of these samples, and complete them."
                )
            if not outcomes.get(identity):
                raise UserError(f'{config.completions}: no completion of "{identity}"; finish sampling {config.prefixes}.')
            ended = outcomes[identity]
            labels.append(float(any(ended)) if config.estimate == "hard" else sum(ended) / len(ended))
        card.counts["solutions"] += 1
        labels.append(float(grader.is_right(whole, problem)))
        yield _record(problem, sample, whole, steps, labels)


def _record(problem: dict, sample: dict, whole: str, steps: Sequence[Step], labels: Sequence[float]) -> dict:
    return {
        "problem_id": problem["id"],
        "question": problem["question"],
        "prefix": problem.get("prefix", ""),
        "steps": [whole[step.start : step.end] for step in steps],
        "labels": list(labels),
        "level": problem["level"],
        "sample": sample["sample"],
        "eos": sample["finish"] == "stop",
    }


METHODS = {"outcome": _outcomes, "completions": _from_completions}
