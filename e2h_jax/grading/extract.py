r"""Where in a solution its final answer is written: the one place that decides it, for every stage.

Text in, positions out; nothing is interpreted here. What holds for all rules (docs/grading.md, "The final answer"):

  * The answer is stripped; one of white space alone is none.
  * An answer that holds a box (`# Answer\n\n$\boxed{42}$`) is what the box holds, by the rule of boxes.
  * A carriage return before a newline changes nothing.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

HEADER = "# Answer"  # of this project's own text format

_BLANK_LINES = r"\n(?:[ \t\r]*\n)+"
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a printed character
# What TeX lets stand behind a macro, but for a blank line; then the argument without braces: a number or one letter.
_SPACE = re.compile(r"[ \t\r]*\n?[ \t\r]*")
_BARE = re.compile(r"(?>[+\-\u2212]?\d+(?:[.,]\d+)*|[^\W\d_])(?=[\s$.,;:!?)}\]<]|\\[)\]]|\Z)")
_HASHES = re.compile(r"#### *([^\n]*)")
_SENTENCE = re.compile(r"answer(?: is|:)[: ]+(\S[^\n]*?)(?=\.(?:\s|$)|\n|$)", re.IGNORECASE)


class Paragraph(NamedTuple):
    """Character positions in a text: [begin, end) holds one paragraph and the blank lines after it."""

    begin: int
    start: int  # [start, stop): the paragraph's text without surrounding white space; start == stop when there is none
    stop: int
    gap: int  # [gap, end): the blank lines; gap == end when the text ends without, or a header line follows at once
    end: int


class Answer(NamedTuple):
    """Character positions in a text: [start, stop) is the answer, and what announces it (header, box) begins at `begin`."""

    begin: int
    start: int
    stop: int


@cache
def gaps_of(header: str = "") -> re.Pattern:
    """What ends a paragraph: blank lines and, with no character of its own, the beginning of a line that is the header's."""
    return re.compile(_BLANK_LINES + (rf"|(?<=\n)(?=[^\S\n]*{_line(header).pattern})" if header else ""))


@cache
def _line(header: str) -> re.Pattern:
    """The header as a line begins with it: a longer word or a deeper heading is another one."""
    return re.compile(rf"{re.escape(header)}(?=[\s:]|\Z)[^\S\n]*:?")


def paragraphs(text: str, gaps: re.Pattern | None = None) -> list[Paragraph]:
    """Cuts a text at its blank lines, or at what else `gaps` finds; the pieces [begin, end) join to the text again."""
    gaps = gaps or gaps_of()
    found = []
    begin = 0
    while begin < len(text):
        match = gaps.search(text, begin)
        if match and match.end() == begin:  # a header line begins here
            match = gaps.search(text, begin + 1)
        gap, end = match.span() if match else (len(text), len(text))
        body = text[begin:gap]
        stop = begin + len(body.rstrip())
        start = min(begin + len(body) - len(body.lstrip()), stop)
        found.append(Paragraph(begin, start, stop, gap, end))
        begin = end
    return found


def find_section(text: str, found: Sequence[Paragraph], header: str = HEADER) -> Answer | None:
    """The first section that holds an answer: a model that goes on talking after its answer has still answered.

    A section begins with a line that begins with the header, and a colon perhaps. Its answer is what follows there, to the
    end of the paragraph; if nothing does, the next paragraph, unless a section begins with that too.

    Args:
      found: the text cut into paragraphs before every header line.
    """
    line = _line(header)
    filled = [paragraph for paragraph in found if paragraph.start < paragraph.stop]
    heads = [line.match(text, paragraph.start, paragraph.stop) for paragraph in filled]
    for index, head in enumerate(heads):
        if head is None:
            continue
        start, stop = head.end(), filled[index].stop
        if not text[start:stop].strip() and index + 1 < len(filled) and heads[index + 1] is None:
            start, stop = filled[index + 1].start, filled[index + 1].stop
        if answer := _stated(text, head.start(), start, stop):
            return answer
    return None


def find_inline(text: str, found: Sequence[Paragraph], header: str) -> Answer | None:
    """The first answer that follows the header within a step: what stands from there to the step's end, or the next header.

    Args:
      found: the text cut into steps.
    """
    for step in found:
        begin = text.find(header, step.start, step.stop)
        while header and begin >= 0:  # an announcement without an answer is passed over, within a step too
            start = begin + len(header)
            following = text.find(header, start, step.stop)
            if answer := _stated(text, begin, start, step.stop if following < 0 else following):
                return answer
            begin = following
    return None


def find_box(text: str, start: int = 0, stop: int | None = None) -> Answer | None:
    r"""What the last `\boxed{…}` (or `\fbox{…}`) of text[start:stop] holds. One that is not closed, or empty, is no answer.

    It stands for no earlier one either: `\boxed{12} no wait, \boxed{` has none. Without braces, `\boxed 9`, a number or a
    letter counts. Of nested boxes the innermost is the last.
    """
    stop = len(text) if stop is None else stop
    last = _last(_BOX, text, start, stop)
    if last is None:
        return None
    inside = _SPACE.match(text, last.end(), stop).end()
    if not text.startswith("{", inside, stop):
        bare = _BARE.match(text, inside, stop)
        return Answer(last.start(), *bare.span()) if bare else None
    depth = 0
    for brace in _BRACE.finditer(text, inside, stop):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return _trimmed(text, last.start(), inside + 1, brace.start())
    return None


def hide_sections(text: str, header: str) -> str:
    """A text that `find_section` finds nothing in: a backslash stands before its header lines."""
    return re.sub(rf"^(?=[^\S\n]*{_line(header).pattern})", r"\\", text, flags=re.MULTILINE)


def hide_boxes(text: str) -> str:
    """A text that `find_box` finds nothing in: its boxes lose their frames."""
    return _BOX.sub(" ", text)


def _trimmed(text: str, begin: int, start: int, stop: int) -> Answer | None:
    body = text[start:stop]
    start, stop = start + len(body) - len(body.lstrip()), start + len(body.rstrip())
    return Answer(begin, start, stop) if start < stop else None


def _stated(text: str, begin: int, start: int, stop: int) -> Answer | None:
    """The answer in text[start:stop], which is announced at `begin`."""
    if not _BOX.search(text, start, stop):
        return _trimmed(text, begin, start, stop)
    box = find_box(text, start, stop)
    return box and box._replace(begin=begin)


def _last(pattern: re.Pattern, text: str, start: int, stop: int) -> re.Match | None:
    return max(pattern.finditer(text, start, stop), key=re.Match.start, default=None)


def _find_last(pattern: re.Pattern, text: str) -> Answer | None:
    match = _last(pattern, text, 0, len(text))
    return _stated(text, match.start(), *match.span(1)) if match else None


def _find_section(text: str) -> Answer | None:
    return find_section(text, paragraphs(text, gaps_of(HEADER)))


_RULES: dict[str, Callable[[str], Answer | None]] = {
    "any": lambda text: _find_section(text) or find_box(text),
    "section": _find_section,
    "boxed": find_box,
    "gsm8k": lambda text: _find_last(_HASHES, text),
    "sentence": lambda text: _find_last(_SENTENCE, text) or find_box(text),
}
TEMPLATES = tuple(_RULES)  # names of the rules


def extract_answer(text: str, rule: str = "any") -> str | None:
    r"""Returns the final answer of a solution, or None when it states none.

    A solution that was cut off before it reached its answer has none; one cut off later has the answer it wrote.

    Rules (a generator's own template knows its rule, `Template.extract_answer`; these are for texts of other systems):
      section: the first section `# Answer` of this project's format, see `find_section`.
      boxed: the last `\boxed{…}`, see `find_box`.
      any: `section`, else `boxed`.
      gsm8k: what follows the last `####` on its line.
      sentence: what follows the last "the answer is" or "answer:", up to the end of the sentence; else `boxed`.

    Raises:
      ValueError: no such rule.
    """
    if rule not in _RULES:
        raise ValueError(f'there is no template "{rule}"; use {", ".join(TEMPLATES)}')
    found = _RULES[rule](text)
    return text[found.start : found.stop] if found else None
