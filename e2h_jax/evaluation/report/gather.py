"""From a finished `evaluate` folder to what the page shows of it: tables, judgements, and every problem with its solutions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ml_collections import ConfigDict

from e2h_jax.data.levels import group_of
from e2h_jax.errors import UserError
from e2h_jax.evaluation import inputs, paper
from e2h_jax.evaluation.inputs import Generator
from e2h_jax.evaluation.report import decisions
from e2h_jax.evaluation.report.folders import Folder
from e2h_jax.evaluation.report.judgement import judgements
from e2h_jax.evaluation.report.solutions import solutions_of
from e2h_jax.evaluation.tables import headline_at_all_sizes, label

# Fields of the index that have an entry for each problem, and those of its generators and decisions.
_BY_PROBLEM = {"id", "question", "answer", "level", "subject", "right", "answers", "more"}
_BY_PROBLEM |= {"winner", "accuracy", "totals", "sums"}


@dataclass
class Evaluation:
    """One evaluation. What is left out of the page for its size is left out of `kept_samples` and `kept_problems` alone."""

    summary: dict  # what the figures and tables need
    index: dict  # of every problem what the filters need; {} without problems
    problems: list[dict] = field(default_factory=list)
    generators: list[Generator] = field(default_factory=list)
    kept_answers: dict[str, list[list[int]]] = field(default_factory=dict)  # generator -> [P][answers in the index]
    greedy_answers: dict[str, list[int]] = field(default_factory=dict)
    kept_samples: int = 0
    kept_problems: int = 0

    def first(self, count: int) -> dict:
        """The index of the first so many problems."""

        def cut(group: dict) -> dict:
            return {name: value[:count] if name in _BY_PROBLEM else value for name, value in group.items()}

        generators = {
            name: cut(own) | {"decisions": [cut(decision) for decision in own["decisions"]]}
            for name, own in self.index.get("generators", {}).items()
        }
        return cut(self.index) | ({"generators": generators} if generators else {})

    def detail(self, number: int) -> dict:
        """The reference solution of a problem, and its solutions by each generator, `kept_samples` of them at most."""
        solutions = {}
        for generator in self.generators:
            greedy_answer = self.greedy_answers[generator.name][number] if generator.greedy_samples else -1
            kept = self.kept_answers[generator.name][number]
            solutions[generator.name] = solutions_of(generator, number, kept, greedy_answer, self.kept_samples)
        return {"solution": self.problems[number]["solution"], "generators": solutions}


def read(folder: Folder) -> Evaluation:
    """Reads results.json, and grades the samples anew, for it does not hold them.

    Raises:
      UserError: results.json is damaged or of another version.
    """
    path = folder.path / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        summary = _summary(folder, results)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged or of another version; delete {folder.path} and evaluate again.") from None
    config, adopted = ConfigDict(folder.config), summary["adopted"]
    try:
        problems = inputs.read_problems(config.problems)
        generators = [
            inputs.read_generator(name, paths, problems, config.max_samples, config.rules)
            for name, paths in config.generators.items()
        ]
        labels = inputs.read_labels(config.labelled, generators) if config.labelled else {}
    except UserError as error:
        summary["note"] = f"The problems and their solutions are left out: {error}"
        return Evaluation(summary, {})
    graded = summary["graded"]
    if changed := [g.name for g in generators if any(graded[g.name].get(k, v) != v for k, v in g.counts.items())]:
        summary["note"] = (
            f"The tables are as {path} has them. The solutions of {', '.join(changed)} have changed since, or are graded "
            "differently now: what is shown of single problems does not add up to the tables; evaluate again."
        )
    of = np.array([group_of(problem["level"], config.easy_levels, config.hard_levels) for problem in problems])
    groups = {"easy": of == "easy", "hard": of == "hard", "all": np.ones(len(problems), dtype=bool)}
    for generator in generators:
        if generator.correct is not None:
            wanted = dict.fromkeys([*adopted.values(), "last"])
            summary["judged"] += judgements(generator, list(wanted), labels.get(generator.name, {}), groups)
    return _with_problems(Evaluation(summary, {}, problems, generators), adopted)


def _summary(folder: Folder, results: dict) -> dict:
    adopted = dict(folder.config["headline"])
    return {
        "run": folder.run,
        "name": folder.name,
        "adopted": adopted,
        "rows": [row | {"label": label(row)} for row in _shown(results["rows"], adopted)],
        "paired": _shown(results["paired"], adopted),
        **{name: results[name] for name in ("compared", "quality", "graded", "seconds")},
        "subjects": [row | {"label": label(row)} for row in results.get("subjects", [])],
        "no_answer": results.get("no_answer", []),  # evaluations of 0.2.0 and before do not have it
        "paper": paper.curves(results.get("paper", {})),
        "judged": [],
        "note": "",
    }


def _shown(rows: Sequence[dict], adopted: dict[str, str]) -> list[dict]:
    """The adopted aggregations at every N, and all of them at the largest."""
    largest = {row["generator"]: max(r["n"] for r in rows if r["generator"] == row["generator"]) for row in rows}
    adopted_ids = {id(row) for row in headline_at_all_sizes(rows, adopted)}
    return [row for row in rows if id(row) in adopted_ids or row["n"] == largest[row["generator"]]]


def _with_problems(evaluation: Evaluation, adopted: dict[str, str]) -> Evaluation:
    """Fills in the index: question, level and subject of each problem, and what every decision came to."""
    problems = evaluation.problems
    index: dict = {name: [problem[name] for problem in problems] for name in ("id", "question", "answer", "level", "subject")}
    index["generators"] = {}
    for generator in evaluation.generators:
        known = decisions.answers(generator) if generator.correct is not None else []
        made = decisions.decide(generator, adopted)
        if generator.greedy is not None:
            made.insert(0, decisions.greedy_decision(generator, known))
        kept = decisions.kept_answers(known, made) or [[] for _ in problems]
        evaluation.kept_answers[generator.name] = kept
        index["generators"][generator.name] = {
            "samples": 0 if generator.correct is None else generator.correct.shape[1],
            "right": [] if generator.correct is None else generator.correct.sum(axis=1).tolist(),
            "evaluators": list(generator.step_scores),
            "answers": [
                [[row[i]["text"], round(row[i]["right"], 4), row[i]["votes"]] for i in own]
                for row, own in zip(known, kept, strict=False)
            ],
            "more": [len(row) - len(own) for row, own in zip(known, kept, strict=False)],
            "decisions": [_decision(decision, kept) for decision in made],
        }
        if generator.greedy is not None:
            evaluation.greedy_answers[generator.name] = index["generators"][generator.name]["decisions"][0]["winner"]
        if generator.correct is not None:
            evaluation.kept_samples = max(evaluation.kept_samples, generator.correct.shape[1])
    evaluation.index, evaluation.kept_problems = index, len(problems)
    return evaluation


def _decision(decision: decisions.Decision, kept: list[list[int]]) -> dict:
    """A decision as the index has it, of the answers that are kept; "sums" are over all answers."""
    return {
        **{name: getattr(decision, name) for name in ("key", "label", "decoding", "evaluator")},
        "winner": [own.index(winner) if winner >= 0 else -1 for winner, own in zip(decision.winner, kept, strict=True)],
        "accuracy": [round(value, 4) for value in decision.accuracy],
        "totals": [[float(f"{row[i]:.4g}") for i in own] for row, own in zip(decision.totals, kept, strict=False)],
        "sums": [float(f"{sum(row):.4g}") for row in decision.totals],
    }
