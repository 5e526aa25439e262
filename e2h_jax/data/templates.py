r"""Text formats of prompts and solutions, as data.

The project's own format, "e2h", which every record of DESIGN section 5 uses:

    # Question⏎⏎{question}⏎⏎# Solution⏎⏎{step}⏎⏎{step}⏎⏎# Answer⏎⏎{answer}

Paragraphs are separated by blank lines. A blank line is a line of nothing but spaces, tabs or carriage returns; any
number of them in a row is one separator.

The others are the formats of public models (`\boxed{}` in chat markup; Math-Shepherd's tags), a model's own chat template
("chat", made by data/chat.py and recorded where `get_template` finds it), and whatever a JSON file describes: `e2h prepare`
writes such a file for few-shot prompts, and `get_template` takes its path for a name.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from e2h_jax.errors import UserError, nearest
from e2h_jax.grading.extract import (
    HEADER,
    Answer,
    Paragraph,
    find_inline,
    find_section,
    gaps_of,
    hide_sections,
    paragraphs,
    rule_of,
)

RECORD = "template.json"  # in a folder of samples: the template that they were sampled in
CHAT = "chat"  # the name of every template that is made of a model's chat template


@dataclass(frozen=True)
class Template:
    r"""How a question and a solution become text.

    Attributes:
      prompt: ends where the solution begins; `{question}` marks the question's place.
      opening: white space that a solution begins with, where a model is trained to write it itself.
      separator: written between steps.
      answer: how the final answer is found: "header" = in a section that begins with the line `answer_header`; "inline" =
        behind `answer_header` at the end of a step; or a rule of grading/extract.py ("boxed", "gsm8k" …), or a regular
        expression.
      answer_header: how it is written. "header", "inline": the words in front of it. Of a rule: the words with `{answer}` in
        their midst, for a solution whose last step does not state it yet ("section" has its own, `# Answer`).
      step_header: written in front of every step; `{number}` is its number from 1.
      tag: what ends a step instead of a blank line; "" = a blank line does.
      special: parts of `prompt`, and a `tag`, that are special tokens of the model's tokenizer. All else is encoded as text.
      stop: strings at which a solution ends besides EOS, for models that go on with another question.
      trim: the question loses the white space around it, as in chat templates that trim what a user says.
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
    trim: bool = False

    @property
    def lead(self) -> str:
        """The space between prompt and solution, if there is one; tokenizers make it part of the solution's first token."""
        return " " if self.prompt.endswith(" ") else ""

    @property
    def _section(self) -> str:
        """The line with which a section of the answer begins; "" where the rule knows no sections."""
        return self.answer_header if self.answer == "header" else HEADER if self.answer in ("section", "any") else ""

    def asked(self, question: str) -> str:
        """A question as it stands in the prompt."""
        return question.strip() if self.trim else question

    def format_prompt(self, question: str) -> str:
        """The text that a solution follows."""
        return self.prompt.replace("{question}", self.asked(question))

    def format_steps(self, steps: Sequence[str], answer: str | None) -> list[str]:
        """The texts of a solution's steps, the final answer included; none for the answer when it is None."""
        texts = [self.step_header.replace("{number}", str(n)) + step for n, step in enumerate(steps, start=1)]
        if answer is None:
            return texts
        if self.answer in ("header", "section"):
            return [*texts, self._section + self.separator + answer]
        if self.answer == "inline":
            texts = texts or [self.step_header.replace("{number}", "1").strip()]
            return [*texts[:-1], f"{texts[-1]} {self.answer_header} {answer}"]
        stated = texts and self.extract_answer(texts[-1]) == answer
        return texts if stated else [*texts, self.answer_header.replace("{answer}", answer)]

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
        """Cuts a text into paragraphs, also where the answer's header begins a line, or at its tags."""
        if not self.tag:
            return paragraphs(text, gaps_of(self._section))
        # White space is tried from its first character alone: from each, a long run of it would take time by its square.
        return paragraphs(text, re.compile(rf"(?:(?<!\s)\s+)?{re.escape(self.tag)}\s*"))

    def find_answer(self, text: str) -> Answer | None:
        """Where the final answer is; None when there is none. What follows a stop string does not count."""
        text = self.until_stop(text)
        if self.answer in ("header", "inline"):
            find = find_inline if self.answer == "inline" else find_section
            return find(text, self.paragraphs(text), self.answer_header)
        # A tag ends lines and paragraphs; every character keeps its place.
        return rule_of(self.answer).find(text.replace(self.tag, "\n" * len(self.tag)) if self.tag else text)

    def extract_answer(self, text: str) -> str | None:
        """The final answer of a whole solution, as it is written; None when there is none."""
        found = self.find_answer(text)
        return text[found.start : found.stop] if found else None

    def whole(self, problem: Mapping[str, Any], text: str) -> str:
        """A sampled text behind the `prefix` of its problem, if that has one: a solution is the same text however it came."""
        return self.join_steps(problem.get("prefix") or "", ()) + text

    def answer_paragraphs(self, text: str, found: Sequence[Paragraph]) -> tuple[int, int] | None:
        """Indices in `found` of the first and last paragraph of the final answer's own step; None when there is no answer."""
        answer = self.find_answer(text)
        if answer is None:
            return None
        ends = [paragraph.end for paragraph in found]
        return bisect_right(ends, answer.begin), bisect_right(ends, answer.stop - 1)

    def hide_answers(self, step: str) -> str:
        """A step's text without what would be taken for the final answer."""
        if self.answer == "inline":
            return step.replace(self.answer_header, f"{self.answer_header[:-1]} {self.answer_header[-1:]}")
        return hide_sections(step, self.answer_header) if self.answer == "header" else rule_of(self.answer).hide(step)

    def writes_like(self, other: "Template") -> bool:
        """Whether solutions read the same in both, whatever stands before them and wherever they stop."""
        aside = {"name": "", "prompt": "", "special": (), "stop": (), "trim": False}
        return replace(self, **aside) == replace(other, **aside)

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


def with_answer(template: Template, answer: str, field: str = "config.answer") -> Template:
    """A template whose solutions' final answers, and with them the answer's step, are found by another rule.

    It is for texts that are there: how the template writes an answer stays as it is.

    Args:
      answer: a rule of grading/extract.py or a regular expression with one group; "template" = the template's own.
      field: the config's name for it.

    Raises:
      UserError: there is no such rule.
    """
    if answer == "template":
        return template
    check_answer(answer, field)
    return replace(template, answer=answer)


def check_answer(answer: str, field: str = "config.answer") -> None:
    """Raises UserError unless `answer` is one that `with_answer` takes."""
    if answer != "template":
        try:
            rule_of(answer)
        except UserError as error:
            raise UserError(f"{field}: {error}") from None


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


def as_record(template: Template) -> str | dict[str, Any]:
    """What model.json holds of a template under `reads`: the name of one of ours, all fields of another."""
    return template.name if TEMPLATES.get(template.name) == template else asdict(template)


def recorded_template(path: str | Path) -> Template | None:
    """The template that is recorded in `path`, None where there is no record.

    In a folder of samples or a file of one `sample` has recorded it (template.json), in a model/ folder whatever wrote the
    model (model.json).

    Raises:
      UserError: the record is damaged.
    """
    record = _record(path)
    if record.is_file():
        return get_template(str(record))
    model = Path(path) / "model.json"
    reads = read_description(model).get("reads", {}) if model.is_file() else {}
    match reads.get("template") if isinstance(reads, dict) else reads:
        case None:
            return None
        case str(name):
            return get_template(name)
        case described:
            return _described(described, f"{model}: reads.template")


def _record(path: str | Path) -> Path:
    path = Path(path)
    return (path if path.is_dir() else path.parent) / RECORD


def check_written(path: str | Path, template: Template, field: str) -> None:
    """Raises UserError if `sample` has recorded that the texts in `path` are written in another format than `template`."""
    recorded = recorded_template(path)
    if recorded and not recorded.writes_like(template):
        name = recorded.name if recorded.name in (*TEMPLATES, CHAT) else _record(path)
        raise UserError(
            f'{path}: these samples were drawn in the template "{recorded.name}", not "{template.name}"; set {field}={name}.'
        )


def get_template(name: str, source: str | Path = "", tokenizer: Any = None) -> Template:
    """The template of this name, or in the JSON file of this path: the one way in which every stage comes by its template.

    Args:
      source: a model/ folder, or a folder or file of samples: "chat" is what is recorded there (`recorded_template`).
      tokenizer: the model's; a file that has "chat" for "prompt" is completed by its chat template (data/chat.py).

    Raises:
      UserError: there is none, with the nearest name, or the file is not a template.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name == CHAT:
        return _recorded_chat(source)
    if not name.endswith(".json"):
        known = ", ".join(sorted((*TEMPLATES, CHAT)))
        raise UserError(
            f'template: there is no template "{name}"{nearest(name, (*TEMPLATES, CHAT))}; there are: {known}, and .json files.'
        )
    described = read_description(name)
    if "chat" in described:
        from e2h_jax.data.chat import complete  # which makes templates, and so needs this module first

        described = complete(described, name, tokenizer)
    return _described(described, name)


def _recorded_chat(source: str | Path) -> Template:
    if not source:
        raise UserError('template: "chat" is what a model or samples record, and none are named here; name the template.')
    if found := recorded_template(source):
        return found
    raise UserError(
        f'template: {source} records no text format, which "chat" would be; convert the model again (e2h convert records its '
        "chat template), or name the template."
    )


def read_description(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file of a template or a model; UserError where there is none."""
    try:
        described = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a template file ({error}).") from None
    if not isinstance(described, dict):
        raise UserError(f"{path}: not a template file; it must hold one object with the fields of a template.")
    return described


def _described(described: Any, path: str) -> Template:
    """The template that a file describes; UserError, which names the field, for one with which nothing could be done."""
    if not isinstance(described, dict):
        raise UserError(f"{path}: not a template file; it must hold one object with the fields of a template.")
    known = {field.name: field for field in fields(Template)}
    for name, value in described.items():
        if name not in known:
            raise UserError(f'{path}: a template has no field "{name}"{nearest(name, known)}.')
        texts = value if isinstance(value, list) else [None]
        if known[name].type in (str, bool):
            fits, wanted = isinstance(value, known[name].type), "a text" if known[name].type is str else "a truth value"
        else:
            fits, wanted = all(isinstance(text, str) and text for text in texts) or value == [], "a list of texts, none empty"
        if not fits:
            raise UserError(f'{path}: the field "{name}" must be {wanted}, not {json.dumps(value)[:60]}.')
    for name in ("name", "prompt"):
        if not described.get(name):
            raise UserError(f'{path}: a template needs the field "{name}", a text that is not empty.')
    template = Template(**{k: tuple(v) if isinstance(v, list) else v for k, v in described.items()})
    if "{question}" not in template.prompt:
        raise UserError(f'{path}: "prompt" must hold {{question}}.')
    if template.answer not in ("header", "inline"):
        try:
            rule_of(template.answer)
        except UserError as error:
            raise UserError(f'{path}: "answer" is none of header and inline, and {error}') from None
        if template.answer != "section" and "{answer}" not in template.answer_header:
            raise UserError(
                f'{path}: "answer_header" must hold {{answer}}, where an answer found by "{template.answer}" is written.'
            )
    if template.tag != template.tag.strip():
        raise UserError(f'{path}: "tag" must have no white space around it; write that into "separator".')
    if len(template.paragraphs(f"a{template.separator}b")) != 2:
        cut = f"the tag {template.tag!r}" if template.tag else "a blank line"
        raise UserError(f'{path}: "separator" must hold {cut}, where a text is cut into steps.')
    if template.extract_answer(template.format_solution(["a"], "7")) != "7":
        raise UserError(
            f'{path}: an answer that is written by "answer", "answer_header", "separator" and "stop" is not found again by '
            "them; mend these fields (docs/data.md, Templates)."
        )
    return template
