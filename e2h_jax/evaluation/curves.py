"""Accuracy against the number of samples, in the style of the paper's figures 4 and 5."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from e2h_jax.evaluation.inputs import LIKELIHOOD
from e2h_jax.evaluation.tables import headline_at_all_sizes, shown_groups

# Colours that differ in lightness too (Okabe and Ito), so that they survive print and colour blindness.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def draw_curves(rows: Sequence[Mapping], adopted: Mapping[str, str], path: Path) -> bool:
    """Writes the figure, one row per generator with two or more samples, of a panel for easy, hard and all problems where
    there are such; returns False when there is no row.

    Majority voting is the dashed grey line; each evaluator has a colour, solid for weighted voting and dotted for
    best-of-N; the light bands are the 95 % intervals over problems (paired differences are far narrower: see
    `table.md`).
    """
    shown = [row for row in headline_at_all_sizes(rows, adopted) if row["evaluator"] != LIKELIHOOD]
    names = list(dict.fromkeys(row["generator"] for row in rows if row["n"] > 1))
    if not names:
        return False
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        groups = shown_groups(rows[0])
        figure = Figure(figsize=(max(6, 13 * len(groups) / 3), 4.6 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(names), len(groups), squeeze=False)
        evaluators = list(dict.fromkeys(row["evaluator"] for row in shown if row["evaluator"]))
        colors = {name: _COLORS[position % len(_COLORS)] for position, name in enumerate(evaluators)}
        handles: dict[str, object] = {}
        for name, axes in zip(names, panels, strict=True):
            own = [row for row in shown if row["generator"] == name]
            for group, panel in zip(groups, axes, strict=True):
                _draw_panel(panel, own, group, colors, handles)
                count = own[0][group]["problems"]
                panel.set_title(f"{group.capitalize()} ({count} problems)" + (f", {name}" if len(names) > 1 else ""))
            axes[0].set_ylabel("accuracy (%)")
        columns = min(4, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
        figure.savefig(path, dpi=130)
    return True


def _draw_panel(
    panel, rows: Sequence[Mapping], group: str, colors: Mapping[str, str], handles: dict[str, object]
) -> None:
    lines: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if row["decoding"] not in ("pass", "greedy"):
            lines.setdefault((row["decoding"], row["evaluator"]), []).append(row)
    for (decoding, evaluator), points in lines.items():
        n = [point["n"] for point in points]
        accuracy = 100 * np.array([point[group]["accuracy"] for point in points])
        low, high = 100 * np.array([point[group]["ci95"] for point in points]).T
        majority = decoding == "majority"
        color = "0.45" if majority else colors[evaluator]
        style = "--" if majority else "-" if decoding == "weighted" else ":"
        marker = {"majority": "s", "weighted": "o", "best_of_n": "^"}[decoding]
        name = (
            "majority voting"
            if majority
            else f"{'weighted voting' if decoding == 'weighted' else 'best-of-N'}, {evaluator}"
        )
        panel.fill_between(n, low, high, color=color, alpha=0.07, linewidth=0)
        (handles[name],) = panel.plot(
            n, accuracy, style, color=color, marker=marker, markersize=4, linewidth=1.8, label=name
        )
    greedy = next((row for row in rows if row["decoding"] == "greedy"), None)
    if greedy is not None:
        value = 100 * greedy[group]["accuracy"]
        handles["greedy"] = panel.axhline(value, color="0.75", linestyle=(0, (1, 1)), linewidth=1.2, zorder=0)
    ticks = sorted({row["n"] for row in rows if row["decoding"] == "majority"})
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("N (samples per problem)")
    panel.grid(alpha=0.25, linewidth=0.6)
