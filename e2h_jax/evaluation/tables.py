"""The results as tables: Markdown for `table.md`, the headline for the terminal; all from what `results.json` holds."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from e2h_jax.evaluation.inputs import LIKELIHOOD

_GROUPS = ("easy", "hard", "all")


def shown_groups(row: Mapping) -> list[str]:
    """Returns which of easy, hard and all have problems: without levels, all alone."""
    return [group for group in _GROUPS if row[group]["problems"]]


def focus(row: Mapping) -> str:
    """Returns the group that decisions are compared on: hard, or all where no problem is hard."""
    return "hard" if row["hard"]["problems"] else "all"


def headline(rows: Sequence[Mapping], adopted: Mapping[str, str]) -> list[Mapping]:
    """Returns the rows to look at first: at each generator's largest N, re-ranking by the adopted aggregations."""
    largest: dict[str, int] = {}
    for row in rows:
        largest[row["generator"]] = max(row["n"], largest.get(row["generator"], 0))
    return [
        row
        for row in rows
        if row["decoding"] == "greedy"
        or (row["n"] == largest[row["generator"]] and row["aggregation"] in (None, adopted.get(row["decoding"])))
    ]


def label(row: Mapping) -> str:
    """Returns how a row is called: 'weighted voting, prm (prod)'."""
    n = row["n"]
    if row["evaluator"] is None:
        return {"greedy": "greedy", "majority": "majority voting", "pass": f"pass@{n} (any right)"}[row["decoding"]]
    by = row["evaluator"] + (f" ({row['aggregation']})" if row["aggregation"] else " (control)")
    return {"weighted": f"weighted voting, {by}", "best_of_n": f"best-of-{n}, {by}"}[row["decoding"]]


def interval(statistic: Mapping | None, name: str = "accuracy") -> str:
    """Returns a statistic in percent, '67.6 [61.8, 73.3]'; a difference with its sign, in points."""
    if statistic is None or statistic[name] is None:
        return "–"
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if name == "difference" else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(*(100 * value for value in (statistic[name], *statistic["ci95"])))


def _key(row: Mapping) -> tuple:
    return tuple(row[name] for name in ("generator", "decoding", "evaluator", "aggregation", "n"))


def _cells(results: Mapping, rows: Iterable[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Returns header and body of the headline table."""
    any_row = results["rows"][0]
    groups, group_compared = shown_groups(any_row), focus(any_row)
    differences = {_key(row): row[group_compared] for row in results["paired"]}
    header = [
        *("generator", "N", "decoding"),
        *(f"{group} ({any_row[group]['problems']})" for group in groups),
        f"{group_compared}, minus majority",
    ]
    body = [
        [
            *(row["generator"], str(row["n"]), label(row), *(interval(row[group]) for group in groups)),
            interval(differences.get(_key(row)), "difference"),
        ]
        for row in rows
    ]
    return header, body


def print_headline(results: Mapping, adopted: Mapping[str, str], console: Console) -> None:
    """Prints a headline table per generator, narrow enough for a terminal of 80 columns, and the counts behind it."""
    rows = headline(results["rows"], adopted)
    groups, group_compared = shown_groups(rows[0]), focus(rows[0])
    differences = {_key(row): row[group_compared] for row in results["paired"]}
    console.print("\nAccuracy in %, ± half the width of the 95 % interval over problems", highlight=False)
    names = dict.fromkeys(row["generator"] for row in rows)
    sampled = [name for name in names if any(row["generator"] == name and row["decoding"] != "greedy" for row in rows)]
    tables = [(f"{name}, N = {{n}}", [row for row in rows if row["generator"] == name], _short) for name in sampled]
    if only_greedy := [row for row in rows if row["decoding"] == "greedy"][: None if len(names) > 1 else 0]:
        tables.append(("greedy", only_greedy, lambda row: row["generator"]))
    for title, own, name_of in tables:
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column(title.format(n=max(row["n"] for row in own)), no_wrap=True)
        for group in groups:
            table.add_column(f"{group}\n({own[0][group]['problems']})", justify="right", no_wrap=True)
        if own is not only_greedy:
            table.add_column(f"{group_compared}, minus\nmajority", justify="right", no_wrap=True)
        for row in own:
            style = "bold" if row["decoding"] == "weighted" and row["aggregation"] else None
            difference = [interval(differences.get(_key(row)), "difference")] if own is not only_greedy else []
            table.add_row(name_of(row), *(_plus_minus(row[group]) for group in groups), *difference, style=style)
        console.print(table, highlight=False)
    for row in results["compared"]:
        difference = interval(row[group_compared], "difference")
        console.print(f"{row['generator']} minus {row['minus']}, {group_compared}: {difference}", highlight=False)
    console.print(summary_line(results).replace("\n\n", "\n"), highlight=False)
    for row in results["no_answer"]:
        if any(counts["no_answer"] for counts in row["levels"].values()):
            shares = ", ".join(f"{level}: {_share(counts)}" for level, counts in row["levels"].items())
            console.print(f"{row['generator']}, without an answer by level: {shares}.", highlight=False)


def _short(row: Mapping) -> str:
    decoding = {"pass": "any right (pass@N)", "best_of_n": "best-of-N"}.get(row["decoding"], row["decoding"])
    return decoding + (f", {row['evaluator']}" if row["evaluator"] else "")


def _plus_minus(statistic: Mapping) -> str:
    if statistic["accuracy"] is None:
        return "–"
    low, high = statistic["ci95"]
    return f"{100 * statistic['accuracy']:.1f} ±{50 * (high - low):.1f}"


def summary_line(results: Mapping) -> str:
    """Returns the counts behind the tables, a line per generator; where any rule might find its answers, also which one did."""
    return "\n\n".join(
        f"{name}: {counts['graded']:,} solutions graded, {counts['no_answer']:,} without an answer, "
        f"{counts['unfinished']:,} cut off by length, {counts['undecided']:,} undecided (counted as wrong)."
        + _found_by(counts.get("found_by", {}))
        for name, counts in results["graded"].items()
    )


def _found_by(counts: Mapping[str, int]) -> str:
    return f" Answers found by: {', '.join(f'{rule} {count:,}' for rule, count in counts.items())}." if counts else ""


def markdown(results: Mapping, adopted: Mapping[str, str]) -> str:
    """Returns the whole of `table.md`."""
    rows = results["rows"]
    parts = [
        "# Results",
        "Accuracy in % with 95 % bootstrap intervals over problems. N samples: averages over subsets of N samples. "
        "The last column is the paired difference to majority voting with the same samples, on the problems that it names.",
        markdown_table(*_cells(results, headline(rows, adopted))),
        *_compared(results["compared"], shown_groups(rows[0])),
        summary_line(results),
    ]
    if rows[0]["levels"]:
        parts += ["## By level", _by_group(headline(rows, adopted), "levels", "level ")]
    if "subjects" in results:
        parts += ["## By subject", _by_group(results["subjects"], "subjects", "")]
    parts += _no_answer(results["no_answer"])
    aggregated = [row for row in rows if row["aggregation"] is not None]
    if aggregated:
        largest = {row["generator"]: max(r["n"] for r in rows if r["generator"] == row["generator"]) for row in rows}
        body = [row for row in aggregated if row["n"] == largest[row["generator"]]]
        parts += ["## Every aggregation of the step scores", markdown_table(*_cells(results, body))]
    if results["quality"]:
        cells = _quality_cells(results["quality"], shown_groups(rows[0]))
        parts += ["## Evaluators as judges", _QUALITY, markdown_table(*cells)]
    sizes = [row for row in rows if row["decoding"] != "greedy" and row in headline_at_all_sizes(rows, adopted)]
    if sizes:
        parts += ["## By number of samples", subsets_line(sizes), markdown_table(*_cells(results, sizes))]
    if results["seconds"]:
        body = [[stage, f"{seconds:,.1f}"] for stage, seconds in results["seconds"].items()]
        parts += ["## Seconds", markdown_table(["stage", "seconds"], body)]
    return "\n\n".join(parts) + "\n"


def subsets_line(rows: Sequence[Mapping]) -> str:
    """Returns which rows are averages over all subsets and which over drawn ones, and how far those may be off."""
    drawn = max(row["drawn"] for row in rows)
    if not drawn:
        return "All accuracies are averages over all subsets."
    error = 50 / (drawn * rows[0]["all"]["problems"]) ** 0.5
    voted: dict[str, dict[int, None]] = {row["generator"]: {} for row in rows}
    for row in sorted(rows, key=lambda row: row["n"]):
        if row["drawn"]:
            voted[row["generator"]][row["n"]] = None
    if len(set(map(tuple, voted.values()))) == 1:
        votes = f"votes at N = {_listed(next(iter(voted.values())))}"
    else:  # of other generators a vote of as many samples is exact, or there is none
        votes = "votes " + "; ".join(f"of {name} at N = {_listed(sizes)}" for name, sizes in voted.items() if sizes)
    return (
        f"Averages over all subsets, but for {votes}: {drawn:,} random subsets of the samples of "
        f"each problem, the same ones for all votes. Their standard error is at most {error:.2f} points over all problems, "
        "and the intervals include it."
    )


def _listed(sizes: Iterable[int]) -> str:
    *before, last = map(str, sizes)
    return f"{', '.join(before)} and {last}" if before else last


def _no_answer(rows: Sequence[Mapping]) -> list[str]:
    """How many solutions of each level and subject have no recognised answer; nothing where all have one."""
    tables = []
    for field, prefix in (("levels", "level "), ("subjects", "")):
        own = [row for row in rows if any(counts["no_answer"] for counts in row[field].values())]
        if own:
            header = ["generator", *(f"{prefix}{name}" for name in own[0][field])]
            cells = [[f"{c['no_answer']:,} of {c['graded']:,} ({_share(c)})" for c in row[field].values()] for row in own]
            tables.append(markdown_table(header, [[row["generator"], *line] for row, line in zip(own, cells, strict=True)]))
    text = "Solutions in which no final answer is recognised; each counts as wrong."
    return ["## Without an answer", text, *tables] if tables else []


def _share(counts: Mapping) -> str:
    return f"{100 * counts['no_answer'] / max(1, counts['graded']):.1f} %"


def _compared(rows: Sequence[Mapping], groups: Sequence[str]) -> list[str]:
    if not rows:
        return []
    body = [[row["generator"], row["minus"], *(interval(row[group], "difference") for group in groups)] for row in rows]
    text = "Greedy accuracy of one generator minus another's, in points, paired by problem."
    return ["## Generators compared", text, markdown_table(["generator", "minus", *groups], body)]


_QUALITY = (
    "AUC: how often a right one scores above a wrong one, pooled over all problems (and, in brackets, within a problem: the "
    "mean over the problems that have both; this is what re-ranking needs, for a judge of difficulty alone has 0.5 there). "
    "Accuracy: at the threshold of the score (0.5; odds 1), raw / balanced between right and wrong ones."
)


def headline_at_all_sizes(rows: Sequence[Mapping], adopted: Mapping[str, str]) -> list[Mapping]:
    """Returns the headline's methods at every number of samples."""
    return [row for row in rows if row["aggregation"] in (None, adopted.get(row["decoding"]))]


def method_name(row: Mapping) -> str:
    """Returns how a row is called in summaries and metrics, whatever its N: 'sft/weighted_prm'."""
    return f"{row['generator']}/" + "_".join(part for part in (row["decoding"], row["evaluator"]) if part)


def accuracies_by_size(rows: Sequence[Mapping], adopted: Mapping[str, str]) -> dict[int, dict[str, float]]:
    """Returns the headline's methods for metrics.jsonl: N -> {'hard/sft/weighted_prm': accuracy}, in the order of N."""
    found: dict[int, dict[str, float]] = {}
    for row in sorted(headline_at_all_sizes(rows, adopted), key=lambda row: row["n"]):
        own = {f"{group}/{method_name(row)}": row[group]["accuracy"] for group in shown_groups(row)}
        found.setdefault(row["n"], {}).update(own)
    return found


def _by_group(rows: Sequence[Mapping], field: str, prefix: str) -> str:
    groups = list(rows[0][field])
    counts = [rows[0][field][group]["problems"] for group in groups]
    header = ["generator", "N", "decoding", *(f"{prefix}{g} ({c})" for g, c in zip(groups, counts, strict=True))]
    body = [
        [row["generator"], str(row["n"]), label(row), *(interval(row[field][group]) for group in groups)]
        for row in rows
    ]
    return markdown_table(header, body)


def _quality_cells(quality: Sequence[Mapping], groups: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    def shown(value: float | None, percent: bool) -> str:
        return "–" if value is None else f"{100 * value:.1f}" if percent else f"{value:.3f}"

    def cells(judged: Mapping) -> list[str]:
        accuracies = (shown(judged["accuracy"], True), shown(judged["balanced_accuracy"], True))
        areas = f"{shown(judged['auc'], False)} ({shown(judged['auc_within'], False)})"
        return ["–" if judged["auc"] is None else areas, "–" if accuracies == ("–", "–") else " / ".join(accuracies)]

    header = [
        "generator",
        "evaluator",
        "judged",
        *(f"{group} {what}" for group in groups for what in ("AUC (within)", "accuracy")),
    ]
    body = []
    for row in quality:
        names = [name for name in row["outcome"]["all"] if name not in ("samples", "right")]
        for name in names:
            judged = [cell for group in groups for cell in cells(row["outcome"][group][name])]
            what = "log-probability" if row["evaluator"] == LIKELIHOOD else name
            body.append([row["generator"], row["evaluator"], f"solutions, {what}", *judged])
        if row["steps"]:
            judged = [cell for group in groups for cell in cells(row["steps"][group])]
            body.append([row["generator"], row["evaluator"], f"steps ({row['steps']['all']['steps']:,})", *judged])
    return header, body


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown; `|` within a cell is escaped."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
