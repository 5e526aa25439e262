"""How long a stage's prompts are taken to be, where the user does not say it: what the recipe's other stages tell of them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from e2h_jax.data.templates import CHAT, TEMPLATES, get_template, read_description
from e2h_jax.errors import UserError

# Tokens of Llama 2's tokenizer, which is Llemma's too, as counted in MATH.
PROBLEM = 1024  # where no stage leaves out longer ones: MATH500's longest has 892; 16 of all 12,500 have more than this
SHOT = 512  # a solved problem in front: the mean is 310, and 99 of 100 choices of four together have less than 2,000
CHARACTERS = 2.4  # of a token


class Prompt(NamedTuple):
    """Tokens of a stage's longest prompt."""

    problem: int
    shots: int  # tokens of the solved problems in front of it


def longest(config: ConfigDict, stages: Mapping[str, tuple[str, ConfigDict]]) -> Prompt | None:
    """The longest prompt of one of a recipe's `stages`; None if it reads no problems, UserError for an unknown template."""
    problems = config.get("problems", config.get("questions"))
    if problems is None:
        return None
    prepared = _prepared(problems, stages)
    limit = prepared.max_tokens if prepared else 0
    return Prompt(limit or PROBLEM, _shots(config.get("template", ""), stages))


def _prepared(path: str, stages: Mapping[str, tuple[str, ConfigDict]]) -> ConfigDict | None:
    """The config of the `prepare` stage that writes this file; None where the recipe has none that does."""
    written = re.match(r"\{run\}/+([\w-]+)/", path)
    stage, config = stages.get(written[1], ("", None)) if written else ("", None)
    return config if stage == "prepare" else None


def _shots(template: str, stages: Mapping[str, tuple[str, ConfigDict]]) -> int:
    """Tokens of the solved problems that a template begins with."""
    if prepared := _prepared(template, stages):
        return prepared.shots * SHOT
    if not template or template in (*TEMPLATES, CHAT):
        return 0
    if template.endswith(".json") and not Path(template).exists():
        raise UserError(f"config.template={template} is not there yet; say how long its prompts will be with --prompt_tokens=N")
    if template.endswith(".json") and "chat" in read_description(template):  # made when the model is there
        return 0
    solved, _, _ = get_template(template).prompt.rpartition("\n\n\n")  # as `templates.few_shot` joins them
    return round(len(solved) / CHARACTERS)
