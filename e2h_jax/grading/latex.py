"""From the text of an answer to tokens: spelling and presentation are settled here, meaning in `parse.py`.

Everything is a table look-up or one pass of a linear regular expression: nothing here can be slow, and nothing is executed.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple


class UnreadableError(ValueError):
    """The text is no formula that the grammar knows."""


class Token(NamedTuple):
    """One piece of an answer.

    kind: number, letter, word (two letters or more), command (`\\pi`, without backslash), text (`\\text{…}`), begin, end
      (environments), or the symbol itself (`+`, `(`, `set(` for `\\{`, `&`, `\\\\` …).
    spaced: whether white space comes before it.
    grouped: a number written with plain thousands commas (`1,234`), which might also be a list.
    """

    kind: str
    text: str
    spaced: bool = False
    value: Fraction | None = None
    grouped: bool = False


_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi "
    "omega"
)
_UNICODE = {
    **{"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "✕": r"\times ", "÷": "/", "⁄": "/", "∕": "/"},
    **{
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∙": r"\cdot ",
        "•": r"\cdot ",
        "∗": "*",
        "√": r"\sqrt ",
        "∛": r"\sqrt[3]",
        "∜": r"\sqrt[4]",
    },
    **{"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge "},
    **{
        "≠": r"\ne ",
        "≈": r"\approx ",
        "≡": r"\equiv ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "°": r"\degree ",
        "º": r"\degree ",
        "˚": r"\degree ",
    },
    **{
        "∅": r"\emptyset ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
    },
    **{
        "˚": r"\degree ",
        "∖": r"\setminus ",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℚ": r"\mathbb{Q}",
        "ℂ": r"\mathbb{C}",
    },
    **{"′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "、": ",", "。": ".", "∠": r"\angle ", "△": r"\triangle "},
    **{"ϕ": r"\phi ", "ϵ": r"\epsilon ", "ϑ": r"\theta ", "ς": r"\sigma ", "¢": r"\text{ cents}", "∣": "|", "∶": ":"},
    **{
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "⅕": r"\frac{1}{5}",
    },
    **{
        "⅖": r"\frac{2}{5}",
        "⅗": r"\frac{3}{5}",
        "⅘": r"\frac{4}{5}",
        "⅙": r"\frac{1}{6}",
        "⅚": r"\frac{5}{6}",
        "⅛": r"\frac{1}{8}",
    },
    **{
        "⅜": r"\frac{3}{8}",
        "⅝": r"\frac{5}{8}",
        "⅞": r"\frac{7}{8}",
        "⅐": r"\frac{1}{7}",
        "⅑": r"\frac{1}{9}",
        "⅒": r"\frac{1}{10}",
    },
    **{chr(0x3B1 + k + (k > 16)): rf"\{name} " for k, name in enumerate(_GREEK.split())},
    **{chr(0x391 + k + (k > 16)): rf"\{name.capitalize()} " for k, name in enumerate(_GREEK.split())},
    **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full width
    **dict.fromkeys("\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\u200e\u200f\u00ad", ""),
    **dict.fromkeys("\t\n\r\u00a0\u2002\u2003\u2004\u2005\u2007\u2008\u2009\u200a\u202f\u205f\u3000\u2028\u2029", " "),
}
_TRANSLATE = str.maketrans(_UNICODE)
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n")
_SUPERSCRIPTS, _SUBSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+")

# 1{,}000 and 5,\!000 and 10\,000 are one number wherever they stand; 3{,}5 is a decimal comma.
_ORDINAL = re.compile(r"(?<=[0-9])(?:\^ *\{? *\\(?:text|mathrm) *\{ *(?:st|nd|rd|th) *\} *\}?|(?:st|nd|rd|th)(?![a-zA-Z]))")
_LOST_BACKSLASH = re.compile(r"(?<![a-zA-Z\\])(?=[dt]?frac *\{)")
_EXPLICIT_THOUSANDS = re.compile(r"(?<=[0-9]) *(?:\{ *, *\}|,[ ]*\\!|\\!,|\\[,;: ]|~|\{\\,\}|\{ \}) *(?=[0-9]{3}(?![0-9]))")
_APART = r"(?<![0-9.,_'])([1-9][0-9]{0,2}(?:%s[0-9]{3})+)(?![0-9_']|[.,][0-9]*[_'.])"
_UNDERSCORES, _APOSTROPHES = re.compile(_APART % r"\\?_"), re.compile(_APART % "'")  # 1_000_000, 1'000'000
_POINTS = re.compile(r"[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}(?![0-9]|\.[0-9])(?:,[0-9]+(?![0-9]*[.,][0-9]))?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])")
_DEGREE = re.compile(r"\^ *(?:\{ *\\circ *\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])|\{ *\}\^\\circ")
_HALF_DAY = re.compile(r"(?<![a-zA-Z\\])([aApP])\. ?[mM]\b\.?")
_TAIL = " .,;:"
_BRACED_SIGN = re.compile(r"\{ *([][:.=<>+-]) *\}")  # 3{:}45: braces against spacing
_NOT_EQUAL = re.compile(r"\\not *(?:=|\\equiv(?![a-zA-Z]))")
_MOD = r"(?:\\(?:text|mbox|mathrm|operatorname) *\{ *mod(?:ulo)? *\}|\\?b?mod(?:ulo)?(?![a-zA-Z]))"
_MODULUS = re.compile(rf"\( *{_MOD} *([^()]*)\)|\\(?:text|mbox) *\{{ *\( *mod(?:ulo)? *([0-9a-zA-Z]+) *\) *\}}")
_MODULO = re.compile(rf"(?<![a-zA-Z\\]){_MOD}|\\(?:text|mbox) *\{{ *mod(?:ulo)? +([0-9a-zA-Z]+) *\}}")
_LETTER_TIMES = re.compile(r"(?<=[0-9]) *[xX] *(?=10 *(?:\^|\*\*))")  # 2.5 x 10^2
_MARKDOWN = re.compile(r"^(?:\*\*+|__+(?!_)|\*(?= )) *|(?<![\^{*_ ]) *(?:\*\*+|__+)$")  # one side alone: **73, 73**
_PREAMBLE = re.compile(
    r"#### *|#{1,6} +|(?:(?:so|thus|hence|therefore),? +)?(?:the +)?(?:final +|correct +)?"
    r"(?:answer *(?:is\b *:?|:) *|(?:option|choice) +(?=\(?[A-J]\b))",
    re.IGNORECASE,
)

_TEXT_COMMANDS = frozenset(
    "text mbox hbox textbf textit textrm textnormal textsf texttt textup textsc mathrm operatorname "
    "operatorname* mathtt".split()
)
_DROPPED = frozenset(  # presentation; a group that follows is kept
    "displaystyle textstyle scriptstyle limits nolimits left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl "
    "Biggr middle boxed fbox mathbf mathit mathsf mathcal mathnormal boldsymbol bm vec mathstrut ensuremath hfill hline "
    "mathopen mathclose mathrel mathbin mathpunct underline tiny small large Large LARGE huge Huge normalsize bf it rm "
    "sf cal".split()
)
_SPACES = frozenset("quad qquad enspace thinspace space nobreak".split())
_WITH_ARGUMENT = frozenset("phantom hphantom vphantom hspace vspace label tag color textcolor hspace* kern mkern".split())
_RENAMED = {
    **dict.fromkeys(["dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"], "frac"),
    **{"dbinom": "binom", "tbinom": "binom", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne"},
    **{"lt": "<", "gt": ">", "ast": "*", "colon": ":", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "lbrack": "["},
    **{"rbrack": "]", "lparen": "(", "rparen": ")", "lbrace": "set(", "rbrace": "set)", "div": "/", "over": "over"},
    **{"varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "varrho": "rho", "bigcup": "cup", "bigcap": "cap"},
    **{"varnothing": "emptyset", "sim": "approx", "simeq": "approx", "backslash": "setminus", "imath": "i", "bullet": "cdot"},
    **{"surd": "sqrt", "rightarrow": "to", "longrightarrow": "to", "bigtriangleup": "triangle", "cr": "\\\\"},
    **{"bar": "overline", "ldots": "dots", "cdots": "dots", "dotsc": "dots", "tan^{-1}": "arctan", "lor": "or", "vee": "or"},
    **{"land": "and", "wedge": "and", "thickapprox": "approx", "doteq": "=", "colonequals": "=", "gets": "=", "infin": "infty"},
    **{"mod": "bmod", "pod": "pmod"},
}
_SYMBOLS = {"{": "set(", "}": "set)", "%": "%", "$": "$", "\\": "\\\\", "|": "||", "_": " ", "#": "#", "&": "and"}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+", re.ASCII)
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])(?:\.[0-9]+)?", re.ASCII)
_SPACED = re.compile(r"[1-9][0-9]{0,2}(?: [0-9]{3})+(?! ?[0-9/])(?:\.[0-9]+)?", re.ASCII)
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)(?![a-zA-Z]) *(?:\{ *([0-9]+) *\}|([0-9]))", re.ASCII)
_AFTER_POINT = re.compile(r"[0-9]|\\(?:overline|bar|dot)(?![a-zA-Z]) *\{? *[0-9]", re.ASCII)
_PARENTHESIS_REPEATS = re.compile(r"([+-]?[0-9]+\.[0-9]*)\(([0-9]+)\)", re.ASCII)
_SCIENTIFIC = re.compile(r"[eE]([+-]?[0-9]{1,4})(?![0-9a-zA-Z.])", re.ASCII)
_ELLIPSIS = re.compile(r" *(?:\\[lc]?dots(?![a-zA-Z])|\.\.\.)")
_BRACKET_FOLLOWS = re.compile(r" *(?:\\left)? *\(")
_WORD = re.compile(r"[a-zA-Z]+")
_COMMAND = re.compile(r"\\([a-zA-Z]+\*?|.|$)", re.DOTALL)
_DOUBLE = {"**": "^", "<=": "le", ">=": "ge", "!=": "ne", "==": "=", "<>": "ne", "=<": "le", "||": "||", ":=": "="}
_SINGLE = frozenset("+-*/^_!:,;=<>|()[]{}&'")


def clean(text: str) -> str:
    """Returns the answer with Unicode spelled as LaTeX, explicit thousands joined, and presentation around it removed.

    Raises:
      UnreadableError: control characters or lone surrogates.
    """
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPT)}}}", text)
        text = _SUBSCRIPTS.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPT)}}}", text)
        text = "".join(unicodedata.normalize("NFKC", c) if "\U0001d400" <= c <= "\U0001d7ff" else c for c in text)
    text = text.translate(_TRANSLATE)
    if any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text):
        raise UnreadableError("control characters")
    text = _HALF_DAY.sub(r" \1m ", _ORDINAL.sub("", text.strip()))
    if "\\" in text or "{" in text:
        text = _EXPLICIT_THOUSANDS.sub("", _LOST_BACKSLASH.sub(r"\\", text))
        text = _DECIMAL_COMMA.sub(".", text)
        text = _NOT_EQUAL.sub(r"\\ne ", _BRACED_SIGN.sub(r"\1", text))
        text = _DEGREE.sub(r"\\degree ", text)
    if "mod" in text:
        text = _MODULO.sub(r"\\bmod \1 ", _MODULUS.sub(lambda match: rf"\pmod{{{match[1] or match[2]}}}", text))
    for apart in (_UNDERSCORES, _APOSTROPHES):
        text = apart.sub(lambda match: re.sub(r"[^0-9]", "", match[1]), text)
    text = _LETTER_TIMES.sub(r"\\times ", text)
    for _ in range(4):
        shorter = _without_frame(text)
        if shorter == text:
            break
        text = shorter
    return text


def _without_frame(text: str) -> str:
    """Takes off one layer of `$…$`, `\\(…\\)`, `\\[…\\]`, "the answer is", or a full stop at the end."""
    while text and text[-1] in _TAIL and not text.endswith(("...", "\\.", "\\,", "\\;", "\\:", "\\ ")):
        text = text[:-1]
    text = text.rstrip("\\") if text.endswith("\\") else text
    if (preamble := _PREAMBLE.match(text)) and preamble.end() < len(text):
        return text[preamble.end() :].strip()
    text = _MARKDOWN.sub("", text)
    for start, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), *((c, c) for c in "*_`")):
        if len(text) >= len(start) + len(end) and text.startswith(start) and text.endswith(end):
            inner = text[len(start) : len(text) - len(end)]
            if start not in inner and not inner.endswith("\\"):
                return inner.strip()
    if text.endswith("}") and text.startswith(("\\boxed{", "\\fbox{", "{")):
        content, end = _argument(text, text.index("{"))
        if end == len(text):
            return content.strip()
    return text.strip()


def tokens(text: str) -> list[Token]:
    """Returns the tokens of a cleaned answer. Raises UnreadableError for unbalanced braces of a text and unknown characters."""
    repeats = _PARENTHESIS_REPEATS.fullmatch(text)
    if repeats:
        sign = [Token(text[0], text[0])] if text[0] in "+-" else []
        whole, digits = repeats[1].lstrip("+-").split(".")
        return [*sign, Token("number", text, value=_repeating(whole, digits, repeats[2]))]
    found: list[Token] = []
    position, depth, spaced = 0, 0, False
    while position < len(text):
        character = text[position]
        if character in " ~":
            spaced, position = True, position + 1
            continue
        if character == "\\":
            position, token = _command(text, position, spaced)
            if token is None:
                spaced = True
                continue
        elif character in "0123456789" or (character == "." and _AFTER_POINT.match(text, position + 1)):
            position, token = _number(text, position, spaced, depth == 0)
        elif character == "." and text.startswith("...", position):
            position, token = position + 3, Token("command", "dots", spaced)
        elif "a" <= character <= "z" or "A" <= character <= "Z":
            word = _WORD.match(text, position)[0]
            position, token = position + len(word), Token("letter" if len(word) == 1 else "word", word, spaced)
        elif text[position : position + 2] in _DOUBLE:
            symbol = _DOUBLE[text[position : position + 2]]
            position, token = position + 2, Token("command" if symbol.isalpha() else symbol, symbol, spaced)
        elif character in _SINGLE:
            position, token = position + 1, Token(character, character, spaced)
        elif character in "$%":
            position, token = position + 1, Token(character, character, spaced)
        elif character in "€£¥₹":
            position, token = position + 1, Token("currency", character, spaced)
        else:  # dots of p.m., quotation marks, letters of other scripts: only a text answer can hold them
            position, token = position + 1, Token("other", character, spaced)
        depth += (token.kind in ("(", "[", "set(")) - (token.kind in (")", "]", "set)"))
        found.append(token)
        spaced = False
    return found


def _command(text: str, start: int, spaced: bool) -> tuple[int, Token | None]:
    """Returns the position after the command at `start`, and its token; None for spacing and presentation."""
    match = _COMMAND.match(text, start)
    name, end = match[1], match.end()
    if not name.rstrip("*").isalpha() or not name.isascii():
        if name in _SYMBOLS:
            symbol = _SYMBOLS[name]
            if symbol == "\\\\" and (skip := re.compile(r" *\[[^\]]{0,9}(?:pt|em|ex|mm|cm)\]").match(text, end)):
                end = skip.end()
            if symbol == "and":
                return end, Token("word", "and", True)
            return end, (None if symbol == " " else Token(symbol, symbol, spaced))
        return end, None  # \! \, \; \( … : spacing, or the borders of a formula within a text
    if name in _TEXT_COMMANDS:
        content, end = _argument(text, end)
        if content.strip() in FUNCTION_WORDS and _BRACKET_FOLLOWS.match(text, end):
            return end, Token("word", content.strip(), spaced)
        return end, _text(name, content, spaced)
    if name in _DROPPED:
        if name in ("left", "right") and text[end : end + 1] in (".", "<", ">"):
            bracket = {"<": "langle", ">": "rangle"}.get(text[end])
            return end + 1, Token("command", bracket, spaced) if bracket else None
        return end, None
    if name in _SPACES:
        return end, None
    if name in _WITH_ARGUMENT:
        return _argument(text, end)[1], None
    if name in ("begin", "end"):
        environment, end = _argument(text, end)
        if name == "begin" and environment.startswith(("array", "tabular")) and text[end : end + 1] == "{":
            end = _argument(text, end)[1]  # the columns
        return end, Token(name, environment, spaced)
    if name == "mathbb":
        content, end = _argument(text, end)
        return end, Token("command", f"mathbb{content.strip()}", spaced)
    name = _RENAMED.get(name, name)
    if name == "i":
        return end, Token("letter", "i", spaced)
    if name in ("or", "and"):
        return end, Token("word", name, True)
    if not name.isalpha():
        return end, Token(name, name, spaced)
    return end, Token("command", name, spaced)


def _text(name: str, content: str, spaced: bool) -> Token:
    """Returns the token of `\\text{content}` and its kin; digits and single letters of \\mathrm are what they say."""
    plain = content.strip(" ,;")
    if name in ("mathrm", "operatorname", "mathtt", "operatorname*") and plain.isascii() and plain.isalpha():
        if plain in ("e", "i", "d"):
            return Token("letter", plain, spaced)
        if plain in FUNCTION_WORDS:
            return Token("word", plain, spaced)
    if _NUMBER.fullmatch(plain):
        return Token("number", plain, spaced, Fraction(plain))
    if plain in ("or", "and", "pi"):
        return Token("word", plain, True)
    return Token("text", content, spaced or content[:1] == " ")


# Names that mean a function or a constant also without a backslash.
FUNCTION_WORDS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh coth sech csch arcsinh "
    "arsinh arcosh artanh "
    "arccosh arctanh log ln lg exp sqrt cbrt abs floor ceil gcd lcm max min cis det Re Im frac binom".split()
)


def _argument(text: str, position: int) -> tuple[str, int]:
    """Returns the content of the group at `position` (or the one character there) and the position after it."""
    while text[position : position + 1] == " ":
        position += 1
    if text[position : position + 1] != "{":
        match = _COMMAND.match(text, position)
        end = match.end() if match else position + 1
        return text[position:end], end
    depth, end = 0, position
    while end < len(text):
        if text[end] == "\\":
            end += 2
            continue
        depth += (text[end] == "{") - (text[end] == "}")
        end += 1
        if depth == 0:
            return text[position + 1 : end - 1], end
    raise UnreadableError("unbalanced braces")


def _number(text: str, start: int, spaced: bool, top: bool) -> tuple[int, Token]:
    """Returns the number at `start`: repeating decimals, thousands (at the top level), exponents included."""
    repeating = _REPEATING.match(text, start)
    if repeating:
        value = _repeating(repeating[1], repeating[2], repeating[3] or repeating[4])
        return repeating.end(), Token("number", repeating[0], spaced, value)
    grouped = _GROUPED.match(text, start) if top else None
    if grouped and text[max(start - 1, 0)] not in "_":
        digits = grouped[0].replace(",", "")
        return grouped.end(), Token("number", digits, spaced, Fraction(digits), True)
    if top and (apart := _SPACED.match(text, start)):
        digits = apart[0].replace(" ", "")
        return apart.end(), Token("number", digits, spaced, Fraction(digits))
    if apart := _POINTS.match(text, start):
        written = apart[0] if top else apart[0].partition(",")[0]
        digits = written.replace(".", "").replace(",", ".")
        return start + len(written), Token("number", digits, spaced, Fraction(digits))
    match = _NUMBER.match(text, start)
    digits, end = match[0], match.end()
    if "." in digits and (dots := _ELLIPSIS.match(text, end)):
        whole, decimals = digits.split(".")
        for period in (1, 2, 3, 6):
            block = decimals[-period:]
            if len(decimals) >= max(3, 2 * period) and decimals.endswith(block * max(2, 3 // period)):
                value = _repeating(whole, decimals, block)
                return dots.end(), Token("number", digits, spaced, value)
    if text[end : end + 1] == "." and not text[end + 1 : end + 2].isalpha() and not text.startswith("...", end):
        end += 1  # 5. is 5
    exponent = _SCIENTIFIC.match(text, end)
    if exponent:
        return exponent.end(), Token("number", digits + exponent[0], spaced, Fraction(f"{digits}e{exponent[1]}"))
    return end, Token("number", digits, spaced, Fraction(digits))


def _repeating(whole: str, decimals: str, period: str) -> Fraction:
    """Returns the value of `whole.decimals` followed by `period` for ever."""
    value = Fraction(f"{whole or 0}.{decimals}" if decimals else whole or "0")
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))
