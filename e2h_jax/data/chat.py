r"""Chat templates: the prompt of a model's own Jinja chat template as an ordinary `Template`, made once.

transformers renders the chat template (in its sandbox) with a marked question, and what stands around the mark is the prompt.
So the chat template is not run again, and a question is text whatever it holds: Jinja, the name of a special token, the mark.

What cannot be had in this way is refused: a chat template that fails, that changes the question (but for white space around
it), or whose prompt has other tokens than transformers gives it.
"""

import re
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from e2h_jax.data.steps import encode_prompt
from e2h_jax.data.storage import as_json
from e2h_jax.data.templates import CHAT, Template, as_record, get_template, read_description, recorded_template
from e2h_jax.data.tokenizer import bos_ids, load_tokenizer
from e2h_jax.errors import UserError, nearest

_STEPS = "Work in small steps and leave a blank line between them."
INSTRUCTIONS = {
    "gsm8k": rf"{_STEPS} At the end put your final answer, a number without its unit, in \boxed{{}}.",
    "math": rf"{_STEPS} At the end put your final answer, in its simplest form, in \boxed{{}}.",
}
ANSWERS = {  # how a solution writes its final answer, by the rule that finds it (`Template.answer`)
    "boxed": r"The final answer is $\boxed{{answer}}$.",
    "header": "# Answer",
    "section": "# Answer",
    "inline": "The answer is:",
    "gsm8k": "#### {answer}",
    "sentence": "The answer is {answer}.",
    "last_number": "The answer is {answer}.",
}
# Questions that a chat template may not change: letters of both cases, white space and blank lines within, what Jinja, HTML and
# JSON treat in their own way. Two of them, so that a prompt that depends on the question is noticed.
_MARKS = ('Is {{ 1 }} < 2  &\n\n "É{% x %}\'s" é?', "Which\tof <b>A</b>, \\n or {# b #} &amp; the 10th,\n \nÄß?!")
_ANSWER = "It is 12 or so"
_REMEDY = "write the prompt as a template file (docs/data.md, Templates) and name that as the template"


def chat_template(tokenizer: Any, system: str = "", instruction: str = "", answer: str = "boxed") -> Template:
    r"""The template whose prompts are what the tokenizer's chat template makes of a question, up to the assistant's own words.

    Args:
      system: text of the system turn; "" = no such turn, for which some chat templates have a text of their own.
      instruction: a name of `INSTRUCTIONS`, or a text for the user's turn: around the question where it holds `{question}`,
        else behind it, after a blank line.
      answer: how solutions write the final answer, a name of `ANSWERS`.

    Raises:
      UserError: there is no chat template, or it cannot be had as a template, see above.
    """
    if answer not in ANSWERS:
        raise UserError(f'answer: there is no rule "{answer}"{nearest(answer, ANSWERS)}; there are: {", ".join(ANSWERS)}.')
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; {_REMEDY}.")
    chat = _Chat(tokenizer, system, _turn(instruction))
    before, after = chat.around_question()
    prompt, (opening, stop) = before + "{question}" + after, chat.around_answer()
    special = tuple(token for token in chat.special if token in before or token in after)
    # Some tokenizers of SentencePiece put a space in front of every text that follows a special token.
    any_special = "|".join(map(re.escape, special))
    spaced = re.sub(f"({any_special})(?!{any_special}|\\Z)", r"\1 ", prompt) if special else prompt
    rest = {"opening": opening, "answer": answer, "answer_header": ANSWERS[answer], "special": special, "stop": stop}
    for text in (prompt, spaced):
        template = Template(name=CHAT, prompt=text, trim=chat.trims(), **rest)
        if all(chat.reads_alike(template, question) for question in ("What is 2 + 3?", *_MARKS)):
            return template
    raise chat.refused("makes a prompt that is cut into other tokens than its text alone tells")


def _turn(instruction: str) -> str:
    """What the user says, with `{question}` in the question's place."""
    text = INSTRUCTIONS.get(instruction, instruction.strip())
    if len(text.split()) == 1 and "{question}" not in text and (near := nearest(text, INSTRUCTIONS)):
        raise UserError(f'instruction: there is no ready instruction "{text}"{near}; there are: {", ".join(INSTRUCTIONS)}.')
    if text.count("{question}") > 1:
        raise UserError("instruction: the text holds {question} more than once; the question has one place.")
    return text if "{question}" in text else "\n\n".join(filter(None, ["{question}", text]))


class _Chat:
    """A tokenizer's chat template, asked with one system text and one user's turn."""

    def __init__(self, tokenizer: Any, system: str, turn: str):
        self._tokenizer, self._system, self._turn = tokenizer, system, turn
        tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.special = sorted(tokens, key=lambda token: (-len(token), token))  # one that begins with another comes first

    def refused(self, what: str, remedy: str = _REMEDY) -> UserError:
        """The sentence for a chat template that cannot be used."""
        return UserError(f"{self._tokenizer.name_or_path}: the chat template {what}; {remedy}.")

    def around_question(self) -> tuple[str, str]:
        """The prompt before and behind the question."""
        self._check_system()
        found = {self._around(self._said(mark), mark) for mark in _MARKS}
        if len(found) > 1 or None in found:
            raise self.refused("changes the question or what is said with it")
        ((before, after),) = found
        if "{question}" in before + after:
            raise self.refused("or the system text holds {question}, which stands for the question", "leave that out")
        return before, after

    def trims(self) -> bool:
        """Whether the white space around what the user says is left out."""
        mark, padded = _MARKS[0], f" \n{_MARKS[0]}\t "
        plain, text = self._render(mark), self._render(padded)
        if text not in (plain, plain.replace(mark, padded)):
            raise self.refused("changes the white space around the question")
        return text == plain

    def around_answer(self) -> tuple[str, tuple[str, ...]]:
        """White space that the assistant's words begin with, and what ends a solution: the special token that follows them, or
        else the text between them and what the user says next. A chat template that says nothing of it has neither."""
        question, following = map(self._said, _MARKS)
        try:
            prompt, ended = self._render(question), self._render(question, _ANSWER)
            begin, tail = ended.split(_ANSWER)
            if not any(token in tail for token in self.special):
                tail = self._render(question, _ANSWER, following).split(_ANSWER)[1].partition(following)[0].rstrip()
        except (UserError, ValueError, IndexError):
            return "", ()
        opening = begin.removeprefix(prompt)
        special = [token for token in self.special if token in tail]
        stop = min(special, key=tail.index) if special else tail
        return "" if opening.strip() else opening, (stop,) if stop.strip() else ()

    def reads_alike(self, template: Template, question: str) -> bool:
        """Whether the template's prompt has the tokens that transformers gives the chat template's.

        Only BOS may stand in front besides, where the tokenizer puts it in front of any text and the chat template does not.
        """
        text = self._render(self._said(question)).removesuffix(template.lead)
        expected = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return encode_prompt(self._tokenizer, question, template).tolist() in (expected, bos_ids(self._tokenizer) + expected)

    def _said(self, question: str) -> str:
        return self._turn.replace("{question}", question)

    def _around(self, said: str, mark: str) -> tuple[str, str] | None:
        """The prompt before and behind the mark; None unless all that is said stands in it once."""
        text = self._render(said)
        return tuple(text.split(mark)) if text.count(said) == text.count(mark) == 1 else None

    def _check_system(self) -> None:
        if not self._system:
            return
        remedy = "leave the system text empty, or write it into the instruction"
        try:
            text = self._render(self._said(_MARKS[0]))
        except UserError:
            system, self._system = self._system, ""
            self._render(self._said(_MARKS[0]))  # raises what has nothing to do with the system text
            self._system = system
            raise self.refused("takes no system text", remedy) from None
        if self._system.strip() not in text:
            raise self.refused("leaves out or changes the system text", remedy)

    def _render(self, *said: str) -> str:
        """The chat so far, of the user and the assistant in turn; after the user the beginning of the assistant's turn."""
        turns = [{"role": "system", "content": self._system}] if self._system else []
        turns += [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(said)]
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=len(said) % 2 == 1)
        except Exception as error:  # of Jinja, or of whatever the chat template does
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.refused(f"fails for a single question ({reason})") from error


def complete(described: dict[str, Any], path: str, tokenizer: Any) -> dict[str, Any]:
    """All fields of a template file that has `chat` in place of a prompt; UserError if it says too much or too little."""
    others = dict(described)
    asked = others.pop("chat")
    fields = ("system", "instruction")
    if not isinstance(asked, dict) or set(asked) - set(fields) or not all(isinstance(text, str) for text in asked.values()):
        raise UserError(f'{path}: "chat" must be an object of texts with the names {" and ".join(fields)}, or of one of them.')
    if twice := sorted({"name", "prompt", "special", "trim"} & set(others)):
        raise UserError(f'{path}: "{twice[0]}" comes from the chat template; leave out that field, or "chat".')
    if tokenizer is None:
        raise UserError(f'{path}: "chat" needs the tokenizer of a model; name the template.json beside its samples instead.')
    answer = others.get("answer", "boxed")  # a regular expression, say, or a mistake, of which is told later
    known = isinstance(answer, str) and answer in ANSWERS
    built = as_json(asdict(chat_template(tokenizer, **asked, answer=answer if known else "boxed")))
    if isinstance(others.get("stop"), list):
        others["stop"] = built["stop"] + others["stop"]
    return built | others


@cache
def _say_once(sentence: str) -> None:
    """A stage of rounds asks for its template in each of them."""
    print(sentence, file=sys.stderr)


def policy_template(name: str, folder: str | Path, tokenizer: Any, *, tell: bool, field: str = "config.template") -> Template:
    """`get_template` for a stage that goes on with the policy in `folder`; `tell`: this process is the one that prints.

    Raises:
      UserError: by its model.json the policy is a chat model, and the template is another than its own.
    """
    template, own = get_template(name, folder, tokenizer), recorded_template(folder)
    if template.name == CHAT:
        return template
    if own is None and tokenizer.chat_template and tell:
        _say_once(
            f"e2h: {folder}: the tokenizer has a chat template, and {field}={name} is another text format; to use the chat "
            f"template, convert the model again and set {field}=chat"
        )
    # Solved problems in front of the prompt (`few_shot`) leave the format what it is.
    if own is not None and own.name == CHAT and not template.prompt.endswith(own.prompt):
        raise UserError(
            f"{folder} is a chat model by its model.json, and {field}={name} is another text format; set {field}=chat or, if "
            f"you mean the other one, convert the model with --config.template={name}, which records that."
        )
    return template


def format_of_source(
    folder: Path, name: str, system: str, instruction: str, answer: str, own: str | None
) -> str | dict[str, Any] | None:
    """What `e2h convert` records as the text that a model reads, see `as_record`; None where nothing is known of it.

    Args:
      folder: of the Hub's model, with its tokenizer.
      name: of a template; "" = `own`, or "chat" if there is a chat template.
      own: the text that a reward model of this kind reads; None of a policy.
    """
    name = name or own or (CHAT if _has_chat_template(folder) else "")
    if name == CHAT:
        return as_record(chat_template(load_tokenizer(folder), system, instruction, answer))
    if system or instruction or answer != "boxed":
        why = f"config.template={name} is none" if name else f"the tokenizer in {folder} has none"
        raise UserError(f"config.system, config.instruction and config.answer are of a chat template; {why}: leave them out.")
    if not name:
        return None
    return as_record(get_template(name, tokenizer=load_tokenizer(folder) if name.endswith(".json") else None))


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    stated = config.is_file() and read_description(config).get("chat_template")
    return bool(stated) or (folder / "chat_template.jinja").is_file()
