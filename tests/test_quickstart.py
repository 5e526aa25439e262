"""The quickstart recipe from nothing to the table, shrunk: what it writes, not how good it is."""

import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import pytest

from e2h_jax import main
from e2h_jax.algorithms import ppo, rounds
from e2h_jax.data.records import read_many
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards import score
from e2h_jax.sampling import sample
from e2h_jax.training import loop

SMALL = [
    "data.arithmetic.corpus=3000",
    "data.arithmetic.demonstrations=30",
    "data.arithmetic.evaluator_questions=60",
    "data.arithmetic.test_easy=6",
    "data.arithmetic.test_hard=6",
    "evaluator_samples.rows=32",
    "greedy.rows=16",
    "samples.rows=16",
    "samples.samples=4",
    "evaluate.bootstrap=200",
    "data.arithmetic.rl_questions=40",
    "data.arithmetic.validation_easy=3",
    "data.arithmetic.validation_hard=4",
    *(f"{name}.rounds=1" for name in ("rest_em", "dpo")),
    *(f"{name}.sample.{field}" for name in ("rest_em", "dpo") for field in ("rows=32", "samples=4")),
    *(f"{name}.train.batch_size=2" for name in ("rest_em", "dpo")),
    "rest_em.threshold=0.0",
    "dpo.margin=0.0",
    "dpo.margin_hidden=0.0",
    *(f"{name}.{field}" for name in ("ppo", "ppo_outcome") for field in ("steps=2", "questions_per_step=8", "sample.rows=16")),
    *(f"greedy_{name}.rows=16" for name in ("full_sft", "rest_em", "dpo", "ppo", "ppo_outcome")),
]
EVALUATORS = ("prm", "orm", "oprm")
AGGREGATIONS = ("prod", "min", "last", "mean", "max", "mean_logit", "mean_odds")


def e2h(workdir, *overrides):
    arguments = [f"--config.{override}" for override in (*SMALL, *overrides)]
    return main.main(["recipe", "--config=configs/quickstart.py", *arguments, f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, sample, score, rounds, ppo):  # one device: an eighth of the compiling
            patch.setattr(module, "make_mesh", lambda shape, **_: make_mesh((1, 1, 1), jax.devices()[:1]))
        workdir = tmp_path_factory.mktemp("quickstart") / "run"
        assert e2h(workdir) == 0
        yield workdir


def test_results_hold_what_the_design_demands(finished):
    results = json.loads((finished / "results.json").read_text())
    assert {"rows", "undecided", "seconds"} <= results.keys()
    assert type(results["undecided"]) is int
    stages = json.loads((finished / "config.json").read_text())["config"]["stages"]
    # All that had finished when `evaluate` read them.
    assert set(results["seconds"]) == set(stages) - {"evaluate"}
    assert all(type(seconds) is float and seconds > 0 for seconds in results["seconds"].values())

    methods, generators = set(), set()
    for row in results["rows"]:
        assert {"generator", "decoding", "evaluator", "aggregation", "n", "easy", "hard", "all", "levels"} <= row.keys()
        assert row["n"] in (1, 2, 4) if row["generator"] == "sft" else row["decoding"] == "greedy"
        generators.add(row["generator"])
        methods.add((row["decoding"], row["evaluator"], row["aggregation"]))
        assert set(row["levels"]) == {"1", "2", "3", "4", "5"}
        groups = {name: row[name] for name in ("easy", "hard", "all")} | row["levels"]
        for group in groups.values():
            low, high = group["ci95"]
            assert type(group["accuracy"]) is float and 0 <= low <= group["accuracy"] + 1e-9 and high <= 1
            assert group["accuracy"] <= high + 1e-9
        assert [groups[name]["problems"] for name in ("easy", "hard", "all", "1", "4")] == [6, 6, 12, 2, 3]
        mean = (row["easy"]["accuracy"] + row["hard"]["accuracy"]) / 2
        assert row["all"]["accuracy"] == pytest.approx(mean, abs=2e-6)  # six decimals are written
    assert generators == {"sft", "full_sft", "rest_em", "dpo", "ppo", "ppo_outcome"}
    compared = {(row["generator"], row["minus"]) for row in results["compared"]}
    assert compared == {(name, "sft") for name in generators - {"sft"}} | {("ppo", "ppo_outcome")}
    assert methods >= {("greedy", None, None), ("majority", None, None), ("pass", None, None)}
    for evaluator in EVALUATORS:
        for aggregation in AGGREGATIONS:
            assert {("weighted", evaluator, aggregation), ("best_of_n", evaluator, aggregation)} <= methods


def test_the_published_files_are_those_of_the_last_stage(finished):
    for name in ("results.json", "table.md", "curves.png"):
        assert (finished / name).read_bytes() == (finished / "evaluate" / name).read_bytes()
    assert (finished / "report.html").stat().st_size > 100_000
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (finished / "table.md").read_text()
    assert all(word in table for word in ("majority", "prm", "orm", "oprm", "pass"))


def test_every_sample_is_judged_by_every_evaluator(finished):
    problems = {problem["id"] for problem in read_many(finished / "data/test.jsonl", "problem")}
    keys = {(r["problem_id"], r["sample"]) for r in read_many(finished / "samples", "sample")}
    assert keys == {(problem, index) for problem in problems for index in range(4)} and len(problems) == 12
    for name in EVALUATORS:
        assert {(r["problem_id"], r["sample"]) for r in read_many(finished / f"score_{name}", "scored")} == keys
        assert read_many(finished / f"labels/{name}.jsonl", "labelled")
    assert len(read_many(finished / "greedy", "sample")) == 12


def written(value, names):
    """Adds the names of all numbers in a JSON document to `names`; not those that a config has given."""
    given = ("seconds", "graded", "levels", "subjects", "metrics")
    for name, below in value.items() if isinstance(value, dict) else ():
        names.add(name)
        for entry in below.values() if name in given and isinstance(below, dict) else [below]:
            written(entry, names)
    for entry in value if isinstance(value, list) else ():
        written(entry, names)


def test_every_number_is_defined_on_its_page(finished, metric_names):
    names = set()
    for path in finished.rglob("metrics.jsonl"):
        for line in path.read_text().splitlines():
            written(json.loads(line), names)
    for path in finished.glob("*/done.json"):
        written(json.loads(path.read_text())["metrics"], names)
    written(json.loads((finished / "results.json").read_text()), names)
    patterns = [re.sub(r"<\w+>", r"[\\w.]+", re.escape(name)) for name in metric_names]
    assert len(names) > 80
    assert [name for name in sorted(names) if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def test_the_figures_of_the_pages_are_drawn_from_a_run(finished, tmp_path, monkeypatch):
    figures = runpy.run_path("docs/figures.py")
    monkeypatch.setitem(figures["main"].__globals__, "IMAGES", tmp_path)
    figures["main"](finished)
    drawn = {path.name for path in tmp_path.iterdir()}
    made_otherwise = {"report.png"}
    assert drawn == {path.name for path in Path("docs/images").glob("*.png")} - made_otherwise


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent != folder}


def test_running_again_skips_everything(finished, capsys):
    before = contents(finished)
    stages = json.loads((finished / "config.json").read_text())["config"]["stages"]
    assert e2h(finished) == 0
    out = capsys.readouterr().out
    assert out.count("is done already, skipped") + out.count("skipped (to run") >= len(stages)
    assert contents(finished) == before


def test_another_config_is_refused_with_the_difference_shown(finished, capsys):
    before = contents(finished)
    assert e2h(finished, "samples.temperature=0.9") == 2
    assert "temperature: 0.8 -> 0.9" in capsys.readouterr().err
    assert e2h(finished, "samples.temprature=0.9") == 2
    assert 'did you mean "config.samples.temperature"' in capsys.readouterr().err
    assert contents(finished) == before


def test_a_score_stage_that_lost_half_its_work_makes_it_again_bit_for_bit(finished, capsys):
    folder = finished / "score_prm"
    (shard,) = folder.glob("scored-*.jsonl")
    whole, results = shard.read_bytes().splitlines(keepends=True), json.loads((finished / "results.json").read_text())
    shard.write_bytes(b"".join(whole[: len(whole) // 2]) + whole[-1][:9])
    (folder / "done.json").unlink()

    # What was made from the old scores is refused first.
    assert e2h(finished) == 2
    assert '"evaluate" was made from an earlier run of "score_prm"' in capsys.readouterr().err
    shutil.rmtree(finished / "evaluate")
    assert e2h(finished) == 0
    assert sorted(shard.read_bytes().splitlines(keepends=True)) == sorted(whole)
    again = json.loads((finished / "results.json").read_text())
    assert again["rows"] == results["rows"] and again["paired"] == results["paired"]
