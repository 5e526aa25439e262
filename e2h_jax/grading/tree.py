"""What an answer can be: the nodes of the expression tree. Plain immutable values, compared by structure."""

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

Node = Any  # one of the classes below
BINDERS = ("sum", "prod", "int")  # Call(name, (variable, low, high, term))


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, with its index (`a_{n+1}`); also pi, e, i and infinity, which `values.py` knows by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    terms: tuple


@dataclass(frozen=True, slots=True)
class Product:
    factors: tuple


@dataclass(frozen=True, slots=True)
class Power:
    base: Node
    exponent: Node


@dataclass(frozen=True, slots=True)
class Call:
    """A function of its arguments: a known one (`sin`, `abs`, `factorial`) or a name without meaning (`f`)."""

    name: str
    arguments: tuple


@dataclass(frozen=True, slots=True)
class PlusMinus:
    """`\\pm` (sign 1) or `\\mp` (sign -1) before a term."""

    sign: int
    operand: Node


@dataclass(frozen=True, slots=True)
class Bracket:
    """Several things in round or square brackets: a point, a tuple or an interval."""

    opening: str
    closing: str
    items: tuple


@dataclass(frozen=True, slots=True)
class Collection:
    """Things without order: a list with commas or "or" (a multiset), or a set in braces."""

    items: tuple
    braces: bool = False


@dataclass(frozen=True, slots=True)
class SetOperation:
    operator: str  # cup | cap | setminus
    operands: tuple


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple  # of tuples


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain: operands[0] operators[0] operands[1] …; operators are = ne < > le ge in approx."""

    operands: tuple
    operators: tuple


@dataclass(frozen=True, slots=True)
class Residue:
    """The whole numbers that leave the same remainder as `value`, `2 \\pmod 7`."""

    value: Node
    modulus: Node


@dataclass(frozen=True, slots=True)
class Ratio:
    """`3:4`; `time`: written as a time of day (`12:00`, `1:03`) it is not reduced."""

    parts: tuple
    time: bool = False


@dataclass(frozen=True, slots=True)
class BaseNumeral:
    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Degrees:
    """An angle in degrees within a formula."""

    operand: Node


@dataclass(frozen=True, slots=True)
class Text:
    """Words, case-folded, in order."""

    words: tuple


@dataclass(frozen=True, slots=True)
class Choice:
    """An option of a multiple-choice problem with what it says: `(B) 12`."""

    letter: str
    content: Node


@dataclass(frozen=True, slots=True)
class Builder:
    """A set by what its elements fulfil, `\\{2k : k \\in \\mathbb{Z}\\}`; its variable has a name of ours."""

    element: Node
    conditions: tuple


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and the unit that was written after it."""

    value: Node
    unit: str


SCALARS = (Number, Symbol, Sum, Product, Power, Call, Degrees, PlusMinus)
ONE, MINUS_ONE = Number(Fraction(1)), Number(Fraction(-1))


def negative(node: Node) -> Node:
    """Returns -node."""
    if type(node) is Number:
        return Number(-node.value)
    return Product((MINUS_ONE, node))


def quotient(top: Node, bottom: Node) -> Node:
    """Returns top/bottom."""
    return Product((top, Power(bottom, MINUS_ONE)))


def mapped(node: Node, change) -> Node:
    """Returns the node with `change` applied to each child (the node itself when none changed)."""
    changed = {}
    for field in fields(node):
        value = getattr(node, field.name)
        if type(value) is tuple and value and type(value[0]) is not str:
            new = tuple(tuple(change(entry) for entry in item) if type(item) is tuple else change(item) for item in value)
        elif hasattr(value, "__dataclass_fields__"):
            new = change(value)
        else:
            continue
        if new != value:
            changed[field.name] = new
    return replace(node, **changed) if changed else node


def replaced(node: Node, old: Node, new: Node) -> Node:
    """Returns the tree with one node put for another wherever it occurs."""
    return new if node == old else mapped(node, lambda child: replaced(child, old, new))


def contains(node: Node, kinds: tuple) -> bool:
    """Returns whether a node of these classes occurs in the tree."""
    if isinstance(node, kinds):
        return True
    found = False

    def look(child: Node) -> Node:
        nonlocal found
        found = found or contains(child, kinds)
        return child

    mapped(node, look)
    return found


def signed(node: Node, sign: int) -> Node:
    """Returns the tree with every `\\pm` read as `sign`."""
    if type(node) is PlusMinus:
        operand = signed(node.operand, sign)
        return operand if sign * node.sign > 0 else negative(operand)
    return mapped(node, lambda child: signed(child, sign))
