"""Solutions in the format of another template: a generator writes one format, an imported evaluator reads another."""

import re
from dataclasses import replace

from e2h_jax.data.steps import split_steps
from e2h_jax.data.templates import Template


def as_read(template: Template, written: Template) -> Template:
    """The template in which an evaluator that reads `template` reads solutions that are `written` so.

    It is `template`, to be rewritten for; with the rule for answers of `written` where the two differ in that alone, for then
    the text may stay as it is.
    """
    same = replace(template, answer=written.answer)
    return same if same.writes_like(written) else template


def rewrite(solution: str, source: Template, target: Template) -> str:
    """A solution in the format of another template, for an evaluator that reads it so; tags stand behind every step.

    Its final answer, or that it has none, stays as it is in `source`: what the target alone would take for an answer, a box on
    the way say, is hidden.
    """
    solution = source.until_stop(solution)
    if source.writes_like(target):
        return target.join_steps(solution, ()) if target.tag else solution
    header = re.compile(re.escape(source.step_header).replace(re.escape("{number}"), r"\d+"))
    found, steps = source.find_answer(solution), []
    for step in split_steps(solution, source):
        if not step.is_answer or found.rule != "section":  # of which the answer is all
            text = solution[step.start : step.end]
            text = text[match.end() :] if (match := header.match(text)) else text
            steps.append(text.replace(target.tag, "") if target.tag else text)
    answer = solution[found.start : found.stop] if found else None
    rewritten = target.format_solution(steps, answer)
    if target.extract_answer(rewritten) != answer:
        rewritten = target.format_solution([target.hide_answers(step) for step in steps], answer)
    return rewritten
