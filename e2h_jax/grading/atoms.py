"""The atoms of a formula: numbers, names, functions, roots, brackets, matrices. `parse.py` puts them together."""

from fractions import Fraction

from e2h_jax.grading import latex
from e2h_jax.grading.latex import Token, UnreadableError
from e2h_jax.grading.tree import (
    BINDERS,
    BaseNumeral,
    Bracket,
    Call,
    Collection,
    Matrix,
    Node,
    Number,
    Power,
    Product,
    Symbol,
    quotient,
)

MAX_DEPTH = 40  # brackets within brackets

_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "set(": ("set)",), "{": ("}",)}
FUNCTIONS = {
    **{name: name for name in latex.FUNCTION_WORDS if name not in ("frac", "sqrt", "binom")},
    **{
        "asin": "arcsin",
        "acos": "arccos",
        "atan": "arctan",
        "arsinh": "arcsinh",
        "arcosh": "arccosh",
        "artanh": "arctanh",
        "lg": "log10",
        "tg": "tan",
        "ctg": "cot",
    },
}
CONSTANT_WORDS = {"pi": "pi", "infty": "oo", "inf": "oo", "infinity": "oo", "oo": "oo", "Inf": "oo", "Infinity": "oo"}
_GREEK = frozenset(latex._GREEK.split()) - {"pi"}
SYMBOL_COMMANDS = (
    _GREEK | {name.capitalize() for name in _GREEK} | {"ell", "triangle", "angle", "hbar", "Pi", "prime", "square"}
)
_MATRICES = ("matrix", "pmatrix", "bmatrix", "Bmatrix", "array", "smallmatrix", "psmallmatrix", "bsmallmatrix")
_OF_SEVERAL = ("gcd", "lcm", "max", "min")
_OPAQUE = frozenset("fgFGPQ")  # f(x) is a function of x; h(x) may be a product
_ENGLISH = frozenset("no yes odd one two six ten red may sun mon day and or not all none the is".split())


def product_of(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def transposed(node: Node) -> Node:
    rows = (node.items,) if type(node) is Bracket else node.rows
    return Matrix(tuple(zip(*rows, strict=True)))


class Atoms:
    """A cursor over tokens that reads atoms; the subclass reads what is made of them (`sum`, `power` …)."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0  # open |…|

    @property
    def kind(self) -> str:
        """What the next token is: a command's or an operator's name, or the kind of token; "" at the end."""
        return self.look()

    def look(self, ahead: int = 0) -> str:
        if self.position + ahead >= len(self.tokens):
            return ""
        token = self.tokens[self.position + ahead]
        return token.text if token.kind == "command" else token.kind

    def take(self) -> Token:
        if self.position >= len(self.tokens):
            raise UnreadableError("the formula ends too early")
        self.position += 1
        return self.tokens[self.position - 1]

    def expect(self, kind: str) -> None:
        if self.kind != kind:
            raise UnreadableError(f"{kind!r} is missing")
        self.position += 1

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("nested too deeply")

    def atom(self) -> Node:
        kind = self.kind
        if kind in ("(", "[", "{", "set("):
            return self.brackets()
        if kind == "|" or kind == "||":
            return self.absolute(kind)
        if kind in ("lfloor", "lceil", "langle"):
            return self.floor()
        token = self.take()
        if token.kind == "number":
            return self.number(token)
        if token.kind == "letter":
            return self.letter(token)
        if token.kind == "word":
            return self.word(token)
        if token.kind == "text":
            name = token.text.strip()
            return self.subscripted(Symbol(name if len(name) == 1 else name.casefold())) if name else self.atom()
        if token.kind == "begin":
            return self.matrix(token.text)
        if token.kind == "command":
            return self.command(token.text)
        if token.kind in ("currency", "$"):
            return self.atom()
        raise UnreadableError(f"unexpected {token.text!r}")

    def number(self, token: Token) -> Node:
        if self.kind == "_":
            self.take()
            base = self.atom()
            if type(base) is Number and base.value.denominator == 1 and 2 <= base.value <= 36 and token.text.isdecimal():
                return BaseNumeral(token.text.lstrip("0") or "0", int(base.value))
            raise UnreadableError("an index of a number")
        mixed = self.mixed_fraction(token)
        return Number(token.value + mixed if mixed else token.value)

    def mixed_fraction(self, token: Token) -> Fraction | None:
        """Takes the fraction of a mixed number, `3\\frac12` or `3 1/2`: whole numbers, the fraction below one."""
        if token.value.denominator != 1 or "." in token.text or "e" in token.text.lower():
            return None
        start = self.position
        fraction = None
        if self.kind == "frac":
            self.take()
            top, bottom = self.argument(), self.argument()
            if type(top) is Number and type(bottom) is Number:
                fraction = top.value, bottom.value
        elif self.kind == "number" and self.look(1) == "/" and self.look(2) == "number" and self.tokens[start].spaced:
            fraction = self.tokens[start].value, self.tokens[start + 2].value
            self.position += 3
        whole = fraction and all(part.denominator == 1 for part in fraction)
        if whole and 0 < fraction[0] < fraction[1] and self.kind not in ("^", "_"):
            return Fraction(fraction[0], fraction[1])
        self.position = start
        return None

    def letter(self, token: Token) -> Node:
        name = token.text
        if name in _OPAQUE and self.kind == "(":
            arguments = self.brackets(keep=True)
            return Call(name, arguments.items)
        if name in _OPAQUE and [self.look(ahead) for ahead in range(6)] == ["^", "{", "-", "number", "}", "("]:
            self.position += 5  # f^{-1}(x)
            return Call(f"{name}⁻", self.brackets(keep=True).items)
        primes = next(ahead for ahead in range(len(self.tokens) + 1) if self.look(ahead) != "'")
        if 0 < primes < 5 and self.look(primes) == "(":  # f''(x)
            self.position += primes
            return Call(name + "'" * primes, self.brackets(keep=True).items)
        return self.subscripted(Symbol(name))

    def subscripted(self, symbol: Symbol) -> Node:
        while self.kind == "_":
            self.take()
            if self.kind == "{":
                depth, start = 0, self.position
                while True:
                    depth += {"{": 1, "}": -1}.get(self.take().kind, 0)
                    if depth == 0:
                        break
                index = self.index(self.tokens[start + 1 : self.position - 1])
            else:
                index = self.take().text
                if len(index) == 2 and index.isalpha() and self.kind == "_":  # F_kF_n
                    index, rest = index
                    self.position -= 1
                    self.tokens = [*self.tokens[: self.position], Token("letter", rest), *self.tokens[self.position + 1 :]]
            symbol = Symbol(f"{symbol.name}_{index}")
        return symbol

    def word(self, token: Token) -> Node:
        name = token.text
        if name in CONSTANT_WORDS:
            return Symbol(CONSTANT_WORDS[name])
        if name in ("sqrt", "cbrt"):
            return self.root() if name == "sqrt" else Power(self.argument(), Number(Fraction(1, 3)))
        if name in FUNCTIONS:
            return self.function(FUNCTIONS[name])
        if name in _GREEK or name.lower() in _GREEK:
            return self.subscripted(Symbol(name))
        if name.isupper():
            return self.subscripted(Symbol(name))  # points: AB is a segment
        for known in ("sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "pi"):
            if name.startswith(known) and len(name) <= len(known) + 2:
                return self.split(token, [known, name[len(known) :]])
            if name.endswith(known) and len(name) <= len(known) + 2:
                return self.split(token, [name[: -len(known)], known])
        consonants = len(name) <= 6 and not set(name.lower()) & set("aeiouy")  # GMmr is no word
        if consonants or (len(name) <= 3 and name.lower() not in _ENGLISH):
            return self.split(token, list(name))
        raise UnreadableError(f"the word {name!r}")

    def split(self, token: Token, pieces: list[str]) -> Node:
        """Reads a run of letters as the product of its pieces: puts them in place of the word, and takes the first."""
        new = [
            Token("letter" if len(piece) == 1 else "word", piece, index == 0 and token.spaced)
            for index, piece in enumerate(pieces)
        ]
        self.tokens = self.tokens[: self.position - 1] + new + self.tokens[self.position :]
        self.position -= 1
        return self.atom()

    def brackets(self, keep: bool = False) -> Node:
        """Reads (…), […], {…} or \\{…\\}: one thing in round brackets is that thing; with `keep`, always a Bracket."""
        self.deeper()
        bars, self.bars = self.bars, 0
        opening = self.take().kind
        items, separator = [], ""
        if self.kind in _CLOSING[opening] and not keep:
            if opening == "set(":
                self.take()
                return Collection((), True)
            raise UnreadableError("empty brackets")
        if opening == "set(" and (node := self.builder()) is not None:  # \{x | x > 3\}
            self.expect("set)")
            self.depth -= 1
            self.bars = bars
            return node
        while True:
            items.append(self.relation())
            if self.kind not in (",", ";", "and", "or") and not (
                self.kind == "word" and self.tokens[self.position].text in ("and", "or")
            ):
                break
            while self.kind in (",", ";") or (self.kind == "word" and self.tokens[self.position].text in ("and", "or")):
                separator = self.take().kind
        closing = self.take().kind
        if closing not in _CLOSING[opening]:
            raise UnreadableError("brackets do not match")
        self.depth -= 1
        self.bars = bars
        if opening == "set(" or (opening == "{" and separator):
            return Collection(tuple(items), True)
        if len(items) == 1 and not keep and (opening == "{" or (opening, closing) in (("(", ")"), ("[", "]"))):
            return items[0]
        if len(items) == 1 and not keep:
            raise UnreadableError("brackets do not match")
        return Bracket(opening, closing, tuple(items))

    def absolute(self, bar: str) -> Node:
        self.deeper()
        self.take()
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.expect(bar)
        self.depth -= 1
        return Call("abs", (node,))

    def floor(self) -> Node:
        self.deeper()
        opening = self.take().text
        items = [self.sum()]
        while self.kind == ",":
            self.take()
            items.append(self.sum())
        self.expect({"lfloor": "rfloor", "lceil": "rceil", "langle": "rangle"}[opening])
        self.depth -= 1
        if opening == "langle":
            return Bracket("(", ")", tuple(items))
        return Call({"lfloor": "floor", "lceil": "ceil"}[opening], (items[0],))

    def argument(self) -> Node:
        """Reads the argument of a command: a group, or one digit, letter or command."""
        if self.kind == "number" and "." not in self.tokens[self.position].text and len(self.tokens[self.position].text) > 1:
            token = self.tokens[self.position]
            if token.text.isdecimal() and not token.grouped:  # \frac12
                rest = Token("number", token.text[1:], False, Fraction(token.text[1:]))
                self.tokens = [*self.tokens[: self.position], rest, *self.tokens[self.position + 1 :]]
                return Number(Fraction(token.text[0]))
        if self.kind in ("+", "-"):
            return self.signed_power()
        if self.kind == "number":
            return Number(self.take().value)
        return self.atom()

    def root(self) -> Node:
        index = None
        if self.kind == "[":
            self.take()
            index = self.sum()
            self.expect("]")
        radicand = Number(self.take().value) if self.kind == "number" else self.argument()
        exponent = Number(Fraction(1, 2)) if index is None else Power(index, Number(Fraction(-1)))
        if type(index) is Number and index.value:
            exponent = Number(1 / index.value)
        return Power(radicand, exponent)

    def function(self, name: str) -> Node:
        """Reads `\\sin^2 x`, `\\log_2 8`, `sin(x)`, `\\cos 3x`: without brackets, the factors up to the next function."""
        power = base = None
        while self.kind in ("^", "_"):
            if self.take().kind == "^":
                power = self.exponent()
            else:
                base = self.argument()
        if self.kind in ("(", "{", "set(") or (self.kind == "[" and self.depth < MAX_DEPTH):
            inside = self.brackets(keep=self.kind in ("(", "["))
            arguments = inside.items if type(inside) in (Bracket, Collection) else (inside,)
        else:
            factors = [self.signed_power()]
            while self.starts_atom() and self.kind not in ("(", "[", "set(", "text", "begin") and not self.starts_function():
                factors.append(self.power())
            arguments = (product_of(factors),)
        if not arguments or (len(arguments) > 1 and name not in _OF_SEVERAL):
            raise UnreadableError(f"arguments of {name}")
        if power == Number(Fraction(-1)) and f"arc{name}" in FUNCTIONS:
            return Call(f"arc{name}", arguments)
        node = Call(name, arguments)
        if base is not None:
            node = (
                quotient(Call("ln", arguments), Call("ln", (base,)))
                if name in ("log", "ln")
                else Call(name, (*arguments, base))
            )
        return Power(node, power) if power is not None else node

    def starts_function(self) -> bool:
        kind = self.kind
        return kind in FUNCTIONS or (kind == "word" and self.tokens[self.position].text in FUNCTIONS)

    def command(self, name: str) -> Node:
        if name == "frac":
            top = self.argument()
            return quotient(top, self.argument())
        if name == "sqrt":
            return self.root()
        if name == "binom":
            top = self.argument()
            return Call("binom", (top, self.argument()))
        if name in BINDERS:
            return self.binder(name)
        if name == "bmod" and self.kind == "(":  # mod(17, 5)
            arguments = self.brackets(keep=True).items
            if len(arguments) == 2:
                return Call("mod", arguments)
        if name in ("triangle", "angle"):
            return self.atom()
        if name in CONSTANT_WORDS:
            return Symbol(CONSTANT_WORDS[name])
        if name in FUNCTIONS:
            return self.function(FUNCTIONS[name])
        if name in ("overline", "hat", "widehat", "tilde", "dot", "ddot", "overrightarrow", "widetilde"):
            return self.accented(name)
        if name.startswith("mathbb") or name == "emptyset":
            return Collection((), True) if name == "emptyset" else self.subscripted(Symbol(name))
        if name in SYMBOL_COMMANDS:
            return self.subscripted(Symbol(name))
        raise UnreadableError(f"the command {name!r}")

    def accented(self, name: str) -> Node:
        node = self.argument()
        if type(node) is Symbol and node.name.isupper() and len(node.name) > 1:
            return node  # a segment or a vector from point to point
        if name == "overline" and type(node) is not Symbol:
            return Call("conjugate", (node,))
        return self.subscripted(Symbol(f"{name} {node.name}")) if type(node) is Symbol else Call(name, (node,))

    def matrix(self, environment: str) -> Node:
        if environment not in _MATRICES and environment not in ("vmatrix", "cases"):
            raise UnreadableError(f"the environment {environment!r}")
        self.deeper()
        rows, row = [], []
        while self.kind != "end":
            row.append(self.sum())
            if self.kind == "&":
                self.take()
            elif self.kind == "\\\\":
                self.take()
                rows.append(tuple(row))
                row = []
            elif self.kind != "end":
                raise UnreadableError("a matrix entry")
        self.take()
        self.depth -= 1
        if row:
            rows.append(tuple(row))
        if not rows or len({len(entries) for entries in rows}) != 1:
            raise UnreadableError("rows of different lengths")
        return Call("det", (Matrix(tuple(rows)),)) if environment == "vmatrix" else Matrix(tuple(rows))
