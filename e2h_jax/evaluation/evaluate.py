"""Compare ways to decide on an answer: greedy, majority, weighted voting, best-of-N, pass@N, easy against hard.

Reads problems, samples of one or more generators, and the step scores that evaluators gave them; grades every sample.
Writes

    results.json   every method at N = 1, 2, 4 …: accuracy with 95 % interval (easy, hard, all, each level), paired
                   differences to majority voting, evaluator quality, counts
    table.md       the same, to read
    curves.png     accuracy against N
    metrics.jsonl  the same for TensorBoard, with N in place of steps

It needs no accelerator and no JAX: any system's samples and scores can be compared, as JSON Lines.

    e2h evaluate --config.problems=problems.jsonl --config.generators.mine.samples=samples.jsonl --workdir=runs/compared
    e2h recipe --config=configs/rerank_pool.py --workdir=runs/rerank_pool    (an example on real solutions)
"""

import sys
from itertools import chain
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from e2h_jax.data.levels import EASY_LEVELS, HARD_LEVELS, check_levels
from e2h_jax.data.storage import write_json
from e2h_jax.data.unanswered import Unanswered
from e2h_jax.errors import UserError, nearest
from e2h_jax.evaluation import comparison, curves, inputs, paper, tables
from e2h_jax.evaluation.voting import AGGREGATIONS
from e2h_jax.grading import RULES
from e2h_jax.metrics import MetricsWriter


def defaults() -> ConfigDict:
    """Returns the stage's config, with its defaults."""
    config = ConfigDict()
    config.problems = ""  # problem records, each with its answer
    # What to compare: generator -> samples, greedy, and scored: evaluator -> scores. Each is a file or a folder of
    # shards, and may be left out. For example
    #   config.generators.sft = ConfigDict({"samples": "sft/samples", "greedy": "sft/greedy", "scored": {"prm": "prm"}})
    # and template: the text format in which the answers stand, if it is not the one that `sample` recorded beside its
    # samples; "any" = that is not known, as of texts of other systems.
    # and answer: how the final answer is found: template = as that template says, or by "any" where none is known | boxed |
    # section | gsm8k (####) | sentence ("the answer is") | last_number | any (a box, else a section, else a sentence) | a
    # regular expression with one group. docs/grading.md has the rules.
    # Or, with any names, on the command line:
    #   --config.generators.sft.samples=sft/samples --config.generators.sft.scored.prm=prm
    config.generators = ConfigDict()
    config.easy_levels = EASY_LEVELS  # the levels that generators and evaluators were trained on
    config.hard_levels = HARD_LEVELS  # problems of other levels, or of none, count in "all" alone
    # How step scores become one score per solution; the formulas are in evaluation/voting.py.
    config.aggregations = ("prod", "min", "last", "mean", "max", "mean_logit", "mean_odds")
    config.headline = ConfigDict({"weighted": "prod", "best_of_n": "min"})  # aggregation shown in the tables and curves
    # How answers are graded, and which share their votes: default (mathematically right), strict (the paper's string
    # rules, PRM800K's without algebra) or numeric (GSM8K). docs/grading.md has their conventions.
    config.rules = "default"
    config.labelled = ""  # step labels of the samples (fields problem_id, sample), to measure step accuracy; "" = none
    # Pairs of generators, ("ppo", "sft"): how much better the first one's greedy solutions are, problem by problem.
    config.compare = ()
    # Evaluator -> the paper's curve that this run reproduces, "prm800k SFT-7b + OPRM-7b" say, drawn beside it by `e2h show`.
    config.paper = ConfigDict()
    config.max_no_answer = 0.2  # share of a generator's solutions without a recognised answer above which it warns
    config.max_samples = 0  # use the first so many samples of each problem; 0 = all
    config.bootstrap = 2000  # resamples of the problems for the 95 % intervals
    config.seed = 0  # of the resamples and of the random subsets of samples
    config.seconds_from = ""  # folder whose */done.json tell the seconds of each stage (in a recipe "{run}"); "" = none
    return config.lock()


def run(config: ConfigDict, workdir: str | Path) -> dict:
    """Runs the stage; returns its summary: hard accuracy in % of the headline methods, and counts.

    Raises:
      UserError: a field, a file or a record is wrong, or samples or scores are missing.
    """
    check_values(config)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    adopted = dict(config.headline)
    problems = inputs.read_problems(config.problems)
    # Everything is read before anything is graded, which takes longest: a mistake is told at once.
    drawn = [inputs.read_drawn(name, paths, problems, config.max_samples) for name, paths in config.generators.items()]
    labels = inputs.read_labels(config.labelled, drawn) if config.labelled else {}
    seconds = inputs.read_seconds(config.seconds_from)
    generators = [inputs.graded(one, problems, config.rules) for one in drawn]
    for generator in generators:
        _warn(generator, config.max_no_answer)
    groups = comparison.Groups(
        [problem["level"] for problem in problems],
        config.easy_levels,
        config.hard_levels,
        [problem["subject"] for problem in problems],
        config.bootstrap,
        config.seed,
    )
    ids = [problem["id"] for problem in problems]
    found, quality = [], []
    for generator in generators:
        scores = comparison.solution_scores(generator, config.aggregations)
        found += comparison.methods(generator, scores, np.random.default_rng(config.seed))
        if generator.correct is not None:
            own = labels.get(generator.name, {})
            quality += comparison.quality_rows(generator, scores, ids, own, tuple(adopted.values()), groups)
    rows = comparison.results_rows(found, groups)
    results = {
        "rows": rows,
        "paired": comparison.paired_rows(found, groups),
        "compared": comparison.compared_rows(found, config.compare, groups),
        "quality": quality,
        "undecided": sum(generator.counts["undecided"] for generator in generators),
        "graded": {generator.name: generator.counts for generator in generators},
        "no_answer": comparison.no_answer_rows(generators, groups),
        "seconds": seconds,
        "paper": dict(config.paper),
    }
    if groups.subjects:
        shown = {id(row) for row in tables.headline(rows, adopted)}
        picked = [method for method, row in zip(found, rows, strict=True) if id(row) in shown]
        by_subject = comparison.statistics([method.accuracy for method in picked], groups.subjects)
        results["subjects"] = [{**m.named(), "subjects": s} for m, s in zip(picked, by_subject, strict=True)]
    write_json(workdir / "results.json", results)
    (workdir / "table.md").write_text(tables.markdown(results, adopted), encoding="utf-8")
    curves.draw_curves(rows, adopted, workdir / "curves.png")
    with MetricsWriter(workdir) as writer:
        for n, accuracies in tables.accuracies_by_size(rows, adopted).items():
            writer.write(n, accuracies)
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # rich takes a file for 80 columns wide
    tables.print_headline(results, adopted, console)
    return _summary(results, adopted)


def check_values(config: ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    if not config.generators:
        raise UserError("config.generators is empty; name at least one: --config.generators.NAME.samples=FILE-OR-FOLDER.")
    for name, paths in config.generators.items():
        inputs.check_paths(f"config.generators.{name}", paths)
    if config.rules not in RULES:
        raise UserError(
            f'config.rules: there are no rules "{config.rules}"{nearest(config.rules, RULES)}; use {", ".join(RULES)}.'
        )
    wanted = [("aggregations", name) for name in config.aggregations]
    wanted += [(f"headline.{decoding}", name) for decoding, name in config.headline.items()]
    for where, name in wanted:
        if name not in AGGREGATIONS:
            known = ", ".join(AGGREGATIONS)
            raise UserError(f'config.{where}: there is no aggregation "{name}"{nearest(name, AGGREGATIONS)}; use {known}.')
    for decoding, name in config.headline.items():
        if name not in config.aggregations:
            raise UserError(f'config.headline.{decoding}: "{name}" is not among config.aggregations; add it there.')
    check_levels(config.easy_levels, config.hard_levels)
    for pair in config.compare:
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise UserError(f"config.compare holds {pair!r}, which is not a pair of generators.")
        for name in pair:
            if name not in config.generators or not config.generators[name].get("greedy"):
                remedy = nearest(name, config.generators) or " with greedy samples in config.generators"
                raise UserError(f'config.compare: there is no generator "{name}"{remedy}.')
    paper.check(config.paper)
    if config.bootstrap < 100:
        raise UserError(f"config.bootstrap is {config.bootstrap}; an interval needs 100 resamples, better 2000.")
    if not 0 <= config.max_no_answer <= 1:
        raise UserError(f"config.max_no_answer={config.max_no_answer} is a share from 0 to 1 (1 = never warn).")
    if config.max_samples < 0:
        raise UserError(f"config.max_samples is {config.max_samples}; give a number of samples, or 0 for all.")


def _warn(generator: inputs.Generator, most: float) -> None:
    """Tells of solutions without a recognised answer, if there are many: they count as wrong, whatever they say."""
    for what, drawn in (("samples", chain.from_iterable(generator.samples)), ("greedy", generator.greedy_samples)):
        found = Unanswered()
        for sample in drawn:
            found.add(sample["text"], sample["answer"] is not None)
        if sentence := found.sentence(most):
            print(f"e2h: config.generators.{generator.name}.{what}: {sentence}. Each counts as wrong.", file=sys.stderr)


def _summary(results: dict, adopted: dict[str, str]) -> dict:
    """Returns the headline's accuracy on hard problems (all problems where none is hard), in percent."""
    summary = {}
    for row in tables.headline(results["rows"], adopted):
        group = tables.focus(row)
        summary[f"{group}/{tables.method_name(row)}@{row['n']}"] = round(100 * row[group]["accuracy"], 2)
    return {**summary, "undecided": results["undecided"]}
