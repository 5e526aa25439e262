"""Prompts of problems: their tokens, which of them leave room for a solution, and how the first one reads."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
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


_shown: set[tuple[Template, int]] = set()


def show_first(tokenizer: Any, prompts: Sequence[np.ndarray], template: Template) -> None:
    """Prints the first prompt (int32 [P]) on stderr as the model reads it, special tokens and all, on the first host.

    Once a template and vocabulary: what is made of many parts, such as `rest_em`, shows it in the first of them.
    """
    if not len(prompts) or jax.process_index() > 0 or (key := (template, len(tokenizer))) in _shown:
        return
    _shown.add(key)
    print(first_prompt(tokenizer, prompts[0].tolist()), file=sys.stderr)


def first_prompt(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The lines that `show_first` prints; of a long prompt its beginning and end."""
    shown = [*tokens[:4], "…", *tokens[-4:]] if len(tokens) > 9 else tokens
    text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if len(text) > 2400:
        text = f"{text[:1200]}\n… {len(text) - 2400:,} characters …\n{text[-1200:]}"
    lines = [f"e2h: the first prompt, {len(tokens)} tokens ({' '.join(map(str, shown))}):", *text.split("\n")]
    return "\n  | ".join(lines)
