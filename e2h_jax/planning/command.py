"""Says before anything is rented whether a config fits a TPU slice, and roughly how long it takes.

    e2h plan --config=FILE.py [--config.field=value …] --topology=v5e:4x4[,v5p:2x2x2,cpu:8] [--json]

Compiles the very programs that the stage, or every stage of a recipe, will run: for that slice, without one. Needs the TPU
compiler (pip install 'jax[tpu]'), no model, no tokenizer and no data. Prints for each program the memory of each device by what
it is for, arithmetic, traffic, and an estimate of the time; then whether the worst moment fits, and if not the nearest change
that makes it fit. docs/plan.md explains the table.

  --topology=…           slices, comma-separated: v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:4x4, tpu7x:2x2x1, cpu:8;
                         default: the line `Slice: …` of the config file's docstring
  --stage=NAME           of a recipe, this stage only
  --preset=llemma_7b     shape of models that are not there and that no stage of the config writes (models/presets.py);
                         --preset=PATH=llemma_7b of one of them; may be repeated
  --prompt_tokens=N      of the longest prompt; default: the `max_tokens` of the stage that prepares the problems, or 1024, and
                         512 for each solved problem in front; at most as many as the config leaves room for
  --solution_tokens=N    of a solution; default: as many as the config allows, or 1024
  --vocabulary=N         of new models whose preset has none; default: 32000
  --steps=N              optimiser steps of a training stage; default: 1000
  --nosuggest            do not look for a change that makes it fit
  --cache=DIR            keep there what the compiler said, and do not ask it again
  --json                 one JSON document instead of tables

Exit codes: 0 everything fits · 3 something does not · 2 the user's mistake, told in one sentence.
"""

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from e2h_jax.config import assignments, load_file
from e2h_jax.errors import UserError, nearest
from e2h_jax.planning import topologies


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code. Nothing imports JAX before the environment says what it shall be."""
    asked, overrides = parse(arguments)
    if not asked.config:
        raise UserError("--config=FILE.py is missing: what shall be planned?")
    names = asked.topology or slices(Path(asked.config))
    if not names:
        raise UserError(
            "--topology=… is missing: for which slice? Give --topology=v5e:4x4, say, or write a line `Slice: v5e:4x4` into the "
            f"docstring of {asked.config}"
        )
    slices_ = [topologies.parse(name) for name in names]
    topologies.prepare(slices_)
    if warning := topologies.another_compiler(slices_):
        print(f"e2h: {warning}", file=sys.stderr)

    from e2h_jax.planning.run import run

    return run(asked, overrides, slices_, warning)


def parse(arguments: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags, and the assignments to the config; UserError for a flag that there is not."""
    overrides, rest = assignments(arguments)
    # --prompt-tokens is --prompt_tokens, too.
    rest = [re.sub(r"^--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), argument) for argument in rest]
    values = flags.FlagValues()
    flags.DEFINE_string("config", "", "", flag_values=values)
    flags.DEFINE_list("topology", [], "", flag_values=values)
    flags.DEFINE_string("stage", "", "", flag_values=values)
    flags.DEFINE_multi_string("preset", [], "", flag_values=values)
    for name, default in (("prompt_tokens", 0), ("solution_tokens", 0), ("vocabulary", 32_000), ("steps", 1000)):
        flags.DEFINE_integer(name, default, "", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("suggest", True, "", flag_values=values)
    flags.DEFINE_string("cache", "", "", flag_values=values)
    flags.DEFINE_bool("json", False, "", flag_values=values)
    names = list(values)
    try:
        words = values(["e2h plan", *rest])
    except flags.UnrecognizedFlagError as error:
        close = nearest(error.flagname, names)
        raise UserError(f'there is no flag "--{error.flagname}"{close}; see e2h plan --help') from None
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}; see e2h plan --help") from None
    if len(words) > 1:
        raise UserError(f'"{words[1]}" is a word too many; see e2h plan --help')
    return values, overrides


def slices(config: Path) -> list[str]:
    """The slices that a config file's docstring names in a line `Slice: v5e:4x8`, if any; UserError if there is no file."""
    try:
        docstring = ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        load_file(str(config))  # says what is wrong with it
        raise
    found = re.search(r"^\s*Slice: *([\w:,]+)", docstring, re.MULTILINE)
    return found[1].split(",") if found else []
