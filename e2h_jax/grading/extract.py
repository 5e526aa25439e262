r"""Where in a solution its final answer is written: the one place that decides it, for every stage.

Text in, positions out; nothing is interpreted here. `RULES` is the table of rules, to which a user adds regular expressions.
What holds for all of them (docs/grading.md, "The final answer"):

  * The answer is stripped; one of white space alone is none.
  * An answer that holds a box (`# Answer\n\n$\boxed{42}$`) is what the box holds, by the rule of boxes.
  * Where the last of several counts, the last one decides: if it holds no answer, no earlier one takes its place.
  * A carriage return before a newline changes nothing.
  * The time is linear in the length of the text, whatever the text; a user's regular expression takes the time that it takes.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

from e2h_jax.errors import UserError, nearest

HEADER = "# Answer"  # of this project's own text format

_BLANK_LINES = r"\n(?:[ \t\r]*\n)+"
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a printed character
# What TeX lets stand behind a macro, but for a blank line; then the argument without braces: a number or one letter.
_SPACE = re.compile(r"[ \t\r]*\n?[ \t\r]*")
_BARE = re.compile(r"(?>[+\-\u2212]?\d+(?:[.,]\d+)*|[^\W\d_])(?=[\s$.,;:!?)}\]<]|\\[)\]]|\Z)")
_HASHES = "####"
# "answer is" or "answer:", in Markdown perhaps, with the space behind it; what ends the sentence that begins there.
_ANNOUNCED = re.compile(r"(?<![^\W_])answer[*_`]*(?:\s*:|\s+is\b)[*_`:]*[\s:]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=[*_`\"')\]]*(?:\s|\Z))|\n")
_BLOCKS = {"$$": "$$", r"\[": r"\]"}  # a formula of its own
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_MARKS = " \t\r\n*_"
_WRAPS = {"$": "$", r"\(": r"\)", '"': '"', "`": "`"}  # taken off an answer that is wrapped whole
_NUMBER = re.compile(
    r"""
    (?: (?<! [\w)\]}%] ) [+\-\u2212] )?  # not the minus of 5-3
    (?P<money> \\? [$€£] )?
    (?P<number>
        (?: [0-9]++ [ ]? )? \\ [dt]? frac (?: \{ [+-]? [0-9]++ \} \{ [0-9]++ \} | [0-9] [0-9] (?! [0-9] ) )
      | (?: [0-9]++ [ ] )? (?<! [0-9]/ ) [0-9]++ / [0-9]++ (?! [/.] [0-9] )  # 3/4, 2 1/2; 1/2/2026 is no fraction
      | [0-9]{1,3} (?: (?: , | \{,\} | ,\\! ) [0-9]{3} )+ (?! [0-9] ) (?: \. [0-9]++ )?
      | (?: [0-9]++ (?: \. [0-9]++ )? | (?<! [\w.] ) \. [0-9]++ ) (?: [eE] [+-]? [0-9]++ )?
    )
    (?: \\? % )?
    """,
    re.VERBOSE,
)
_OTHER_DIGITS = {ord("0") + digit: ord("\uff10") + digit for digit in range(10)}  # full-width: no number by _NUMBER


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
    rule: str  # that found it: of RULES but for "any", "inline", or a regular expression


class Rule(NamedTuple):
    """How an answer is found."""

    find: Callable[[str], Answer | None]
    hide: Callable[[str], str]  # a text to one in which `find` finds nothing, with as little changed as can be


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
        if answer := _stated(text, head.start(), start, stop, "section"):
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
            if answer := _stated(text, begin, start, step.stop if following < 0 else following, "inline"):
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
    return last and _box_at(text, last, stop)


def find_hashes(text: str) -> Answer | None:
    """What follows the last `####` on its line."""
    begin = text.rfind(_HASHES)
    if begin < 0:
        return None
    stop = text.find("\n", begin)
    return _stated(text, begin, begin + len(_HASHES), len(text) if stop < 0 else stop, "gsm8k")


def find_sentence(text: str) -> Answer | None:
    r"""What the last "answer is" or "answer:" announces: the rest of the sentence, which may begin on a later line.

    Markdown's marks go, and what wraps the whole answer (`$42$`, `"42"`). Of an answer that begins in bold, or as a formula of
    its own (`$$`, `\[`), that alone counts; such a formula that is not closed is no answer.
    """
    announced = _last(_ANNOUNCED, text, 0, len(text))
    if announced is None:
        return None
    begin, start = announced.span()
    for opening, closing in _BLOCKS.items():
        if text.startswith(opening, start):
            stop = text.find(closing, start + len(opening))
            inside = _unwrapped(text, start + len(opening), stop)
            return _stated(text, begin, *inside, "sentence") if stop >= 0 else None
    if bold := _BOLD.match(text, start):
        return _stated(text, begin, *_unwrapped(text, *bold.span(1)), "sentence")
    end = _SENTENCE_END.search(text, start)
    stop = end.start() if end else len(text)
    if box := _last(_BOX, text, start, stop):  # which may hold what looks like the end of a sentence
        gap = gaps_of().search(text, box.end())
        found = _box_at(text, box, gap.start() if gap else len(text))
        return found and found._replace(begin=begin, rule="sentence")
    return _trimmed(text, begin, *_unwrapped(text, start, stop), "sentence")


def find_number(text: str) -> Answer | None:
    r"""The last number, with its sign, `$` and `%`, thousands separators and decimals; 3/4 and `\frac{3}{4}` are one number."""
    last = _last(_NUMBER, text, 0, len(text))
    if last is None:
        return None
    # The dollar of $42$ is TeX's.
    start = last.start("number") if last["money"] == "$" and text.startswith("$", last.end()) else last.start()
    return Answer(start, start, last.end(), "last_number")


def hide_sections(text: str, header: str = HEADER) -> str:
    """A text that `find_section` finds nothing in: a backslash stands before its header lines."""
    return re.sub(rf"^(?=[^\S\n]*{_line(header).pattern})", r"\\", text, flags=re.MULTILINE)


def hide_boxes(text: str) -> str:
    """A text that `find_box` finds nothing in: its boxes lose their frames."""
    return _BOX.sub(" ", text)


def _hide_hashes(text: str) -> str:
    return re.sub("#{4,}", lambda match: r"\#" * len(match[0]), text)


def _hide_sentences(text: str) -> str:
    return _ANNOUNCED.sub(lambda match: ("Result" if match[0][0] == "A" else "result") + match[0][len("answer") :], text)


def _hide_numbers(text: str) -> str:
    return text.translate(_OTHER_DIGITS)


def _box_at(text: str, box: re.Match, stop: int) -> Answer | None:
    """What the box that begins at this match of _BOX holds."""
    inside = _SPACE.match(text, box.end(), stop).end()
    if not text.startswith("{", inside, stop):
        bare = _BARE.match(text, inside, stop)
        return Answer(box.start(), *bare.span(), "boxed") if bare else None
    depth = 0
    for brace in _BRACE.finditer(text, inside, stop):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return _trimmed(text, box.start(), inside + 1, brace.start(), "boxed")
    return None


def _trimmed(text: str, begin: int, start: int, stop: int, rule: str) -> Answer | None:
    body = text[start:stop]
    start, stop = start + len(body) - len(body.lstrip()), start + len(body.rstrip())
    return Answer(begin, start, stop, rule) if start < stop else None


def _unwrapped(text: str, start: int, stop: int) -> tuple[int, int]:
    """[start, stop) without Markdown's marks, a last full stop, and what wraps the rest whole."""
    while start < stop:
        if text[start] in _MARKS:
            start += 1
        elif text[stop - 1] in _MARKS or text[stop - 1] in ".,;:":
            stop -= 1
        else:
            opening = next((mark for mark in _WRAPS if text.startswith(mark, start, stop)), "")
            closing = _WRAPS.get(opening, "")
            inner = start + len(opening)
            if not opening or text.find(closing, inner, stop) != stop - len(closing):
                break
            start, stop = inner, stop - len(closing)
    return start, stop


def _stated(text: str, begin: int, start: int, stop: int, rule: str) -> Answer | None:
    """The answer in text[start:stop], which is announced at `begin`."""
    if not _BOX.search(text, start, stop):
        return _trimmed(text, begin, start, stop, rule)
    box = find_box(text, start, stop)
    return box and box._replace(begin=begin, rule=rule)


def _last(pattern: re.Pattern, text: str, start: int, stop: int) -> re.Match | None:
    return max(pattern.finditer(text, start, stop), key=re.Match.start, default=None)


def _find_section(text: str) -> Answer | None:
    return find_section(text, paragraphs(text, gaps_of(HEADER)))


def _find_any(text: str) -> Answer | None:
    return find_box(text) or _find_section(text) or find_sentence(text)


def _hide_any(text: str) -> str:
    return _hide_sentences(hide_sections(hide_boxes(text)))


RULES = {
    "boxed": Rule(find_box, hide_boxes),
    "section": Rule(_find_section, hide_sections),
    "gsm8k": Rule(find_hashes, _hide_hashes),
    "sentence": Rule(find_sentence, _hide_sentences),
    "last_number": Rule(find_number, _hide_numbers),
    "any": Rule(_find_any, _hide_any),
}


@cache
def rule_of(name: str) -> Rule:
    """The rule of this name, or that of a regular expression with one group.

    Raises:
      UserError: it is neither; the sentence begins with a small letter, to stand behind the name of a field.
    """
    if name in RULES:
        return RULES[name]
    known = f'{", ".join(RULES)}, or a regular expression with one group, such as "Result: (.*)"'
    if re.fullmatch(r"[\w\s.-]*", name):
        raise UserError(f'there is no rule "{name}"{nearest(name, RULES)}; use {known}.')
    try:
        pattern = re.compile(name)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f'the regular expression "{name}" cannot be compiled ({error}); use {known}.') from None
    if pattern.groups != 1:
        has = f"has {pattern.groups} groups" if pattern.groups else "has no group"
        raise UserError(f'the regular expression "{name}" {has}; put the answer in one (…), and other parts in (?:…).')
    return Rule(partial(_find_group, pattern), partial(_hide_groups, pattern))


def _find_group(pattern: re.Pattern, text: str) -> Answer | None:
    """What the group of the last match holds; None where it holds nothing."""
    last = _last(pattern, text, 0, len(text))
    if last is None or last.start(1) < 0:
        return None
    return _stated(text, min(last.start(), last.start(1)), *last.span(1), pattern.pattern)


def _hide_groups(pattern: re.Pattern, text: str) -> str:
    """Without what the groups hold; nothing at all where that leaves an answer again and again."""
    for _ in range(3):
        text = pattern.sub(_without_group, text)
        if not _find_group(pattern, text):
            return text
    return ""


def _without_group(match: re.Match) -> str:
    start, stop = match.span(1)
    return match[0] if start < 0 else match.string[match.start() : start] + match.string[stop : match.end()]


def find_answer(text: str, rule: str = "any") -> Answer | None:
    r"""Where the final answer of a solution is; None when it states none.

    A solution that was cut off before it reached its answer has none; one cut off later has the answer it wrote.

    Rules (a generator's own template knows its rule, `Template.find_answer`; these are for texts of other systems):
      boxed: the last `\boxed{…}`, see `find_box`.
      section: the first section `# Answer` of this project's format, see `find_section`.
      gsm8k: what follows the last `####` on its line.
      sentence: what follows the last "the answer is" or "answer:", see `find_sentence`.
      last_number: the last number of the text, see `find_number`.
      any: boxed, else section, else sentence; `Answer.rule` says which.
      anything else: a regular expression (of Python's `re`), whose one group holds the answer in its last match.

    Raises:
      UserError: no such rule, or not such an expression.
    """
    return rule_of(rule).find(text)


def extract_answer(text: str, rule: str = "any") -> str | None:
    """The final answer that `find_answer` finds, as it is written; None when there is none."""
    found = find_answer(text, rule)
    return text[found.start : found.stop] if found else None
