"""Show a finished run: one HTML page with its tables, curves and every solution, or one problem in the terminal.

    e2h show runs/quickstart                        writes runs/quickstart/report.html
    e2h show runs/a runs/b --output=FILE            compares several; without --output, in the first one's folder
    e2h show runs/quickstart --problem=test/5/12    prints a problem, its votes and its solutions' scored steps

Folders may be given by --workdir=DIR as well; each is that of a recipe, or of a stage that evaluates or trains. The page is one
file that opens from disk and asks nothing of the network. It stays below 10 MB; what is left out for that it says.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from e2h_jax.data.storage import write_text
from e2h_jax.errors import UserError, nearest
from e2h_jax.evaluation.report import curves, folders, gather, page, terminal

_FLAGS = ("--workdir", "--output", "--problem", "--samples")


def main(arguments: Sequence[str]) -> int:
    """Runs `e2h show`; returns its exit code."""
    asked = _parse(arguments)
    if asked.problem is None:
        print(write(asked.workdir, asked.output))
    else:
        terminal.show_problem(asked.workdir, asked.problem, asked.samples)
    return 0


def write(workdirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the page of these workdirs to `output` (default: report.html in the first); returns its path.

    Raises:
      UserError: a workdir holds nothing to show, or the page cannot be written.
    """
    found = folders.find([str(workdir) for workdir in workdirs])
    evaluations = [gather.read(folder) for folder in found if folder.stage == "evaluate"]
    training = curves.training(found)
    if not evaluations and not training:
        raise UserError(f"{workdirs[0]}: nothing to show yet; its training has not logged a line.")
    title = ", ".join(dict.fromkeys(folder.run for folder in found))
    path = Path(output) if output else Path(workdirs[0]) / "report.html"
    text = page.build(title, evaluations, training)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); give another file by --output.") from None
    return path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; the command is: e2h show DIR [DIR2 …] [--output=FILE | --problem=ID].")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", action="append", default=[])
    parser.add_argument("--output")
    parser.add_argument("--problem")
    parser.add_argument("--samples", type=int, default=8)
    asked, others = parser.parse_known_args(arguments)
    if unknown := [word for word in others if word.startswith("-")]:
        parser.error(f'there is no flag "{unknown[0]}"{nearest(unknown[0].split("=")[0], _FLAGS)}')
    asked.workdir += others
    if not asked.workdir:
        parser.error("--workdir=DIR is missing, the folder of what shall be shown")
    for name in ("workdir", "output", "problem"):
        given = getattr(asked, name)
        if any(not text.strip() for text in (given if isinstance(given, list) else [given]) if text is not None):
            parser.error(f"--{name} is empty")
    if asked.samples < 1:
        parser.error(f"--samples={asked.samples} is too few; give 1 at least")
    return asked
