"""Text answers in one spelling: case, punctuation, articles, dates."""

import functools
import re
import unicodedata

_MONTHS = "january february march april may june july august september october november december".split()
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_ABBREVIATIONS = {
    **{name[:3]: name for name in (*_MONTHS, *_DAYS)},
    **{"sept": "september", "tues": "tuesday", "thur": "thursday", "thurs": "thursday", "isn't": "is not"},
}


def is_date(word: str) -> bool:
    """Returns whether a word is a month or a day of the week."""
    return word.casefold() in _MONTHS or word.casefold() in _DAYS


def is_month(word: str) -> bool:
    """Returns whether a word is the name of a month, or its abbreviation with a capital letter."""
    lower = word.casefold()
    return lower in _MONTHS or (word[0].isupper() and _ABBREVIATIONS.get(lower) in _MONTHS)


_TEXT_WORD = re.compile(r"[0-9]+\.[0-9]+|[^\W_]+(?:'[^\W_]+)?|[+](?=[0-9])|[<>=]")
_MINUS = re.compile(r"(?<![\w)])-(?=[0-9])")
_ORDINAL = re.compile(r"([0-9]+)(?:st|nd|rd|th)")
_SAME = {
    ("infinity",): ("infinite",),
    ("dne",): ("does", "not", "exist"),
    ("empty", "set"): ("no", "solution"),
    ("no", "solutions"): ("no", "solution"),
    ("no", "real", "solutions"): ("no", "real", "solution"),
    ("all", "reals"): ("all", "real", "numbers"),
    ("all", "real", "number"): ("all", "real", "numbers"),
}


@functools.lru_cache(maxsize=1 << 14)
def text_words(text: str, article: bool = False) -> tuple[str, ...]:
    """Returns the words of a text answer, case-folded: no punctuation, dates and times in one spelling.

    An article at its start is left out; `article` keeps "a" and "an", which may say how many: `a third`.
    """
    folded = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    folded = _MINUS.sub(" minus ", folded.replace("a.m", "am").replace("p.m", "pm")).replace("-", " ").replace("’", "'")
    words = []
    for word in _TEXT_WORD.findall(folded):
        ordinal = _ORDINAL.fullmatch(word)
        words.append(ordinal[1] if ordinal else word)
    if len(words) > 1 and words[0] in (("the",) if article else ("a", "an", "the")):
        words = words[1:]
    if len(words) == 1 or any(word.isdigit() for word in words):
        words = [_ABBREVIATIONS.get(word, word) for word in words]
        if any(word in _MONTHS for word in words):  # in one order: Friday March 13 2005
            words = [word for word in words if word not in ("the", "of", "on")]
            words.sort(key=lambda word: (word in _MONTHS) + 2 * word.isdigit() * len(word))
    return _SAME.get(tuple(words), tuple(words))


def run_together(words: tuple[str, ...]) -> str:
    """Returns words without the spaces between them, but for those between digits: `room 5-3` is not `room 53`."""
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", " ".join(words))
