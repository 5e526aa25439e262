"""Mutation testing of the modules that compute (CONTRIBUTING.md); `bash launch/mutants.sh` installs mutmut and calls this.

mutmut makes mutants of a module: copies in which one thing is changed, such as an operator, a number, a name or an argument
of a call. A mutant is killed when one of the module's tests fails on it; one that survives shows what no test looks at, or
changes nothing that can be seen. mutants.toml names the modules, their tests, and for each survivor that may live the reason.
The work lies in .mutants/MODULE, and is taken up there again: mutants of functions that have changed are tried, and survivors
once the tests have changed.

Ends with 1 if a survivor has no reason, or a reason no survivor.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "launch" / "mutants.toml"
KILLED = (1, 2, 3)  # pytest's exit codes: a test failed, the tests could not be collected, an error in between
TIMED_OUT = (-24, 24, 36, 152)  # not 255, as mutmut has it: it ends so, too, where pytest does not find a test by its name
SURVIVED, UNTESTED = 0, 33

SETTINGS = """
[tool.mutmut]
source_paths = ["e2h_jax"]
only_mutate = [{source}]
do_not_mutate_patterns = {patterns}
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"  # no process is forked that has used JAX
use_git_change_detection = false
timeout_constant = 2.0
"""


class Mutant(NamedTuple):
    """A change of one function: the lines that go and those that come in their place, without their indentation."""

    function: str
    old: str
    new: str
    code: int | None  # the exit code of its tests; None = not tried


class Report(NamedTuple):
    """What came of the mutants of a module; `seconds` of this run alone."""

    mutants: list[Mutant]
    unexplained: list[Mutant]
    stale: list[tuple[str, str, str]]  # what reasons are given for, and does not survive
    seconds: float

    def killed(self) -> int:
        return sum(mutant.code in (*KILLED, *TIMED_OUT) for mutant in self.mutants)


def main() -> int:
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    modules = table["module"]
    arguments = argparse.ArgumentParser(prog="bash launch/mutants.sh", description=__doc__.splitlines()[0])
    arguments.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(modules)}; none = all")
    arguments.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="mutants tried at once (default: one per core)"
    )
    arguments.add_argument("--fresh", action="store_true", help="forget what was tried before")
    asked = arguments.parse_args()
    if unknown := [name for name in asked.modules if name not in modules]:
        arguments.error(f'there is no module "{unknown[0]}" in {TABLE.name}; use {", ".join(modules)}')
    reports = {}
    for name in asked.modules or modules:
        folder = ROOT / ".mutants" / name
        if asked.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        prepare(folder, modules[name], table["leave_out"])
        if not run(folder, asked.processes):
            print(f"{name}: mutmut failed; see {folder}/mutmut.log", file=sys.stderr)
            return 2
        reasons = [reason for reason in table["survivor"] if reason["of"].partition(".")[0] == name]
        reports[name] = report(collect(folder, modules[name]), reasons, time.monotonic() - began)
        print(text(name, reports[name]), flush=True)
    print(summary(reports))
    return int(any(found.unexplained or found.stale for found in reports.values()))


def prepare(folder: Path, module: dict, leave_out: dict) -> None:
    """Copies the package and the tests, writes mutmut's settings, and has survivors tried again if the tests have changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("e2h_jax", "tests"):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    source = folder / module["source"]
    source.write_text(marked(source.read_text(encoding="utf-8"), module.get("only"), leave_out["functions"]), encoding="utf-8")
    settings = SETTINGS.format(
        source=json.dumps(module["source"]),
        patterns=json.dumps(leave_out["lines"]),
        tests=json.dumps(module["tests"]),
    )
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8") + settings, encoding="utf-8")
    files = sorted({ROOT / test.split("::")[0] for test in module["tests"] if test.startswith("tests/")})
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    meta, stamp = folder / "mutants" / f"{module['source']}.meta", folder / "tests.sha256"
    if meta.exists() and (not stamp.exists() or stamp.read_text() != digest):
        known = json.loads(meta.read_text())
        codes = known["exit_code_by_key"]
        known["exit_code_by_key"] = {key: code if code in KILLED else None for key, code in codes.items()}
        meta.write_text(json.dumps(known))
    stamp.write_text(digest)


def marked(source: str, only: list[str] | None, left_out: list[str]) -> str:
    """The source with comments that tell mutmut to leave functions out, and without `strict=True`, which is but a guard."""
    lines = re.sub(r",\s*strict=True\b", "", source).splitlines()
    for node in ast.parse("\n".join(lines)).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name in left_out or (only is not None and node.name not in only):
            header = range(node.lineno - 1, node.body[0].lineno - 1)  # the lines before its docstring
            last = max(n for n in header if lines[n].endswith(":") and not lines[n].lstrip().startswith("#"))
            lines[last] += "  # pragma: no mutate block"
    return "\n".join(lines) + "\n"


def run(folder: Path, processes: int) -> bool:
    """Lets mutmut make and try the mutants."""
    (folder / "mutants").mkdir(exist_ok=True)  # before Python looks for modules there
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(folder / "mutants"), str(ROOT / "launch"))),
        "PYTEST_ADDOPTS": "-p mutants",  # this file's hook
        "CI": "1",  # Hypothesis draws the same examples each time
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".mutants" / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(processes)]
    with open(folder / "mutmut.log", "w") as log:
        return subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode == 0


def pytest_collection_modifyitems(items: list) -> None:
    """A hook of pytest, which has this file as a plugin there: quick tests first, as the first that fails is the last."""
    durations = Path("mutmut-stats.json")  # of the tests of what is unchanged
    seconds = json.loads(durations.read_text())["duration_by_test"] if durations.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def collect(folder: Path, module: dict) -> list[Mutant]:
    """The mutants of a module as mutmut has left them."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    os.chdir(folder)  # mutmut's functions read where they are
    codes = json.loads((folder / "mutants" / f"{module['source']}.meta").read_text())["exit_code_by_key"]
    mutants = []
    for key, code in codes.items():
        difference = get_diff_for_mutant(key, path=module["source"]).splitlines()
        changed = [line for line in difference if re.match(r"[-+](?![-+]{2} )", line)]
        old, new = ("\n".join(line[1:].strip() for line in changed if line[0] == sign) for sign in "-+")
        function = re.sub(r"^x_?|__mutmut_\d+$", "", key.rpartition(".")[2]).strip("ǁ").replace("ǁ", ".")
        mutants.append(Mutant(function, old, new, code))
    return mutants


def report(mutants: list[Mutant], reasons: list[dict], seconds: float) -> Report:
    """Tells survivors with a reason from those without. A reason names the function, the lines, and what may stand there."""
    given = {(reason["of"].partition(".")[2], reason["old"], new) for reason in reasons for new in reason["new"]}
    survivors = [mutant for mutant in mutants if mutant.code not in (*KILLED, *TIMED_OUT)]
    unexplained = [mutant for mutant in survivors if mutant[:3] not in given]
    return Report(mutants, unexplained, sorted(given - {mutant[:3] for mutant in survivors}), seconds)


def text(name: str, found: Report) -> str:
    """A module's line, and below it what needs a test or a reason."""
    survivors = len(found.mutants) - found.killed()
    lines = [f"{name}: {found.killed()} of {len(found.mutants)} mutants killed, {survivors} survive; {found.seconds:.0f} s"]
    words = {SURVIVED: "survives", UNTESTED: "has no test", None: "was not tried"}
    told = [(words.get(mutant.code, f"ended with {mutant.code}"), *mutant[:3]) for mutant in found.unexplained]
    for what, function, old, new in [*told, *(("is no survivor, but has a reason", *reason) for reason in found.stale)]:
        lines += [
            f"  {function} {what}:",
            *(f"    - {line}" for line in old.split("\n")),
            *(f"    + {line}" for line in new.split("\n")),
        ]
    return "\n".join(lines)


def summary(reports: dict[str, Report]) -> str:
    """The table of all modules, in Markdown."""
    rows = [(name, len(found.mutants), found.killed(), found.seconds) for name, found in reports.items()]
    rows.append(("all", *(sum(row[column] for row in rows) for column in (1, 2, 3))))
    lines = ["", "| module | mutants | killed | survive | share | seconds |", "|---|---|---|---|---|---|"]
    for name, count, killed, seconds in rows:
        lines.append(f"| {name} | {count} | {killed} | {count - killed} | {killed / max(count, 1):.1%} | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
