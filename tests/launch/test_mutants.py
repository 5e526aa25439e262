"""launch/mutants.toml names what exists, and launch/mutants.py tells mutants apart. The whole of it takes minutes: not here."""

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = tomllib.loads((ROOT / "launch" / "mutants.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "launch" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions_of(source):
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    methods = {f"{c.name}.{f.name}" for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body if hasattr(f, "args")}
    return methods | {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("name", TABLE["module"])
def test_the_table_names_files_and_functions_that_exist(name):
    module = TABLE["module"][name]
    files = [test.split("::")[0] for test in module["tests"] if test.startswith("tests/")]
    assert files and all((ROOT / path).is_file() for path in files)
    assert set(module.get("only", [])) <= functions_of(module["source"])


def test_reasons_are_of_lines_that_exist(mutants):
    for reason in TABLE["survivor"]:
        name, _, function = reason["of"].partition(".")
        source = TABLE["module"][name]["source"]
        lines = {line.strip() for line in mutants.marked((ROOT / source).read_text(encoding="utf-8"), None, []).splitlines()}
        assert function in functions_of(source) and reason["why"] and reason["new"], reason
        assert set(reason["old"].split("\n")) <= lines, reason


def test_functions_are_left_out_by_a_comment(mutants):
    source = 'def a(\n    x: int,\n) -> int:\n    """Of two lines:\n\n    so.\n    """\n    return x\n\n\ndef b(x, y):\n'
    source += "    # Why:\n    return zip(x, y, strict=True)\n"
    marked = mutants.marked(source, ["b"], [])
    assert marked.splitlines()[2] == ") -> int:  # pragma: no mutate block" and "def b(x, y):\n" in marked
    assert marked.endswith("return zip(x, y)\n") and marked.count("pragma") == 1
    for only, mark in ((["b"], "  # pragma: no mutate block"), (["C"], ""), (None, "")):
        assert mutants.marked("class C:\n    x = 1\n", only, []) == f"class C:{mark}\n    x = 1\n"
    assert mutants.marked(source, None, ["b"]).splitlines()[10] == "def b(x, y):  # pragma: no mutate block"


def test_a_survivor_needs_a_reason_and_a_reason_a_survivor(mutants):
    change = ("return x < y", "return x <= y")
    # A test fails; none does; there is none; one never ends; pytest could not run them.
    tried = (("f", 1), ("f", 0), ("g", 33), ("h", -24), ("k", 255))
    found = [mutants.Mutant(function, *change, code) for function, code in tried]
    reasons = [{"of": f"m.{function}", "old": change[0], "new": [change[1]], "why": "…"} for function in ("f", "h")]
    report = mutants.report(found, reasons, 7.0)
    assert report.killed() == 2 and report.unexplained == [found[2], found[4]] and report.stale == [("h", *change)]
    assert mutants.text("m", report).splitlines() == [
        "m: 2 of 5 mutants killed, 3 survive; 7 s",
        "  g has no test:",
        "    - return x < y",
        "    + return x <= y",
        "  k ended with 255:",
        "    - return x < y",
        "    + return x <= y",
        "  h is no survivor, but has a reason:",
        "    - return x < y",
        "    + return x <= y",
    ]
    assert mutants.summary({"m": report, "n": report}).splitlines()[-2:] == [
        "| n | 5 | 2 | 3 | 40.0% | 7 |",
        "| all | 10 | 4 | 6 | 40.0% | 14 |",
    ]
