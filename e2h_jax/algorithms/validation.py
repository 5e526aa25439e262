"""Validation inside a run: greedy solutions of held-out problems graded now and then, per level, and the best step so far.

    validation.jsonl   a line per validated step: accuracies, and the solutions of a few fixed problems
    validation.md      the same to read: accuracy per level over the steps, and how those solutions changed
    best/STEP/         the models that may yet be the best, while the run lasts
    best.json          {"step": …} of the one that became model/ and adapter/

A step that is recorded again, because the run was resumed from before it, takes the place of itself and of what followed.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from e2h_jax.data.levels import EASY_LEVELS, HARD_LEVELS, check_levels, group_of
from e2h_jax.data.records import has_answer, json_lines, read_many
from e2h_jax.data.storage import write_json, write_records, write_text
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError, naming, nearest
from e2h_jax.grading.pool import GradingPool
from e2h_jax.parallel import hosts
from e2h_jax.sampling.prompts import fitting, prompts_of

VERDICTS = ("correct", "wrong", "undecided")


def defaults() -> ml_collections.ConfigDict:
    """Fields of `config.validation`."""
    config = ml_collections.ConfigDict()
    config.problems = ""  # held-out problem records with answers; "" = no validation
    config.every = 1  # steps (of ppo) or rounds between two validations; the first and the last are always validated
    config.metric = "all"  # model/ is the best by this: all | easy | hard | level_1 …; "" = the last
    config.easy_levels = EASY_LEVELS  # the levels that the model is trained on
    config.hard_levels = HARD_LEVELS  # problems of other levels, or of none, count in "all" alone
    config.shown = 5  # problems whose solutions are kept over time, of all levels in turn
    return config


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense; reads no file."""
    if config.every < 1 or config.shown < 0:
        raise UserError("config.validation.every must be at least 1 and config.validation.shown at least 0")
    check_levels(config.easy_levels, config.hard_levels, "config.validation")


def check_room(
    problems: Sequence[Mapping], tokenizer: Any, template: Template, positions: int, drawing: ml_collections.ConfigDict
) -> None:
    """Raises UserError for a problem that leaves no room for a solution in the policy's `positions`.

    `drawing`: `config.sample` of the run.
    """
    prompts = prompts_of(tokenizer, problems, template)
    with naming("config.sample.", outside=("validation",)):
        fitting(problems, prompts, positions, drawing.max_new_tokens, "error", validation=True)


class Validation:
    """The validations of one run.

    Attributes:
      problems: what is to be solved, in order.
      history: one record per validated step, by rising step: {"step", "accuracy", "undecided", "shown"}.
    """

    def __init__(self, config: ml_collections.ConfigDict, template: Template, workdir: Path, pool: GradingPool):
        """Reads the problems, and what `workdir` holds of an interrupted run. UserError for settings that do not fit them.

        `template`: of the solutions, with the rule by which their answers are found.
        """
        check(config)
        self.problems = read_many(config.problems, "problem")
        for problem in self.problems:
            if not has_answer(problem):
                raise UserError(f"config.validation.problems={config.problems}: problem {problem['id']!r} has no answer")
        self._config, self._template, self._pool = config, template, pool
        self._shown = _of_all_levels(self.problems, config.shown)
        self._file, self._page = Path(workdir) / "validation.jsonl", Path(workdir) / "validation.md"
        groups = self._accuracies({problem["id"]: True for problem in self.problems})
        if config.metric and config.metric not in groups:
            raise UserError(
                f"config.validation.metric={config.metric!r} is unknown{nearest(config.metric, groups)}; "
                f"of these problems there are {', '.join(groups)}"
            )
        self.history: list[dict[str, Any]] = [line for _, line in json_lines(self._file)] if self._file.exists() else []

    def due(self, step: int, last: int) -> bool:
        """Whether `step` of 0 … `last` is to be validated."""
        return step in (0, last) or step % self._config.every == 0

    def record(self, step: int, texts: Mapping[str, str]) -> dict[str, float]:
        """Grades the solutions `texts` {problem id: text} of this step and writes the files.

        Returns:
          {"all", "easy", "hard", "level_1" …: accuracy in [0, 1]} of the groups that there are. A solution whose grading is
          undecided counts as wrong.
        """
        whole, extract = self._template.whole, self._template.extract_answer
        answers = [extract(whole(problem, texts[problem["id"]])) for problem in self.problems]
        verdicts = self._pool.grade_many(
            (answer, problem["answer"]) for answer, problem in zip(answers, self.problems, strict=True)
        )
        if jax.process_count() > 1:  # time may run out on one process alone; all must agree which step is the best
            found = np.array([VERDICTS.index(verdict) for verdict in verdicts], np.int32)
            verdicts = [VERDICTS[index] for index in multihost_utils.broadcast_one_to_all(found)]
        right = {p["id"]: verdict == "correct" for p, verdict in zip(self.problems, verdicts, strict=True)}
        accuracy = self._accuracies(right)
        record = {
            "step": step,
            "accuracy": accuracy,
            "undecided": sum(verdict == "undecided" for verdict in verdicts),
            "shown": {p["id"]: {"right": right[p["id"]], "text": texts[p["id"]]} for p in self._shown},
        }
        self.history = [earlier for earlier in self.history if earlier["step"] < step] + [record]
        if jax.process_index() == 0:
            write_records(self._file, self.history)
            write_text(self._page, self._text())
        return accuracy

    def forget(self, after: int) -> None:
        """Leaves out what was recorded after this step: of a run that was killed, and goes on from there."""
        self.history = [record for record in self.history if record["step"] <= after]

    def recorded(self, step: int) -> bool:
        """Whether the history holds this step."""
        return any(record["step"] == step for record in self.history)

    def best(self, first: int = 0, among: Collection[int] | None = None) -> int | None:
        """The validated step from `first` on with the highest `metric`, the earliest of equals; the last one without metric.

        `among`: of these steps alone. None where nothing has been validated.
        """
        steps = [r for r in self.history if r["step"] >= first and (among is None or r["step"] in among)]
        if not steps:
            return None
        if not self._config.metric:
            return steps[-1]["step"]
        return max(steps, key=lambda record: record["accuracy"][self._config.metric])["step"]

    def accuracy(self, step: int) -> dict[str, float]:
        """What `record` returned at that step."""
        return next(record["accuracy"] for record in self.history if record["step"] == step)

    def _accuracies(self, right: Mapping[str, bool]) -> dict[str, float]:
        graded = [(problem["level"], right[problem["id"]]) for problem in self.problems]
        return accuracies(graded, self._config.easy_levels, self._config.hard_levels)

    def _text(self) -> str:
        groups = list(self.history[0]["accuracy"])
        lines = ["# Validation", "", f"Greedy accuracy in % on {len(self.problems)} problems of {self._config.problems}.", ""]
        lines += [f"| step | {' | '.join(groups)} |".replace("_", " "), "| --- " * (len(groups) + 1) + "|"]
        for record in self.history:
            values = [f"{100 * record['accuracy'][name]:.1f}" for name in groups]
            lines.append(f"| {record['step']} | " + " | ".join(values) + " |")
        for problem in self._shown:
            lines += ["", f"## {problem['id']}", "", *_fenced(problem["question"]), "", f"Answer: {problem['answer']}"]
            before = None
            for record in self.history:
                solution = record["shown"].get(problem["id"])
                if solution is None or solution["text"] == before:
                    continue
                before = solution["text"]
                lines += ["", f"Step {record['step']}: {'right' if solution['right'] else 'wrong'}", "", *_fenced(before)]
        return "\n".join(lines) + "\n"


class Best:
    """The models of a run that may yet be published, each in `best/STEP/`, there as a whole or not at all.

    A run that was killed goes on from a checkpoint; what it did after that is lost, better models too. So the best one as of
    every checkpoint stays until that checkpoint is gone.
    """

    def __init__(self, workdir: Path, validation: Validation | None):
        """`validation`: which of them is the best; None = the last one."""
        self._workdir, self._folder, self._validation = Path(workdir), Path(workdir) / "best", validation

    def resume(self, start: int) -> None:
        """Forgets what came after step `start`, from whose checkpoint the run goes on; 0 = from the beginning.

        Raises:
          UserError: validation.jsonl lacks what was validated before the first step.
        """
        if self._validation is not None:
            self._validation.forget(start)
            if start and not self._validation.recorded(0):
                file = self._workdir / "validation.jsonl"
                raise UserError(f"{file} does not hold the validations of this run; restore it, or delete {self._workdir}")
        self._remove(step for step in self._kept() if step > start)

    def offer(self, step: int, save: Callable[[Path], None], checkpoints: Collection[int]) -> None:
        """Has `save` write the model of this step into a folder, if it is the best so far.

        `checkpoints`: the steps from which the run may be resumed, other than the beginning.
        """
        kept = self._kept()
        if self._best([*kept, step]) != step:
            return
        partial = self._folder / f"{step}.partial"
        if jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        hosts.wait(f"{partial} empty")
        save(partial)
        hosts.wait(f"{partial} written")
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
            partial.rename(self._folder / str(step))
        needed = {self._best([earlier for earlier in kept if earlier <= checkpoint]) for checkpoint in checkpoints}
        self._remove(earlier for earlier in kept if earlier not in needed and earlier != step)

    def publish(self) -> int:
        """The best one becomes the stage's model/ (and adapter/); returns its step, that of an interrupted `publish` again.

        Raises:
          UserError: there is none.
        """
        note, kept = self._workdir / "best.json", self._kept()
        if not kept and not note.exists():
            raise UserError(f"{self._folder}, the models to choose from, is gone; delete {self._workdir} and run again")
        step = self._best(kept) if kept else json.loads(note.read_text())["step"]
        self._remove(other for other in kept if other != step)  # before it moves: what a killed run leaves is this one
        if jax.process_index() == 0 and kept:
            write_json(note, {"step": step})
            for part in (self._folder / str(step)).iterdir():
                shutil.rmtree(self._workdir / part.name, ignore_errors=True)
                part.rename(self._workdir / part.name)
            shutil.rmtree(self._folder)
        return step

    def _kept(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())

    def _best(self, steps: Collection[int]) -> int | None:
        return max(steps, default=None) if self._validation is None else self._validation.best(first=1, among=steps)

    def _remove(self, steps: Iterable[int]) -> None:
        steps = list(steps)
        if jax.process_index() == 0:
            for step in steps:
                shutil.rmtree(self._folder / str(step))
        hosts.wait(f"{self._folder} cleared")


def accuracies(
    graded: Iterable[tuple[int | None, bool]], easy: Collection[int], hard: Collection[int]
) -> dict[str, float]:
    """Share of right ones among (level, right) pairs: "all", "easy", "hard" and "level_1" …, of those that there are.

    A pair whose level is not in `easy` or `hard` counts in "all" and in its level's alone.
    """
    groups: dict[str, list[bool]] = {}
    for level, right in sorted(graded, key=lambda pair: pair[0] or 0):
        for name in ("all", group_of(level, easy, hard), None if level is None else f"level_{level}"):
            if name:
                groups.setdefault(name, []).append(right)
    order = sorted(groups, key=lambda name: (name.startswith("level"), name))
    return {name: sum(groups[name]) / len(groups[name]) for name in order}


def _of_all_levels(problems: list[dict], count: int) -> list[dict]:
    """The first problems of every level in turn, `count` in all."""
    turns: dict[Any, int] = {}
    ranked = []
    for problem in problems:
        turn = turns[problem["level"]] = turns.get(problem["level"], -1) + 1
        ranked.append((turn, problem["level"] or 0, problem))
    return [problem for *_, problem in sorted(ranked, key=lambda item: item[:2])[:count]]


def _fenced(text: str) -> list[str]:
    # A fence longer than any in the text.
    fence = "`" * max(3, 1 + max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0))
    return [fence, text.rstrip(), fence]
