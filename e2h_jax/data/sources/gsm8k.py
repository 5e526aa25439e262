"""GSM8K (Cobbe et al. 2021): grade-school word problems, as SFT records.

It has no levels of its own; a problem's level is the number of steps of its solution, a step a line: 1 or 2 steps are level 1,
3 are level 2, 4 level 3, 5 level 4, 6 and more level 5. Lines are counted, not calculator marks (<<48/2=24>>): 21 % of the
solutions have lines without a mark, half of which compute something all the same, and 113 solutions, of two to eight lines,
have no mark at all.
"""

import re
from collections.abc import Iterator
from typing import Any

from e2h_jax.data.cards import Card
from e2h_jax.data.sources.math import MathIndex
from e2h_jax.data.sources.rows import Hub, read_rows, text_field
from e2h_jax.data.storage import digest
from e2h_jax.data.templates import Template
from e2h_jax.grading.extract import find_answer

HUB = Hub("openai/gsm8k", subsets=("main",))
SOURCE = "GSM8K (Cobbe et al. 2021, openai/grade-school-math, MIT)."
RULES = [
    "Every line of a solution is a step; calculator marks (<<48/2=24>>) are taken out; the answer is what follows ####, "
    "without thousands separators.",
    "Level: 1 for a solution of one or two steps, then one per step: 2 for three, 3 for four, 4 for five, 5 for six and more. "
    "`levels` filters the training problems alone.",
    "Questions that came before are left out.",
]
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def records(config: Any, template: Template, index: MathIndex | None, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields (split, problem record); config: path, levels."""
    card.rules += RULES
    seen: set[bytes] = set()
    numbers: dict[str, int] = {}
    for row in read_rows(config.path, HUB):
        question, solution = text_field(row, "question").strip(), text_field(row, "answer")
        found = find_answer(solution, "gsm8k")
        split = row.split or "train"
        numbers[split] = numbers.get(split, -1) + 1
        if found is None:
            card.counts["rows without an answer"] += 1
            continue
        if (key := digest(question)) in seen:
            card.counts["rows whose question came before"] += 1
            continue
        seen.add(key)
        steps = [line.strip() for line in _CALCULATOR.sub("", solution[: found.begin]).splitlines() if line.strip()]
        level = min(max(len(steps) - 1, 1), 5)
        if split == "train" and config.levels and level not in config.levels:
            card.counts["problems of other levels"] += 1
            continue
        answer = solution[found.start : found.stop].replace(",", "")
        yield (
            split,
            {
                "id": f"gsm8k/{split}/{numbers[split]}",
                "question": question,
                "answer": answer,
                "level": level,
                "subject": "gsm8k",
                "solution": template.format_solution(steps, answer),
            },
        )
