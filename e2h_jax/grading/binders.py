"""Expressions that bind a variable, sets by a condition, sums, products and integrals; and the indices of names."""

from e2h_jax.grading.atoms import Atoms
from e2h_jax.grading.latex import Token, UnreadableError
from e2h_jax.grading.sets import conjunction, interval_of
from e2h_jax.grading.tree import Builder, Call, Node, Number, Relation, Symbol, replaced
from e2h_jax.grading.values import index_key, symbols

_REALS = Symbol("mathbbR")


class Binders(Atoms):
    """Adds to the atoms what binds a variable. A bound variable gets a name of ours: `\\sum_k k` is `\\sum_i i`."""

    def builder(self) -> Node | None:
        """Reads the inside of `\\{x \\in S \\mid …\\}`; None, and nothing read, where it is a list of elements."""
        start, bars = self.position, self.bars
        if not self._has_condition():
            return None
        self.bars = 1  # a bar ends the element
        element = self.sum()
        domain = None
        if self.kind == "in":
            self.take()
            domain = Relation((element, self.power()), ("in",))
        if self.kind not in ("|", ":"):
            self.position, self.bars = start, bars
            return None
        self.take()
        self.bars = 0
        conditions = [self.relation()]
        while self.kind == "," or (self.kind == "word" and self.tokens[self.position].text == "and"):
            self.take()
            conditions.append(self.relation())
        self.bars = bars
        conditions = [c for c in (domain, *conditions) if c is not None]
        real = [c for c in conditions if c != Relation((element, _REALS), ("in",))]
        if type(element) is Symbol and real:
            found = interval_of(real[0]) if len(real) == 1 and type(real[0]) is Relation else conjunction(real)
            if found is not None and all(type(c) is Relation and element in c.operands for c in real):
                return found
        names = symbols(element) & {
            c.operands[0].name for c in conditions if type(c) is Relation and type(c.operands[0]) is Symbol
        }
        names = sorted(names) or sorted(symbols(element))
        for place, name in enumerate(names):
            element, *conditions = (replaced(node, Symbol(name), Symbol(f"bound {place}")) for node in (element, *conditions))
        return Builder(element, tuple(conditions))

    def _has_condition(self) -> bool:
        """Looks ahead for the bar or colon of a set by a condition: before any comma, brace or the end of this one."""
        depth = 0
        for token in self.tokens[self.position :]:
            if token.kind in ("set(", "set)") or (depth == 0 and token.kind == ","):
                return False
            depth += (token.kind in ("(", "[", "{")) - (token.kind in (")", "]", "}"))
            if depth == 0 and token.kind in ("|", ":"):
                return True
        return False

    def binder(self, name: str) -> Node:
        """Reads what follows `\\sum`, `\\prod` or `\\int`: bounds, then the term, for an integral up to its `dx`."""
        self.deeper()
        low = high = None
        while self.kind in ("_", "^"):
            if self.take().kind == "^":
                high = self._bound()
            else:
                low = self._low()
        if name == "int":
            variable, body = self._integrand()
        elif type(low) is Relation and low.operators == ("=",) and type(low.operands[0]) is Symbol:
            variable, low = low.operands
            body = self.product()
        else:
            raise UnreadableError("a sum without its index")
        if low is None or high is None:
            raise UnreadableError("no bounds")
        self.depth -= 1
        bound = Symbol(f"bound {self.depth}")
        return Call(name, (bound, low, high, replaced(body, variable, bound)))

    def _low(self) -> Node:
        if self.kind != "{":
            return self._bound()
        self.take()
        node = self.relation()
        self.expect("}")
        return node

    def _bound(self) -> Node:
        return Number(self.take().value) if self.kind == "number" else self.argument()

    def _integrand(self) -> tuple[Symbol, Node]:
        """Reads up to `dx`, `d x` or `\\,dt`; returns the variable and the integrand."""
        for end in range(self.position, len(self.tokens)):
            token = self.tokens[end]
            if token.kind == "word" and len(token.text) == 2 and token.text[0] == "d":
                variable, after = token.text[1], end + 1
                break
            if token.text == "d" and end + 1 < len(self.tokens) and self.tokens[end + 1].kind in ("letter", "command"):
                variable, after = self.tokens[end + 1].text, end + 2
                break
        else:
            raise UnreadableError("an integral without its variable")
        if end == self.position:
            raise UnreadableError("an integral of nothing")
        inner = type(self)(self.tokens[self.position : end])
        inner.depth = self.depth
        body = inner.sum()
        if inner.position < end - self.position:
            raise UnreadableError("an integrand")
        self.position = after
        return Symbol(variable), body

    def index(self, tokens: list[Token]) -> str:
        """Returns the text of an index; of one with operators, `n+1` and `1+n`, the same for the same value."""
        if not any(token.kind in ("+", "-", "*", "/") or token.text in ("cdot", "times", "frac") for token in tokens):
            return " ".join(token.text for token in tokens)
        parts: list[list[Token]] = [[]]
        for token in tokens:  # a_{i,j+1}
            if token.kind == ",":
                parts.append([])
            else:
                parts[-1].append(token)
        return " , ".join(self._one_index(part) for part in parts)

    def _one_index(self, tokens: list[Token]) -> str:
        inner = type(self)(tokens)
        inner.depth = self.depth
        try:
            inner.deeper()
            node = inner.sum()
            key = index_key(node) if inner.position == len(tokens) else None
        except UnreadableError:
            key = None
        return " ".join(token.text for token in tokens) if key is None else key
