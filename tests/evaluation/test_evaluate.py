"""The evaluate stage from files to files, on two generators small enough to work out by hand."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from e2h_jax import main
from e2h_jax.data.storage import write_json, write_records
from e2h_jax.errors import UserError
from e2h_jax.evaluation import evaluate, inputs
from e2h_jax.evaluation.voting import AGGREGATIONS

PROBLEMS = [
    {"id": "p/0", "question": "?", "answer": "5", "level": 1, "subject": "Algebra", "solution": None},
    {"id": "p/1", "question": "?", "answer": "7", "level": 5, "subject": "Geometry", "solution": None},
]
# Per problem four samples: answer (None: cut off before it), score of the first step, score of the answer, logprob.
SAMPLES = {
    "p/0": [("5", 0.9, 0.9, -1.0), ("5.0", 0.8, 0.9, -2.0), ("6", 0.5, 0.5, -3.0), (None, 0.1, 0.1, -4.0)],
    "p/1": [("8", 0.2, 0.5, -1.0), ("8", 0.5, 0.2, -1.0), ("7", 0.9, 0.8, -3.0), ("9", 0.9, 0.1, -4.0)],
}


def write_pool(folder):
    """Writes the records above, step labels, and the done.json of a stage."""
    samples, scored, labels = [], [], []
    for problem, rows in SAMPLES.items():
        for number, (answer, *scores, logprob) in enumerate(rows):
            text = "So:" if answer is None else f"So:\n\n# Answer\n\n{answer}"
            finish = "length" if answer is None else "stop"
            sample = {"problem_id": problem, "sample": number, "text": text, "finish": finish, "logprob": logprob}
            samples.append(sample)
            scored.append(sample | {"step_scores": scores})
            of = {"problem_id": problem, "sample": number, "question": "?", "prefix": "", "level": None}
            labels.append(of | {"steps": ["So:", "end"], "labels": [1.0, 0.0]})
    greedy = [row | {"sample": 0} for row in samples if row["sample"] == 2]
    write_records(folder / "problems.jsonl", PROBLEMS)
    write_records(folder / "samples-00000-of-00002.jsonl", samples[:3])
    write_records(folder / "samples-00001-of-00002.jsonl", samples[3:])
    write_records(folder / "scored.jsonl", scored)
    write_records(folder / "labelled.jsonl", labels)
    write_records(folder / "greedy.jsonl", greedy)
    write_json(folder / "run" / "prm" / "done.json", {"stage": "reward", "seconds": 12.5})


def make_config(folder):
    config = ConfigDict(evaluate.defaults()).unlock()
    config.problems = str(folder / "problems.jsonl")
    config.generators.sft = ConfigDict(
        {
            "samples": str(folder),
            "greedy": str(folder / "greedy.jsonl"),
            "scored": {"prm": str(folder / "scored.jsonl")},
        }
    )
    config.generators.base = ConfigDict({"greedy": str(folder / "greedy.jsonl")})
    config.labelled = str(folder / "labelled.jsonl")
    config.seconds_from = str(folder / "run")
    config.bootstrap = 200
    return config


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder)
    return folder


@pytest.fixture(scope="module")
def results(pool):
    evaluate.run(make_config(pool), pool / "out")
    return json.loads((pool / "out" / "results.json").read_text())


def accuracies(results, decoding, n, evaluator=None, aggregation=None, generator="sft"):
    """Accuracy on (p/0, p/1), which are the easy and the hard problem."""
    wanted = {
        "generator": generator,
        "decoding": decoding,
        "evaluator": evaluator,
        "aggregation": aggregation,
        "n": n,
    }
    (row,) = [row for row in results["rows"] if wanted.items() <= row.items()]
    assert row["levels"]["1"] == row["easy"]
    assert row["all"]["accuracy"] == pytest.approx((row["easy"]["accuracy"] + row["hard"]["accuracy"]) / 2, abs=1e-5)
    return row["easy"]["accuracy"], row["hard"]["accuracy"]


def test_methods_worked_by_hand(results):
    assert accuracies(results, "greedy", 1) == (0, 1)
    assert accuracies(results, "greedy", 1, generator="base") == (0, 1)
    assert accuracies(results, "pass", 1) == (0.5, 0.25)
    assert accuracies(results, "majority", 1) == (0.5, 0.25)
    assert accuracies(results, "majority", 4) == (1, 0)
    assert accuracies(results, "pass", 4) == (1, 1)
    # Weights by prod, p/1: 8 has 0.1 + 0.1, 7 has 0.72.
    assert accuracies(results, "weighted", 4, "prm", "prod") == (1, 1)
    # By max: 8 has 0.5 + 0.5, 7 and 9 have 0.9.
    assert accuracies(results, "weighted", 4, "prm", "max") == (1, 0)
    assert accuracies(results, "best_of_n", 4, "prm", "min") == (1, 1)
    assert accuracies(results, "best_of_n", 4, "prm", "max") == (1, 0.5)
    # The likelihood control: twice exp(-1) for 8 against exp(-3) for 7.
    assert accuracies(results, "weighted", 4, "likelihood") == (1, 0)
    assert accuracies(results, "best_of_n", 4, "likelihood") == (1, 0)
    # p/0 with two samples: {5, 5.0}, {5, 6} twice tied, {5, -} twice, {6, -}: (1 + 2/2 + 2) / 6.
    # p/1: {8, 8}, {8, 7} and {8, 9} twice, {7, 9}: three pairs hold the 7, tied.
    assert accuracies(results, "majority", 2) == (pytest.approx(4 / 6, abs=1e-6), 0.25)


def test_every_method_is_there_at_every_size(results):
    sft = [row for row in results["rows"] if row["generator"] == "sft"]
    assert {row["n"] for row in sft} == {1, 2, 4}
    assert len(sft) == 1 + 3 * (1 + 7 + 1 + 7 + 1 + 1)
    assert {row["decoding"] for row in results["rows"]} == {"greedy", "majority", "weighted", "best_of_n", "pass"}


def test_paired_differences(results):
    (row,) = [
        row
        for row in results["paired"]
        if (row["decoding"], row["aggregation"], row["n"], row["evaluator"]) == ("weighted", "prod", 4, "prm")
    ]
    assert row["minus"] == "majority"
    assert row["hard"] == {"difference": 1, "ci95": [1, 1], "problems": 1}
    assert row["easy"]["difference"] == 0
    assert row["all"]["ci95"] == [0, 1]


def test_quality_counts_seconds_and_subjects(results):
    prm, control = results["quality"]
    assert (prm["evaluator"], control["evaluator"]) == ("prm", "likelihood")
    assert prm["outcome"]["all"]["samples"] == 8
    assert prm["outcome"]["all"]["right"] == 3
    assert prm["outcome"]["hard"]["last"] == {
        "auc": 1,
        "auc_within": 1,
        "auc_problems": 1,
        "accuracy": 0.75,
        "balanced_accuracy": round((1 + 2 / 3) / 2, 6),
    }
    assert prm["steps"]["all"]["steps"] == 16
    assert control["steps"] is None
    assert results["undecided"] == 0
    found = {"boxed": 0, "section": 9, "sentence": 0}
    assert results["graded"]["sft"] == {"graded": 10, "undecided": 0, "no_answer": 1, "unfinished": 1, "found_by": found}
    assert results["seconds"] == {"prm": 12.5}
    assert results["subjects"][0]["subjects"]["Geometry"]["accuracy"] == 1


def test_the_files_to_read(pool, results, capsys):
    summary = evaluate.run(make_config(pool), pool / "again")
    printed = capsys.readouterr().out
    assert "weighted, prm" in printed
    assert "10 solutions graded, 1 without an answer, 1 cut off by length" in printed
    assert "Answers found by: boxed 0, section 9, sentence 0." in " ".join(printed.split())
    assert summary["hard/sft/weighted_prm@4"] == 100
    assert summary["hard/sft/greedy@1"] == 100
    table = (pool / "out" / "table.md").read_text()
    assert "| sft | 4 | weighted voting, prm (prod) | 100.0 [100.0, 100.0] |" in table
    assert "+100.0 [+100.0, +100.0]" in table
    # By log-probability p/0 has 4 of 4 pairs in order, p/1 1 of 3; together 9 ½ of 15.
    control = "| sft | likelihood | solutions, log-probability | 1.000 (1.000) | – | 0.333 (0.333) | – | 0.633 (0.667) | – |"
    assert control in table
    assert (pool / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (pool / "again" / "results.json").read_bytes() == (pool / "out" / "results.json").read_bytes()
    lines = [json.loads(line) for line in (pool / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4]  # N
    assert (lines[0]["hard/base/greedy"], lines[0]["easy/sft/majority"], lines[2]["easy/sft/majority"]) == (1, 0.5, 1)
    assert lines[2]["hard/sft/weighted_prm"] == 1 and "hard/sft/greedy" not in lines[2]


def test_a_group_without_problems_is_null_and_nan_appears_nowhere(pool, tmp_path):
    write_records(tmp_path / "problems.jsonl", PROBLEMS[:1])
    config = make_config(pool)
    config.problems = str(tmp_path / "problems.jsonl")
    config.labelled = ""
    summary = evaluate.run(config, tmp_path)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    row = json.loads(text)["rows"][0]
    assert row["hard"] == {"accuracy": None, "ci95": None, "problems": 0}
    assert summary["all/sft/majority@4"] == 100
    assert "hard/sft/majority" not in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert not any(isinstance(value, float) and math.isnan(value) for value in summary.values())


def test_fewer_samples_and_no_scores(pool, tmp_path):
    config = make_config(pool)
    config.labelled = ""
    config.max_samples = 3
    config.generators.sft = ConfigDict({"samples": str(pool)})
    evaluate.run(config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["n"] for row in results["rows"] if row["generator"] == "sft"} == {1, 2, 3}
    assert accuracies(results, "majority", 3) == (1, 0)


def broken(pool, tmp_path, case):
    """Returns a config with one thing wrong."""
    config = make_config(pool)
    lines = (pool / "scored.jsonl").read_text().splitlines(keepends=True)
    match case:
        case "no problems":
            config.problems = ""
        case "no answer":
            write_records(tmp_path / "p.jsonl", [PROBLEMS[0] | {"answer": None}])
            config.problems = str(tmp_path / "p.jsonl")
        case "hidden answers":
            hidden = [{"id": f"h/{n}", "answer": answer} for n, answer in enumerate(("unavailable", " Unavailable"))]
            write_records(tmp_path / "p.jsonl", [PROBLEMS[0], *(PROBLEMS[1] | fields for fields in hidden)])
            config.problems = str(tmp_path / "p.jsonl")
        case "no generator":
            config.generators = ConfigDict()
        case "nothing given":
            config.generators.sft = ConfigDict({"scored": {}})
        case "misspelt":
            config.generators.sft = ConfigDict({"sample": "x"})
        case "a path":
            del config.generators.sft
            config.generators.sft = str(pool)
        case "scores without evaluator":
            config.generators.sft = ConfigDict({"samples": str(pool), "scored": str(pool)})
        case "no path":
            config.generators.sft = ConfigDict({"samples": 3})
        case "template":
            config.generators.sft.template = "math_shepard"
        case "name of the control":
            config.generators.sft.scored.likelihood = str(pool / "scored.jsonl")
        case "missing scores":
            (tmp_path / "s.jsonl").write_text("".join(lines[:5]))
            config.generators.sft.scored.prm = str(tmp_path / "s.jsonl")
        case "other text":
            (tmp_path / "s.jsonl").write_text("".join(lines).replace("So:", "Thus:"))
            config.generators.sft.scored.prm = str(tmp_path / "s.jsonl")
        case "missing samples":
            samples = (pool / "samples-00001-of-00002.jsonl").read_text() + "".join(lines[:1])
            (tmp_path / "few.jsonl").write_text(samples)
            config.generators.sft.samples = str(tmp_path / "few.jsonl")
        case "samples of others" | "scores of others":
            which = "samples" if case == "samples of others" else "scored"
            text = "".join(lines).replace("p/", "q/")
            (tmp_path / "others.jsonl").write_text(text)
            if which == "samples":
                config.generators.sft.samples = str(tmp_path / "others.jsonl")
            else:
                config.generators.sft.scored.prm = str(tmp_path / "others.jsonl")
        case "labels twice" | "labels of a number":
            rows = [json.loads(line) for line in (pool / "labelled.jsonl").read_text().splitlines()]
            rows = [*rows, rows[1]] if case == "labels twice" else [rows[0] | {"generator": [1]}]
            write_records(tmp_path / "l.jsonl", rows)
            config.labelled = str(tmp_path / "l.jsonl")
        case "share":
            config.max_no_answer = 20
        case "scores without samples":
            config.generators.sft.samples = ""
        case "aggregation":
            config.aggregations = ("prod", "min", "meen")
        case "headline":
            config.aggregations = ("prod", "last")
        case "levels":
            config.hard_levels = (3, 4, 5)
        case "labels":
            write_records(tmp_path / "l.jsonl", [{"question": "?", "prefix": "", "steps": ["a"], "labels": [1]}])
            config.labelled = str(tmp_path / "l.jsonl")
        case "labels of others":
            text = (pool / "labelled.jsonl").read_text().replace("p/", "q/")
            (tmp_path / "l.jsonl").write_text(text)
            config.labelled = str(tmp_path / "l.jsonl")
        case "seconds":
            (tmp_path / "prm").mkdir()
            (tmp_path / "prm" / "done.json").write_text("{}")
            config.seconds_from = str(tmp_path)
        case "bootstrap":
            config.bootstrap = 0
    return config


def test_any_names_from_the_command_line_alone(pool, tmp_path, capsys):
    problems, samples = f"--config.problems={pool / 'problems.jsonl'}", f"--config.generators.mine.samples={pool}"
    scores = [f"--config.generators.mine.scored.{name}={pool / 'scored.jsonl'}" for name in ("rm", "my-judge")]
    base = ["evaluate", problems, "--config.bootstrap=100"]
    assert main.main([*base, samples, f"--workdir={tmp_path / 'unscored'}"]) == 0
    rows = json.loads((tmp_path / "unscored" / "results.json").read_text())["rows"]
    assert {(row["generator"], row["evaluator"]) for row in rows} == {("mine", None), ("mine", "likelihood")}
    assert main.main([*base, samples, *scores, f"--workdir={tmp_path / 'scored'}"]) == 0
    rows = json.loads((tmp_path / "scored" / "results.json").read_text())["rows"]
    assert {row["evaluator"] for row in rows} == {None, "likelihood", "rm", "my-judge"}
    # With a config file, whose evaluator is left empty.
    file = f"--config={Path(__file__).parents[2] / 'configs' / 'compare.py'}"
    assert main.main([*base, file, samples, scores[0], f"--workdir={tmp_path / 'file'}"]) == 0
    rows = json.loads((tmp_path / "file" / "results.json").read_text())["rows"]
    assert {row["evaluator"] for row in rows} == {None, "likelihood", "rm"}
    # By a rule: the eight texts' last numbers.
    rule = "--config.generators.mine.answer=last_number"
    assert main.main([*base, samples, scores[0], rule, f"--workdir={tmp_path / 'rule'}"]) == 0
    counts = json.loads((tmp_path / "rule" / "results.json").read_text())["graded"]["mine"]
    assert counts["graded"] == 8 and "found_by" not in counts
    expression = r"--config.generators.mine.answer=Answer\s+(\S+)"
    assert main.main([*base, samples, expression, f"--workdir={tmp_path / 'expression'}"]) == 0
    of_rule, of_expression = (
        json.loads((tmp_path / name / "results.json").read_text())["rows"][0]["all"] for name in ("unscored", "expression")
    )
    assert of_rule == of_expression
    capsys.readouterr()
    assert main.main([*base, samples, rule.replace("r=l", "r=L"), f"--workdir={tmp_path / 'no'}"]) == 2
    told = capsys.readouterr().err
    assert 'config.generators.mine.answer: there is no rule "Last_number" (did you mean "last_number"?)' in told
    assert main.main([*base, f"--config.generators.mine.sample={pool}", f"--workdir={tmp_path / 'no'}"]) == 2
    assert 'config.generators.mine.sample: no such field (did you mean "samples"?)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no problems", '"config.problems" is empty'),
        ("no answer", 'p.jsonl: 1 of 1 problems have no answer to grade against (first: "p/0")'),
        ("hidden answers", 'p.jsonl: 2 of 3 problems have no answer to grade against (first: "h/0")'),
        ("no generator", "config.generators is empty"),
        ("nothing given", "config.generators.sft: neither samples nor greedy is given"),
        ("misspelt", 'config.generators.sft.sample: no such field (did you mean "samples"?)'),
        ("a path", "config.generators.sft must be a group of the fields samples, greedy, scored, template, answer, not"),
        ("scores without evaluator", "config.generators.sft.scored must name an evaluator for its file"),
        ("no path", "config.generators.sft.samples must hold paths as texts, not 3"),
        ("template", 'config.generators.sft.template: there is no template "math_shepard" (did you mean "math_shepherd"?)'),
        ("name of the control", 'config.generators.sft.scored: "likelihood" is the name of the control'),
        ("missing scores", 's.jsonl: 3 of 8 samples of {pool} have no scores (first: problem "p/1", sample 1)'),
        ("other text", 's.jsonl: problem "p/0", sample 0 was scored for another text'),
        (
            "missing samples",
            'few.jsonl: 1 of 2 problems have fewer than 4 samples ("p/0" has 2); finish sampling, or set',
        ),
        ("samples of others", 'others.jsonl: no problem_id of its 8 records is the id of a problem (the first is "q/0"'),
        ("scores of others", 'others.jsonl: no problem_id of its 8 records is the id of a problem (the first is "q/0"'),
        ("labels twice", 'l.jsonl: record 9 repeats problem "p/0", sample 1; remove one of them'),
        ("labels of a number", 'l.jsonl: record 1: field "generator" must be text, not [1]'),
        ("share", "config.max_no_answer=20.0 is a share from 0 to 1"),
        ("scores without samples", "config.generators.sft.scored: scores without their samples"),
        ("aggregation", 'config.aggregations: there is no aggregation "meen" (did you mean "mean"?)'),
        ("headline", 'config.headline.best_of_n: "min" is not among config.aggregations'),
        ("levels", "config.easy_levels and config.hard_levels share [3]"),
        ("labels", "l.jsonl: record 1 does not say which sample its labels are of"),
        ("labels of others", "l.jsonl: no labels for any sample that was scored"),
        ("seconds", 'done.json: no number in the field "seconds"'),
        ("bootstrap", "config.bootstrap is 0"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_graded(pool, tmp_path, case, sentence, monkeypatch):
    monkeypatch.setattr(inputs, "grade", None)  # called, it is a TypeError
    with pytest.raises(UserError) as caught:
        evaluate.run(broken(pool, tmp_path, case), tmp_path / "out")
    assert sentence.format(pool=pool) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_labels_need_their_generator_when_several_have_scores(pool, tmp_path):
    config = make_config(pool)
    config.generators.other = config.generators.sft.copy_and_resolve_references()
    with pytest.raises(UserError, match='needs a field "generator", one of other, sft'):
        evaluate.run(config, tmp_path)
    rows = [json.loads(line) | {"generator": "sft"} for line in (pool / "labelled.jsonl").read_text().splitlines()]
    write_records(tmp_path / "labelled.jsonl", rows)
    config.labelled = str(tmp_path / "labelled.jsonl")
    evaluate.run(config, tmp_path)
    quality = json.loads((tmp_path / "results.json").read_text())["quality"]
    with_steps = {row["generator"]: row["steps"] is not None for row in quality if row["evaluator"] == "prm"}
    assert with_steps == {"sft": True, "other": False}


def test_many_solutions_without_an_answer_are_told(pool, tmp_path, capfd):
    """One of sft's eight samples has none, and no greedy solution."""
    config = make_config(pool)
    evaluate.run(config, tmp_path / "quiet")
    assert "no recognised answer" not in capfd.readouterr().err
    config.max_no_answer = 0.12
    evaluate.run(config, tmp_path / "told")
    told = "e2h: config.generators.sft.samples: 1 of 8 solutions have no recognised answer (12.5%, more than 12%); they end, "
    assert capfd.readouterr().err.count("no recognised answer") == 1
    evaluate.run(config, tmp_path / "again")
    assert told + 'for example, "So:". Each counts as wrong.\n' in capfd.readouterr().err
    config.max_no_answer = 0.125  # a share, not more
    evaluate.run(config, tmp_path / "just")
    assert "no recognised answer" not in capfd.readouterr().err


def test_evaluation_imports_without_jax():
    code = "import sys; sys.modules['jax'] = None; import e2h_jax.evaluation.evaluate"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_defaults_aggregate_in_every_way():
    assert evaluate.defaults().aggregations == AGGREGATIONS
