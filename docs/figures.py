"""Draws the figures of the pages from a finished quickstart.

    bash launch/quickstart.sh --config.seed=43
    python docs/figures.py runs/quickstart

Writes docs/images/*.png. Needs what the project installs, and no JAX.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from e2h_jax.data.records import json_lines, read_many
from e2h_jax.data.templates import get_template
from e2h_jax.evaluation.voting import aggregate
from e2h_jax.grading import is_equal

IMAGES = Path(__file__).parent / "images"
# Okabe and Ito's colours, as in curves.png: they differ in lightness too.
BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#666666"
EVALUATORS = {"prm": BLUE, "orm": ORANGE, "oprm": GREEN}
GROUPS = {"easy": SKY, "hard": BLUE}


def panels(count: int, height: float = 3.2) -> tuple[Figure, Sequence[Any]]:
    """A figure with `count` panels side by side."""
    figure = Figure(figsize=(3.6 * count + 0.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.png", dpi=110, metadata={"Software": None})


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl, in order."""
    return [line for _, line in json_lines(folder / "metrics.jsonl")]


def draw(panel: Any, lines: Sequence[Mapping], name: str, **style: Any) -> None:
    """One metric over the steps at which it was logged."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    panel.plot(*zip(*points, strict=True), **style)


def result(run: Path) -> None:
    """What the whole is for: the README's picture."""
    results = json.loads((run / "results.json").read_text())
    figure, (left, right) = panels(2, 3.6)
    wanted = {
        ("pass", None, None): ("any right (pass@N)", GREY, ":"),
        ("weighted", "prm", "prod"): ("weighted voting, PRM", BLUE, "-"),
        ("weighted", "oprm", "prod"): ("weighted voting, OPRM", GREEN, "-"),
        ("weighted", "orm", "prod"): ("weighted voting, ORM", ORANGE, "-"),
        ("majority", None, None): ("majority voting", GREY, "--"),
    }
    for key, (label, color, style) in wanted.items():
        rows = [r for r in results["rows"] if (r["decoding"], r["evaluator"], r["aggregation"]) == key]
        sizes = [row["n"] for row in rows]
        left.plot(sizes, [100 * row["hard"]["accuracy"] for row in rows], color=color, linestyle=style, label=label)
        low, high = np.transpose([row["hard"]["ci95"] for row in rows]) * 100
        left.fill_between(sizes, low, high, color=color, alpha=0.12, linewidth=0)
    left.set_xscale("log", base=2, subs=())
    left.set_xticks(sizes, map(str, sizes))
    left.set(xlabel="solutions sampled per problem", ylabel="accuracy on hard problems (%)", ylim=(0, 100), title="Re-ranked")
    left.legend(fontsize=8, frameon=False, loc="lower right")

    names = {"sft": "SFT", "full_sft": "SFT, hard\ntoo", "rest_em": "ReST-EM", "dpo": "DPO", "ppo": "PPO"}
    greedy = {row["generator"]: row["hard"] for row in results["rows"] if row["decoding"] == "greedy"}
    heights = [100 * greedy[name]["accuracy"] for name in names]
    errors = np.abs(np.transpose([greedy[name]["ci95"] for name in names]) * 100 - heights)
    colors = [GREY, "#AAAAAA", BLUE, BLUE, BLUE]
    bars = right.bar(list(names.values()), heights, yerr=errors, color=colors, capsize=3, ecolor="#333333")
    right.bar_label(bars, [f"{height:.1f}" for height in heights], label_type="center", color="white")
    right.tick_params(axis="x", labelsize=8)
    right.set(ylim=(0, 104), title="Learnt from the PRM: greedy")
    save(figure, "result")


def scores(run: Path) -> None:
    """How the PRM, which saw labels of easy problems alone, scores solutions of easy and of hard ones."""
    problems = {problem["id"]: problem for problem in read_many(run / "data/test.jsonl", "problem")}
    records, extract = read_many(run / "score_prm", "scored"), get_template("e2h").extract_answer
    answers = [(extract(record["text"]), problems[record["problem_id"]]["answer"]) for record in records]
    same = {pair: pair[0] is not None and is_equal(*pair) for pair in set(answers)}
    right = np.array([same[pair] for pair in answers])
    hard = np.array([problems[record["problem_id"]]["level"] > 3 for record in records])
    values = aggregate([record["step_scores"] for record in records], "prod")
    figure, axes = panels(2)
    for panel, group, name in zip(axes, (~hard, hard), ("Easy (levels 1 to 3)", "Hard (levels 4 and 5)"), strict=True):
        bins = np.linspace(0, 1, 31)
        for which, color, label in ((group & right, GREEN, "right answer"), (group & ~right, ORANGE, "wrong answer")):
            panel.hist(values[which], bins, color=color, alpha=0.6, label=f"{label}: {which.sum():,}")
        panel.set_yscale("log")
        panel.set(title=name, xlabel="PRM's score of a solution (prod)")
        panel.legend(fontsize=8, frameon=False, loc="upper center")
    axes[0].set_ylabel("solutions")
    save(figure, "scores")


def sft(run: Path) -> None:
    figure, (base, tuned) = panels(2)
    for panel, name, title in ((base, "base", "Base model: pre-training"), (tuned, "sft", "Generator: 100 solutions")):
        lines = metrics(run / name)
        draw(panel, lines, "loss", color=BLUE, label="loss")
        draw(panel, lines, "token_accuracy", color=ORANGE, label="token_accuracy")
        panel.set(title=title, xlabel="step", ylim=(0, None))
        panel.legend(frameon=False)
    save(figure, "sft")


def reward_models(run: Path) -> None:
    figure, (loss, accuracy) = panels(2)
    for evaluator, color in EVALUATORS.items():
        lines = metrics(run / evaluator)
        for panel, name in ((loss, "label_loss"), (accuracy, "label_accuracy")):
            draw(panel, lines, name, color=color, alpha=0.25, linewidth=0.8)
            width = min(9, len(lines))
            means = np.convolve([line[name] for line in lines], np.ones(width) / width, mode="valid")
            steps = [line["step"] for line in lines[width // 2 :][: len(means)]]
            panel.plot(steps, means, color=color, label=evaluator.upper())
    loss.set(title="label_loss", xlabel="step", ylim=(0, None))
    accuracy.set(title="label_accuracy", xlabel="step")
    accuracy.legend(frameon=False)
    save(figure, "reward_models")


def validation(panel: Any, lines: Sequence[Mapping], separator: str, unit: str) -> None:
    """Greedy validation accuracy over rounds or steps."""
    for group, color in GROUPS.items():
        draw(panel, lines, f"validation{separator}{group}", color=color, marker="o", label=group)
    steps = [line["step"] for line in lines if f"validation{separator}all" in line]
    panel.set_xticks(steps)
    panel.set(title="validation accuracy, greedy", xlabel=unit, ylim=(0, 1.03))
    panel.legend(frameon=False, loc="lower right")


def rest_em(run: Path) -> None:
    lines = metrics(run / "rest_em")
    figure, (left, right) = panels(2)
    validation(left, lines, "_", "round")
    rounds = [line for line in lines if line["step"]]
    levels = [name for name in rounds[0] if name.startswith("kept_level_")]
    for offset, line in enumerate(rounds):
        where = np.arange(len(levels)) + 0.4 * offset - 0.2
        right.bar(where, [line[name] for name in levels], 0.38, color=(SKY, BLUE)[offset % 2], label=f"round {line['step']}")
    right.set_xticks(range(len(levels)), [name.removeprefix("kept_level_") for name in levels])
    right.set(title="kept_level_…: solutions kept", xlabel="level", ylim=(0, 470))
    right.legend(frameon=False, loc="upper center", ncols=2)
    save(figure, "rest_em")


def dpo(run: Path) -> None:
    rounds = metrics(run / "dpo")
    figure, (left, middle, right) = panels(3)
    validation(left, rounds, "_", "round")
    for number, style in zip(range(1, len(rounds)), ("-", "--", ":", "-."), strict=False):
        lines = metrics(run / f"dpo/round-{number}/train")
        draw(middle, lines, "chosen_reward", color=GREEN, linestyle=style, label=f"chosen_reward, round {number}")
        draw(middle, lines, "rejected_reward", color=ORANGE, linestyle=style, label=f"rejected_reward, round {number}")
        draw(right, lines, "accuracy", color=BLUE, linestyle=style, label=f"accuracy, round {number}")
        draw(right, lines, "chosen_nll", color=PINK, linestyle=style, label=f"chosen_nll, round {number}")
    for panel, title in ((middle, "implicit rewards"), (right, "pairs ordered rightly, and NLL")):
        panel.set(title=title, xlabel="step")
        panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)  # off the lines
    save(figure, "dpo")


def ppo(run: Path) -> None:
    lines = metrics(run / "ppo")
    figure, (left, middle, right) = panels(3)
    validation(left, lines, "/", "step")
    for name, color in (("process", BLUE), ("outcome", GREEN), ("format", ORANGE)):
        draw(middle, lines, f"reward/{name}", color=color, marker=".", label=f"reward/{name}")
    draw(middle, lines, "reward", color="black", marker=".", label="reward, their sum")
    for name, color in (("kl", PINK), ("entropy", SKY), ("value_loss", GREY)):
        draw(right, lines, name, color=color, marker=".", label=name)
    for panel, title in ((middle, "rewards per solution"), (right, "distance and spread")):
        panel.set(title=title, xlabel="step")
        panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)  # off the lines
    save(figure, "ppo")


def main(run: Path) -> None:
    IMAGES.mkdir(exist_ok=True)
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        for figure in (result, scores, sft, reward_models, rest_em, dpo, ppo):
            figure(run)
    shutil.copyfile(run / "curves.png", IMAGES / "reranking.png")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "results.json").exists():
        sys.exit("python docs/figures.py FOLDER: the folder of a finished quickstart, with its results.json")
    main(Path(sys.argv[1]))
