"""Few-shot prompts for in-context learning: seeded solved problems of an easy, hard or full pool, as a template file."""

import random
from pathlib import Path
from typing import Any

from e2h_jax.data.records import read_many, select_levels
from e2h_jax.data.steps import split_steps
from e2h_jax.data.templates import Template, few_shot, get_template, write_template
from e2h_jax.errors import UserError


def write_few_shot(config: Any, workdir: Path) -> dict:
    """Writes template.json, whose path other stages take as `template`; config: path, levels, shots, seed, template.

    Raises:
      UserError: the pool has fewer solved problems than shots.
    """
    if not config.path:
        raise UserError("config.path is empty; few_shot draws its examples from problem records with solutions.")
    template = get_template(config.template, config.samples or config.tokenizer)
    if config.shots < 1:
        raise UserError("config.shots must be at least 1.")
    problems = select_levels(read_many(config.path, "problem"), tuple(config.levels))
    # A solution that goes on from a prefix is no whole one.
    pool = [p for p in problems if not p.get("prefix") and _is_solved(p["solution"] or "", template)]
    if len(pool) < config.shots:
        solved = f'a solution that ends with its answer in the format "{config.template}"'
        raise UserError(f"{config.path}: of {len(problems)} problems {len(pool)} have {solved}; config.shots={config.shots}.")
    chosen = random.Random(f"few-shot-{config.seed}").sample(pool, config.shots)
    name = config.name or f"{config.template}_{config.shots}shot"
    write_template(workdir / "template.json", few_shot(template, chosen, name))
    return {"shots": config.shots, "pool": len(pool), "examples": ", ".join(problem["id"] for problem in chosen)}


def _is_solved(solution: str, template: Template) -> bool:
    """Whether a solution ends with its answer, as the template writes it: a text in another format is no example for it."""
    steps = split_steps(solution, template)
    return bool(steps and template.extract_answer(solution)) and solution[steps[-1].end :].strip() == template.tag
