"""Rewards by the rules of the paper's PyTorch code, quirks included, to compare with (original-system.md section 6).

What a user should know of them: steps are found as pairs of newline tokens, of which the last is never scored, so a solution of
few blank lines is charged for nothing; a step is the least of three logits; a first step of one token is -4.44 whatever it
says; every step earns a share of a bonus; EOS is no part of the response, so the terminal reward sits on the token before it.
`shaping.py` has the rules to train with.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from e2h_jax.data.rollout import Rollout
from e2h_jax.errors import UserError
from e2h_jax.rewards.shaping import Shaped, Verdict, charges, disagreement, facts, outcome

MARKER = "\n\n# Answer\n\n"
NO_ANSWER = "No answer found."
_FIRST_STEP_OF_ONE_TOKEN = -4.44


class StepPair(NamedTuple):
    """A scored pair of newlines: the response offset of its first, and the logit of the step before it."""

    offset: int
    logit: float


def newline_token(tokenizer: Any) -> int:
    """The id of a newline. UserError unless the tokenizer writes a blank line as two of them, as Llama's does."""
    newline = tokenizer.encode("\n\n\n", add_special_tokens=False)[-1]
    blank_line = tokenizer.encode("a\n\nb", add_special_tokens=False)[-3:-1]
    if blank_line != [newline, newline] or newline == tokenizer.unk_token_id:
        raise UserError(
            'config.reward.rules="original" finds steps as pairs of newline tokens, which this tokenizer does not write; '
            'use "corrected".'
        )
    return newline


def step_pairs(tokens: np.ndarray, logits: np.ndarray, newline: int, text: str) -> list[StepPair]:
    """The scored steps of a response (section 6.5). The prompt ends with a pair, so the first step begins the response.

    Args:
      tokens: int [n], the response without EOS.
      logits: float [n + 1], the reward model's scores at the last token of the prompt and at the response's.
      text: the response's; where its blank lines are not as many as the tokens' pairs, nothing is scored.
    """
    offsets, at = [], 0
    while at < len(tokens) - 1:
        pair = tokens[at] == newline and tokens[at + 1] == newline
        offsets += [at] if pair else []
        at += 2 if pair else 1
    if text.count("\n\n") != len(offsets):
        return []
    return [
        StepPair(offset, float(logits[offset : offset + 3].min()) if offset >= 2 else _FIRST_STEP_OF_ONE_TOKEN)
        for offset in offsets[:-1]
    ]


def step_values(config: ConfigDict, logits: Sequence[float]) -> np.ndarray:
    """Process reward float64 [K] of each step by its logit: its charge, and an equal share of the bonus (section 6.6)."""
    scores = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return charges(config.process, scores, config.upper_bound) + config.bonus / (len(scores) + 1e-6)


def extract_answer(text: str) -> str:
    """All that is between the first marker and the next (section 6.2): the paper's own rule, in use here alone."""
    found = text.split(MARKER)
    return found[1] if len(found) > 1 else NO_ANSWER


def format_penalty(text: str) -> float:
    """Share of the full penalty, by tiers (section 6.4). The answer is not stripped, so a space behind it costs all."""
    reasoning, _, answer = text.partition(MARKER)
    return disagreement(reasoning.strip(), answer) if answer.strip() else 1.0


def shape(
    config: ConfigDict, rollout: Rollout, length: int, steps: Sequence[StepPair], verdict: Verdict
) -> Shaped:
    """The reward of one rollout by the original's rules.

    Args:
      length: number of the rollout's tokens without EOS. If it is 0 the reward lies on EOS, which is not trained.
      steps: see `step_pairs`; where there are none, nothing is charged and there is no bonus.
    """
    rewards = np.zeros(len(rollout.tokens), np.float64)
    last = max(length - 1, 0)
    values = config.scale * step_values(config, [step.logit for step in steps])
    for step, value in zip(steps, values, strict=True):
        where = [last] if config.process_at == "end" else [step.offset, step.offset + 1]
        rewards[where] += value / len(where)

    penalty = format_penalty(rollout.text) if config.format == "tiers" else 0.0
    terminal = {
        "outcome": config.unavailable if config.outcome == "none" else outcome(config, verdict),
        "format": penalty * config.format_value,
        "length": -max(config.min_length - last, 0) * config.min_length_coef,
    }
    if config.format_replaces and penalty:
        terminal |= {"outcome": 0.0, "format": config.format_value}
    rewards[last] += sum(terminal.values())
    parts = {"process": float(values.sum())} | terminal | facts(bool(steps), verdict)
    return Shaped(rewards.astype(np.float32), length, parts)
