r"""Text formats of prompts and solutions, as data.

The project's own format, "e2h", which every record of DESIGN section 5 uses:

    # Question⏎⏎{question}⏎⏎# Solution⏎⏎{step}⏎⏎{step}⏎⏎# Answer⏎⏎{answer}

Paragraphs are separated by blank lines. A blank line is a line of nothing but spaces, tabs or carriage returns; any
number of them in a row is one separator.

The others are the formats of public models (`\boxed{}` in chat markup; Math-Shepherd's tags) and whatever a JSON file
describes: `e2h prepare` writes such a file for few-shot prompts, and `get_template` takes its path for a name.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from e2h_jax.errors import UserError, nearest

_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


class Paragraph(NamedTuple):
    """Character positions in a text: [begin, end) holds one paragraph and the blank lines after it."""

    begin: int
    start: int  # [start, stop): the paragraph's text without surrounding white space; start == stop when there is none
    stop: int
    gap: int  # [gap, end): the blank lines; gap == end when the text ends without
    end: int


def paragraphs(text: str, gaps: re.Pattern = _BLANK_LINES) -> list[Paragraph]:
    """Cuts a text at its blank lines, or at what else `gaps` finds; the pieces [begin, end) join to the text again."""
    found = []
    begin = 0
    while begin < len(text):
        match = gaps.search(text, begin)
        gap, end = match.span() if match else (len(text), len(text))
        body = text[begin:gap]
        stop = begin + len(body.rstrip())
        start = min(begin + len(body) - len(body.lstrip()), stop)
        found.append(Paragraph(begin, start, stop, gap, end))
        begin = end
    return found


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{…}` with balanced braces holds, stripped; None when there is none or it is empty.

    Without any, a last `\boxed 9` counts, as TeX reads it: one character.
    """
    if span := _last_box(text):
        return text[span[0] : span[1]].strip() or None
    bare = re.findall(r"\\boxed\s+([^\s{}\\$])", text)
    return bare[-1] if bare else None


def _last_box(text: str) -> tuple[int, int] | None:
    """Where the content of the last balanced box begins and ends. An escaped brace is no bracket. Linear in the text."""
    opened: list[int] = []  # content positions of open boxes; -1 for other braces
    found = (-1, -1)
    for match in _BRACES.finditer(text):
        if match.group() == "}":
            if opened and (start := opened.pop()) > found[0]:
                found = start, match.start()
        elif match.group()[-1] == "{" and match.group() != "\\{":
            opened.append(-1 if match.group() == "{" else match.end())
    return found if found[0] >= 0 else None


@dataclass(frozen=True)
class Template:
    r"""How a question and a solution become text.

    Attributes:
      prompt: ends where the solution begins; `{question}` marks the question's place.
      opening: white space that a solution begins with, where a model is trained to write it itself.
      separator: written between steps.
      answer: how the final answer is written, and found again: "header" = a paragraph `answer_header`, and the answer in the
        next; "boxed" = in the last `\boxed{}`, whose paragraph is the final answer's step; "inline" = behind `answer_header`
        at the end of a step, which is the final answer's, with a `tag` after every step.
      answer_header: the words that announce the final answer ("boxed": of a solution that has no box yet, with the box).
      step_header: written in front of every step; `{number}` is its number from 1.
      tag: what ends a step instead of a blank line; "" = a blank line does.
      special: parts of `prompt`, and a `tag`, that are special tokens of the model's tokenizer. All else is encoded as text.
      stop: strings at which a solution ends besides EOS, for models that go on with another question.
    """

    name: str
    prompt: str
    opening: str = ""
    separator: str = "\n\n"
    answer: str = "header"
    answer_header: str = "# Answer"
    step_header: str = ""
    tag: str = ""
    special: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()

    @property
    def lead(self) -> str:
        """The space between prompt and solution, if there is one; tokenizers make it part of the solution's first token."""
        return " " if self.prompt.endswith(" ") else ""

    def format_prompt(self, question: str) -> str:
        """The text that a solution follows."""
        return self.prompt.replace("{question}", question)

    def format_steps(self, steps: Sequence[str], answer: str | None) -> list[str]:
        """The texts of a solution's steps, the final answer included; none for the answer when it is None."""
        texts = [self.step_header.replace("{number}", str(n)) + step for n, step in enumerate(steps, start=1)]
        if answer is None or (self.answer == "boxed" and texts and _last_box(texts[-1])):
            return texts
        if self.answer == "header":
            return [*texts, self.answer_header + self.separator + answer]
        if self.answer == "boxed":
            return [*texts, self.answer_header.replace("{answer}", answer)]
        if not texts:
            texts = [self.step_header.replace("{number}", "1").strip()]
        return [*texts[:-1], f"{texts[-1]} {self.answer_header} {answer}"]

    def format_solution(self, steps: Sequence[str], answer: str | None) -> str:
        """Steps, then the answer; no answer when it is None."""
        texts = self.format_steps(steps, answer)
        return self.opening + self.separator.join(texts) + (self.separator.rstrip() if self.tag and texts else "")

    def join_steps(self, prefix: str, steps: Sequence[str]) -> str:
        """A prefix (which may be empty, and may end with its separator) and steps as one text, ended by a separator."""
        if self.tag:
            prefix = prefix.rstrip().removesuffix(self.tag)
        texts = [text for text in map(str.strip, (prefix, *steps)) if text]
        return (self.opening if texts else "") + "".join(text + self.separator for text in texts)

    def paragraphs(self, text: str) -> list[Paragraph]:
        """Cuts a text into paragraphs, or at its tags."""
        if not self.tag:
            return paragraphs(text)
        # White space is tried from its first character alone: from each, a long run of it would take time by its square.
        return paragraphs(text, re.compile(rf"(?:(?<!\s)\s+)?{re.escape(self.tag)}\s*"))

    def answer_paragraphs(self, text: str, found: Sequence[Paragraph]) -> tuple[int, int] | None:
        """Indices in `found` where the final answer's own step begins and ends; None when it has none.

        "header": the first header's and the answer's (again the header's when none follows). "boxed": the paragraph in
        which the last box ends, twice. "inline": the first that has the answer header in it, twice.
        """
        if self.answer == "boxed" and (box := _last_box(text)):
            where = next(index for index, paragraph in enumerate(found) if box[1] < paragraph.end)
            return where, where
        if self.answer == "inline":
            bodies = (text[paragraph.start : paragraph.stop] for paragraph in found)
            return next(((i, i) for i, body in enumerate(bodies) if self.answer_header in body), None)
        if self.answer == "header":
            for index, paragraph in enumerate(found):
                if text[paragraph.start : paragraph.stop] == self.answer_header:
                    rest = (i for i in range(index + 1, len(found)) if found[i].start < found[i].stop)
                    return index, next(rest, index)
        return None

    def extract_answer(self, text: str) -> str | None:
        """The final answer as it is written; None when there is none. What follows a stop string does not count."""
        text = self.until_stop(text)
        if self.answer == "boxed":
            return last_boxed(text)
        if self.answer == "inline":
            _, header, rest = text.partition(self.answer_header)
            return rest.split(self.tag)[0].strip() or None if header else None
        found = paragraphs(text)
        where = self.answer_paragraphs(text, found)
        if where is None or where[0] == where[1]:
            return None
        return text[found[where[1]].start : found[where[1]].stop]

    def until_stop(self, text: str) -> str:
        """The text before the first stop string."""
        ends = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


_BOXED = {"answer": "boxed", "answer_header": r"The final answer is $\boxed{{answer}}$."}
_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."

TEMPLATES = {
    template.name: template
    for template in (
        Template(name="e2h", prompt="# Question\n\n{question}\n\n# Solution\n\n"),
        Template(
            name="qwen_boxed",
            prompt=f"<|im_start|>system\n{_INSTRUCTION}<|im_end|>\n<|im_start|>user\n{{question}}<|im_end|>\n"
            "<|im_start|>assistant\n",
            special=("<|im_start|>", "<|im_end|>"),
            stop=("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
            **_BOXED,
        ),
        Template(  # Qwen2.5-Math-PRM: the same, with a special token behind every step
            name="qwen_prm",
            prompt=f"<|im_start|>system\n{_INSTRUCTION}<|im_end|>\n<|im_start|>user\n{{question}}<|im_end|>\n"
            "<|im_start|>assistant\n",
            separator="<extra_0>",
            tag="<extra_0>",
            special=("<|im_start|>", "<|im_end|>", "<extra_0>"),
            **_BOXED,
        ),
        Template(
            name="deepseek_boxed",
            prompt=f"User: {{question}}\n{_INSTRUCTION}\n\nAssistant:",
            opening=" ",
            stop=("\n\nUser:",),
            **_BOXED,
        ),
        Template(
            name="llama3_boxed",
            prompt=f"<|start_header_id|>user<|end_header_id|>\n\n{{question}}\n{_INSTRUCTION}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            stop=("<|eot_id|>", "<|start_header_id|>"),
            **_BOXED,
        ),
        Template(
            name="math_shepherd",
            prompt="{question} ",
            separator=" ки\n",
            answer="inline",
            answer_header="The answer is:",
            step_header="Step {number}: ",
            tag="ки",
        ),
    )
}


def few_shot(template: Template, examples: Sequence[dict], name: str) -> Template:
    """`template` with solved problems in front of the question, for a base model that learns in context.

    Args:
      examples: problem records whose `solution` is in the template's format.
    """
    solved = [template.format_prompt(e["question"]) + template.opening + e["solution"].strip() for e in examples]
    # The next question that the model would go on to ask begins like a prompt.
    opening = template.prompt.partition("{question}")[0]
    stop = (*template.stop, *([f"\n{opening.strip()}"] if opening.strip() else []))
    return replace(template, name=name, prompt="\n\n\n".join([*solved, template.prompt]), stop=stop)


def write_template(path: str | Path, template: Template) -> None:
    """Writes a template as a JSON file, whose path `get_template` takes."""
    from e2h_jax.data.storage import write_json

    write_json(path, asdict(template))


def get_template(name: str) -> Template:
    """The template of this name, or in the JSON file of this path.

    Raises:
      UserError: there is none, with the nearest name, or the file is not a template.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".json"):
        known = ", ".join(sorted(TEMPLATES))
        raise UserError(
            f'template: there is no template "{name}"{nearest(name, TEMPLATES)}; there are: {known}, and .json files.'
        )
    try:
        described = json.loads(Path(name).read_text(encoding="utf-8"))
        known = {field.name for field in fields(Template)}
        if unknown := [field for field in described if field not in known]:
            raise UserError(f'{name}: a template has no field "{unknown[0]}"{nearest(unknown[0], known)}.')
        template = Template(**{k: tuple(v) if isinstance(v, list) else v for k, v in described.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: not a template file ({error}).") from None
    if template.answer not in ("header", "boxed", "inline") or "{question}" not in template.prompt:
        raise UserError(f'{name}: "answer" must be header, boxed or inline, and "prompt" must hold {{question}}.')
    return template
