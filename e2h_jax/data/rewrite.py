"""Solutions in the format of another template: a generator writes one format, an imported evaluator reads another."""

import re

from e2h_jax.data.steps import split_steps
from e2h_jax.data.templates import Template


def rewrite(solution: str, source: Template, target: Template) -> str:
    """A solution in the format of another template, for an evaluator that reads it so; tags stand behind every step.

    Its final answer, or that it has none, stays as it is in `source`: what the target alone would take for an answer, a box on
    the way say, is hidden.
    """
    solution = source.until_stop(solution)
    if source.writes_like(target):
        return target.join_steps(solution, ()) if target.tag else solution
    header = re.compile(re.escape(source.step_header).replace(re.escape("{number}"), r"\d+"))
    steps = []
    for step in split_steps(solution, source):
        if not step.is_answer or source.answer != "header":
            text = solution[step.start : step.end]
            text = text[match.end() :] if (match := header.match(text)) else text
            steps.append(text.replace(target.tag, "") if target.tag else text)
    answer = source.extract_answer(solution)
    rewritten = target.format_solution(steps, answer)
    if target.extract_answer(rewritten) != answer:
        rewritten = target.format_solution([target.hide_answers(step) for step in steps], answer)
    return rewritten
