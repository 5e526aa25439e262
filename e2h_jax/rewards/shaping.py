"""From what is known of a sampled solution to one reward per token: outcome, steps, format and length, each logged apart.

`shape` has the project's own rules (`config.rules = "corrected"`). In short: the terminal reward sits on the token that ended
the response, EOS; a step's on the last token of the blank lines after it; and a response without a final answer, or cut off by
the limit, gets the least of every part, so that nothing unscorable is worth more than the worst that can be scored.
`original.py` has the rules of the paper's code. docs/rewards.md tells both, and why they differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from e2h_jax.data.rollout import Rollout
from e2h_jax.data.steps import EncodedSolution, split_steps
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError, nearest

_CHOICES = {
    "rules": ("corrected", "original"),
    "outcome": ("easy", "all", "none"),
    "process": ("min", "prod", "delta", "none"),
    "process_at": ("steps", "end"),
    "format": ("answer", "tiers", "none"),
    "grading": ("default", "strict", "numeric"),
}
_ORIGINAL_ONLY = {"process": ("min", "prod", "none"), "format": ("tiers", "none")}  # all that the original has
_NOT_NEGATIVE = ("unavailable", "scale", "upper_bound", "bonus", "min_length", "min_length_coef", "soft_limit", "overlong_coef")


def defaults() -> ConfigDict:
    """Fields of `config.reward` that say what a solution is worth: the corrected preset."""
    config = ConfigDict()
    config.rules = "corrected"  # corrected | original = steps, places and penalties just as the paper's code had them
    config.outcome = "easy"  # easy = 1 or 0 by the final answer where it is known | all = by gt_answer too | none
    config.unavailable = 0.25  # easy: of an answer whose truth is hidden
    config.grading = "default"  # default | strict | numeric, see docs/grading.md
    config.process = "min"  # min | prod | delta | none: how step probabilities become charges
    config.process_at = "steps"  # steps = each charge where its step ends | end = their sum with the terminal reward
    config.upper_bound = 0.5  # min, prod: no charge above this probability; delta: the probability to begin with
    config.scale = 1.0  # of the process rewards
    config.bonus = 0.0  # to every solution that can be scored, whatever its number of steps
    config.format = "answer"  # answer = penalty unless finished with a final answer | tiers = also by agreement | none
    config.format_value = -1.0  # the full penalty
    config.format_replaces = False  # True: a penalised solution gets format_value in place of its outcome
    config.min_length = 0  # tokens; each one short of it costs min_length_coef
    config.min_length_coef = 0.0
    config.soft_limit = 0  # tokens beyond which length costs: linearly, up to overlong_coef at hard_limit; 0 = off
    config.hard_limit = 0
    config.overlong_coef = 1.0
    return config


def corrected() -> dict:
    """The default preset, for `config.reward.update`."""
    return defaults().to_dict()


def paper() -> dict:
    """The preset of the paper's recipe (original-system.md 1.3), for `config.reward.update`: the original's arithmetic."""
    changes = {"rules": "original", "grading": "strict", "bonus": 0.25, "format": "tiers"}
    return corrected() | changes


def check(config: ConfigDict) -> None:
    """Raises UserError unless the fields make sense, alone and together."""
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            known = ", ".join(choices)
            raise UserError(f'config.reward.{name}="{config[name]}" is unknown{nearest(config[name], choices)}; use {known}.')
    for name in _NOT_NEGATIVE:
        if config[name] < 0:
            raise UserError(f"config.reward.{name}={config[name]} must be at least 0.")
    if config.format_value > 0:
        raise UserError(f"config.reward.format_value={config.format_value} is a penalty and must be at most 0.")
    if config.upper_bound > 1:
        raise UserError(f"config.reward.upper_bound={config.upper_bound} is a probability and must be at most 1.")
    if config.soft_limit and config.hard_limit <= config.soft_limit:
        raise UserError(
            f"config.reward.hard_limit={config.hard_limit} must be above soft_limit={config.soft_limit}; "
            "it is the length at which the charge is full, max_new_tokens as a rule."
        )
    if config.rules == "original":
        for name, choices in _ORIGINAL_ONLY.items():
            if config[name] not in choices:
                raise UserError(f'config.reward.{name}="{config[name]}" is not in the original; use {", ".join(choices)}.')
        if config.soft_limit:
            raise UserError("config.reward.soft_limit is not in the original; set it to 0.")


@dataclass(frozen=True)
class Verdict:
    """What grading says of a rollout's final answer.

    Attributes:
      correct: by the true answer; None where nothing tells it.
      hidden: reinforcement learning may not see the true answer (it still counts as accuracy).
      undecided: the grader could not tell, and the answer counts as wrong.
    """

    correct: bool | None
    hidden: bool = False
    undecided: bool = False


@dataclass(frozen=True, eq=False)
class Shaped:
    """The reward of one rollout.

    Attributes:
      rewards: float32 [T], one per response token.
      trained: how many of the tokens count as the response: all T; one fewer where the original leaves out EOS.
      parts: what the rewards are the sum of (outcome, process, bonus, format, length), and of the rollout whether it is
        `scorable` and its grade `undecided` (1 or 0), and its `accuracy` where the true answer is known.
    """

    rewards: np.ndarray
    trained: int
    parts: dict[str, float]


def shape(
    config: ConfigDict,
    template: Template,
    rollout: Rollout,
    text: str,
    answer: str | None,
    located: EncodedSolution,
    scores: Sequence[float] | None,
    verdict: Verdict,
) -> Shaped:
    """The reward of one rollout by the corrected rules.

    Args:
      config: see `defaults`.
      text: the whole solution (`Template.whole`).
      answer: the final answer in it; None without one.
      located: the response's steps in its tokens (`data.sampled_steps.locate`).
      scores: probability of each located step, the final answer's last; None where they could not be scored. Without process
        rewards they are not looked at.
    """
    length = len(rollout.tokens)
    scorable = rollout.stopped and answer is not None and (config.process == "none" or scores is not None)
    rewards = np.zeros(length, np.float64)

    process = 0.0
    if config.process != "none":
        ends = np.maximum(located.steps[:, 1], located.separators[:, 1]) - 1 - located.prompt_length
        steps = list(zip(ends.tolist(), scores or [], strict=scores is not None))
        if not scorable:
            steps.append((length - 1, 0.0))  # what is missing counts as a step that is surely wrong
        places = [length - 1] * len(steps) if config.process_at == "end" else [end for end, _ in steps]
        values = config.scale * charges(config.process, [score for _, score in steps], config.upper_bound)
        np.add.at(rewards, places, values)
        process = float(values.sum())

    penalty = _format_penalty(config, template, text, answer if scorable else None)
    terminal = {
        "outcome": outcome(config, verdict) if scorable else 0.0,
        "bonus": config.bonus if scorable else 0.0,
        "format": penalty * config.format_value,
        "length": -length_charge(config, length if scorable else None),
    }
    if config.format_replaces and penalty:
        terminal |= {"outcome": 0.0, "format": config.format_value}
    rewards[-1] += sum(terminal.values())
    return Shaped(rewards.astype(np.float32), length, {"process": process} | terminal | facts(scorable, verdict))


def outcome(config: ConfigDict, verdict: Verdict) -> float:
    """The outcome reward of a final answer."""
    if config.outcome == "easy" and verdict.hidden:
        return config.unavailable
    return float(bool(verdict.correct)) if config.outcome != "none" else 0.0


def charges(scheme: str, scores: Sequence[float], upper_bound: float) -> np.ndarray:
    """Process rewards float64 [K] of step probabilities, before scaling (original-system.md section 6.6).

    min, prod: what the least probability so far, or their product, has fallen by below `upper_bound`; never positive, and their
    sum (min(upper_bound, min p) - upper_bound, or so with the product) only falls when steps are added. delta: how far each
    step moves the probability, from `upper_bound` before the first; their sum is that of the last less `upper_bound`.
    """
    p = np.asarray(scores, np.float64)
    if scheme == "delta":
        return np.diff(p, prepend=upper_bound)
    running = np.minimum.accumulate(p) if scheme == "min" else np.cumprod(p)
    return np.diff(np.minimum(running, upper_bound), prepend=upper_bound)


def disagreement(reasoning: str, answer: str) -> float:
    r"""How far the reasoning's end is from stating the answer (original-system.md section 6.4).

    0: it is boxed anywhere; in the last paragraph, ½: as `$answer$` or `$answer.$`, ¾: somehow; 1: not there.
    """
    if f"\\boxed{{{answer}}}" in reasoning:
        return 0.0
    last = reasoning.rpartition("\n\n")[2]
    if f"${answer}$" in last or f"${answer}.$" in last:
        return 0.5
    return 0.75 if answer in last else 1.0


def length_charge(config: ConfigDict, length: int | None) -> float:
    """What a response of so many tokens is charged for its length; None = the most that any length is."""
    short = config.min_length if length is None else max(config.min_length - length, 0)
    charge = short * config.min_length_coef
    if config.soft_limit:
        over = (config.hard_limit if length is None else length) - config.soft_limit
        charge += config.overlong_coef * min(1.0, max(0.0, over / (config.hard_limit - config.soft_limit)))
    return charge


def facts(scorable: bool, verdict: Verdict) -> dict[str, float]:
    """The parts of `Shaped` that are no reward."""
    found = {"scorable": float(scorable), "undecided": float(verdict.undecided)}
    return found if verdict.correct is None else found | {"accuracy": float(verdict.correct)}


def _format_penalty(config: ConfigDict, template: Template, text: str, answer: str | None) -> float:
    """Share of the full penalty. An answer within the reasoning (in a box, say) has no tiers between."""
    if config.format == "none":
        return 0.0
    if answer is None:
        return 1.0
    if config.format == "answer" or template.find_answer(text).rule != "section":
        return 0.0
    return disagreement(text[: split_steps(text, template)[-1].start].strip(), answer)
