"""One problem in the terminal: its votes, and its solutions with their steps coloured by score."""

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from e2h_jax.errors import UserError, nearest
from e2h_jax.evaluation.report import folders, gather
from e2h_jax.evaluation.voting import aggregate

_ANSWERS = 6  # columns of the table of votes: those that win, and those with most votes
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_MARKS = {0: ("✗ wrong", "dark_orange"), 1: ("✓ right", "dodger_blue1"), 2: ("? undecided", "grey50")}


def score_style(score: float) -> str:
    """The colour of a step: from orange (wrong) over none to blue (right), which the colour-blind can tell apart."""
    if score < 0.2:
        return "bold dark_orange"
    if score < 0.5:
        return "dark_orange"
    return "" if score < 0.8 else "dodger_blue1"


def printable(text: str) -> str:
    """A model's text without what would steer the terminal (escape sequences, say) or cannot be encoded."""
    return _CONTROL.sub("\ufffd", text)


def scored_step(text: str, score: float | None, note: str = "") -> Table:
    """One step with its score in front; without colours, the score alone tells."""
    row = Table.grid(padding=(0, 1))
    row.add_column(width=5, justify="right", no_wrap=True)
    row.add_column()
    style = "" if score is None else score_style(score)
    text = re.sub(r"\n\s*\n", "\n", printable(text))
    row.add_row(Text("" if score is None else f"{score:.2f}", style=style), Text(text, style=style).append(note, style="dim"))
    return row


def show_problem(workdirs: Sequence[str], problem_id: str, samples: int, console: Console | None = None) -> None:
    """Prints a problem of every evaluation that has it; of its samples the best so many.

    Raises:
      UserError: no evaluation has the problem, or its samples cannot be read.
    """
    console = console or Console()
    known: list[str] = []
    notes: list[str] = []
    found = [folder for folder in folders.find(workdirs) if folder.stage == "evaluate"]
    if not found:
        raise UserError(f"{workdirs[0]}: no finished evaluation in it, so there are no problems to show.")
    shown = False
    for folder in found:
        evaluation = gather.read(folder)
        notes += filter(None, [evaluation.summary["note"]])
        ids = evaluation.index.get("id", [])
        known += ids
        if problem_id in ids:
            console.print(_view(evaluation, ids.index(problem_id), samples))
            shown = True
    if not shown:
        if not known:
            raise UserError(notes[0])
        close = nearest(problem_id, known)
        raise UserError(f'--problem: there is no problem "{problem_id}"{close}; the first is "{known[0]}".')


def _view(evaluation: gather.Evaluation, number: int, samples: int) -> Group:
    index = evaluation.index
    facts = [f"level {index['level'][number]}" if index["level"][number] is not None else "", index["subject"][number] or ""]
    parts: list = [
        Text(f"{index['id'][number]}  ", style="bold").append("  ".join(filter(None, facts)), style="dim"),
        Padding(Text(printable(index["question"][number])), (1, 2)),
        Text.assemble("Right answer: ", (printable(str(index["answer"][number])), "bold")),
    ]
    details = evaluation.detail(number)
    for name, own in sorted(index["generators"].items(), key=lambda entry: not entry[1]["samples"]):  # first what was voted on
        solutions = details["generators"][name]
        if own["samples"]:
            parts += ["", _votes(own, number)]
        parts += _solutions(name, own, solutions, number, evaluation.summary["adopted"], samples)
    return Group(*parts)


def _votes(own: Mapping, number: int) -> Table:
    """A row for each way to decide; columns of the answers that win, and of those with most votes."""
    title = "Votes, shares of the weight, best scores; * wins"
    table = Table(box=box.SIMPLE, pad_edge=False, title=title, title_justify="left")
    table.add_column("decided by", no_wrap=True)
    answers = own["answers"][number]
    winners = {decision["winner"][number] for decision in own["decisions"]}
    shown = sorted(range(len(answers)), key=lambda i: (i not in winners, -answers[i][2]))[:_ANSWERS]
    shown.sort(key=lambda i: -answers[i][2])
    for i in shown:
        mark, style = _MARKS[int(answers[i][1] >= 0.5)]
        table.add_column(Text.assemble(printable(answers[i][0]), " ", (mark[0], style)), justify="right")
    for decision in own["decisions"]:
        if totals := decision["totals"] and decision["totals"][number]:
            whole = decision["sums"][number] or 1.0
            cells = [f"{totals[i] / whole:.0%}" if decision["decoding"] == "weighted" else f"{totals[i]:.3g}" for i in shown]
            stars = ["*" if decision["winner"][number] == i else "" for i in shown]
            table.add_row(Text(decision["label"]), *(star + cell for star, cell in zip(stars, cells, strict=True)))
    if more := len(answers) - len(shown) + own["more"][number]:
        table.caption, table.caption_justify = f"and {more} more answers with fewer votes", "left"
    return table


def _solutions(name: str, own: Mapping, solutions: Mapping, number: int, adopted: Mapping[str, str], samples: int) -> list:
    parts = []
    if (greedy := solutions["greedy"]) is not None:
        parts += ["", _heading(f"{name}, greedy", greedy, own, number, "")]
        parts += [scored_step(step, None) for step in greedy["t"]]
    evaluator = _best_evaluator(own)
    ranked = [(solution, float("nan")) for solution in solutions["samples"]]
    if evaluator:
        scores = aggregate([solution["s"][evaluator] for solution in solutions["samples"]], adopted["weighted"])
        ranked = sorted(zip(solutions["samples"], scores.tolist(), strict=True), key=lambda pair: -pair[1])
    for solution, total in ranked[:samples]:
        by = f"  {evaluator} {adopted['weighted']} {total:.3f}" if evaluator else ""
        parts += ["", _heading(f"{name} #{solution['n']}", solution, own, number, by)]
        matched = solution["s"][evaluator] if evaluator and "m" in solution else [None] * len(solution["t"])
        for position, step in enumerate(solution["t"]):
            by_others = [] if "m" not in solution else [(e, values) for e, values in solution["s"].items() if e != evaluator]
            note = ", ".join(f"{other} {values[position]:.2f}" for other, values in by_others)
            parts.append(scored_step(step, matched[position], f"   {note}" if note else ""))
    if len(ranked) > samples:
        parts.append(Text(f"\n{len(ranked) - samples} more; --samples={len(ranked)} shows all.", style="dim"))
    return parts


def _best_evaluator(own: Mapping) -> str | None:
    """The one whose weighted voting is right most often, over all problems; None without any."""
    right = {d["evaluator"]: sum(d["accuracy"]) for d in own["decisions"] if d["decoding"] == "weighted"}
    return max(own["evaluators"], key=right.__getitem__, default=None)


def _heading(title: str, solution: Mapping, own: Mapping, number: int, more: str) -> Text:
    mark, style = _MARKS[solution["v"]]
    answer = own["answers"][number][solution["a"]][0] if solution["a"] >= 0 else solution.get("x", "none")
    cut = "  cut off by length" if "l" in solution else ""
    return Text.assemble((title, "bold"), "  ", (mark, style), f"  answer {printable(answer)}", (more + cut, "dim"))
