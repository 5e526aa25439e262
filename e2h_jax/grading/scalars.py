"""When two scalars are the same: infinity by the rules of limits, `I` and `E` of computer algebra, all else by value."""

from fractions import Fraction

from e2h_jax.grading.precision import precise
from e2h_jax.grading.tree import BINDERS, Call, Node, Number, Power, Product, Sum, Symbol, contains, mapped, replaced
from e2h_jax.grading.values import UndecidableError, _evaluated, exact, same_value, symbols

INFINITY = Symbol("oo")
_ZERO = Number(Fraction(0))
_CONSTANTS = {"I": "i", "E": "e"}  # as sympy and Mathematica write them


def same_scalar(one: Node, other: Node) -> bool:
    """Returns whether two scalars are the same. Raises UndecidableError, for indeterminate forms (`\\infty - \\infty`) too."""
    one, other = _with_constants(one, other), _with_constants(other, one)
    if not (has_infinity(one) or has_infinity(other)):
        return same_value(one, other)
    first, second = limit(one), limit(other)
    if type(first) is int and type(second) is int:
        return first == second
    if type(first) is int or type(second) is int:
        _check_value(second if type(first) is int else first)
        return False
    return same_value(first, second)


def _with_constants(one: Node, other: Node) -> Node:
    """Returns `6 + 9*I` as `6 + 9i` where the other side is a constant with i; variables keep their case everywhere else."""
    names = symbols(one)
    if names and names <= set(_CONSTANTS) and not symbols(other):
        used = {name for name in _CONSTANTS.values() if contains_symbol(other, name)}
        if {_CONSTANTS[name] for name in names} <= used and not any(contains_symbol(one, _CONSTANTS[name]) for name in names):
            for name in names:
                one = replaced(one, Symbol(name), Symbol(_CONSTANTS[name]))
    return one


def contains_symbol(node: Node, name: str) -> bool:
    """Returns whether a symbol occurs in the tree."""
    found = node == Symbol(name)

    def look(child: Node) -> Node:
        nonlocal found
        found = found or contains_symbol(child, name)
        return child

    mapped(node, look)
    return found


def has_infinity(node: Node) -> bool:
    """Returns whether infinity is a value in the formula, and not only a bound of a sum or integral."""
    if not contains(node, (Call,)):
        return contains_symbol(node, "oo")
    if type(node) is Call and node.name in BINDERS:
        return False
    found = node == INFINITY

    def look(child: Node) -> Node:
        nonlocal found
        found = found or has_infinity(child)
        return child

    mapped(node, look)
    return found


def limit(node: Node) -> Node | int:
    """Returns 1 for infinity, -1 for minus infinity, or the finite value as a formula.

    Raises:
      UndecidableError: an indeterminate form (∞ - ∞, 0 · ∞, ∞/∞, ∞^0, 1^∞), or one whose limit these rules do not know.
    """
    if node == INFINITY:
        return 1
    if not has_infinity(node):
        return node
    if type(node) is Sum:
        terms = [limit(term) for term in node.terms]
        signs = {term for term in terms if type(term) is int}
        if len(signs) > 1:
            raise UndecidableError
        if not signs:
            return Sum(tuple(terms))
        if any(type(term) is not int and symbols(term) for term in terms):
            raise UndecidableError
        return signs.pop()
    if type(node) is Product:
        factors = [limit(factor) for factor in node.factors]
        if not any(type(factor) is int for factor in factors):
            return Product(tuple(factors))
        sign = 1
        for factor in factors:
            sign *= factor if type(factor) is int else _sign(factor)
        return sign
    if type(node) is Power:
        return _limit_of_power(limit(node.base), limit(node.exponent))
    if type(node) is Call and len(node.arguments) == 1:
        argument = limit(node.arguments[0])
        if type(argument) is not int:
            return Call(node.name, (argument,))
        if node.name == "abs" or (argument > 0 and node.name in ("ln", "log", "log10", "exp", "floor", "ceil", "factorial")):
            return 1
        if node.name == "exp":
            return _ZERO
    raise UndecidableError


def _limit_of_power(base: Node | int, exponent: Node | int) -> Node | int:
    if type(base) is not int and type(exponent) is not int:
        return Power(base, exponent)
    if type(exponent) is int:
        size = base if type(base) is int else _sign(Sum((base, Number(Fraction(-1)))))  # above or below 1
        if type(base) is not int and _sign(base) < 0 or size == -1 and type(base) is int:
            raise UndecidableError
        return 1 if size * exponent > 0 else _ZERO
    power = exact(exponent)
    if not power:
        raise UndecidableError
    if power < 0:
        return _ZERO
    if base > 0:
        return 1
    if power.denominator % 2 == 0:
        raise UndecidableError
    return -1 if power.numerator % 2 else 1


def _check_value(node: Node) -> None:
    """Raises UndecidableError for a constant without a value, `1/0`."""
    if not symbols(node) and exact(node) is None and _evaluated(node, {}, precise(50)) is None:
        raise UndecidableError


def _sign(node: Node) -> int:
    """Returns the sign of a real constant. Raises UndecidableError for zero, for what is not real and for variables."""
    value = exact(node)
    if value is None:
        number = None if symbols(node) else _evaluated(node, {}, precise(50))
        if number is None or abs(number.imag) > 1e-30 or abs(number) < 1e-30:
            raise UndecidableError
        value = number.real
    if value == 0:
        raise UndecidableError
    return 1 if value > 0 else -1
