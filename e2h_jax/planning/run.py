"""`e2h plan` once JAX may be imported."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from e2h_jax import config as configs
from e2h_jax import recipe
from e2h_jax.errors import UserError
from e2h_jax.models.presets import get_preset
from e2h_jax.parallel.programs import Assumed, Program
from e2h_jax.planning import changes, report, stages
from e2h_jax.planning.compiling import Compiler
from e2h_jax.planning.estimate import Estimate, estimate, programs_of
from e2h_jax.planning.models import Models
from e2h_jax.planning.report import Report
from e2h_jax.planning.topologies import Topology

DOES_NOT_FIT = 3


def run(asked: Any, overrides: Sequence[str], topologies: Sequence[Topology], warning: str) -> int:
    """Plans every stage of the config on every slice and prints it; returns the exit code. `warning`: of `another_compiler`."""
    config = configs.load_file(asked.config)
    configs.override(config, overrides, recipe.all_defaults(config) if "stages" in config else None)
    given = dict(text.rpartition("=")[::2] for text in asked.preset)
    for name in given.values():
        get_preset(name)  # raises
    models = Models(stages.stages_of(config), given, asked.vocabulary)
    assumed = Assumed(models, asked.prompt_tokens, asked.solution_tokens, asked.vocabulary, asked.steps)
    compiler = Compiler(Path(asked.cache) if asked.cache else None)
    plans = stages.planned(config, asked.stage)
    work = [(plan, topology, _programs(plan, topology, assumed)) for topology in topologies for plan in plans]
    console = Console(width=max(Console().width, 170))
    reports = []
    for plan, topology, (programs, refused) in work:
        found = [*(estimate(program, topology, compiler) for program in programs), *refused]
        change = None
        if asked.suggest and not all(one.fits for one in found):
            change, _ = changes.nearest_fit(plan, topology, found, assumed, compiler) or (None, None)
        reports.append(Report(plan, topology, len(topology.devices()), found, change, plan.prompt(assumed)))
        if not asked.json:
            report.show(reports[-1], console)
    if asked.json:
        document = {"config": asked.config, "changed": list(overrides), "assumed": report.assumptions(assumed)}
        document |= {"compiler": compiler.versions, "warning": warning or None}
        json.dump(document | {"plans": [one.plain() for one in reports]}, sys.stdout, indent=2)
        print()
    else:
        console.print(report.explain(assumed))
    return 0 if all(one.fits for one in reports) else DOES_NOT_FIT


def _programs(plan: stages.Planned, topology: Topology, assumed: Assumed) -> tuple[list[Program], list[Estimate]]:
    try:
        return programs_of(plan, topology, assumed)
    except UserError as error:
        raise UserError(f"{plan.name} on {topology.name}: {error}") from None
