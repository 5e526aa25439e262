"""Executes the notebooks, and tells where fresh outputs differ from the stored ones.

    python notebooks/execute.py               all, in place
    python notebooks/execute.py quickstart    this one

Outputs as text are compared (tables included, pictures not). A cell may be tagged: `approximate` = its numbers depend on this
machine's floating point and may differ by `TOLERANCE`; `unchecked` = its outputs are not compared.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
TOLERANCE = 10.0  # points of accuracy, mostly

_NUMBER = re.compile(r"[-+−]?\d+(?:,\d{3})*(?:\.\d+)?")


def execute(path: Path, environment: Mapping[str, str]) -> NotebookNode:
    """Returns the notebook executed in its folder. Raises CellExecutionError for an error in a cell."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=300, resources=resources, record_timing=False, coalesce_streams=True)
    client.extra_arguments = ["--log-level=ERROR"]  # no warning that a kernel on this machine talks unencrypted
    client.execute(env=dict(environment))
    del notebook.metadata["language_info"]  # the patch version of Python would change with every execution
    return notebook


def environment(work: Path) -> dict[str, str]:
    """What a notebook sees: this Python's programs first, files of its own in `work`, and no data but the notebooks'."""
    kept = {name: value for name, value in os.environ.items() if name not in ("E2H_DATA", "XLA_FLAGS")}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    own = {"E2H_NOTEBOOK_RUNS": str(work), "E2H_RUN": str(work / "quickstart_small")}
    return kept | own | {"PATH": programs, "JAX_PLATFORMS": "cpu"}


def differences(stored: NotebookNode, fresh: NotebookNode) -> Iterator[str]:
    """Yields a description of each cell whose text outputs are not what is stored."""
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True), start=1):
        tags = old.metadata.get("tags", [])
        if old.cell_type != "code" or "unchecked" in tags:
            continue
        before, after = _text(old), _text(new)
        if before != after and not ("approximate" in tags and _close(before, after)):
            yield f"cell {number}:\n{old.source}\n--- stored\n{before}\n--- now\n{after}"


def _text(cell: NotebookNode) -> str:
    """The text of a cell's outputs; a picture's is left out."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            parts.append(output.text)
        elif not any(kind.startswith("image/") for kind in data):
            parts.append(data.get("text/markdown") or data.get("text/plain", ""))
    return "\n".join(parts)


def _close(one: str, other: str) -> bool:
    """Whether two texts have the same words, and numbers within `TOLERANCE` of each other."""
    if _NUMBER.sub("#", one) != _NUMBER.sub("#", other):
        return False
    pairs = zip(_numbers(one), _numbers(other), strict=True)
    return all(abs(mine - yours) <= TOLERANCE for mine, yours in pairs)


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "").replace("−", "-")) for number in _NUMBER.findall(text)]


def main(names: list[str]) -> None:
    known = {path.stem: path for path in NOTEBOOKS}
    if unknown := set(names) - set(known):
        sys.exit(f"there is no notebook {sorted(unknown)[0]}; there are {', '.join(known)}")
    for name in names or known:
        print(f"executing {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(known[name], environment(Path(folder)))
        nbformat.write(notebook, known[name])


if __name__ == "__main__":
    main(sys.argv[1:])
