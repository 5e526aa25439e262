"""Which problems leave room for a solution behind their prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from e2h_jax.data.steps import encode_continuations
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError


def prompts_of(tokenizer: Any, problems: Sequence[Mapping], template: Template) -> list[np.ndarray]:
    """int32 [P] of each problem. Its `prefix`, the beginning of every solution, belongs to its prompt."""
    encoded = encode_continuations(tokenizer, [dict(problem) | {"solution": None} for problem in problems], template)
    return [one.tokens[: one.prompt_length] for one in encoded]


def fitting(
    problems: Sequence[Mapping],
    prompts: Sequence[np.ndarray],
    positions: int,
    new_tokens: int,
    too_long: str,
    validation: bool = False,
) -> tuple[list[Mapping], list[np.ndarray]]:
    """The problems, and their prompts, that `positions` hold with `new_tokens` more.

    `validation`: they are validation problems, which no field drops.

    Raises:
      UserError: for one that does not fit where `too_long` is "error", and when none does.
    """
    fits = [len(prompt) + new_tokens <= positions for prompt in prompts]
    if not all(fits) and (too_long == "error" or not any(fits)):
        longest = max(range(len(problems)), key=lambda place: len(prompts[place]))
        what, drop = "problem", ", or leave such problems out (config.too_long=drop)" if any(fits) else ""
        if validation:
            what, drop = "validation problem", ", or take such ones out of config.validation.problems"
        raise UserError(
            f"a prompt of {len(prompts[longest])} tokens and config.max_new_tokens={new_tokens} exceed the model's {positions} "
            f'positions ({what} "{problems[longest]["id"]}", the longest of {fits.count(False):,} too long ones among '
            f"{len(fits):,}); lower max_new_tokens{drop}"
        )
    kept = [place for place, fit in enumerate(fits) if fit]
    return [problems[place] for place in kept], [prompts[place] for place in kept]
