"""Whether two formulas have the same value: exactly where it can be, else at several points to fifty digits.

1. Rational constants are compared as fractions.
2. Rational functions (and powers and factorials too large to write out) are compared modulo two large primes at random
   points: Schwartz-Zippel, exact up to a chance of 2**-80.
3. All else (roots, logarithms, trigonometry …) is evaluated at real points of both signs, in double precision to tell
   different formulas apart and to fifty digits before two are called the same.

No step costs more than a bounded number of bounded operations: results beyond `MAX_BITS` are not written out.
"""

import functools
import math
import zlib
from fractions import Fraction

from e2h_jax.grading.precision import DOUBLE, REAL, Field, NotANumberError, precise
from e2h_jax.grading.tree import BINDERS, Call, Degrees, Node, Number, Power, Product, Sum, Symbol, mapped, replaced

MAX_BITS = 40_000
_SERIES_WORK = 100_000
_PRIMES = (2**127 - 1, 2**107 - 1)
CONSTANTS = ("pi", "e", "i", "oo")


class UndecidableError(ArithmeticError):
    """Neither equal nor different could be established."""


class _NotExactError(ArithmeticError):
    pass


_KNOWN = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch arcsinh arccosh arctanh "
    "ln log log10 exp abs floor ceil gcd lcm max min cis mod factorial factorial2 binom det conjugate Re Im "
    "sum prod int".split()
)


def same_value(one: Node, other: Node) -> bool:
    """Returns whether two scalar formulas are equal wherever both are defined. Raises UndecidableError."""
    if one == other:
        return True
    first, second = exact(one), exact(other)
    if first is not None and second is not None:
        return first == second
    names = symbols(one) | symbols(other)
    try:
        return all(_residue(one, prime) == _residue(other, prime) for prime in _PRIMES)
    except (_NotExactError, ZeroDivisionError):
        pass
    compare = functools.partial(_functions, names=names) if names else _constants
    if compare(one, other):
        return True
    if has_degrees(one) == has_degrees(other) or not (_has_angles(one) and _has_angles(other)):
        return False
    return compare(without_degrees(one), without_degrees(other))  # \cos 58 for \cos 58^\circ


@functools.lru_cache(maxsize=1 << 14)
def exact(node: Node) -> Fraction | None:
    """Returns the value of a rational constant; None for everything else and for what is too large."""
    try:
        return _exact(node)
    except (_NotExactError, ZeroDivisionError, OverflowError, ValueError):
        return None


def _exact(node: Node) -> Fraction:
    kind = type(node)
    if kind is Number:
        return node.value
    if kind is Sum:
        return _bounded(sum((_exact(term) for term in node.terms), Fraction(0)))
    if kind is Product:
        value = Fraction(1)
        for factor in node.factors:
            value = _bounded(value * _exact(factor))
        return value
    if kind is Power:
        return _exact_power(_exact(node.base), _exact(node.exponent))
    if kind is Call and node.name in ("sum", "prod"):
        return _exact_series(node)
    if kind is Call:
        return _exact_call(node.name, [_exact(argument) for argument in node.arguments])
    raise _NotExactError


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NotExactError
    return value


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == exponent == 0:
        raise _NotExactError  # indeterminate
    if exponent.denominator == 1:
        if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent) > MAX_BITS and abs(base) != 1:
            raise _NotExactError
        return base ** int(exponent)
    root = exponent.denominator
    if root > 64 or abs(exponent.numerator) > 64:
        raise _NotExactError
    if base < 0:
        if root % 2 == 0:
            raise _NotExactError
        return (-1) ** exponent.numerator * _exact_power(-base, exponent)
    powered = _exact_power(base, Fraction(exponent.numerator))
    return Fraction(_integer_root(powered.numerator, root), _integer_root(powered.denominator, root))


def _integer_root(value: int, root: int) -> int:
    if root == 2:
        found = math.isqrt(value)
    elif value.bit_length() > 900:
        raise _NotExactError
    else:
        found = round(value ** (1 / root)) if value else 0
    if found**root != value:
        raise _NotExactError
    return found


@functools.lru_cache(maxsize=256)
def _factorial(n: int) -> int:
    return math.factorial(n)


def _exact_call(name: str, values: list[Fraction]) -> Fraction:
    whole = [int(value) for value in values if value.denominator == 1]
    integers = len(whole) == len(values)
    if name == "abs":
        return abs(values[0])
    if name in ("floor", "ceil"):
        return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if name in ("gcd", "lcm") and integers:
        return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))
    if name == "mod" and values[1] > 0:
        return values[0] % values[1]
    if name == "factorial" and integers and 0 <= whole[0] <= 3000:
        return Fraction(_factorial(whole[0]))
    if name == "factorial2" and integers and 0 <= whole[0] <= 2000:
        return Fraction(math.prod(range(whole[0], 0, -2)))
    if name == "binom" and integers and 0 <= whole[0] <= 10_000 and whole[1] >= 0:
        return _bounded(Fraction(math.comb(whole[0], whole[1])))
    raise _NotExactError


@functools.lru_cache(maxsize=1 << 14)
def _residue(node: Node, prime: int) -> int:
    """Returns the value of a rational function at a pseudo-random point modulo a prime."""
    kind = type(node)
    if kind is Number:
        return (
            node.value.numerator * pow(node.value.denominator, -1, prime) % prime if node.value.denominator % prime else _fail()
        )
    if kind is Symbol:
        if node.name in ("pi", "e", "i"):
            raise _NotExactError  # independent of the rationals, but not of each other's functions
        return _random(node.name, 0) % prime
    if kind is Sum:
        return sum(_residue(term, prime) for term in node.terms) % prime
    if kind is Product:
        value = 1
        for factor in node.factors:
            value = value * _residue(factor, prime) % prime
        return value
    if kind is Power:
        exponent = exact(node.exponent)
        base = _residue(node.base, prime)
        if exponent is None or exponent.denominator != 1:
            raise _NotExactError
        if base == 0 and exponent <= 0:
            raise _NotExactError
        return pow(base, int(exponent), prime)
    value = exact(node)
    if value is None:
        raise _NotExactError
    return value.numerator * pow(value.denominator, -1, prime) % prime


def _exact_series(node: Call) -> Fraction:
    """Returns a sum or product of bounded work, terms times their size, none of which holds another."""
    variable, low, high, body = node.arguments
    first, last = _exact(low), _exact(high)
    written = repr(body)
    if first.denominator != 1 or last.denominator != 1 or (last - first + 1) * len(written) > _SERIES_WORK:
        raise _NotExactError
    if any(f"name='{name}'" in written for name in BINDERS):
        raise _NotExactError
    total = Fraction(node.name == "prod")
    for index in range(int(first), int(last) + 1):
        term = _exact(replaced(body, variable, Number(Fraction(index))))
        total = _bounded(total + term if node.name == "sum" else total * term)
    return total


def index_key(node: Node) -> str | None:
    """Returns a spelling that indices of one value share, `n+1` and `1+n`; None where they are no rational formula."""
    value = exact(node)
    try:
        return str(value) if value is not None else f"{_residue(node, _PRIMES[0]):x}"
    except (_NotExactError, ZeroDivisionError):
        return None


def _fail() -> int:
    raise _NotExactError


@functools.lru_cache(maxsize=1 << 12)
def _random(name: str, index: int) -> int:
    """Returns a pseudo-random number below 2**128, the same for the same name in every process."""
    data = f"{index}/{name}".encode("utf-8", "replace")
    words = [zlib.crc32(data + bytes([salt])) for salt in range(4)]
    return sum(word << (32 * place) for place, word in enumerate(words))


@functools.lru_cache(maxsize=1 << 14)
def symbols(node: Node) -> frozenset[str]:
    """Returns the names of the variables of a formula."""
    if type(node) is Symbol:
        return frozenset() if node.name in ("pi", "e", "i") else frozenset([node.name])
    found: set[str] = {node.name} if type(node) is Call and node.name not in _KNOWN else set()
    bound = {node.arguments[0].name} if type(node) is Call and node.name in BINDERS else set()

    def look(child: Node) -> Node:
        found.update(symbols(child))
        return child

    mapped(node, look)
    return frozenset(found - bound)


def has_degrees(node: Node) -> bool:
    """Returns whether an angle of the formula is in degrees."""
    return "Degrees" in repr(node)


def without_degrees(node: Node) -> Node:
    """Returns the formula with its degree signs left out."""
    return without_degrees(node.operand) if type(node) is Degrees else mapped(node, without_degrees)


def _has_angles(node: Node) -> bool:
    written = repr(node)
    return any(f"name='{name}'" in written for name in ("sin", "cos", "tan", "cot", "sec", "csc"))


def _has_i(node: Node) -> bool:
    return "name='i'" in repr(node) or "'cis'" in repr(node)


def _constants(one: Node, other: Node) -> bool:
    agree = _agree(one, other, {})
    if agree is None:
        raise UndecidableError
    return agree


def _agree(one: Node, other: Node, point: dict[str, Fraction]) -> bool | None:
    """Returns whether two values agree to thirty digits; None where one is undefined.

    Values so small that they may be zero but for rounding are computed again: a zero shrinks with more digits.
    """
    field = precise(50)
    first, second = _evaluated(one, point, field), _evaluated(other, point, field)
    if first is None or second is None:
        return None
    if not field.tiny(first) and not field.tiny(second):
        return field.close(first, second)
    field = precise(110)
    values = [_evaluated(one, point, field), _evaluated(other, point, field)]
    if None in values:
        return None
    zeros = [abs(value) <= abs(before) * 1e-30 for value, before in zip(values, (first, second), strict=True)]
    return all(zeros) or (not any(zeros) and field.close(*values))


# Where variables are put: positive and negative, around and away from one.
_RANGES = ((0.2, 1.0), (1.0, 3.0), (-1.0, -0.2), (-4.0, -1.0), (3.0, 9.0), (0.3, 2.5), (-9.0, 9.0), (-2.0, 2.0), (9.0, 40.0))


def _point(names: frozenset[str], index: int) -> dict[str, Fraction]:
    low, high = _RANGES[index]
    point = {}
    for name in names:
        share = _random(name, index + 1) % 9973 / 9973
        if index in (5, 6, 7):  # variables between one and the next, so that differences take both signs
            share = (share + _random(name, index + 17) % 7 / 7) / 2
        point[name] = Fraction(low + share * (high - low)).limit_denominator(10**6)
    return point


def _functions(one: Node, other: Node, names: frozenset[str]) -> bool:
    """Compares formulas with variables at the points where both are real throughout; with i, or without such, at all."""
    points = [_point(names, index) for index in range(len(_RANGES))]
    found: list[dict[str, Fraction]] = []
    for field in (DOUBLE,) if _has_i(one) or _has_i(other) else (REAL, DOUBLE):
        for point in points:
            first, second = _evaluated(one, point, field), _evaluated(other, point, field)
            if first is not None and second is not None:
                if not field.near(first, second) and _agree(one, other, point) is False:  # no mere cancellation
                    return False
                found.append(point)
        if len(found) > 1:
            break
        found = []
    if not found:
        raise UndecidableError
    for point in found[:2]:
        agree = _agree(one, other, point)
        if agree is None:
            raise UndecidableError
        if not agree:
            return False
    return True


def _evaluated(node: Node, point: dict[str, Fraction], field: Field):
    try:
        return field.evaluate(node, point)
    except (NotANumberError, ArithmeticError, ValueError, TypeError, RecursionError):
        return None


def numerator(node: Node) -> Node:
    """Returns the formula over one denominator, without it: `yx - 1` for `y - 1/x`."""
    return _over_one_denominator(node)[0]


def _over_one_denominator(node: Node) -> tuple[Node, tuple]:
    """Returns a numerator, and the factors of the denominator."""
    if type(node) is Product:
        parts = [_over_one_denominator(factor) for factor in node.factors]
        return Product(tuple(top for top, _ in parts)), sum((bottom for _, bottom in parts), ())
    if type(node) is Power and type(node.exponent) is Number and node.exponent.value < 0:
        return Number(Fraction(1)), (Power(node.base, Number(-node.exponent.value)),)
    if type(node) is not Sum:
        return node, ()
    parts = [_over_one_denominator(term) for term in node.terms]
    bottoms = tuple(dict.fromkeys(factor for _, bottom in parts for factor in bottom))
    tops = (Product((top, *(factor for factor in bottoms if factor not in bottom))) for top, bottom in parts)
    return Sum(tuple(tops)), bottoms


def ratio_is_constant(one: Node, other: Node) -> int:
    """Returns the sign of the constant c with one = c · other; 0 when there is none. Raises UndecidableError."""
    if same_value(one, other):
        return 1
    names = symbols(one) | symbols(other)
    if not names:  # any two numbers have a constant ratio
        return -1 if same_value(one, Product((Number(Fraction(-1)), other))) else 0
    signs = set()
    factors = []
    for index in range(len(_RANGES) - 1):
        point = _point(names, index)
        first, second = _evaluated(one, point, DOUBLE), _evaluated(other, point, DOUBLE)
        if first is None or second is None or abs(second) < 1e-9 or abs(first) < 1e-9:
            continue
        factors.append(first / second)
        signs.add(1 if factors[-1].real > 0 else -1)
        if len(factors) > 1 and not DOUBLE.near(factors[0], factors[-1]):
            return 0
    if len(factors) < 2 or len(signs) > 1:
        return 0
    # To full precision: one·other(p) = other·one(p) at another point p.
    field = precise(50)
    points = [_point(names, index) for index in (1, 4, 3)]
    values = [(_evaluated(one, point, field), _evaluated(other, point, field)) for point in points]
    values = [pair for pair in values if None not in pair]
    if len(values) < 2:
        return 0
    (a, b), (c, d) = values[:2]
    return signs.pop() if field.close(a * d, b * c) else 0
