"""What ReST-EM and iterative DPO share: rounds of sampling, scoring, choosing and training, every part done once.

A part is another stage (sample, score, sft …) at work in a subfolder, round-1/samples/ say. Once it has finished, seconds and
summary are in round-1/samples.json, and it is not run again: a killed run goes on inside the part that it was in.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from e2h_jax.algorithms import validation
from e2h_jax.data.chat import policy_template
from e2h_jax.data.records import has_answer, read_many
from e2h_jax.data.storage import write_json
from e2h_jax.data.templates import Template, check_answer, get_template, with_answer
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError, naming, nearest
from e2h_jax.evaluation.voting import AGGREGATIONS, aggregate
from e2h_jax.grading.pool import GradingPool
from e2h_jax.metrics import MetricsWriter
from e2h_jax.models import lora, store
from e2h_jax.parallel import hosts
from e2h_jax.parallel.checks import check_model, check_rows
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Assumed, Program, prefixed
from e2h_jax.rewards import score
from e2h_jax.sampling import sample
from e2h_jax.training import loop

Metrics = dict[str, Any]
# Fields that are not of a part: the loop has them, or fills them in.
FILLED = ("mesh", "init", "template", "answer", "seed", "written_in", "validation")


def without(config: ml_collections.ConfigDict, *fields: str) -> ml_collections.ConfigDict:
    """`config` without these fields ("a" or "a.b"), which the loop fills in itself (`complete`)."""
    config = config.unlock()
    for field in fields:
        *groups, name = field.split(".")
        holder = config
        for group in groups:
            holder = holder[group]
        del holder[name]
    return config


def complete(group: ml_collections.ConfigDict, **fields: Any) -> ml_collections.ConfigDict:
    """A stage's config from what is left of its fields in the loop's config, and the others."""
    config = ml_collections.ConfigDict(group.to_dict())
    config.update(fields)
    return config


def defaults() -> ml_collections.ConfigDict:
    """Fields of every algorithm that goes by rounds."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.mesh = (1, -1, 1)  # devices along (data, fsdp, tensor); -1 = all the rest
    config.init = ""  # model/ folder of the policy to start from
    config.questions = ""  # problem records; an answer of null or "unavailable" is hidden
    config.template = "e2h"  # text format, see data/templates.py; chat = the one that the model's model.json records
    # How a solution's answer is found, in rewards and validations alike: template = as the template says | a rule (boxed,
    # section, gsm8k, sentence, last_number, any; docs/grading.md) | a regular expression with one group.
    config.answer = "template"
    config.rounds = 2
    config.reward_model = ""  # model/ folder of a reward model; "" = final answers alone
    config.aggregation = "prod"  # of its step scores to a solution's score, see evaluation/voting.py
    config.sample = without(sample.defaults(), "seed", "mesh", "model", "problems", "template")
    config.score = without(score.defaults(), "mesh", "model", "samples", "problems", "written_in", "answer")
    config.validation = validation.defaults()
    return config


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for shared fields, sizes and LoRA settings that make no sense; reads no file."""
    for field in ("init", "questions"):
        if not config[field]:
            what = "the model/ folder of a policy" if field == "init" else "a file of problem records"
            raise UserError(f"config.{field} is empty; name {what}")
    if config.rounds < 1:
        raise UserError(f"config.rounds={config.rounds} must be at least 1")
    if config.seed < 0:
        raise UserError(f"config.seed={config.seed} must be at least 0")
    if config.aggregation not in AGGREGATIONS:
        raise UserError(f"config.aggregation={config.aggregation!r} is unknown{nearest(config.aggregation, AGGREGATIONS)}")
    if config.sample.temperature == 0:
        raise UserError("config.sample.temperature=0 draws the same solution every time; set it above 0")
    check_answer(config.answer)
    validation.check(config.validation)
    with naming("config.sample."):
        sample.check(config.sample)
        check_rows(make_mesh(config.mesh, rows=(config.sample.rows,)), rows=config.sample.rows)
    with naming("config.score."):
        score.check(config.score)
        if config.reward_model:
            score.check_batch(config.score, make_mesh(config.mesh, rows=(score.rows_of(config.score),)))
    with naming("config.train.", outside=("mesh", "init")):
        loop.check(config.train, loop.mesh_of(complete(config.train, mesh=config.mesh)))
        loop.fit_length([], config.train.length, config.train.too_long, 0)
        store.check(config.train.get("dtype", ""), "")
        lora.check(complete(config.train, init=config.init))


def check_files(config: ml_collections.ConfigDict) -> Template:
    """The template of all rounds. Raises UserError for files that cannot be used: all that is seen before anything is drawn."""
    mesh = make_mesh(config.mesh)
    for field, kind in (("init", "policy"), ("base", "policy"), ("reward_model", "reward")):
        if folder := config.get(field):
            found, model_config = store.load_config(folder)
            if found != kind:
                raise UserError(f"config.{field}={folder} holds a {found} model where a {kind} model is needed")
            check_model(mesh, model_config, folder)
    tokenizer = load_tokenizer(config.init)
    template = policy_template(config.template, config.init, tokenizer, tell=jax.process_index() == 0)
    if base := config.get("base"):  # what is trained from it draws the next round
        if policy_template(config.template, base, load_tokenizer(base), tell=False) != template:
            raise UserError(
                f"config.base={base} records another text format than config.init={config.init}, so that config.template="
                f"{config.template} is not one for both; name a template that both were trained in"
            )
    if config.reward_model and config.score.template:
        get_template(config.score.template, config.reward_model, load_tokenizer(config.reward_model))  # raises
    questions = read_many(config.questions, "problem")
    if not questions:
        raise UserError(f"config.questions={config.questions} holds no question")
    if not config.reward_model and not any(map(has_answer, questions)):
        raise UserError(
            f"config.questions={config.questions}: every answer is hidden, so that only a reward model can tell good "
            "solutions from bad ones; set config.reward_model"
        )
    if config.validation.problems:
        problems, positions = read_many(config.validation.problems, "problem"), store.load_config(config.init)[1].max_length
        validation.check_room(problems, tokenizer, template, positions, config.sample)
    return template


@dataclass(frozen=True)
class Solution:
    """A sampled solution and what is known of it."""

    problem: dict
    sample: int
    text: str
    stopped: bool  # ended by itself, not by the limit
    right: bool | None  # its answer; None where the problem's is hidden
    score: float | None  # the reward model's; None without one


@dataclass(frozen=True)
class Round:
    """One round: its number from 1, its folder, its seed, and the model/ folder of the policy that begins it."""

    config: ml_collections.ConfigDict
    template: Template  # of the solutions, with the rule by which their answers are found
    number: int
    folder: Path
    seed: int
    model: str
    pool: GradingPool

    @property
    def elsewhere(self) -> str:
        """Where to go on with another config, for messages. What the first round has drawn can be kept: it comes before."""
        kept = " (copy round-1/samples/ and round-1/scored/ there to keep what was drawn)" if self.number == 1 else ""
        return f"in another --workdir{kept}"

    def part(self, name: str, run: Callable[[Path], Metrics], group: str = "") -> Metrics:
        """See `part`, of this round."""
        return part(self.folder, name, run, group)

    def draw(self) -> Metrics:
        """Samples solutions of the questions, and scores them with the reward model if there is one: two parts.

        Returns what to log: how many questions were dropped because they leave no room.
        """
        config = self.config
        drawing = _drawing(config, self.model, self.seed)
        sampled = self.part("samples", lambda folder: sample.run(drawing, folder), "sample")
        if config.reward_model:
            scoring = _scoring(config, str(self.folder / "samples"))
            self.part("scored", lambda folder: score.run(scoring, folder), "score")
        return {"dropped_questions": sampled.get("dropped", 0)}  # 0.1.0 dropped none

    def solutions(self) -> list[Solution]:
        """What was drawn, graded, in the order of the questions."""
        problems = {problem["id"]: problem for problem in read_many(self.config.questions, "problem")}
        name, kind = ("scored", "scored") if self.config.reward_model else ("samples", "sample")
        records = read_many(self.folder / name, kind)
        order = {problem: number for number, problem in enumerate(problems)}
        records.sort(key=lambda record: (order[record["problem_id"]], record["sample"]))
        return judge(problems, records, self.template, self.config.aggregation, self.pool)


def _drawing(config: ml_collections.ConfigDict, model: str, seed: int) -> ml_collections.ConfigDict:
    """The `sample` stage's config of a round."""
    filled = {"seed": seed, "mesh": config.mesh, "model": model, "problems": config.questions, "template": config.template}
    return complete(config.sample, **filled)


def _greedy(config: ml_collections.ConfigDict, model: str) -> ml_collections.ConfigDict:
    """The `sample` stage's config of a validation."""
    one_each = {"samples": 1, "temperature": 0.0, "levels": (), "limit": 0, "too_long": "error"}
    return complete(_drawing(config, model, config.seed), **one_each, problems=config.validation.problems)


def _scoring(config: ml_collections.ConfigDict, samples: str) -> ml_collections.ConfigDict:
    """The `score` stage's config of a round; what the samples are written in is recorded beside them."""
    filled = {"mesh": config.mesh, "model": config.reward_model, "samples": samples, "problems": config.questions}
    return complete(config.score, **filled, written_in="", answer=config.answer)


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs of a round but for its training: each part is a stage, whose arrays go when it has finished."""
    with naming("config.sample."):
        yield from prefixed("sample", sample.programs(_drawing(config, config.init, config.seed), mesh, assumed))
        if config.validation.problems:
            yield from prefixed("validation", sample.programs(_greedy(config, config.init), mesh, assumed))
    if config.reward_model:
        with naming("config.score."):
            yield from prefixed("score", score.programs(_scoring(config, ""), mesh, assumed))


def judge(
    problems: dict[str, dict], records: list[dict], template: Template, aggregation: str, pool: GradingPool
) -> list[Solution]:
    """Grades sample or scored records against the answers that are not hidden. An undecided answer counts as wrong."""
    asked = [problems[record["problem_id"]] for record in records]
    known = [has_answer(problem) for problem in asked]
    pairs = [
        (template.extract_answer(template.whole(problem, record["text"])), problem["answer"])
        for problem, record, graded in zip(asked, records, known, strict=True)
        if graded
    ]
    verdicts = iter(pool.grade_many(pairs))
    right = [next(verdicts) == "correct" if graded else None for graded in known]
    scored = bool(records) and "step_scores" in records[0]
    scores = aggregate([record["step_scores"] for record in records], aggregation).tolist() if scored else [None] * len(records)
    return [
        Solution(problems[r["problem_id"]], r["sample"], r["text"], r["finish"] == "stop", outcome, value)
        for r, outcome, value in zip(records, right, scores, strict=True)
    ]


def distinct(solutions: Iterable[Solution]) -> dict[str, list[Solution]]:
    """{problem id: its solutions}, of those of equal text the first; problems in the order of their first solution."""
    found: dict[str, dict[str, Solution]] = {}
    for solution in solutions:
        found.setdefault(solution.problem["id"], {}).setdefault(solution.text, solution)
    return {problem: list(texts.values()) for problem, texts in found.items()}


def part(folder: Path, name: str, run: Callable[[Path], Metrics], group: str = "") -> Metrics:
    """What `run(folder / name)` returned, which is run unless it has finished already, and "seconds".

    `folder/name.json`, which says so, is written last: whole or not at all. `group`: in config.<group> are the fields of `run`.
    """
    marker = folder / f"{name}.json"
    done = marker.exists()
    if not done:
        began = time.perf_counter()
        try:
            with naming(f"config.{group}.", FILLED) if group else nullcontext():
                metrics = run(folder / name)
        except UserError as error:  # of a stage that does not know where it is at work
            told = str(error).replace("config.written_in", "config.template")
            raise UserError(f"{folder.name}/{name}: {told}") from error
        hosts.wait(str(marker))  # for the other processes' shards
        if jax.process_index() == 0:
            write_json(marker, {**metrics, "seconds": round(time.perf_counter() - began, 3)})
        hosts.wait(f"{marker} written")
    return json.loads(marker.read_text())


def run(config: ml_collections.ConfigDict, workdir: Path, template: Template, play: Callable[[Round], Metrics]) -> Metrics:
    """Plays all rounds; `workdir/model` becomes the best of their models by validation.

    Args:
      template: what `check_files` returned.
      play: one round, which leaves its model in `Round.folder / "train" / "model"`; returns what to log of it.

    Returns:
      the summary: what the last round logged, accuracies before and at the best, and the seconds of each part.
    """
    workdir, first, logged = Path(workdir), jax.process_index() == 0, {}
    with GradingPool() as pool, MetricsWriter(workdir, enabled=first) as writer:
        judged = config.validation.problems != ""
        written = with_answer(template, config.answer)
        validations = validation.Validation(config.validation, written, workdir, pool) if judged else None

        def validate(number: int, model: str) -> Metrics:
            """Accuracies of the greedy solutions of a round's model (round 0: of `init`)."""
            if validations is None or not validations.due(number, config.rounds):
                return {}
            greedy = _greedy(config, model)
            if not validations.recorded(number) and first:  # validation.jsonl was deleted, say
                (workdir / f"round-{number}" / "validation.json").unlink(missing_ok=True)
            hosts.wait(f"validation of round {number}")

            def solve(folder: Path) -> Metrics:
                sample.run(greedy, folder)
                hosts.wait(f"{folder} sampled")
                return validations.record(number, {r["problem_id"]: r["text"] for r in read_many(folder, "sample")})

            return part(workdir / f"round-{number}", "validation", solve, "sample")

        model = config.init
        if before := validate(0, model):
            writer.write(0, _named("validation", before))
        for number in range(1, config.rounds + 1):
            seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0] >> 1)
            folder = workdir / f"round-{number}"
            logged = play(Round(config, written, number, folder, seed, model, pool))
            model = str(folder / "train" / "model")
            writer.write(number, logged | _named("validation", validate(number, model)))
    best = (validations.best(first=1) if validations else None) or config.rounds
    _publish(workdir / f"round-{best}" / "train" / "model", workdir / "model")
    summary = logged | {"rounds": config.rounds, "best_round": best} | _seconds(workdir, config.rounds)
    if validations:
        summary |= _named("init", validations.accuracy(0)) | _named("best", validations.accuracy(best))
    return summary


def _named(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}_{name}": value for name, value in metrics.items() if name != "seconds"}


def _seconds(workdir: Path, rounds: int) -> Metrics:
    """{"samples_seconds", "train_seconds", …}: of each part, over all rounds."""
    sums: Metrics = {}
    for number in range(rounds + 1):
        for marker in sorted((workdir / f"round-{number}").glob("*.json")):
            name = f"{marker.stem}_seconds"
            sums[name] = sums.get(name, 0.0) + json.loads(marker.read_text())["seconds"]
    return sums


def _publish(source: Path, target: Path) -> None:
    """Copies a model, whole or not at all."""
    if jax.process_index() == 0:
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    hosts.wait(f"{target} published")
