"""PRMBench and ProcessBench: solutions whose wrong steps are known, as labelled records to measure or train evaluators.

PRMBench (Song et al. 2025) edits questions and solutions of PRM800K: each row has the original solution, all right, and a
modified one with its wrong steps, which answers the modified question; that is what the benchmark judges. ProcessBench (Zheng
et al. 2024) has models' solutions with the first wrong step, found by people.
"""

import re
from collections.abc import Iterator
from typing import Any

from e2h_jax.data.cards import Card
from e2h_jax.data.sources.math import MathIndex
from e2h_jax.data.sources.rows import Hub, Row, read_rows, text_field
from e2h_jax.data.sources.sentences import one_paragraph
from e2h_jax.data.templates import Template
from e2h_jax.errors import UserError, nearest

PRMBENCH = Hub("hitsmy/PRMBench_Preview", lines={"all": ("prmbench_preview.jsonl",)})
PROCESSBENCH = Hub("Qwen/ProcessBench")
PRMBENCH_SOURCE = "PRMBench (Song et al. 2025, ssmisya/PRMBench, Apache-2.0)."
PROCESSBENCH_SOURCE = "ProcessBench (Zheng et al. 2024, Qwen/ProcessBench, Apache-2.0)."
PRMBENCH_RULES = [
    'Each row gives its modified solution of its modified question (`process` "modified": wrong steps 0, all others 1) and, '
    'once, the original ("original": all 1) of the original question. Without `modified_question` both are of one question.',
    "The number of a wrong step beyond the last step is passed over, as in the benchmark. A solution whose wrong step is blank "
    "is left out, since its label would be lost.",
    "Problems of MATH500 are the split test, with all levels; all others are train, filtered by level. Numbers in front of "
    'steps ("1. ", "Step 1. ") go.',
]
PROCESSBENCH_RULES = [
    "Steps before the first wrong one are 1, it is 0, later ones are null; without a wrong step all are 1. The Hub's splits "
    "are kept. A row whose wrong step is blank is left out, since its label would be lost.",
]
PROCESSBENCH_SPLITS = ("gsm8k", "math", "olympiadbench", "omnimath")
_NUMBER = re.compile(r"^Step \d+[.:]\s*", re.IGNORECASE)


def _steps(row: Row, field: str) -> list[str]:
    value = row.value.get(field)
    if not isinstance(value, list) or not all(isinstance(step, str) for step in value):
        close = nearest(field, [name for name in row.value if name != field])
        raise UserError(f'{row.where}: field "{field}" must be a list of texts{close}; is this the right source?')
    return list(value)


def prmbench(config: Any, template: Template, index: MathIndex, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields (split, labelled record); config: path, levels, keep_unknown."""
    card.rules += PRMBENCH_RULES
    seen = set()  # original solutions with their questions
    for row in read_rows(config.path, PRMBENCH):
        card.counts["rows read"] += 1
        # MATH's own text of the question comes first: it tells level and side.
        question = text_field(row, "question", "original_question").strip()
        entry = index.find(question)
        split = "test" if entry is not None and entry.is_test else "train"
        level = entry.level if entry else None
        if entry is None:
            card.counts["rows of problems not in MATH"] += 1
        if split == "train" and config.levels and (entry is not None or not config.keep_unknown) and level not in config.levels:
            card.counts["rows of another level"] += 1
            continue
        wrong = row.value.get("error_steps")
        if not isinstance(wrong, list) or any(type(n) is not int or n < 1 for n in wrong):
            raise UserError(f'{row.where}: field "error_steps" must be a list of step numbers from 1.')
        shared = {"problem_id": entry.id if entry else None, "prefix": "", "level": level}
        shared |= {"idx": row.value.get("idx"), "classification": row.value.get("classification")}
        modified, original = _steps(row, "modified_process"), _steps(row, "original_process")
        card.counts["rows with a wrong step beyond the last"] += any(n > len(modified) for n in wrong)
        for process, texts, mistakes in (("modified", modified, wrong), ("original", original, [])):
            asked = text_field(row, f"{process}_question", "question", "original_question").strip()
            steps = [one_paragraph(_NUMBER.sub("", step.removeprefix(f"{n}. "))) for n, step in enumerate(texts, start=1)]
            if process == "original":
                if (asked, *steps) in seen:
                    continue
                seen.add((asked, *steps))
            labels = [0.0 if n in mistakes else 1.0 for n in range(1, len(steps) + 1)]
            if (kept := _with_text(steps, labels, card)) is not None:
                yield split, shared | {"question": asked, "process": process, "steps": kept[0], "labels": kept[1]}


def _with_text(steps: list[str], labels: list[float | None], card: Card) -> tuple[list[str], list[float | None]] | None:
    """The steps that are not blank with their labels; None, and counted, where a wrong step is blank or nothing is left."""
    kept = [(step, label) for step, label in zip(steps, labels, strict=True) if step]
    if not kept or any(label == 0 and not step for step, label in zip(steps, labels, strict=True)):
        card.counts["solutions with a blank wrong step, or without a step, left out"] += 1
        return None
    card.counts["blank steps, left out"] += len(steps) - len(kept)
    return [step for step, _ in kept], [label for _, label in kept]


def processbench(config: Any, template: Template, index: None, card: Card) -> Iterator[tuple[str, dict]]:
    """Yields (split, labelled record); config: path."""
    card.rules += PROCESSBENCH_RULES
    for row in read_rows(config.path, PROCESSBENCH):
        question, steps, label = text_field(row, "problem").strip(), _steps(row, "steps"), row.value.get("label")
        if type(label) is not int or not -1 <= label < len(steps):
            raise UserError(f'{row.where}: field "label" must be the index of a step, or -1, not {label!r}.')
        labels = [1.0 if label < 0 or n < label else 0.0 if n == label else None for n in range(len(steps))]
        kept = _with_text([one_paragraph(step) for step in steps], labels, card)
        if kept is None:
            continue
        name = str(row.value.get("id", "")).rsplit("-", 1)[0]
        yield (
            name if name in PROCESSBENCH_SPLITS else row.split or "test",
            {
                "problem_id": None,
                "question": question,
                "prefix": "",
                "steps": kept[0],
                "labels": kept[1],
                "level": None,
                "generator": row.value.get("generator"),
                "final_answer_correct": row.value.get("final_answer_correct"),
            },
        )
