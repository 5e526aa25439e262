"""Numbers written in English words, `twenty-one`, `five sixths`, `two and a half`, `3 dozen`, as exact fractions."""

from fractions import Fraction

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_ONES += "seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
MULTIPLES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15}
_GROUPS = {"dozen": 12, "score": 20, "gross": 144}

_ORDINALS = {"third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
_ORDINALS |= {"eleventh": 11, "twelfth": 12} | {f"{word}th": n for n, word in enumerate(_ONES[13:], 13)}
_ORDINALS |= {f"{word[:-1]}ieth": n for word, n in zip(_TENS, range(20, 100, 10), strict=True)}
_ORDINALS |= {f"{word}th": n for word, n in MULTIPLES.items()}
_PARTS = {"halves": 2, "quarters": 4} | {f"{word}s": n for word, n in _ORDINALS.items()}
_ONE_PART = {"half": 2, "quarter": 4} | _ORDINALS
_MANY = {"tens": 10, "dozens": 12} | {f"{word}s": n for word, n in MULTIPLES.items()}

# What a number is multiplied by where one of these words follows it. `3 quarters` may be coins: it is in neither table.
SCALES = {word: Fraction(n) for word, n in (MULTIPLES | _GROUPS | _MANY).items()}
SCALES |= {word: Fraction(1, n) for word, n in _PARTS.items() if word != "quarters"}
ONE_SCALES = {word: Fraction(1, n) for word, n in _ONE_PART.items() if word != "quarter"}  # after the number one alone
# Words that say how many, in any of the ways above: none of them is a unit or the name of what is counted.
_UNREAD = frozenset("myriad googol lakh crore pair pairs couple couples".split())
NUMBER_WORDS = _UNREAD.union(_SMALL, MULTIPLES, _GROUPS, _MANY, _PARTS, _ONE_PART)


def number_in_words(words: tuple[str, ...]) -> Fraction | None:
    """Returns the number that words say, all of them together; None for any other words.

    Read are whole numbers (`two hundred and five`), parts (`five sixths`, `3 tenths`, `a half`), whole numbers with a part
    (`two and a half`), decimals (`three point one four`), groups (`two dozen`), each with `minus` or `negative` before it, and
    `squared` or `cubed` after it. `ten thousandths` says two things (10/1000, 1/10,000) and is not read, nor is `five hundred
    thousandths`.
    """
    if words and words[0] in ("minus", "negative"):
        value = _magnitude(words[1:])
        return None if value is None or words[-1] in ("squared", "cubed") else -value
    return _magnitude(words)


def is_number_unread(words: tuple[str, ...]) -> bool:
    """Returns whether words that are no number by `number_in_words` are words of numbers only: `ten thousandths`, `third`."""
    numbers = [word for word in words if word in NUMBER_WORDS or word in ("squared", "cubed", "factorial")]
    others = [word for word in words if word not in numbers and len(word) > 1 and not word.isdecimal()]
    return bool(numbers) and {"and", "plus", "minus", "negative", "point", "an"}.issuperset(others)


def _magnitude(words: tuple[str, ...]) -> Fraction | None:
    if len(words) > 1 and words[-1] in ("squared", "cubed"):
        base = _whole(words[:-1])
        return None if base is None or base > 10**15 else Fraction(base) ** (2 if words[-1] == "squared" else 3)
    whole = _whole(words)
    if whole is not None:
        return Fraction(whole)
    if "and" in words:
        place = len(words) - 1 - words[::-1].index("and")
        whole, part = _whole(words[:place]), _part(words[place + 1 :])
        if whole is not None and part is not None and part < 1:
            return whole + part
    if "point" in words:
        place = words.index("point")
        whole, digits = _whole(words[:place]), [str(_SMALL.get(word, word)) for word in words[place + 1 :]]
        if whole is not None and digits and all(len(digit) == 1 and digit.isdecimal() for digit in digits):
            return Fraction(f"{whole}.{''.join(digits)}")
    return _part(words)


def _part(words: tuple[str, ...]) -> Fraction | None:
    """Reads `five sixths`, `one third`, `a half`, `half`, `two dozen`, `half a dozen`."""
    if words[:1] == ("half",):
        if len(words) == 1:
            return Fraction(1, 2)
        group = words[2:] if words[1] in ("a", "an") else ()
        return Fraction(SCALES[group[0]], 2) if len(group) == 1 and group[0] in MULTIPLES | _GROUPS else None
    if not words or len(words) < 2 or any(word in MULTIPLES for word in words[:-1]) and words[-1] not in _GROUPS:
        return None
    count = 1 if words[:-1] in (("a",), ("an",)) else _whole(words[:-1])
    if count is None or (words[-1] in ("thousandths", "hundredths", "millionths") and words[-2] in ("ten", "hundred")):
        return None
    if words[-1] in _PARTS:
        return Fraction(count, _PARTS[words[-1]])
    if words[-1] in _ONE_PART:
        return Fraction(1, _ONE_PART[words[-1]]) if count == 1 else None
    return count * SCALES[words[-1]] if words[-1] in _GROUPS | _MANY else None


def _whole(words: tuple[str, ...]) -> int | None:
    """Reads a whole number: digits, or words with "and" after a hundred or thousand."""
    if len(words) == 1 and words[0].isdecimal() and words[0].isascii() and len(words[0]) < 400:
        return int(words[0])
    if words[:1] in (("a",), ("an",)) and words[1:2] and words[1] in MULTIPLES:
        words = ("one", *words[1:])
    if not words or words[0] not in _SMALL | MULTIPLES or words[-1] == "and":
        return None
    total = current = 0
    ceiling = 10**18  # multiples come from large to small
    for position, word in enumerate(words):
        if word in _SMALL:
            if current % 100 and (current % 10 or _SMALL[word] > 9 or current % 100 < 20) or (current and word == "zero"):
                return None
            current += _SMALL[word]
        elif word == "hundred":
            if current > 99:
                return None
            current = (current or 1) * 100
        elif word in MULTIPLES:
            if MULTIPLES[word] >= ceiling:
                return None
            ceiling = MULTIPLES[word]
            total, current = total + (current or 1) * ceiling, 0
        elif word != "and" or words[position - 1] not in MULTIPLES:
            return None
    return total + current
