"""From the text of an answer to what it says: elements of lists, values with their units, words."""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from e2h_jax.grading import latex, sets, words
from e2h_jax.grading.latex import Token, UnreadableError
from e2h_jax.grading.layout import arranged
from e2h_jax.grading.numerals import NUMBER_WORDS, ONE_SCALES, SCALES, number_in_words
from e2h_jax.grading.parse import parse
from e2h_jax.grading.tree import (
    ONE,
    BaseNumeral,
    Call,
    Choice,
    Collection,
    Node,
    Number,
    Power,
    Product,
    Quantity,
    Ratio,
    Relation,
    Sum,
    Symbol,
    Text,
)
from e2h_jax.grading.units import KNOWN_WORDS, begins_unit, says_how_many, unit_start, unit_words
from e2h_jax.grading.values import symbols

MAX_LENGTH = 1000  # characters; MATH's longest answer has 158
_NUMERAL = re.compile(
    r"(-?)(?:\\(?:text|mathrm|mathbf))?[{(]?([0-9A-Z]+(?:\.[0-9A-Z]+)?)[})]?"
    r"_\{?(?:\\text\{)?([0-9]{1,2}|[a-z]+)\}{0,2}"
)
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASE_WORDS |= {"eleven": 11, "twelve": 12, "sixteen": 16}
_HEDGES = frozenset("approximately about around roughly approx nearly exactly".split())


_RANGES = (Symbol("mathbbZ"), Symbol("mathbbN"))
_ZEROS = re.compile(r"[0-9],0[0-9]{2}", re.ASCII)
_CHOICE_TEXT = re.compile(r" *\(([A-J])\)[.:]? *")
_OPEN, _CLOSE = ("(", "[", "set(", "{", "begin"), (")", "]", "set)", "}", "end")


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says.

    Attributes:
      spelling: its text without spaces and presentation; equal spellings are equal answers.
      node: its tree; None when it is no formula and no words.
      other: the reading of `1,234` as a list, where the answer has such a number; else None.
      problem: why there is no tree: empty, too_long, unparsable.
    """

    spelling: str
    node: Node | None
    other: Node | None = None
    problem: str = ""


@functools.lru_cache(maxsize=1 << 15)
def read(text: str) -> Answer:
    """Returns what an answer says; never raises for a str."""
    if len(text) > MAX_LENGTH and len(text := text.strip()) > MAX_LENGTH:
        return Answer("", None, problem="too_long")
    try:
        cleaned = latex.clean(text)
    except UnreadableError:
        return Answer("", None, problem="unparsable")
    if not cleaned:
        return Answer("", None, problem="empty")
    try:
        tokens = arranged(latex.tokens(cleaned))
    except (UnreadableError, ValueError, OverflowError):
        return Answer(re.sub(r"\s+", "", cleaned), None, problem="unparsable")
    spelling = "".join(
        f"\\{t.text} " if t.kind == "command" else f"{t.kind}{{{t.text}}}" if len(t.text) > 1 else t.text for t in tokens
    )
    if not any(token.text.strip(" .,;:'\"(){}[]$") for token in tokens):
        return Answer(spelling if tokens else "", None, problem="unparsable" if tokens else "empty")
    node = _readable(tokens, cleaned)
    if node is None:
        return Answer(spelling, None, problem="unparsable")
    other = None
    if any(token.grouped for token in tokens) and not _ZEROS.search(cleaned):  # 115,000 is no list
        other = _readable([piece for token in tokens for piece in _ungrouped(token)], cleaned)
    return Answer(spelling, node, other)


def _ungrouped(token: Token) -> list[Token]:
    """Returns `1,234` as the tokens of a list."""
    if not token.grouped:
        return [token]
    digits, point, decimals = token.text.partition(".")
    first = len(digits) % 3 or 3
    groups = [digits[:first], *(digits[start : start + 3] for start in range(first, len(digits), 3))]
    groups[-1] += point + decimals
    numbers = [Token("number", group, False, Fraction(group)) for group in groups]
    return [piece for number in numbers for piece in (Token(",", ","), number)][1:]


def _readable(tokens: list[Token], cleaned: str) -> Node | None:
    try:
        return _whole(tokens, cleaned)
    except (UnreadableError, RecursionError, ValueError, OverflowError, ZeroDivisionError):
        return _words(tokens)


def _whole(tokens: list[Token], cleaned: str) -> Node:
    if len(tokens) == 1 and tokens[0].kind == "text":
        return _text(tokens[0].text)
    if "_" in cleaned and (numeral := _NUMERAL.fullmatch(cleaned.replace(" ", ""))):
        node = _numeral(*numeral.groups())
        if node is not None:
            return node
    if choice := _choice(tokens):
        letter, rest = choice
        return Choice(letter, _readable(rest, "") or Text(())) if rest else Symbol(letter)
    if _is_date(tokens) and (date := _words(tokens)) is not None:
        return date
    if (number := _number_in_words(tokens)) is not None:
        return number
    elements = [_element(tokens) for tokens in _elements(tokens)]
    if not elements:
        raise UnreadableError("separators only")
    elements = _without_ranges(elements)
    if len(elements) > 1 and any(_spoken_as(token, "and") for token in tokens) and (both := sets.conjunction(elements)):
        return both
    return elements[0] if len(elements) == 1 else Collection(tuple(elements))


def _without_ranges(elements: list[Node]) -> list[Node]:
    r"""Leaves out what a variable of the others ranges over: `2k\pi`, where `k \in \mathbb{Z}`."""
    ranges = [e for e in elements if type(e) is Relation and e.operators == ("in",) and e.operands[1] in _RANGES]
    others = [e for e in elements if e not in ranges]
    names = frozenset().union(*(symbols(e) for e in others))
    return others if all(type(r.operands[0]) is Symbol and r.operands[0].name in names for r in ranges) else elements


def _choice(tokens: list[Token]) -> tuple[str, list[Token]] | None:
    """Returns the letter of `(B) 12`, `B) 12`, `B. 12`, `\\textbf{(B)}\\ 12` or `B)`, and the tokens after it; else None."""
    kinds = [token.kind for token in tokens[:4]]
    if kinds[0] == "text" and (found := _CHOICE_TEXT.fullmatch(tokens[0].text)):
        return (found[1], tokens[1:]) if len(tokens) > 1 and not _is_separator(tokens[1]) else None
    start = kinds[0] == "("
    if kinds[start : start + 1] != ["letter"] or not "A" <= tokens[start].text <= "J" or len(tokens) < start + 2:
        return None
    closing, rest = tokens[start + 1], tokens[start + 2 :]
    if closing.kind == ")" and not rest:
        return None if start else (tokens[0].text, [])
    if closing.kind != ")" and (start or closing.text not in (".", ":") or closing.spaced):
        return None
    if not rest or not rest[0].spaced or _is_separator(rest[0]):
        return None
    if (
        closing.kind in [token.kind for token in rest[1:3]] and rest[min(start, len(rest) - 1)].text in "ABCDEFGHIJ"
    ):  # several options
        return None
    operator = rest[0].kind in ("+", "-") and len(rest) > 1 and rest[1].spaced
    named = rest[0].kind in ("number", "letter", "word", "text", "(", "[", "set(", "$", "currency", "begin", "+", "-")
    command = rest[0].kind == "command" and rest[0].text in ("frac", "sqrt", "pi", "binom", "infty")
    return (tokens[start].text, rest) if (named or command) and not operator else None


def _is_date(tokens: list[Token]) -> bool:
    """Returns whether this is one day, `Jan. 5`, `5 May 2005`, `Friday, March 13`: one month, numbers, other words."""
    if not all(token.kind in ("word", "text", "number", "other", ",") for token in tokens):
        return False
    said = " ".join(token.text for token in tokens)
    return sum(map(words.is_month, re.findall("[A-Za-z]+", said))) == 1 and any(map(str.isdecimal, said))


def _number_in_words(tokens: list[Token]) -> Node | None:
    """Reads `one hundred and five` and `5 and a half hours` as one value, before "and" makes a list of them."""
    if not any("and" in token.text.split() for token in tokens):
        return None
    if not all(token.kind in ("word", "letter", "text", "number", "-") and token.text.isascii() for token in tokens):
        return None
    said = words.text_words(" ".join(token.text for token in tokens), article=True)
    for length in range(len(said), 2, -1):
        if "and" in said[:length] and (value := number_in_words(said[:length])) is not None:
            rest = said[length:]
            if "and" in rest or "or" in rest or (rest and rest[0] in NUMBER_WORDS and value.denominator == 1):
                return None  # one hundred and five hundred
            node, unit = _scaled(Number(value), " ".join(rest))
            return Quantity(node, unit) if unit else node
    return None


def _spoken_as(token: Token, word: str) -> bool:
    return token.kind in ("word", "text") and token.text.strip(" ,;") == word


def _numeral(sign: str, digits: str, base: str) -> Node | None:
    value = int(base) if base.isdecimal() else _BASE_WORDS.get(base.removeprefix("base"), 0)
    if not 2 <= value <= 36 or not any(digit.isdecimal() for digit in digits):
        return None
    return BaseNumeral(sign + (digits.lstrip("0") or "0"), value)


def _text(content: str) -> Node:
    """Reads what `\\text{…}` holds when that is the whole answer: `13`, `(A)`, `A, B`, `1:03 PM`, `Monday`."""
    inner = latex.clean(content)
    tokens = arranged(latex.tokens(inner))
    if not tokens:
        raise UnreadableError("empty")
    plain = all(token.kind in ("letter", "word", "other", "(", ")", "-", "'", "!") for token in tokens)
    if plain and not _choice(tokens):
        if (number := _number_in_words(tokens)) is not None:
            return number
        single = _separated(tokens)
        if len(single) > 1:
            return Collection(tuple(_words(element, force=True) or Text(()) for element in single))
        return _words(tokens, force=True)
    return _readable(tokens, inner) or _words(tokens, force=True)


def _is_separator(token: Token) -> bool:
    return token.kind in (",", ";") or _spoken_as(token, "and") or _spoken_as(token, "or")


def _separated(tokens: list[Token]) -> list[list[Token]]:
    """Splits at commas, semicolons, "and" and "or" outside of brackets; leaves out what is empty."""
    parts, depth = [[]], 0
    for token in tokens:
        depth += (token.kind in _OPEN or token.text == "langle") - (token.kind in _CLOSE or token.text == "rangle")
        if depth == 0 and _is_separator(token):
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def _elements(tokens: list[Token]) -> list[list[Token]]:
    """As `_separated`; one group {…} around a list is taken off."""
    parts = _separated(tokens)
    if len(parts) == 1 and len(parts[0]) > 2 and parts[0][0].kind == "{" and parts[0][-1].kind == "}":
        depths = 0
        for position, token in enumerate(parts[0]):
            depths += (token.kind == "{") - (token.kind == "}")
            if depths == 0 and position < len(parts[0]) - 1:
                return parts
        if len(inner := _separated(parts[0][1:-1])) == 1:
            return _elements(parts[0][1:-1])
        return inner
    return parts


def _element(tokens: list[Token]) -> Node:
    """Reads one element: a formula with its unit or currency, or words."""
    unit = ""
    while tokens and tokens[0].kind in ("word", "text") and tokens[0].text.strip(" :,.").casefold() in _HEDGES:
        tokens = tokens[1:]
    sign = 1 if tokens and tokens[0].kind in ("-", "+") else 0
    if len(tokens) > sign + 1 and tokens[sign].kind in ("$", "currency"):
        unit = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}[tokens[sign].text]
        tokens = tokens[:sign] + tokens[sign + 1 :]
    elif len(tokens) > 1 and tokens[0].kind in ("word", "text") and tokens[0].text.strip(" .") in ("USD", "EUR", "Rs", "GBP"):
        unit, tokens = tokens[0].text.strip(" ."), tokens[1:]
    tokens = [token for token in tokens if token.kind != "$"]
    if len(tokens) == 3 and _spoken_as(tokens[1], "to") and tokens[0].kind == tokens[2].kind == "number":
        tokens = [tokens[0], Token(":", ":"), tokens[2]]
    start = unit_start(tokens)
    value = tokens[:start]
    if not value or (start < len(tokens) and _is_phrase(value, tokens[start])):
        node = _words(tokens)
        if node is None:
            raise UnreadableError("nothing")
        return node
    unit_text = " ".join("°" if token.text == "degree" else token.text for token in tokens[start:])
    try:
        node, unit_text = _scaled(parse(value), unit_text.strip())
    except UnreadableError:
        node = _words(tokens)
        if node is None:
            raise
        return node
    unit_text = unit_text.replace("°", " degree ").replace("%", " percent ").strip()
    if type(node) is Ratio and unit_words(unit_text) in (("am",), ("pm",)):
        node = clock(node)
    unit = unit if not unit_text or unit_text == "dollar" else unit_text
    if not unit:
        return node
    if type(node) is Relation:  # x = 5 cm
        return Relation((*node.operands[:-1], Quantity(node.operands[-1], unit)), node.operators)
    return Quantity(node, unit)


def _scaled(node: Node, unit: str) -> tuple[Node, str]:
    """Returns a value times the number words after it, `2.5 million`, `3 dozen`, `7 tenths`, `5 squared`; and the rest.

    Raises:
      UnreadableError: they can mean several things (`x + 5 million`, `5 hundred thousandths`, `-5 squared`).
    """
    if type(node) is Relation:  # x = 5 million
        last, unit = _scaled(node.operands[-1], unit)
        return Relation((*node.operands[:-1], last), node.operators), unit
    scales, rest = [], unit
    while rest:
        word, _, after = rest.partition(" ")
        word = word.casefold().rstrip(",.")
        scale = SCALES.get(word) or (ONE_SCALES.get(word) if node == ONE else None)
        if scale is None:
            break
        scales.append(scale)
        rest = after.strip()
    if scales:
        if type(node) is Sum or (len(scales) > 1 and min(scales) < 1):
            raise UnreadableError("how much of it is not said")
        return Product((node, *map(Number, scales))), rest
    word, _, rest = unit.partition(" ")
    if word in ("squared", "cubed", "factorial"):
        if type(node) is not Symbol and (type(node) is not Number or node.value < 0):
            raise UnreadableError("of what is not said")
        return Call("factorial", (node,)) if word == "factorial" else Power(node, Number(Fraction(2 + (word == "cubed")))), rest
    return node, unit


def _is_phrase(value: list[Token], unit: Token) -> bool:
    """Returns whether words go on what is no value: `A hyperbola`, `Bob's score`, `x-axis`."""
    article = len(value) == 1 and value[0].text.casefold() in ("a", "an", "the") and unit.kind == "word"
    name = any(token.kind == "word" and len(token.text) > 2 and not token.text.isupper() for token in value)
    name = name and not any(token.text in KNOWN_WORDS or token.kind == "number" for token in value)
    return article or name or unit.text.startswith("-")


def clock(node: Ratio) -> Node:
    """Returns a time of day, `8:34` or `4:51:06`, as hours; the ratio itself when it is none."""
    if not all(type(part) is Number for part in node.parts) or len(node.parts) > 3:
        return node
    return Number(sum(part.value / 60**place for place, part in enumerate(node.parts)))


_SPOKEN = {
    "+": "plus",
    "-": "minus",
    "/": "over",
    "=": "equals",
    "<": "less",
    ">": "more",
    "^": "power",
    "|": "bar",
    ":": "colon",
}


def _words(tokens: list[Token], force: bool = False) -> Node | None:
    """Returns the words of a text answer; a number written out as that number; None when there is no word."""
    if not force and not any(token.kind in ("text", "word") and any(map(str.isalpha, token.text)) for token in tokens):
        return None
    spoken = ""
    for position, token in enumerate(tokens):
        hyphen = token.kind == "-" and not token.spaced and position
        text = token.text if token.kind != "command" else f" {token.text} "
        spoken += f"{' ' if token.spaced else ''}" + (" " if hyphen else _SPOKEN.get(token.kind, text) if not hyphen else "")
        if token.kind in _SPOKEN or token.kind == "text":
            spoken += " "
    found = words.text_words(spoken)
    if not found:
        return None
    if len(found) == 1 and found[0].isdecimal() and found[0].isascii():
        return Number(Fraction(found[0]))
    said = words.text_words(spoken, article=True)
    for given in (found, said):
        if (number := number_in_words(given)) is not None:
            return Number(number)
    return _counted(found) or _counted(said) or Text(found)


def _counted(said: tuple[str, ...]) -> Quantity | None:
    """Reads `twenty one apples`, `a dozen eggs`, `a third of the pie`; but `a third man` is no third."""
    for length in range(0 if said[0].isdigit() else min(len(said) - 1, 8), 0, -1):
        if (number := number_in_words(said[:length])) is not None:
            unit = " ".join(said[length:])
            named = begins_unit(said[length]) and (number >= 1 or said[0] not in ("a", "an"))
            of = said[length] == "of" and number < 1
            return Quantity(Number(number), unit) if named or of or says_how_many(unit) else None
    return None


def spelled(node: Node) -> tuple[str, ...] | None:
    """Returns the letters of a symbol or of a product of symbols as one word; None for anything else."""
    if type(node) is Symbol:
        return words.text_words(node.name)
    if type(node) is Product and all(type(factor) is Symbol for factor in node.factors):
        return words.text_words("".join(factor.name for factor in node.factors))
    return None
