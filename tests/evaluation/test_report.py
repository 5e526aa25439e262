"""`e2h show` from a workdir to the page's data and to the terminal, on a run small enough to work out by hand."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from report_run import HOSTILE
from rich.console import Console

from e2h_jax import main as command
from e2h_jax.data.storage import write_json, write_records
from e2h_jax.errors import UserError
from e2h_jax.evaluation import evaluate, paper
from e2h_jax.evaluation.report import curves, decisions, folders, gather, page, show, terminal
from e2h_jax.evaluation.report.judgement import distribution
from e2h_jax.evaluation.report.solutions import cut


@pytest.fixture(scope="session")
def report(run_folder):
    return show.write([run_folder])


def inflate(text, identity):
    (content,) = re.findall(rf'<script type="text/plain" id="{identity}">([^<]*)</script>', text)
    return gzip.decompress(base64.b64decode(content)).decode()


def part(path, identity):
    return json.loads(inflate(path.read_text(), identity))


def test_the_page_is_one_file_that_asks_for_nothing(report):
    text = report.read_text()
    assert report.name == "report.html"
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["']?(https?:|//|[\w/]+\.(js|css))""", text)
    assert not re.search(r"\{\{\w+\}\}", text.replace(HOSTILE, ""))
    assert "window.hacked" not in text  # texts are in the compressed parts alone


def test_one_script_may_run(report):
    """The policy knows the page's only script by its digest, and no font, picture or style comes from elsewhere."""
    text = report.read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    assert policy == f"default-src 'none'; {allowed}"
    # The script makes elements one by one: text is never parsed as markup, nor run.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|DOMParser|document\.write|eval\(|new Function", script)


def test_what_the_figures_are_drawn_from(report):
    core = part(report, "core")
    (evaluation,) = core["evaluations"]
    assert core["title"] == "tiny"
    assert evaluation["run"] == "tiny"
    assert evaluation["note"] == ""
    assert {row["n"] for row in evaluation["rows"] if row["generator"] == "sft"} == {1, 2, 4}
    weighted = [row["aggregation"] for row in evaluation["rows"] if row["n"] == 2 and row["decoding"] == "weighted"]
    assert weighted == ["prod", "prod", None]
    (curve,) = evaluation["paper"]
    assert (curve["evaluator"], curve["hard"]["weighted"][-1]) == ("prm", pytest.approx(24, abs=4))
    steps = next(j for j in evaluation["judged"] if (j["evaluator"], j["judged"], j["group"]) == ("prm", "steps", "all"))
    assert sum(steps["right"]) == sum(steps["wrong"]) == 12
    assert evaluation["drawn"] == {"samples": 4, "problems": 3}
    assert evaluation["shown"] == evaluation["drawn"] | {"listed": 3}


def test_the_index_tells_what_every_decision_came_to(report):
    index = part(report, "index-0")
    own = index["generators"]["sft"]
    decisions = {decision["key"]: decision for decision in own["decisions"]}
    assert own["right"] == [2, 1, 1]
    assert own["answers"][0] == [["5", 1, 2], ["6", 0, 1]]
    assert decisions["majority"]["totals"][0] == [2, 1]
    assert decisions["majority"]["accuracy"] == [1, 0, 0]
    # p/1: 8 has 0.1 + 0.1, 7 has 0.72. p/2: 11 has 0.81, 12 has 0.81 + 0.01.
    assert decisions["weighted prm"]["accuracy"] == [1, 1, 0]
    assert decisions["weighted prm"]["totals"][1] == [0.2, 0.72, 0.01]
    assert decisions["best_of_n prm"]["accuracy"] == [1, 1, 0.5]
    assert decisions["best_of_n prm"]["totals"][2] == [0.9, 0.9, 0]
    # The greedy solutions are the third samples; answers in other words than any sample's have no number.
    assert decisions["greedy"]["winner"] == [1, 1, 1]
    assert decisions["greedy"]["accuracy"] == [0, 1, 0]
    assert [d["key"] for d in index["generators"]["ppo"]["decisions"]] == ["greedy"]


def test_the_solutions_are_whole_and_cut_into_their_steps(report):
    details = part(report, "part-0-0")
    assert len(details) == 3
    right, _, _, unfinished = details[0]["generators"]["sft"]["samples"]
    assert right["t"] == [f"So: {HOSTILE}", "# Answer\n\n5"]
    assert (right["v"], right["a"], right["p"]) == (1, 0, -1.0)
    assert right["s"] == {"orm": [0.5, 0.5], "prm": [0.9, 0.9]}
    assert (right["m"], unfinished["m"], unfinished["l"], unfinished["a"]) == (1, 1, 1, -1)
    assert details[0]["generators"]["ppo"]["greedy"]["x"] == "6"


@pytest.mark.parametrize(
    ("text", "scores", "steps", "fits"),
    [
        ("a\n\nb\n\n# Answer\n\nc", 3, ["a", "b", "# Answer\n\nc"], True),
        ("a\n\nb\n\n# Answer\n\nc\n\nmore", 3, ["a", "b", "# Answer\n\nc\n\nmore"], True),
        ("a\n\nb", 3, ["a", "b"], True),  # no answer: its score is the third
        ("a\n\nso \\boxed{1}", 2, ["a", "so \\boxed{1}"], True),
        ("Step 1: a ки\nStep 2: b The answer is: 1 ки", 2, ["Step 1: a", "Step 2: b The answer is: 1"], True),
        ("First.\n\n1. a\n\nand\n\n2. b\n\n3) c", 3, ["First.\n\n1. a\n\nand", "2. b", "3) c"], True),
        ("a\n\nb\n\nc", 7, ["a", "b", "c"], False),
        ("a\n\nb", None, ["a", "b"], False),
        ("", 1, [], True),
        ("", None, [], False),
    ],
)
def test_a_solution_is_cut_so_that_its_scores_fit(text, scores, steps, fits):
    assert cut(text, scores) == (steps, fits)


def test_distribution_by_hand():
    scores, right = np.array([0.04, 0.52, 0.98, 1.0]), np.array([False, True, True, False])
    found = distribution(scores, right)
    assert found["right"] == [0] * 10 + [1] + [0] * 8 + [1]
    assert found["wrong"] == [1] + [0] * 18 + [1]
    assert found["reliability"] == [[0.04, 0, 1], [0.52, 1, 1], [0.99, 0.5, 2]]
    assert found["calibration_error"] == pytest.approx((0.04 + 0.48 + 2 * 0.49) / 4, abs=1e-4)


def test_training_curves(run_folder):
    (group,) = curves.training(folders.find([str(run_folder)]))
    (run,) = group["runs"]
    assert (group["title"], run["name"]) == ("PPO", "ppo")
    assert run["curves"]["loss"] == [[1, 2, 3, 4, 5], [1, 0.5, 0.33333, 0.25, 0.2]]
    assert run["curves"]["kl"][1] == [0.1, None, 0.1, 0.1, 0.1]
    assert run["curves"]["validation/hard"] == [[0], [0.25]]
    assert "unknown" not in run["curves"]


def test_lines_that_are_none_of_a_run_s_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n3\n{"loss": 4}\n{"step": 5, "loss": null}\n\n{"step": 6, "loss": 7}\n')
    assert curves.read_curves(path) == {"loss": [[1, 6], [2, 7]]}


def test_pre_training_is_apart_from_what_is_made_of_it(tmp_path):
    stages = {"base": "", "sft": "{run}/base/model"}
    write_json(tmp_path / "config.json", {"stage": "recipe", "config": {"stages": list(stages)}})
    for name, init in stages.items():
        write_json(tmp_path / name / "config.json", {"stage": "sft", "config": {"init": init}})
        write_records(tmp_path / name / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    groups = curves.training(folders.find([str(tmp_path)]))
    assert [(g["title"], [run["name"] for run in g["runs"]]) for g in groups] == [
        ("Pre-training", ["base"]),
        ("Supervised fine-tuning", ["sft"]),
    ]


def test_long_curves_are_thinned_and_a_torn_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": n % 2}) + "\n" for n in range(1, 1001)) + '{"step": 10')
    steps, values = curves.read_curves(path)["loss"]
    assert len(steps) == 334
    assert steps[:2] == [3, 6] and steps[-1] == 1000
    assert values[:2] == [0.66667, 0.33333]


def test_rounds_of_a_loop_have_their_training_apart(tmp_path):
    write_json(tmp_path / "config.json", {"stage": "dpo", "config": {}})
    write_records(tmp_path / "metrics.jsonl", [{"step": 1, "validation_hard": 0.5, "pairs": 4.0, "loss": 1.0}])
    write_records(tmp_path / "round-1" / "train" / "metrics.jsonl", [{"step": 1, "loss": 2.0, "margin": 0.1}])
    outer, inner = curves.training(folders.find([str(tmp_path)]))
    assert list(outer["runs"][0]["curves"]) == ["validation/hard", "pairs"]
    assert (inner["inside"], inner["runs"][0]["name"]) == (True, f"{tmp_path.name}, round 1")
    assert list(inner["runs"][0]["curves"]) == ["loss", "margin"]


@pytest.mark.parametrize(("limit", "samples", "problems"), [(750_000, 4, 3), (310_000, 1, 3)])
def test_a_page_that_would_be_too_large_leaves_samples_out_and_says_so(run_folder, limit, samples, problems):
    folder = next(folder for folder in folders.find([str(run_folder)]) if folder.stage == "evaluate")
    evaluation = gather.read(folder)
    noise = np.random.default_rng(0)
    for sample in (sample for generator in evaluation.generators for drawn in generator.samples for sample in drawn):
        sample["text"] = noise.bytes(20_000).hex()
    text = page.build("large", [evaluation], [], limit=limit)
    assert len(text) <= limit
    shown = json.loads(inflate(text, "core"))["evaluations"][0]["shown"]
    assert (shown["samples"], shown["problems"]) == (samples, problems)
    assert len(part_of(text, 0)[0]["generators"]["sft"]["samples"]) == samples


def test_a_list_of_problems_that_would_be_too_large_is_cut_and_says_so(run_folder):
    evaluation = gather.read(folders.find([str(run_folder)])[-1])
    noise = np.random.default_rng(0)
    evaluation.index["question"] = [noise.bytes(200_000).hex() for _ in evaluation.problems]
    text = page.build("large", [evaluation], [], limit=2_200_000)
    assert len(text) <= 2_200_000
    assert json.loads(inflate(text, "core"))["evaluations"][0]["shown"] == {"samples": 4, "problems": 2, "listed": 2}
    index = json.loads(inflate(text, "index-0"))
    assert index["id"] == ["p/0", "p/1"]
    assert {len(decision["winner"]) for decision in index["generators"]["sft"]["decisions"]} == {2}


def test_of_many_answers_the_winners_and_the_most_voted_are_kept(run_folder, monkeypatch):
    monkeypatch.setattr(decisions, "MOST", 1)
    evaluation = gather.read(folders.find([str(run_folder)])[-1])
    own = evaluation.index["generators"]["sft"]
    # p/1: 8 wins the majority, 7 the others; the answer with the markup is left out. p/0: 5 wins, 6 is the greedy one's.
    assert [answer[0] for answer in own["answers"][1]] == ["8", "7"]
    assert own["more"] == [0, 1, 1]
    weighted = next(decision for decision in own["decisions"] if decision["key"] == "weighted prm")
    assert (weighted["totals"][1], weighted["sums"][1], weighted["winner"][1]) == ([0.2, 0.72], 0.93, 1)
    last = evaluation.detail(1)["generators"]["sft"]["samples"][3]
    assert last["a"] == -1 and "hacked" in last["x"]


def part_of(text, number):
    return json.loads(inflate(text, f"part-0-{number}"))


def test_several_workdirs_and_one_that_lost_its_samples(run_folder, tmp_path):
    other = tmp_path / "tiny"
    shutil.copytree(run_folder, other)
    (other / "data" / "samples.jsonl").unlink()
    path = show.write([run_folder, other], tmp_path / "both.html")
    core = part(path, "core")
    runs = [evaluation["run"] for evaluation in core["evaluations"]]
    assert runs == [f"{run_folder.parent.name}/tiny", f"{tmp_path.name}/tiny"]
    assert core["evaluations"][1]["note"].startswith("The problems and their solutions are left out")
    assert [run["run"] for run in core["training"][0]["runs"]] == runs
    assert part(path, "index-1") == {}


def test_the_command(run_folder, tmp_path, capsys):
    assert command.main(["show", str(run_folder), f"--output={tmp_path}/r.html"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"{tmp_path}/r.html")
    assert command.main(["show", "--help"]) == 0
    assert "opens from disk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--workdir=DIR is missing"),
        (["--workdri=x"], 'there is no flag "--workdri=x" (did you mean "--workdir"?)'),
        (["--workdir={tmp}/none"], "none: there is no such folder"),
        (["{tmp}/none"], "none: there is no such folder"),
        (["{run}", "--workdir={run}"], "names the same folder twice"),
        (["--workdir="], "--workdir is empty"),
        (["{run}", "--output="], "--output is empty"),
        (["{run}", "--problem", " "], "--problem is empty"),
        (["--workdir={tmp}"], "no config.json in it"),
        (["--workdir={run}", "--workdir={run}"], "names the same folder twice"),
        (["--workdir={run}", "--problem=p/9"], 'there is no problem "p/9" (did you mean "p/2"?)'),
        (["--workdir={run}/ppo", "--problem=p/1"], "no finished evaluation in it"),
        (["--workdir={run}", "--output={tmp}/file/r.html"], "cannot be written"),
        (["--workdir={run}", "--samples=many"], "argument --samples: invalid int value: 'many'"),
        (["--workdir={run}", "--problem=p/1", "--samples=0"], "--samples=0 is too few"),
        (["--workdir={tmp}/model"], "model/config.json is no stage's"),
        (["--workdir={tmp}/begun"], "nothing to show yet; its training has not logged a line"),
        (["--workdir={tmp}/scores"], "compare its samples or scores by `e2h evaluate` first"),
        (["--workdir={tmp}/older"], "results.json is damaged or of another version"),
        (["--workdir={tmp}/lost", "--problem=p/1"], "The problems and their solutions are left out: "),
    ],
)
def test_mistakes_are_one_sentence(run_folder, tmp_path, capsys, arguments, sentence):
    (tmp_path / "file").write_text("")
    write_json(tmp_path / "model" / "config.json", {"model_type": "llama"})
    write_json(tmp_path / "begun" / "config.json", {"stage": "sft", "config": {"init": ""}})
    write_json(tmp_path / "scores" / "config.json", {"stage": "score", "config": {}})
    for name in ("older", "lost"):
        shutil.copytree(run_folder / "evaluate", tmp_path / name)
    write_json(tmp_path / "older" / "results.json", {"rows": [{"n": 1}]})
    assert command.main(["show", *(argument.format(run=run_folder, tmp=tmp_path) for argument in arguments)]) == 2
    assert sentence in capsys.readouterr().err


def test_solutions_that_have_changed_since_are_told(run_folder, tmp_path, capsys):
    """The tables are results.json's, the solutions are graded anew: undecided here and not there, say."""
    shutil.copytree(run_folder, tmp_path / "run")
    show.write([tmp_path / "run"])
    assert part(tmp_path / "run" / "report.html", "core")["evaluations"][0]["note"] == ""
    results = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())
    name = next(iter(results["graded"]))
    results["graded"][name]["undecided"] += 1
    write_json(tmp_path / "run" / "evaluate" / "results.json", results)
    show.write([tmp_path / "run"])
    note = part(tmp_path / "run" / "report.html", "core")["evaluations"][0]["note"]
    assert f"The solutions of {name} have changed since, or are graded differently now" in note


def test_a_workdir_with_nothing_in_it_yet(tmp_path):
    write_json(tmp_path / "config.json", {"stage": "prepare", "config": {}})
    with pytest.raises(UserError, match="nothing to show yet"):
        show.write([tmp_path])


def test_one_problem_in_the_terminal(run_folder):
    def printed(**console):
        out = io.StringIO()
        terminal.show_problem([str(run_folder)], "p/1", 3, Console(file=out, width=100, **console))
        return out.getvalue()

    text = printed()
    assert "\x1b[" not in text
    assert "Right answer: 7" in text
    assert re.search(r"majority voting +\*2 +1", text)
    assert re.search(r"weighted voting, prm +22% +\*77%", text)
    # By the prm's product, the best first; the scores stand in front of the steps.
    assert text.index("sft #2") < text.index("sft #0") < text.index("1 more; --samples=4 shows all.")
    assert re.search(r"0\.90 So: ", text)
    assert "\x1b[" in printed(force_terminal=True, color_system="256")


def test_a_solution_cannot_steer_the_terminal():
    assert terminal.printable("\x1b[31mred\x07 \ud800\r\tend\n") == "\ufffd[31mred\ufffd \ufffd\ufffd\tend\n"
    out = io.StringIO()
    Console(file=out, width=60).print(terminal.scored_step("a\x1b]0;title\x07b", 0.4))
    assert "a\ufffd]0;title\ufffdb" in out.getvalue() and "\x1b" not in out.getvalue()


def test_the_paper_s_curves():
    with pytest.raises(UserError, match=r'config.paper.prm: there is no curve "prm800k SFT-7b" \(did you mean'):
        paper.check({"prm": "prm800k SFT-7b"})
    config = ConfigDict(evaluate.defaults()).unlock()
    config.paper = ConfigDict({"prm": "x"})
    config.generators.sft = ConfigDict({"samples": "s"})
    with pytest.raises(UserError, match="config.paper.prm"):
        evaluate.run(config, "unused")
    (curve,) = paper.curves({"oprm": "prm800k SFT-34b + OPRM-34b"})
    assert len(curve["n"]) == len(curve["all"]["best_of_n"]) == 11
    assert "2403.09472" in curve["source"]


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
def test_the_pure_functions_of_the_page():
    script = r"""
    const assert = require("assert");
    const t = require(process.argv[1]);
    const tex = (x) => (x.display ? "D:" : "I:") + x.tex;
    const texts = (s) => t.segments(s).map((x) => x.text ?? (x.code !== undefined ? `<${x.code}>` : tex(x)));
    assert.deepEqual(texts("a $x^2$ b"), ["a ", "I:x^2", " b"]);
    assert.deepEqual(texts("\\[y\\] and \\(z\\) $$w$$"), ["D:y", " and ", "I:z", " ", "D:w"]);
    assert.deepEqual(texts("costs $5 and $6, \\$7"), ["costs $5 and $6, $7"]);
    assert.deepEqual(texts("a $5 and $x_1$"), ["a $5 and ", "I:x_1"]);
    assert.deepEqual(texts("[asy]draw(a);[/asy] <b>"), ["<draw(a);>", " <b>"]);
    assert.deepEqual(texts("$a\n\nb$"), ["$a\n\nb$"]);
    assert.equal(t.aggregated([0.5, 0.8], "prod"), 0.4);
    assert.equal(t.aggregated([0.5, 0.8], "min"), 0.5);
    assert.ok(Math.abs(t.aggregated([0.9, 0.9], "mean_logit") - 0.9) < 1e-9);
    assert.equal(t.aggregated([], "prod"), 0);
    assert.deepEqual(t.ticks(0, 1, 4), [0, 0.25, 0.5, 0.75, 1]);
    assert.equal(t.score(0.999), ">.99");
    assert.equal(t.short(12345), "12.3k");
    const index = { id: ["a/1", "a/2", "b/1"], question: ["one", "two <b>", "three"], answer: ["1", "2", "3"], level: [1, 5, 5],
      subject: ["x", null, "x"], generators: { g: { decisions: [
        { key: "majority", decoding: "majority", winner: [0, 0, 0], accuracy: [1, 0, 0.5] },
        { key: "weighted p", decoding: "weighted", winner: [0, 1, 0], accuracy: [1, 1, 0] }] } } };
    const all = { level: "", subject: "", search: "", generator: "g", decision: "weighted p", verdict: "any", change: "any" };
    const numbers = (wanted) => t.filtered(index, { ...all, ...wanted });
    assert.deepEqual(numbers({}), [0, 1, 2]);
    assert.deepEqual(numbers({ level: "5" }), [1, 2]);
    assert.deepEqual(numbers({ subject: "x" }), [0, 2]);
    assert.deepEqual(numbers({ search: "TWO <b" }), [1]);
    assert.deepEqual(numbers({ search: "a/ 1" }), [0]);
    assert.deepEqual(numbers({ verdict: "wrong" }), [2]);
    assert.deepEqual(numbers({ decision: "majority", verdict: "tied" }), [2]);
    assert.deepEqual(numbers({ change: "changed" }), [1]);
    assert.deepEqual(numbers({ change: "repaired" }), [1]);
    assert.deepEqual(numbers({ change: "broken" }), [2]);
    """
    path = Path(page.__file__).parent / "page" / "text.js"
    subprocess.run(["node", "-e", script, str(path)], check=True, timeout=60)
