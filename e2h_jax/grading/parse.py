"""From tokens to the expression tree: a recursive-descent parser for the formulas that answers are made of.

It reads LaTeX and plain text, and executes nothing. The grammar, from the outside in:

    relation   setop (= < > \\le … setop)* [\\pmod n]
    setop      ratio (\\cup | \\cap | \\setminus  ratio)*
    ratio      sum (: sum)*
    sum        [+ - \\pm \\mp] product ([+ - \\pm \\mp] product)* [\\bmod product]
    product    power ([* \\cdot \\times / or nothing] power)*
    power      atom (^ … | ! | degrees)*

Lists (`1, 2`) and what stands around a formula (units, words) are `answer.py`'s.
"""

import re
from fractions import Fraction

from e2h_jax.grading.atoms import FUNCTIONS, SYMBOL_COMMANDS, product_of, transposed
from e2h_jax.grading.binders import Binders
from e2h_jax.grading.latex import Token, UnreadableError
from e2h_jax.grading.layout import RELATIONS
from e2h_jax.grading.tree import (
    BINDERS,
    SCALARS,
    Bracket,
    Call,
    Collection,
    Degrees,
    Matrix,
    Node,
    Number,
    PlusMinus,
    Power,
    Ratio,
    Relation,
    Residue,
    SetOperation,
    Sum,
    Symbol,
    negative,
    quotient,
)

_SET_OPERATIONS = frozenset(["cup", "cap", "setminus"])
_TIMES = frozenset(["*", "cdot", "times"])
_ATOMS = frozenset(
    ["number", "letter", "word", "text", "begin", "currency", "$", "(", "[", "{", "set(", "frac", "sqrt", "binom", "lfloor"]
    + ["lceil", "langle", "pi", "infty", "overline", "hat", "emptyset", "||", "overrightarrow", "widehat", "tilde"]
)


def parse(tokens: list[Token]) -> Node:
    """Returns the tree of one formula. Raises UnreadableError when the tokens are none."""
    parser = _Parser(tokens)
    node = parser.relation()
    if parser.position < len(tokens):
        raise UnreadableError(f"unexpected {parser.kind!r}")
    return node


class _Parser(Binders):
    def relation(self) -> Node:
        operands, operators = [], []
        if self.kind in ("approx", "="):
            self.take()
        if [self.look(ahead) for ahead in range(5)] == ["letter", "(", "letter", ")", "="]:  # x(t) = …
            operands.append(Call(self.take().text, self.brackets(keep=True).items))
            operators.append(self.take().text)
        while True:
            operands.append(self.set_operation())
            if self.kind not in RELATIONS:
                break
            operators.append(self.kind)
            self.take()
        modulus = None
        if self.kind == "pmod":
            self.take()
            modulus = Number(self.take().value) if self.kind == "number" else self.argument()
        elif "equiv" in operators and type(operands[-1]) is Call and operands[-1].name == "mod":  # x \equiv 2 \bmod 7
            operands[-1], modulus = operands[-1].arguments
        operators = tuple({"equiv": "=", "cong": "="}.get(operator, operator) for operator in operators)
        if modulus is not None:
            if not isinstance(modulus, SCALARS) or set(operators) - {"=", "ne"}:
                raise UnreadableError("a modulus")
            operands = [node if operators and type(node) is Symbol else Residue(node, modulus) for node in operands]
        return Relation(tuple(operands), operators) if operators else operands[0]

    def set_operation(self) -> Node:
        node = self.ratio()
        while True:
            operator = self.kind
            if (
                operator == "letter"
                and self.tokens[self.position].text in "Uu"
                and type(node) in (Bracket, Collection, SetOperation)
            ):
                operator = "cup"
            if operator not in _SET_OPERATIONS:
                return node
            self.take()
            other = self.ratio()
            if type(node) is SetOperation and node.operator == operator == "cup":
                node = SetOperation("cup", (*node.operands, other))
            else:
                node = SetOperation(operator, (node, other))

    def ratio(self) -> Node:
        parts, time = [self.sum()], False
        while self.kind == ":":
            self.take()
            time |= self.kind == "number" and re.fullmatch("0[0-9]", self.tokens[self.position].text) is not None
            parts.append(self.sum())
        return Ratio(tuple(parts), time) if len(parts) > 1 else parts[0]

    def sum(self) -> Node:
        terms = []
        while True:
            sign, mixed = 1, 0
            signs = 0
            while self.kind in ("+", "-", "pm", "mp"):
                signs += 1
                if signs > 2:
                    raise UnreadableError("too many signs")
                operator = self.take().text
                sign = -sign if operator == "-" else sign
                mixed = {"pm": 1, "mp": -1}.get(operator, mixed)
            term = self.product()
            if mixed:
                term = PlusMinus(mixed, term)
            terms.append(negative(term) if sign < 0 else term)
            if self.kind not in ("+", "-", "pm", "mp"):
                if len(terms) == 2 and sign < 0 and type(term) is Collection and term.braces:  # R - {2}
                    return SetOperation("setminus", (terms[0], term))
                node = Sum(tuple(terms)) if len(terms) > 1 else terms[0]
                return self.remainder(node) if self.kind == "bmod" else node

    def remainder(self, node: Node) -> Node:
        """Reads the modulus of `17 mod 5`; of sums it does not say what is divided: `7 + 17 mod 5`, `17 mod 5 + 1`."""
        self.take()
        modulus = self.product()
        if type(node) is Sum or self.kind in ("+", "-", "pm", "mp", "bmod"):
            raise UnreadableError("mod within a sum")
        return Call("mod", (node, modulus))

    def product(self) -> Node:
        factors = [self.power()]
        while True:
            kind = self.kind
            if kind in _TIMES:
                self.take()
                factors.append(self.signed_power())
            elif kind == "/":
                self.take()
                factors.append(Power(self.signed_power(), Number(Fraction(-1))))
            elif kind == "choose":
                self.take()
                return Call("binom", (product_of(factors), self.product()))
            elif kind == "over":
                self.take()
                return quotient(product_of(factors), self.product())
            elif self.starts_atom() and not (kind == "letter" and self.is_union(factors[-1])):
                before = self.tokens[self.position - 1]
                if any(token.kind == "text" and len(token.text.strip()) > 1 for token in (before, self.tokens[self.position])):
                    raise UnreadableError("words in a product")
                factor = self.power()
                if type(factor) is Number and before.kind == "number" and self.tokens[self.position - 1].kind == "number":
                    raise UnreadableError("two numbers side by side")
                factors.append(factor)
            else:
                return product_of(factors)

    def is_union(self, before: Node) -> bool:
        """`(0,1) U (2,3)`: the letter U between two brackets."""
        return (
            self.tokens[self.position].text in "Uu"
            and type(before) in (Bracket, Collection)
            and self.look(1) in ("(", "[", "set(")
        )

    def signed_power(self) -> Node:
        negate = False
        while self.kind in ("+", "-"):
            negate ^= self.take().kind == "-"
        node = self.power()
        return negative(node) if negate else node

    def starts_atom(self) -> bool:
        kind = self.kind
        if kind == "|":
            return not self.bars
        return kind in _ATOMS or kind in BINDERS or kind in SYMBOL_COMMANDS or kind in FUNCTIONS or kind.startswith("mathbb")

    def power(self) -> Node:
        node = self.atom()
        postfixes = 0
        while True:
            kind = self.kind
            if kind == "^":
                self.take()
                if self.kind == "'" or self.kind == "prime":
                    continue
                exponent = self.exponent()
                if exponent == Symbol("T") and type(node) in (Bracket, Matrix):
                    node = transposed(node)
                else:
                    node = Power(node, exponent)
            elif kind == "!":
                self.take()
                double = self.kind == "!" and not self.tokens[self.position].spaced
                if double:
                    self.take()
                node = Call("factorial2" if double else "factorial", (node,))
            elif kind == "degree":
                self.take()
                node = Degrees(node)
            elif kind == "%":
                self.take()
            elif kind == "'":
                self.take()
                node = Symbol(node.name + "'") if type(node) is Symbol else Call("prime", (node,))
            else:
                return node
            postfixes += 1
            if postfixes > 8:
                raise UnreadableError("too many postfixes")

    def exponent(self) -> Node:
        self.deeper()
        try:
            if self.kind in ("+", "-"):
                return negative(self.exponent()) if self.take().kind == "-" else self.exponent()
            node = self.atom()
            if self.kind == "^" and self.tokens[self.position - 1].kind != "}":  # 2^3^2 in plain text
                self.take()
                return Power(node, self.exponent())
            return node
        finally:
            self.depth -= 1
