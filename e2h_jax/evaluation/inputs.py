"""From records to arrays: problems, a generator's samples and their scores, joined, checked for gaps, and graded."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from e2h_jax.data.records import has_answer, read_many, read_records
from e2h_jax.data.templates import CHAT, Template, check_answer, get_template, recorded_template, with_answer
from e2h_jax.errors import UserError, nearest
from e2h_jax.grading import grade, group_answers

_GENERATOR_FIELDS = ("samples", "greedy", "scored", "template", "answer")

# Named like an evaluator: the control that re-ranks by the generator's own log-probability.
LIKELIHOOD = "likelihood"


@dataclass(frozen=True)
class Generator:
    """What one generator did on all problems. P problems in the order of their file, N samples of each."""

    name: str
    greedy: np.ndarray | None  # bool [P]: the greedy solution is correct
    correct: np.ndarray | None  # bool [P, N]; None without samples
    answers: np.ndarray | None  # int [P, N]: number of the answer within its problem, -1 for a sample without one
    logprob: np.ndarray | None  # float [P, N]; None unless every sample has one
    samples: list[list[dict]]  # [P][N]: the sample records, each with its `answer` (None: it has none) and its `verdict`
    greedy_samples: list[dict]  # [P]: the same of the greedy solutions; [] without
    step_scores: dict[str, list[list[list[float]]]] = field(default_factory=dict)  # evaluator -> [P][N][steps]
    # graded, undecided, no_answer, unfinished; and found_by {rule: how many} where the rule of the answers is "any"
    counts: dict[str, Any] = field(default_factory=dict)


def read_problems(path: str) -> list[dict]:
    """Reads the problems; UserError when there are none or one has no answer to grade against."""
    if not path:
        raise UserError('the field "config.problems" is empty: give the file of the problems that were sampled.')
    problems = read_many(path, "problem")
    unknown = [problem["id"] for problem in problems if not has_answer(problem)]
    if unknown:
        count = f"{len(unknown)} of {len(problems)} problems have"
        raise UserError(f'{path}: {count} no answer to grade against (first: "{unknown[0]}"); leave them out.')
    return problems


@dataclass(frozen=True)
class Drawn:
    """What one generator wrote, before it is graded. P problems in the order of their file, N samples of each."""

    name: str
    greedy: list[list[dict]]  # [P][1]: the greedy solution; [] without
    samples: list[list[dict]]  # [P][N]: the sample records; [] without
    step_scores: dict[str, list[list[list[float]]]]  # evaluator -> [P][N][steps]
    written_greedy: Template  # the template of the greedy solution, with the rule by which answers are found
    written: Template  # and that of the samples


def read_drawn(name: str, paths: ConfigDict, problems: Sequence[dict], max_samples: int) -> Drawn:
    """Reads what the config names for one generator.

    Args:
      paths: samples, greedy (files or folders, "" for none), scored {evaluator: the same}, template (in which they are written;
        "" = the one that `sample` recorded beside them; "any" = not known), answer (how the final answer is found: a rule or
        regular expression of grading/extract.py; "" or "template" = as the template says, or by "any" where none is known).
      max_samples: the first so many samples of each problem; 0 for all.

    Raises:
      UserError: misspelt field, missing file, samples or scores missing, scores of other texts.
    """
    where = f"config.generators.{name}"
    check_paths(where, paths)
    fields = ("samples", "greedy", "template", "answer")
    samples_path, greedy_path, template, answer = (paths.get(entry, "") for entry in fields)
    scored_paths = {evaluator: path for evaluator, path in sorted(paths.get("scored", {}).items()) if path}
    greedy = _group(greedy_path, problems, 1) if greedy_path else []
    samples = _group(samples_path, problems, max_samples) if samples_path else []
    scores = {evaluator: _scores(path, samples_path, problems, samples) for evaluator, path in scored_paths.items()}
    written = [_read_by(where, template, answer, path) for path in (greedy_path, samples_path)]
    return Drawn(name, greedy, samples, scores, *written)


def graded(drawn: Drawn, problems: Sequence[dict], rules: str = "default") -> Generator:
    """Grades what `read_drawn` has read.

    A sample has the answer that its template, or the config's rule, finds in its text, also when it was cut off by length
    after writing it; without one it casts no vote and is wrong. An undecided verdict counts as wrong, and is counted.

    Args:
      rules: of grading, which also tell which answers share their votes.
    """
    counts: dict[str, Any] = {"graded": 0, "undecided": 0, "no_answer": 0, "unfinished": 0}
    greedy = correct = answers = logprob = None
    if drawn.greedy:
        title = f"grading {drawn.name} greedy"
        greedy = _grade(problems, drawn.greedy, drawn.written_greedy, counts, rules, title)[0][:, 0]
    if drawn.samples:
        title = f"grading {drawn.name} samples"
        correct, answers = _grade(problems, drawn.samples, drawn.written, counts, rules, title)
        logprobs = [[sample["logprob"] for sample in row] for row in drawn.samples]
        if not any(value is None for row in logprobs for value in row):
            logprob = np.array(logprobs, dtype=np.float64)
    greedy_samples = [row[0] for row in drawn.greedy]
    return Generator(
        drawn.name, greedy, correct, answers, logprob, drawn.samples, greedy_samples, drawn.step_scores, counts
    )


def read_generator(
    name: str, paths: ConfigDict, problems: Sequence[dict], max_samples: int, rules: str = "default"
) -> Generator:
    """Reads and grades what the config names for one generator: `read_drawn`, then `graded`."""
    return graded(read_drawn(name, paths, problems, max_samples), problems, rules)


def check_paths(where: str, paths: ConfigDict) -> None:
    """Raises UserError unless `paths` is what `read_drawn` takes, as far as that can be told before any file is read."""
    if not isinstance(paths, Mapping | ConfigDict):
        raise UserError(f"{where} must be a group of the fields {', '.join(_GENERATOR_FIELDS)}, not {paths!r}.")
    for entry, value in paths.items():
        if entry not in _GENERATOR_FIELDS:
            fields = ", ".join(_GENERATOR_FIELDS)
            raise UserError(f"{where}.{entry}: no such field{nearest(entry, _GENERATOR_FIELDS)}; there are {fields}.")
        if entry == "scored" and not isinstance(value, Mapping | ConfigDict):
            raise UserError(f'{where}.scored must name an evaluator for its file, such as {{"prm": "…"}}, not {value!r}.')
        for path in value.values() if entry == "scored" else (value,):
            if not isinstance(path, str):
                what = {"template": "a template's name as text", "answer": "a rule as text"}.get(entry, "paths as texts")
                raise UserError(f"{where}.{entry} must hold {what}, not {path!r}.")
    check_answer(paths.get("answer", "") or "template", f"{where}.answer")
    if LIKELIHOOD in paths.get("scored", {}):
        raise UserError(f'{where}.scored: "{LIKELIHOOD}" is the name of the control by log-probability; choose another.')
    if not paths.get("samples") and not paths.get("greedy"):
        raise UserError(f"{where}: neither samples nor greedy is given; name at least one file.")
    if any(paths.get("scored", {}).values()) and not paths.get("samples"):
        raise UserError(f"{where}.scored: scores without their samples; give {where}.samples.")
    template = paths.get("template", "")
    if template != CHAT and not template.endswith(".json"):  # an earlier stage may be yet to write it
        _written(where, template)


def _written(where: str, template: str, path: str = "") -> Template | None:
    """The template of this name or file, or what is recorded beside `path`; None for "" and "any"."""
    if template in ("", "any"):
        return None
    try:
        return get_template(template, path)
    except UserError as error:
        raise UserError(f"{where}.template: {str(error).removeprefix('template: ')}") from None


def _read_by(where: str, template: str, answer: str, path: str) -> Template:
    """The template of the texts in `path`, with the rule by which their answers are found, see `read_drawn`."""
    written = None if not path else _written(where, template, path) if template else recorded_template(path)
    answer = answer or "template"
    if written is None:
        written, answer = get_template("e2h"), "any" if answer == "template" else answer
    return with_answer(written, answer)


def _group(path: str, problems: Sequence[dict], max_samples: int) -> list[list[dict]]:
    """Returns the samples of each problem in order, [P][N], the same N for all; leaves out those of other problems."""
    rows: dict[str, list[dict]] = {problem["id"]: [] for problem in problems}
    records = read_many(path, "sample")
    for sample in records:
        if sample["problem_id"] in rows:
            rows[sample["problem_id"]].append(sample)
    most = max(map(len, rows.values()))
    if not most:
        raise _strangers(path, records, rows)
    wanted = min(most, max_samples) if max_samples else most
    short = [(problem, len(row)) for problem, row in rows.items() if len(row) < max(wanted, 1)]
    if short:
        problem, fewest = min(short, key=lambda entry: entry[1])
        remedy = f", or set config.max_samples={fewest}" if fewest else ", or evaluate only the problems that were sampled"
        raise UserError(
            f"{path}: {len(short)} of {len(rows)} problems have fewer than {max(wanted, 1)} samples "
            f'("{problem}" has {fewest}); finish sampling{remedy}.'
        )
    return [sorted(row, key=lambda sample: sample["sample"])[:wanted] for row in rows.values()]


def _strangers(path: str, records: Sequence[dict], ids: Iterable[str]) -> UserError:
    """For records of which none is of a problem that is evaluated."""
    one, other = records[0]["problem_id"], next(iter(ids))
    return UserError(
        f'{path}: no problem_id of its {len(records):,} records is the id of a problem (the first is "{one}", the first '
        f'problem\'s id "{other}"); give the problems that were sampled.'
    )


def _grade(
    problems: Sequence[dict],
    samples: Sequence[Sequence[dict]],
    written: Template,
    counts: dict[str, Any],
    rules: str,
    title: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns verdicts bool [P, N] and answer numbers int [P, N]; adds to `counts`, to every sample its answer and verdict."""
    correct = np.zeros((len(problems), len(samples[0])), dtype=bool)
    answers = np.full(correct.shape, -1)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    # In a notebook rich would ask for ipywidgets.
    with Progress(*columns, console=console, disable=console.is_jupyter) as progress:
        task = progress.add_task(title, total=correct.size)
        for row, (problem, drawn) in enumerate(zip(problems, samples, strict=True)):
            texts = [written.whole(problem, sample["text"]) for sample in drawn]
            found = [written.find_answer(text) for text in texts]
            given = [text[at.start : at.stop] if at else None for text, at in zip(texts, found, strict=True)]
            answers[row] = group_answers(given, rules)
            for column, (sample, answer) in enumerate(zip(drawn, given, strict=True)):
                verdict = grade(answer, problem["answer"], rules)
                sample |= {"answer": answer, "verdict": verdict}
                correct[row, column] = verdict == "correct"
                counts["undecided"] += verdict == "undecided"
                counts["no_answer"] += answer is None
                counts["unfinished"] += sample["finish"] == "length"
            if written.answer == "any":
                by_rule = counts.setdefault("found_by", {"boxed": 0, "section": 0, "sentence": 0})
                for at in filter(None, found):
                    by_rule[at.rule] += 1
            progress.advance(task, len(drawn))
    counts["graded"] += correct.size
    return correct, answers


def _scores(path: str, samples_path: str, problems: Sequence[dict], samples: list[list[dict]]) -> list[list[list[float]]]:
    """Returns the step scores of every sample, [P][N][steps]."""
    texts = {(row["problem_id"], row["sample"]): row["text"] for drawn in samples for row in drawn}
    found: dict[tuple[str, int], list[float]] = {}
    records = read_many(path, "scored")
    if problems and {record["problem_id"] for record in records}.isdisjoint(problem["id"] for problem in problems):
        raise _strangers(path, records, [problem["id"] for problem in problems])
    for record in records:
        key = (record["problem_id"], record["sample"])
        if key not in texts:
            continue
        if record["text"] != texts[key]:
            which = f'problem "{key[0]}", sample {key[1]}'
            raise UserError(f"{path}: {which} was scored for another text than {samples_path} holds; score again.")
        found[key] = record["step_scores"]
    missing = [key for key in texts if key not in found]
    if missing:
        first = f'first: problem "{missing[0][0]}", sample {missing[0][1]}'
        raise UserError(
            f"{path}: {len(missing)} of {len(texts)} samples of {samples_path} have no scores ({first}); finish scoring them."
        )
    return [[found[row["problem_id"], row["sample"]] for row in drawn] for drawn in samples]


def read_labels(
    path: str, generators: Sequence[Drawn | Generator]
) -> dict[str, dict[tuple[str, int], list[float | None]]]:
    """Returns step labels of samples: generator -> (problem_id, sample) -> labels.

    The records are `labelled` ones with the extra fields `problem_id` and `sample`, and `generator` where more than one
    generator of the config has scores.
    """
    sampled = {
        generator.name: {(sample["problem_id"], sample["sample"]) for drawn in generator.samples for sample in drawn}
        for generator in generators
        if generator.step_scores
    }
    names = list(sampled)
    labels: dict[str, dict[tuple[str, int], list[float | None]]] = {name: {} for name in names}
    for number, record in enumerate(read_records(path, "labelled"), start=1):
        if record["problem_id"] is None or type(record.get("sample")) is not int:
            fields = 'fields "problem_id" and "sample"'
            raise UserError(f"{path}: record {number} does not say which sample its labels are of; give it the {fields}.")
        if len(names) > 1 and "generator" not in record:
            field_ = 'a field "generator"'
            raise UserError(f"{path}: record {number} needs {field_}, one of {', '.join(names)}: several have scores.")
        name = record.get("generator", names[0] if names else "")
        key = (record["problem_id"], record["sample"])
        if not isinstance(name, str):
            raise UserError(f'{path}: record {number}: field "generator" must be text, not {name!r}.')
        if key in labels.get(name, ()):
            raise UserError(f'{path}: record {number} repeats problem "{key[0]}", sample {key[1]}; remove one of them.')
        if key in sampled.get(name, ()):
            labels[name][key] = record["labels"]
    if not any(labels.values()):
        raise UserError(f"{path}: no labels for any sample that was scored; give the labels of these samples, or none.")
    return labels


def read_seconds(folder: str) -> dict[str, float]:
    """Returns the seconds that each stage took: name of the stage's folder -> seconds, from `folder`/*/done.json."""
    if not folder:
        return {}
    if not Path(folder).is_dir():
        raise UserError(f'config.seconds_from: there is no folder "{folder}"; give the folder of the stages, or none.')
    seconds = {}
    for path in sorted(Path(folder).glob("*/done.json")):
        try:
            seconds[path.parent.name] = float(json.loads(path.read_text())["seconds"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path}: no number in the field "seconds"; delete the file to leave the stage out.') from None
    return seconds


class _Rate(ProgressColumn):
    """Solutions per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")
