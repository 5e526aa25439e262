"""Steps of a solution as spans of characters and of tokens, the same for training, scoring and reinforcement learning.

A solution is text. Its steps are the paragraphs between blank lines (`Template.paragraphs`); what announces the final answer
(a header, a box) and the answer are together the last step, where `Template.find_answer` finds one. Rules for odd text, none of
which ever raises:

  * several blank lines in a row are one separator; blank lines at the start or end make no step;
  * text after the answer's paragraph keeps its tokens and belongs to no step;
  * where there is no answer, an answer header with nothing after it say, no step is the answer's;
  * a last step without a blank line after it has an empty separator; its score is read at its last token.

Tokens are made piece by piece: the prompt, then each paragraph together with the blank lines after it. So a
prompt's tokens are a prefix of its solutions' tokens, and the tokens of the first k steps are a prefix of the tokens
of all steps, whatever a tokenizer likes to merge. Inside a piece, the tokenizer's own offsets tell step and separator
apart; a token that holds the end of a step and its blank line (".\\n\\n") belongs to both spans. Pieces of a solution
get no space in front (SentencePiece's dummy prefix) unless the prompt ends with one, which is then theirs; and what looks like
a special token ("</s>") is encoded as text, but for a template's tag.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from e2h_jax.data.templates import Template
from e2h_jax.data.tokenizer import bos_ids
from e2h_jax.errors import UserError, nearest

READ_AT = ("separator_first", "separator_last", "min3", "last_token", "tag")


@dataclass(frozen=True)
class Step:
    """Characters [start, end) of one step in the solution text, without the separator."""

    start: int
    end: int
    is_answer: bool


@dataclass(frozen=True, eq=False)
class EncodedSolution:
    """A prompt and a solution as tokens, with the token spans of the solution's steps. All arrays are int32.

    Attributes:
      tokens: [T], BOS (where the tokenizer puts it) + prompt + solution (+ EOS).
      prompt_length: number of tokens before the solution.
      steps: [K, 2], span [start, end) of each step's text.
      separators: [K, 2], span of the blank lines after each step, [end, end) when there are none.
      has_answer: the last step is the final answer.
    """

    tokens: np.ndarray
    prompt_length: int
    steps: np.ndarray
    separators: np.ndarray
    has_answer: bool


class _Piece(NamedTuple):
    """One paragraph with its blank lines: ids, step tokens [start, stop), separator tokens [gap, len(ids))."""

    ids: list[int]
    start: int
    stop: int
    gap: int


class _Row(NamedTuple):
    """A step made of the pieces first … last; `stop` is where its text ends, in characters."""

    first: int
    last: int
    stop: int


def _layout(solution: str, template: Template) -> tuple[list[str], list[_Row], bool]:
    """Pieces of a solution, its steps as runs of pieces, and whether the last step is the final answer."""
    found = template.paragraphs(solution)
    answer = template.answer_paragraphs(solution, found)
    body = found if answer is None else found[: answer[0]]
    rows = [_Row(i, i, p.stop) for i, p in enumerate(body) if p.start < p.stop]
    if answer is not None:
        rows.append(_Row(answer[0], answer[1], found[answer[1]].stop))
    return [solution[p.begin : p.end] for p in found], rows, answer is not None


def _lead(pieces: list[str], template: Template) -> list[str]:
    """The pieces with the prompt's last space in front."""
    if not template.lead or not pieces or pieces[0].startswith(template.lead):
        return pieces
    return [template.lead + pieces[0], *pieces[1:]]


def check_tag(tokenizer: Any, template: Template) -> None:
    """Raises UserError unless the template's tag, if it has one, is one token."""
    if template.tag and _encoder(tokenizer).splits_tag(template):
        raise UserError(f"the tokenizer has no token {template.tag!r}, which ends the steps of the template {template.name}.")


def split_steps(solution: str, template: Template) -> list[Step]:
    """The steps of a solution in order; the final answer (header and answer) is one step, the last."""
    found = template.paragraphs(solution)
    _, rows, has_answer = _layout(solution, template)
    return [Step(found[row.first].start, row.stop, has_answer and row is rows[-1]) for row in rows]


def steps_begun(whole: str, length: int, template: Template) -> int:
    """How many steps of a whole solution begin in its first `length` characters: those of its problem's `prefix`.

    The prefix alone does not tell: its last box is its answer, and no answer any more where another box follows.
    """
    return sum(step.start < length for step in split_steps(whole, template))


class _Encoder:
    """Batched access to the Rust tokenizer in a transformers tokenizer, as it is and for continuations."""

    def __init__(self, tokenizer: Any):
        from tokenizers import Tokenizer

        description = json.loads(tokenizer.backend_tokenizer.to_str())
        description["post_processor"] = None  # BOS and EOS are added here; some post-processors trim the offsets
        self._beginning = Tokenizer.from_str(json.dumps(description))
        self._continuation = Tokenizer.from_str(json.dumps(_without_dummy_prefix(description)))
        for backend in (self._beginning, self._continuation):
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = True  # as text
        self._special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        self._bos = bos_ids(tokenizer)
        self._bos_again = bos_ids(tokenizer, *self._bos[:1])  # of a prompt that begins with it
        self.eos = [tokenizer.eos_token_id]
        self._unknown = tokenizer.unk_token

    def prompts(self, questions: Iterable[str], template: Template) -> dict[str, list[int]]:
        """Question -> BOS (see `bos_ids`) + ids of its prompt, each distinct question encoded once.

        The template's special tokens become their ids (UserError without one); a question is text whatever it holds.
        """
        if lacking := [token for token in template.special if token not in self._special]:
            raise UserError(
                f"the tokenizer has no special token {lacking[0]}{nearest(lacking[0], self._special)}, which the template "
                f"{template.name} names; choose the template that the model was made for, or correct the template file."
            )
        unique = list(dict.fromkeys(questions))
        parts = _prompt_parts(template, self._special)
        ids = [list(self._bos_again if [parts[0][1]] == self._bos else self._bos) for _ in unique]
        for number, (part, special) in enumerate(parts):
            if special is not None:
                for row in ids:
                    row.append(special)
                continue
            backend = self._continuation if number else self._beginning
            part = part.removesuffix(template.lead) if part and template.prompt.endswith(part) else part
            texts = [_clean(part.replace("{question}", template.asked(question))) for question in unique]
            for row, encoding in zip(ids, backend.encode_batch(texts, add_special_tokens=False), strict=True):
                row += encoding.ids
        return dict(zip(unique, ids, strict=True))

    def pieces(self, texts: Iterable[str], template: Template) -> dict[str, _Piece]:
        """Text -> piece, each distinct text encoded once."""
        unique = list(dict.fromkeys(texts))
        tag = self.tag(template)
        bodies = [_clean(text if tag is None else text[: template.paragraphs(text)[0].gap]) for text in unique]
        encodings = self._continuation.encode_batch(bodies, add_special_tokens=False)
        pieces = {text: _piece(text, encoding, template) for text, encoding in zip(unique, encodings, strict=True)}
        if tag is None:
            return pieces
        ends = {text: [tag] if len(body) < len(text) else [] for text, body in zip(unique, bodies, strict=True)}
        return {text: piece._replace(ids=[*piece.ids, *ends[text]]) for text, piece in pieces.items()}

    def tag(self, template: Template) -> int | None:
        """The id of a tag that is a special token."""
        return self._special.get(template.tag) if template.tag in template.special else None

    def splits_tag(self, template: Template) -> bool:
        """Whether the template's tag is no single token."""
        if template.tag in template.special:
            return self.tag(template) is None
        encoding = self._continuation.encode(template.separator.rstrip(), add_special_tokens=False)
        return len(encoding.ids) != 1 or encoding.tokens == [self._unknown]


_encoders: WeakKeyDictionary[Any, _Encoder] = WeakKeyDictionary()


def _encoder(tokenizer: Any) -> _Encoder:
    if tokenizer not in _encoders:
        _encoders[tokenizer] = _Encoder(tokenizer)
    return _encoders[tokenizer]


def _prompt_parts(template: Template, ids: dict[str, int]) -> list[tuple[str, int | None]]:
    """The template's prompt as (text, None) and (special token, its id), in order."""
    if not template.special:
        return [(template.prompt, None)]
    parts = re.split("(" + "|".join(map(re.escape, template.special)) + ")", template.prompt)
    return [(part, ids[part] if part in template.special else None) for part in parts if part]


def _without_dummy_prefix(node: Any) -> Any:
    """A tokenizer description that adds no space in front of a text."""
    if isinstance(node, list):
        return [_without_dummy_prefix(item) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    changes = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}.get(kind, {})
    skip = ("model", "decoder", "added_tokens")  # large, or none of an encoder's business
    return {key: value if key in skip else _without_dummy_prefix(value) for key, value in node.items()} | changes


def _clean(text: str) -> str:
    """Lone surrogates, which JSON may hold and UTF-8 may not, become U+FFFD; one character stays one character."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def _piece(text: str, encoding: Any, template: Template) -> _Piece:
    """Finds the tokens that touch the step's characters, and those that touch its blank lines."""
    _, start, stop, gap, end = template.paragraphs(text)[0]
    # Offsets only grow, except that the tokens of one character all have its offsets: both lists are sorted.
    starts, ends = [o[0] for o in encoding.offsets], [o[1] for o in encoding.offsets]
    after = bisect_right(ends, gap) if gap < end else len(ends)
    return _Piece(encoding.ids, bisect_right(ends, start), bisect_right(starts, stop - 1), after)


def _assemble(
    prompt: list[int], pieces: list[_Piece], rows: Sequence[_Row | None], has_answer: bool, ending: list[int]
) -> EncodedSolution:
    """Joins the pieces to tokens. A row that is None gets empty spans after the row before it."""
    begins = list(accumulate((len(piece.ids) for piece in pieces), initial=len(prompt)))
    tokens = [*prompt, *(token for piece in pieces for token in piece.ids), *ending]
    spans = np.empty((len(rows), 4), np.int32)
    end = len(prompt)
    for index, row in enumerate(rows):
        if row is None:
            spans[index] = end
            continue
        first, last = pieces[row.first], pieces[row.last]
        end = begins[row.last] + last.stop
        # A step whose every character the tokenizer drops is read at the token before it.
        start = min(begins[row.first] + first.start, end - 1)
        gap, gap_end = begins[row.last] + last.gap, begins[row.last + 1]
        spans[index] = start, end, gap if gap < gap_end else end, gap_end if gap < gap_end else end
    return EncodedSolution(np.array(tokens, np.int32), len(prompt), spans[:, :2], spans[:, 2:], has_answer)


def encode_prompts(tokenizer: Any, questions: Sequence[str], template: Template) -> list[np.ndarray]:
    """`encode_prompt` of many questions; much faster than one by one."""
    encoded = _encoder(tokenizer).prompts(questions, template)
    return [np.array(encoded[question], np.int32) for question in questions]


def encode_prompt(tokenizer: Any, question: str, template: Template) -> np.ndarray:
    """int32 [P], BOS + prompt: exactly the first P tokens of every `encode_solution` of the question."""
    return encode_prompts(tokenizer, [question], template)[0]


def encode_solutions(
    tokenizer: Any, questions: Sequence[str], solutions: Sequence[str], template: Template, *, add_eos: bool
) -> list[EncodedSolution]:
    """`encode_solution` of many pairs; much faster than one by one."""
    encoder = _encoder(tokenizer)
    layouts = [_layout(solution, template) for solution in solutions]
    layouts = [(_lead(texts, template), rows, has_answer) for texts, rows, has_answer in layouts]
    ids = encoder.prompts(questions, template)
    pieces = encoder.pieces((text for texts, _, _ in layouts for text in texts), template)
    ending = encoder.eos if add_eos else []
    return [
        _assemble(ids[question], [pieces[text] for text in texts], rows, has_answer, ending)
        for question, (texts, rows, has_answer) in zip(questions, layouts, strict=True)
    ]


def encode_continuations(tokenizer: Any, problems: Sequence[dict], template: Template) -> list[EncodedSolution]:
    """`encode_solutions` of problem records; where one has a `prefix`, that counts as part of the prompt.

    The prefix and the solution are one text, cut into tokens as always; `prompt_length` reaches to the end of the prefix.
    EOS is at the end. A `solution` of None is an empty one.
    """
    prefixes = [template.join_steps(problem.get("prefix") or "", ()) for problem in problems]
    texts = [prefix + (problem["solution"] or "") for prefix, problem in zip(prefixes, problems, strict=True)]
    questions = [problem["question"] for problem in problems]
    encoded = encode_solutions(tokenizer, questions, texts, template, add_eos=True)
    begun = [index for index, prefix in enumerate(prefixes) if prefix]
    before = encode_solutions(tokenizer, [questions[i] for i in begun], [prefixes[i] for i in begun], template, add_eos=False)
    for index, beginning in zip(begun, before, strict=True):
        encoded[index] = replace(encoded[index], prompt_length=len(beginning.tokens))
    return encoded


def encode_solution(tokenizer: Any, question: str, solution: str, template: Template, *, add_eos: bool) -> EncodedSolution:
    """Tokens and step spans of a question with a solution of any text whatever."""
    return encode_solutions(tokenizer, [question], [solution], template, add_eos=add_eos)[0]


def _labelled_layout(prefix: str, steps: Sequence[str], template: Template) -> tuple[list[str], list[_Row | None], bool, int]:
    """`_layout` of prefix + steps with one row for each of `steps`, and the number of rows of the prefix."""
    separator = template.separator
    text = template.join_steps(prefix, ()) or template.opening
    prefix_length = len(text)
    begins = []
    for step in steps:
        begins.append(len(text))
        text += step.strip() + separator
    pieces, found, has_answer = _layout(text, template)
    before = [row for row in found if row.stop <= prefix_length]
    rows: list[_Row | None] = [*before, *([None] * len(steps))]
    for row in found[len(before) :]:
        index = len(before) + bisect_right(begins, row.stop - 1) - 1
        earlier = rows[index]
        rows[index] = row if earlier is None else row._replace(first=earlier.first)
    has_answer = has_answer and bool(rows) and rows[-1] is not None
    if has_answer and not template.tag:
        pieces[-1] = pieces[-1].removesuffix(separator)
    return _lead(pieces, template), rows, has_answer, len(before)


def encode_labelled(
    tokenizer: Any, records: Sequence[dict], template: Template, *, add_eos: bool
) -> list[tuple[EncodedSolution, int]]:
    """`encode_steps` of many `labelled` records; much faster than one by one."""
    encoder = _encoder(tokenizer)
    layouts = [_labelled_layout(record["prefix"], record["steps"], template) for record in records]
    ids = encoder.prompts((record["question"] for record in records), template)
    pieces = encoder.pieces((text for layout in layouts for text in layout[0]), template)
    ending = encoder.eos if add_eos else []
    return [
        (_assemble(ids[record["question"]], [pieces[text] for text in texts], rows, has_answer, ending), first)
        for record, (texts, rows, has_answer, first) in zip(records, layouts, strict=True)
    ]


def encode_steps(
    tokenizer: Any, question: str, prefix: str, steps: Sequence[str], template: Template, *, add_eos: bool
) -> tuple[EncodedSolution, int]:
    """Tokens of prefix + steps, and `first`: row `first + i` of the spans is `steps[i]`; earlier rows are the prefix's.

    Steps are stripped and joined by the template's separator, which also follows the last step unless that is the
    final answer; so a step is read at the same tokens as in a whole solution. A step that holds blank lines is one row
    all the same. A step that is blank, or comes after the final answer, has a row of empty spans, at which nothing is
    read.
    """
    record = {"question": question, "prefix": prefix, "steps": steps}
    return encode_labelled(tokenizer, [record], template, add_eos=add_eos)[0]


def read_positions(encoded: EncodedSolution, where: str) -> list[np.ndarray]:
    """Per step, the int32 indices of the tokens whose scores are read; a step's score is the least of them.

    Args:
      where: "separator_first", "separator_last": first or last token of the blank lines after the step; "min3": the
        step's last token and both of those (one index each where they coincide); "last_token": the step's last token;
        "tag": the tag after the step, of the final answer's as well.

    A step without blank lines after it, and but for "tag" the final answer, are read at their last token (before EOS). The
    array is empty for a row of empty spans (see `encode_steps`).
    """
    if where not in READ_AT:
        raise UserError(f'read_at: "{where}" is not one of {", ".join(READ_AT)}{nearest(where, READ_AT)}.')
    positions = []
    answer = len(encoded.steps) - 1 if encoded.has_answer else -1
    for row, ((start, end), (gap, gap_end)) in enumerate(zip(encoded.steps.tolist(), encoded.separators.tolist(), strict=True)):
        if start == end:
            read = []
        elif gap == gap_end or where == "last_token" or (row == answer and where != "tag"):
            read = [end - 1]
        elif where == "min3":
            read = sorted({end - 1, gap, gap_end - 1})
        else:
            read = [gap if where in ("separator_first", "tag") else gap_end - 1]
        positions.append(np.array(read, np.int32))
    return positions


def truncate(encoded: EncodedSolution, max_length: int) -> EncodedSolution:
    """The first `max_length` tokens, and the steps that lie in them whole, blank lines included."""
    if len(encoded.tokens) <= max_length:
        return encoded
    kept = int(np.sum(np.maximum.accumulate(encoded.separators[:, 1]) <= max_length))
    return EncodedSolution(
        tokens=encoded.tokens[:max_length],
        prompt_length=min(encoded.prompt_length, max_length),
        steps=encoded.steps[:kept],
        separators=encoded.separators[:kept],
        has_answer=encoded.has_answer and kept == len(encoded.steps),
    )
