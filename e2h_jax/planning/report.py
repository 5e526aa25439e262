"""A plan as a table for people and as JSON for programs."""

from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from e2h_jax.parallel.devices import GIB
from e2h_jax.parallel.programs import Assumed
from e2h_jax.planning.changes import Change
from e2h_jax.planning.estimate import EFFICIENCY, Estimate
from e2h_jax.planning.prompts import Prompt
from e2h_jax.planning.stages import Planned
from e2h_jax.planning.topologies import Topology


class Report(NamedTuple):
    """One stage on one slice."""

    plan: Planned
    topology: Topology
    devices: int
    found: list[Estimate]
    change: Change | None  # the nearest one that makes it fit; None where it fits, or where none was found
    prompt: Prompt | None  # the longest one assumed; None where the user said it, or where there are none

    @property
    def fits(self) -> bool:
        return all(one.fits for one in self.found)

    @property
    def worst(self) -> Estimate:
        """The moment of the largest memory."""
        return max(self.found, key=lambda one: one.total)

    def work(self) -> list[dict[str, Any]]:
        """Seconds, tokens per second and chip-hours of each unit that the stage's time is counted in."""
        found = []
        for unit in dict.fromkeys(one.unit for one in self.found):
            times = [(one.runs, one.time) for one in self.found if one.unit == unit]
            if any(time is None for _, time in times):
                continue
            seconds = sum(runs * time for runs, time in times)
            hours = seconds * self.topology.chips / 3600
            per = 1 if unit.name.startswith("1M") else 1000
            entry = {"unit": unit.name, "seconds": seconds, "tokens_per_second": unit.tokens / seconds}
            entry |= {"chip_hours": hours * per, "chip_hours_of": unit.name if per == 1 else f"{per:,} {unit.name}s"}
            if unit.count:
                entry |= {"count": unit.count, "total_chip_hours": hours * unit.count}
            found.append(entry)
        return found

    def plain(self) -> dict[str, Any]:
        """In JSON types."""
        change = self.change
        return {
            "stage": self.plan.name,
            "kind": self.plan.stage,
            "topology": self.topology.name,
            "chips": self.topology.chips,
            "devices": self.devices,
            "mesh": list(self.plan.config.mesh),
            "prompt": self.prompt._asdict() if self.prompt else None,
            "fits": self.fits,
            "limit": self.worst.limit,
            "largest": self.worst.program,
            "change": change.words(self.plan, self.topology) if change else None,
            "programs": [_plain(one) for one in self.found],
            "work": self.work(),
        }


def _plain(one: Estimate) -> dict[str, Any]:
    return {
        "program": one.program,
        "memory": one.memory | {"total": one.total},
        "fits": one.fits,
        "refused": one.refused,
        "flops": one.flops,
        "bytes": one.moved,
        "bytes_sent": one.sent,
        "collectives": {kind: {"count": count, "bytes": size} for kind, (count, size) in one.collectives.items()},
        "seconds": one.time,
        "limited_by": one.limited_by,
        "runs": one.runs,
        "unit": one.unit.name,
        "compile_seconds": one.compile_seconds,
    }


def assumptions(assumed: Assumed) -> dict[str, Any]:
    """What is taken for granted, in JSON types."""
    names = ("prompt_tokens", "solution_tokens", "vocabulary", "steps")
    return {name: getattr(assumed, name) for name in names} | {"efficiency": EFFICIENCY}


MEMORY = ("parameters", "optimiser", "gradients", "cache", "other", "temporary")


def show(report: Report, console: Console) -> None:
    """Prints the table of a stage, and what follows from it."""
    plan, limit = report.plan, report.worst.limit
    what = plan.name if plan.name == plan.stage else f"{plan.name} ({plan.stage})"
    title = f"{what} on {report.topology.name}, mesh {tuple(plan.config.mesh)}: GiB of each device"
    table = Table(title=title, title_justify="left")
    table.add_column("program")
    shown = [kind for kind in MEMORY if any(one.memory[kind] for one in report.found)]
    for name in (*shown, "total", "TFLOP", "GB moved", "GB sent", "seconds", "limited by", "compiled in"):
        table.add_column(name, justify="right")
    for one in report.found:
        memory = [f"{one.memory[kind] / GIB:.2f}" for kind in shown]
        total = f"{one.total / GIB:.2f}" + ("" if one.fits else " [red]!")
        moves = (None, None) if one.refused else (one.moved, one.sent)
        traffic = ["–" if size is None else f"{size / 1e9:.3g}" for size in moves]
        seconds = f"{one.time:.3g}" if one.time is not None else "–"
        rates = [f"{one.flops / 1e12:.3g}", *traffic, seconds, one.limited_by]
        table.add_row(one.program, *memory, total, *rates, f"{one.compile_seconds:.0f} s")
    console.print(table)
    console.print(_verdict(report, limit))
    if report.prompt:
        shots = f", {report.prompt.shots:,} of them solved problems in front" if report.prompt.shots else ""
        console.print(f"Longest prompt: {sum(report.prompt):,} tokens{shots}, or as many as the config leaves room for.")
    for entry in report.work():
        console.print(_sentence(entry))
    console.print()


def _verdict(report: Report, limit: float | None) -> str:
    worst = report.worst
    if limit is None:
        return f"Largest: {worst.program}, {worst.total / GIB:.2f} GiB of each device."
    compared = f"{worst.program} needs {worst.total / GIB:.2f} GiB of the {limit / GIB:.2f} that a program may use"
    if report.fits:
        return f"Fits: {compared}."
    if report.change:
        return f"Does not fit: {compared}. It fits with {report.change.words(report.plan, report.topology)}"
    return f"Does not fit: {compared}. No change that was tried makes it fit."


def _sentence(entry: dict[str, Any]) -> str:
    text = f"{entry['unit']}: {entry['seconds']:.3g} s, {entry['tokens_per_second']:,.0f} tokens/s; "
    text += f"{entry['chip_hours']:.3g} chip-hours for {entry['chip_hours_of']}"
    return text + (f", {entry['total_chip_hours']:,.0f} for all {entry['count']:,}." if "count" in entry else ".")


def explain(assumed: Assumed) -> str:
    """What the figures rest on, for people."""
    shares = ", ".join(f"{share:.0%} of the peak of its {name}" for name, share in EFFICIENCY.items())
    prompts = f"the longest prompt has {assumed.prompt_tokens} tokens" if assumed.prompt_tokens else "prompts as said above"
    solution = str(assumed.solution_tokens or "as many as the config allows (1024 where it does not say)")
    return (
        f"Assumed: {prompts}; tokens of a solution: {solution}; a chip reaches {shares}; a program takes as "
        "long as the slowest of the three, and nothing else takes time. Only the largest program of each kind is compiled. "
        "What is not modelled: docs/plan.md."
    )
