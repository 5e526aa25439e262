"""Units: where one begins after a value, when two of them agree, and which words are no units at all."""

import functools
import re

from e2h_jax.grading import latex
from e2h_jax.grading.latex import Token
from e2h_jax.grading.numerals import MULTIPLES, NUMBER_WORDS
from e2h_jax.grading.words import is_date

# One spelling of each physical unit. Different spellings on the two sides are different units: 5 cm is not 5 m.
_UNITS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre centimeters",
    "m": "meter metre",
    "km": "kilometer kilometre kms",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd yds",
    "mile": "mi",
    "mg": "milligram",
    "g": "gram gm gms gramme",
    "kg": "kilogram kgs kilo",
    "pound": "lb lbs",
    "ounce": "oz",
    "ton": "tonne",
    "second": "sec s secs",
    "minute": "min mins",
    "hour": "hr hrs h",
    "day": "",
    "week": "wk",
    "month": "",
    "year": "yr yrs",
    "degree": "deg degs",
    "radian": "rad",
    "percent": "percentage pct",
    "dollar": "usd buck",
    "cent": "",
    "euro": "eur",
    "liter": "litre l",
    "ml": "milliliter millilitre",
    "gallon": "gal",
    "quart": "qt",
    "pint": "pt",
    "cup": "",
    "acre": "",
    "unit": "",
    "am": "",
    "pm": "",
    "newton": "n",
    "joule": "j",
    "watt": "w",
    "volt": "v",
    "celsius": "c",
    "fahrenheit": "f",
    "rupee": "rs",
    "yuan": "rmb",
    "penny": "pence",
    "nickel": "",
    "dime": "",
    "knot": "",
    "cc": "",
    "revolution": "rev",
    "rpm": "",
    "decibel": "db",
    "hertz": "hz",
}
_UNIT_OF = {word: unit for unit, words in _UNITS.items() for word in (unit, *words.split())}
# Words of two letters and more that may follow a number as its unit without \text.
BARE_UNITS = frozenset(word for word in _UNIT_OF if len(word) > 1 and word not in ("in", "min", "rs"))
BARE_UNITS |= {"sq", "min", "mph", "kph"}
_LENGTHS = frozenset("mm cm m km inch foot yard mile unit".split())
_TRIGONOMETRIC = frozenset("sin cos tan cot sec csc cis sinh cosh tanh".split())
KNOWN_WORDS = latex.FUNCTION_WORDS | frozenset(latex._GREEK.split()) | {"infinity", "inf", "infty", "bmod"}  # parts of formulas
_PER = (["word", "/"], ["text", "/"])
_FORMS = {"sq": 2, "square": 2, "squared": 2, "cubic": 3, "cubed": 3, "cu": 3}
_FILLERS = frozenset("a an the of in is are approximately about around".split())
_UNIT_WORD = re.compile(r"([a-z°$%]+)|\^?\s*\{?\s*(-?[0-9]+)\s*\}?|(/)")


def _folded(unit: str) -> str:
    text = unit.casefold().replace("a.m", "am").replace("p.m", "pm")
    return re.sub(r"\bper(?!cent)\b", "/", text.replace("mph", "mile per hour").replace("kph", "km per hour"))


@functools.lru_cache(maxsize=1 << 12)
def unit_words(unit: str) -> tuple[str, ...]:
    """Returns a unit in one spelling: `square inches`, `in.^2` and `sq. in` alike; words in order, per as "/"."""
    text = _folded(unit).replace(".", " ").replace("\\", " ")
    words: list[str] = []
    power = 0
    for match in _UNIT_WORD.finditer(text):
        word, exponent, slash = match.groups()
        if slash:
            words.append("/")
        elif exponent:
            if words:
                words[-1] += f"^{exponent}"
        elif word in _FORMS:
            if words and word in ("squared", "cubed"):
                words[-1] += f"^{_FORMS[word]}"
            else:
                power = _FORMS[word]
        elif word not in _FILLERS or (word == "in" and (power or len(text.split()) == 1)):
            words.append(_singular(word) + (f"^{power}" if power else ""))
            power = 0
    return tuple(words)


def _singular(word: str) -> str:
    if word in _UNIT_OF:
        return _UNIT_OF[word]
    for ending, instead in (("ies", "y"), ("es", "e"), ("es", ""), ("s", "")):
        stem = word[: -len(ending)] + instead
        if word.endswith(ending) and stem in _UNIT_OF:
            return _UNIT_OF[stem]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def is_length(word: str) -> bool:
    """Returns whether a word is a unit of length, which may have a power."""
    return _singular(word.casefold()) in _LENGTHS


# Words that change what is said: `5 degrees below zero`, `5 percent less`, `10 in base 8`, `x is even`.
_SAYS_MORE = frozenset(
    "plus minus times less more fewer least most greater smaller over under above below beyond up down than not no non none "
    "without except excluding unless nor neither versus negative opposite inverse reciprocal squared cubed square cube "
    "factorial power root double twice triple thrice fold mod modulo base binary octal hexadecimal "
    "decimal basis remainder is are was were be has have had does do did equals means becomes choose to from by through "
    "until between if when where but yet only because since as all any every some infinite infinity imaginary conjugate "
    "logarithm log percentiles quartiles deciles permille mille ppm ago before after off divided multiplied added "
    "subtracted this that these those it its he she they we you i".split()
)
_HOW_MANY = re.compile(rf"^\W*(?:{'|'.join(sorted(NUMBER_WORDS))})\b|\bof\b[^a-z]*[0-9]", re.IGNORECASE)
_NOUNS_IN_THS = frozenset("months paths lengths widths depths baths births deaths mouths moths booths myths".split())
_AFTER_NOUN = frozenset("total altogether each apiece long tall wide high deep old apart respectively".split())
_NOUNS = frozenset(
    "people men women children teeth geese mice dice fish sheep deer data radii loci foci grade th st nd rd sterling "
    "€ £ ¥ ₹".split()
)
_EXPONENT = re.compile(r"(?<=[a-z.)}]) *(?:\^ *(?:\{ *)?-? *[0-9](?: *\})?|[23](?![0-9]))")
_SEGMENT = re.compile(r"/|\b(?:of|in|for|at|on|with)\b")


def _may_change_the_value(word: str) -> bool:
    part = word.endswith("ths") and word not in _NOUNS_IN_THS  # nths
    return part or word in NUMBER_WORDS or word in _SAYS_MORE


def says_how_many(unit: str) -> bool:
    """Returns whether the words after a value may say what it is multiplied by: `pairs`, `quarters`, `of 20`."""
    return _HOW_MANY.search(unit) is not None


@functools.lru_cache(maxsize=1 << 12)
def says_only_what(unit: str, one: bool) -> bool:
    """Returns whether the words after a value only say what is counted or measured: `cm^2`, `distinct integers`.

    Known units do, and what reads as the plural of a noun (`ways`, `boxes of candy`); after the value 1 (`one`) any noun does.
    No other word does: it may change the value (`5 squared`, `5 degrees below zero`).
    """
    text = _EXPONENT.sub(" ", _folded(unit)).replace("ordered pairs", "tuples")
    if re.search(r"[^a-z°%$€£¥₹/{}().,;:'~\s-]", text):
        return False
    segments = [re.findall(r"[a-z']+|[°%$€£¥₹]", segment) for segment in _SEGMENT.split(text)]
    if any(_may_change_the_value(word) and word not in _FORMS for segment in segments for word in segment):
        return False
    if text.strip(" .") == "in":
        return True
    noun = [word for word in segments[0] if word not in _FILLERS and word not in _AFTER_NOUN]
    formed = any(word in _FORMS for word in noun)
    noun = [word for word in noun if word not in _FORMS]
    if not noun:  # `5 (approximately)`, but not `5 square`
        return not formed and (not any(segments[1:]) or text.strip().startswith("of ")) and not re.search(r"\^|[0-9]", unit)
    last = noun[-1]
    plural = len(last) > 3 and last.endswith("s") and not last.endswith(("ss", "us", "is", "'s"))
    return _singular(last) in _UNITS or (not formed and (one or plural or last in _NOUNS))


_LETTERS = {"m": "m", "g": "g", "second": "s", "hour": "h", "newton": "N", "joule": "J", "watt": "W", "volt": "V"}


def in_letters(unit: str) -> list[tuple[str, int]] | None:
    """Returns a unit as letters with their powers, as a formula would have it: `m/s^2` as m, 1 and s, -2; else None."""
    found, sign = [], 1
    for word in unit_words(unit):
        if word == "/":
            sign = -1
            continue
        name, _, power = word.partition("^")
        if name not in _LETTERS:
            return None
        found.append((_LETTERS[name], sign * int(power or 1)))
    return found or None


def begins_unit(word: str) -> bool:
    """Returns whether a word after a number can begin the name of what is counted: no preposition, no other number."""
    return not _may_change_the_value(word) and word not in _FILLERS


def units_agree(one: str, other: str, counted_one: bool = False) -> bool | None:
    """Returns whether two units can be meant alike: one is missing, or both are the same, or one count noun says less.

    `7 \\text{ integers}` agrees with `7 \\text{ distinct integers}`, and `5 \\text{ cm}` with neither m nor apples. None where
    only one side has words that may be no unit: whether `5 squared` is 5 is not theirs to say. `counted_one`: the value is 1.
    """
    first, second = unit_words(one), unit_words(other)
    if first == second and (first or one.strip() == other.strip()):
        return True
    if not first or not second:
        return True if all(not unit or says_only_what(unit, counted_one) for unit in (one, other)) else None
    physical = any(word.split("^")[0] in _UNITS for word in (*first, *second))
    more = set(re.findall("[a-z]+", _folded(one))) ^ set(re.findall("[a-z]+", _folded(other)))
    if physical or any(map(_may_change_the_value, more)):
        return False
    return set(first) <= set(second) or set(second) <= set(first)


def unit_start(tokens: list[Token]) -> int:
    """Returns where the unit at the end of an element begins; len(tokens) when there is none."""
    start, position = len(tokens), len(tokens) - 1
    if any(is_date(token.text) for token in tokens):
        return start
    functions = any(token.text in _TRIGONOMETRIC for token in tokens)
    while position > 0:
        token = tokens[position]
        degrees = token.kind == "command" and token.text == "degree" and not functions
        if degrees or token.kind in ("text", "%", "currency", "$"):
            start = position
        elif token.kind == "word" and is_unit_word(token.text):
            if tokens[position + 1 : position + 2] and tokens[position + 1].kind == "^" and not is_length(token.text):
                return len(tokens)  # \pi hr^2 is no hours
            start = position
        elif token.kind == "word" and start == position + 1 and token.text in ("per", "of", "in"):
            start = position
        elif token.kind in ("other", "/", "{", "}", "^", "-"):
            pass
        elif token.kind == "number" and _is_exponent(tokens, position):
            pass
        elif token.kind == "letter" and position > 1 and [t.kind for t in tokens[position - 2 : position]] in _PER:
            pass  # m/s
        else:
            break
        position -= 1
    if start < len(tokens) and tokens[start - 1].kind in ("+", "-", "=", "^", "/", "*", "<", ">", "_", "{", "("):
        return len(tokens)
    return start


def _is_exponent(tokens: list[Token], position: int) -> bool:
    """Returns whether the number there is that of cm^2, cm^{-2}: in `5 cm - 3` it is none."""
    before = [token.kind for token in tokens[max(position - 3, 0) : position]]
    return before[-1:] == ["^"] or before[-2:] in (["^", "{"], ["^", "-"]) or before == ["^", "{", "-"]


def is_unit_word(text: str) -> bool:
    """Returns whether a word without `\\text` may be (the beginning of) a unit rather than a product of letters."""
    lower = text.casefold()
    if lower in BARE_UNITS or _singular(lower) in BARE_UNITS or lower in MULTIPLES:
        return True
    return len(text) >= 4 and text not in KNOWN_WORDS and not text.startswith(("sin", "cos", "tan", "log", "sqrt"))
