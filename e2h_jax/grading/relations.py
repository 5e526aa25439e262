"""What relations say, before anything is compared: names that are defined, sides, links of a chain."""

import re

from e2h_jax.grading import sets
from e2h_jax.grading.precision import precise
from e2h_jax.grading.scalars import has_infinity
from e2h_jax.grading.tree import SCALARS, Bracket, Call, Collection, Node, Product, Quantity, Relation, SetOperation, Symbol
from e2h_jax.grading.values import UndecidableError, _evaluated, symbols

_FLIPPED = {"<": ">", "le": "ge"}


def is_name(node: Node) -> bool:
    """Returns whether this is the left side of a definition: `x`, `f(x)`, `\\angle A`, `(x, y)`, `a_n`."""
    if type(node) is Symbol:
        return node.name not in ("pi", "e", "i", "oo")
    if type(node) is Call:
        return len(node.name.rstrip("'⁻")) == 1
    if type(node) is Bracket:
        return all(type(item) is Symbol for item in node.items)
    return False


def variable(node: Relation) -> str | None:
    names = [operand.name for operand in node.operands if type(operand) is Symbol and operand != sets.INFINITY]
    return names[0] if len(names) == 1 else None


def points_of(node: Relation) -> Node | None:
    """Returns the numbers that a relation leaves: an interval, or the one of `x = 5`."""
    if node.operators == ("=",) and type(node.operands[0]) is Symbol and not symbols(node.operands[1]):
        return Collection((node.operands[1],), True)
    return sets.interval_of(node)


def without(node: Node) -> Node:
    """Returns the real numbers without one: `x \ne 1, 2` leaves out 2 as well."""
    return SetOperation("setminus", (Symbol("mathbbR"), Collection((node,), True)))


def inequality_of(interval: Node, relation: Relation) -> Relation | None:
    """Returns an interval as an inequality of the one variable of `relation`: `(-\\infty, 3]` as `x \\le 3`; else None."""
    names = frozenset().union(*map(symbols, relation.operands))
    if type(interval) is not Bracket or len(interval.items) != 2 or len(names) != 1:
        return None
    name = Symbol(next(iter(names)))
    low, high = interval.items
    operators = "le" if interval.opening == "[" else "<", "le" if interval.closing == "]" else "<"
    operands = [(low, operators[0]), (name, operators[1]), (high, "")]
    bounded = [pair for pair in operands if not sets.infinite(pair[0])]
    if len(bounded) < 2:
        return None
    return Relation(tuple(node for node, _ in bounded), tuple(operator for _, operator in bounded[:-1]))


def by_component(node: Relation) -> Collection | None:
    """Returns `(x, y) = (1, 2)` as `x = 1`, `y = 2`."""
    names, values = node.operands[0], node.operands[-1]
    if node.operators != ("=",) or type(names) is not Bracket or type(values) is not Bracket or not is_name(names):
        return None
    if len(names.items) != len(values.items):
        return None
    return Collection(tuple(Relation(pair, ("=",)) for pair in zip(names.items, values.items, strict=True)))


def point_of(node: Collection) -> Bracket | None:
    """Returns `x = 1, y = 2` as the point `(1, 2)`, in the order of the names; None for a list that is no such thing.

    Names have an order that everybody knows only where they follow each other in the alphabet (x, y; a, b, c) or are one letter
    with indices; of `m = 2, b = 3` nobody can tell whether (2, 3) or (3, 2) is meant: raises UndecidableError.
    """
    if node.braces or len(node.items) < 2 or not all(type(i) is Relation and i.operators == ("=",) for i in node.items):
        return None
    values = {i.operands[0].name: i.operands[1] for i in node.items if type(i.operands[0]) is Symbol and is_name(i.operands[0])}
    if len(values) != len(node.items) or any(symbols(value) & set(values) for value in values.values()):
        return None
    names = sorted(values, key=lambda name: (len(name), name))
    ranks = [re.fullmatch(r"(?:([a-zA-Z])|([a-zA-Z])_([0-9]+))", name) for name in names]
    if None in ranks:
        raise UndecidableError
    letters = [rank[1] or rank[2] for rank in ranks]
    places = [ord(rank[1]) if rank[1] else int(rank[3]) for rank in ranks]
    one_kind = len({bool(rank[1]) for rank in ranks}) == 1 and (ranks[0][1] or len(set(letters)) == 1)
    if not one_kind or places != list(range(places[0], places[0] + len(places))):
        raise UndecidableError
    return Bracket("(", ")", tuple(values[name] for name in names))


def approximates(node: Relation) -> bool:
    sides = [side.value if type(side) is Quantity else side for side in node.operands]
    if len(sides) != 2 or any(not isinstance(side, SCALARS) or symbols(side) for side in sides):
        return False
    first, second = (_evaluated(side, {}, precise(50)) for side in sides)
    return first is not None and second is not None and abs(first - second) <= 0.01 * abs(first)


def links_of(node: Relation) -> list[tuple[str, Node]] | None:
    """Returns the relations of a chain as (operator, left minus right); None when a side is no finite scalar."""
    if any(map(has_infinity, node.operands)):
        return None
    if not all(isinstance(operand, SCALARS) for operand in node.operands) or set(node.operators) & {"in", "approx"}:
        return None
    links = []
    for index, operator in enumerate(node.operators):
        value = sets.difference(node, index)
        if operator in _FLIPPED:
            operator, value = _FLIPPED[operator], Product((sets.MINUS_ONE, value))
        links.append((operator, value))
    return links
