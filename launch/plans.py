"""Plans every config in configs/paper/ for the slice that its docstring names, and writes docs/plans.md.

    python launch/plans.py [--cache=.plans] [CONFIG.py …]

Compiling them all takes hours on a small machine. What has been compiled is kept in the cache: an interrupted run goes on, and
a later one compiles only what has changed. A config that fails has its sentence in the table. With CONFIG.py …, only those are
planned anew; the others' rows come from the cache.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GIB = 2**30
HEAD = """# Plans of the paper's experiments

Made by `python launch/plans.py`; [plan.md](plan.md) says what the columns mean and what they rest on. Memory is that of the
worst moment, of each device; hours are of chips, for the work that is named. Compiled with {compilers}.
"""
COLUMNS = ("stage", "slice", "mesh", "worst moment", "GiB", "of", "fits", "tokens/s", "chip-hours")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--cache", type=Path, default=ROOT / ".plans")
    arguments.add_argument("--folder", type=Path, default=ROOT / "configs" / "paper")
    arguments.add_argument("--output", type=Path, default=ROOT / "docs" / "plans.md")
    arguments.add_argument("configs", type=Path, nargs="*")
    asked = arguments.parse_args()
    found = sorted(path for path in asked.folder.glob("*.py") if "def get_config" in path.read_text(encoding="utf-8"))
    if not found:
        print(f"plans.py: there is no config in {asked.folder}", file=sys.stderr)
        return 2
    chosen = {path.resolve() for path in asked.configs} or {path.resolve() for path in found}
    plans = {}
    for number, path in enumerate(found, start=1):
        print(f"[{number}/{len(found)}] {path.name}", file=sys.stderr, flush=True)
        plans[path] = planned(path, asked.cache, anew=path.resolve() in chosen)
        write(asked.output, document(plans))  # after each: an interrupted run leaves what it has
    return 0


def planned(path: Path, cache: Path, anew: bool) -> dict | str:
    """The plan of a config as `e2h plan --json` gives it, or the sentence with which it failed."""
    kept = cache / f"{path.stem}.json"
    if not anew and kept.exists():
        return json.loads(kept.read_text())
    command = [sys.executable, "-m", "e2h_jax.main", "plan", f"--config={path}", "--json", f"--cache={cache / 'programs'}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode not in (0, 3):
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        return lines[-1].removeprefix("e2h: ")
    write(kept, result.stdout)
    return json.loads(result.stdout)


def document(plans: dict[Path, dict | str]) -> str:
    """The Markdown of all configs."""
    made = [plan["compiler"] for plan in plans.values() if isinstance(plan, dict)]
    compilers = sorted({f"libtpu {versions['libtpu']} and JAX {versions['jax']}" for versions in made})
    head = HEAD.format(compilers="; ".join(compilers) or "nothing yet")
    return "\n".join([head, *(section(path, plan) for path, plan in plans.items())])


def section(path: Path, plan: dict | str) -> str:
    """The Markdown of one config."""
    title = f"## {path.stem}\n"
    if isinstance(plan, str):
        return f"{title}\nNot planned: {plan}\n"
    rows = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    rows += [f"| {' | '.join(row(stage))} |" for stage in plan["plans"]]
    changes = [f"`{stage['stage']}` fits with `{stage['change']}`." for stage in plan["plans"] if stage["change"]]
    return "\n".join([title, *rows, *(["", *changes] if changes else []), ""])


def row(stage: dict) -> list[str]:
    """The cells of one stage."""
    worst = next(program for program in stage["programs"] if program["program"] == stage["largest"])
    limit = f"{stage['limit'] / GIB:.2f}" if stage["limit"] else "–"
    rates = [f"{work['tokens_per_second']:,.0f}" for work in stage["work"]]
    hours = [
        f"{work['total_chip_hours']:,.0f} (all {work['count']:,} {work['unit']}s)"
        if "count" in work
        else f"{work['chip_hours']:.3g} ({work['chip_hours_of']})"
        for work in stage["work"]
    ]
    mesh = " × ".join(map(str, stage["mesh"]))
    size, fits = f"{worst['memory']['total'] / GIB:.2f}", "yes" if stage["fits"] else "**no**"
    cells = [stage["stage"], stage["topology"], mesh, stage["largest"], size, limit, fits]
    return [*cells, "<br>".join(rates) or "–", "<br>".join(hours) or "–"]


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
