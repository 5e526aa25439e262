"""The `default` rules: when two trees say the same. Symmetric, and structure before value.

Conventions (docs/grading.md): lists and sets have no order; tuples and intervals have, and intervals have their ends; a
unit, a degree or percent sign and a base may be missing on one side but may not contradict; `x = 5` is 5, an equation may
be scaled and turned round; no tolerance anywhere.
"""

from fractions import Fraction

from e2h_jax.grading import sets
from e2h_jax.grading.answer import clock, spelled
from e2h_jax.grading.matrices import as_matrix
from e2h_jax.grading.numerals import is_number_unread
from e2h_jax.grading.relations import (
    approximates,
    by_component,
    inequality_of,
    is_name,
    links_of,
    point_of,
    points_of,
    variable,
    without,
)
from e2h_jax.grading.scalars import same_scalar
from e2h_jax.grading.tree import (
    ONE,
    SCALARS,
    BaseNumeral,
    Bracket,
    Builder,
    Call,
    Choice,
    Collection,
    Matrix,
    Node,
    Number,
    PlusMinus,
    Power,
    Product,
    Quantity,
    Ratio,
    Relation,
    Residue,
    SetOperation,
    Sum,
    Symbol,
    Text,
    contains,
    mapped,
    signed,
)
from e2h_jax.grading.units import in_letters, says_how_many, unit_words, units_agree
from e2h_jax.grading.values import UndecidableError, exact, numerator, ratio_is_constant, symbols
from e2h_jax.grading.words import run_together

_MOST_UNMATCHED = 40
_SAID = {
    ("infinite",): sets.INFINITY,
    ("all", "real", "numbers"): Symbol("mathbbR"),
    ("all", "integers"): Symbol("mathbbZ"),
    ("no", "solution"): Collection((), True),
}


def same(one: Node, other: Node) -> bool:
    """Returns whether two answers are the same. Raises UndecidableError when that cannot be told."""
    if one == other:
        return True
    one, other = _prepared(one), _prepared(other)
    if one == other:
        return True
    if type(one) is Choice or type(other) is Choice:
        return _choices(one, other)
    if type(one) is Quantity or type(other) is Quantity:
        return _quantities(one, other)
    if type(one) is Builder or type(other) is Builder:
        return _builders(one, other)
    if type(one) is Residue or type(other) is Residue:
        return _residues(one, other)
    if type(one) is Text or type(other) is Text:
        return _texts(one, other)
    if type(one) is Relation or type(other) is Relation:
        return _relations(one, other)
    if _set_like(one) or _set_like(other):
        return _sets(one, other)
    if type(one) is Collection or type(other) is Collection:
        return _collections(one, other)
    if type(one) in (Bracket, Matrix) or type(other) in (Bracket, Matrix):
        return _ordered(one, other)
    if type(one) is Ratio or type(other) is Ratio:
        return _ratios(one, other)
    if type(one) is BaseNumeral or type(other) is BaseNumeral:
        return _numerals(one, other)
    return same_scalar(_valued(one), _valued(other))


def _prepared(node: Node) -> Node:
    """Spreads `\\pm` into both cases, multiplies matrices out, and opens what holds one thing only."""
    if contains(node, (PlusMinus,)) and type(node) is not Quantity:
        if type(node) is Collection:
            spread = [_prepared(item) for item in node.items]
            items = [inner for item in spread for inner in (item.items if type(item) is Collection else (item,))]
            return Collection(tuple(items), node.braces)
        return Collection((signed(node, 1), signed(node, -1)))
    if type(node) is Collection and len(node.items) == 1 and not getattr(node.items[0], "braces", False):
        return _prepared(node.items[0])
    if type(node) in (Sum, Product) and contains(node, (Matrix,)):
        return as_matrix(node) or node
    if type(node) is Text and node.words in _SAID:
        return _SAID[node.words]
    return node


def _valued(node: Node) -> Node:
    """Returns a scalar; a numeral with its base within a formula stands for its value."""
    if type(node) is BaseNumeral:
        return _numeral_value(node)
    if not isinstance(node, SCALARS):
        raise UndecidableError
    return mapped(node, _valued) if contains(node, (BaseNumeral,)) else node


def _numeral_value(node: BaseNumeral) -> Node:
    try:
        return Number(Fraction(int(node.digits, node.base)))
    except ValueError:
        raise UndecidableError from None


def _choices(one: Node, other: Node) -> bool:
    """Compares an option, `(B) 12`, with an option, with a letter, or with what it says."""
    if type(one) is Choice and type(other) is Choice:
        return one.letter == other.letter and same(one.content, other.content)
    option, answer = (one, other) if type(one) is Choice else (other, one)
    letter = spelled(answer)
    if letter is None and type(answer) is Text:
        letter = answer.words
    if letter and len(letter[0]) == len(letter) == 1:
        return letter[0] == option.letter.casefold()
    return same(option.content, answer)


def _builders(one: Node, other: Node) -> bool:
    if type(one) is not Builder or type(other) is not Builder:
        return False
    return same(one.element, other.element) and _matched(list(one.conditions), list(other.conditions))


def _quantities(one: Node, other: Node) -> bool:
    (first, unit), (second, other_unit) = ((n.value, n.unit) if type(n) is Quantity else (n, "") for n in (one, other))
    times = [unit_words(u) in (("am",), ("pm",)) for u in (unit, other_unit)]
    if any(times):
        first, second = (clock(node) if type(node) is Ratio else node for node in (first, second))
    if not unit or not other_unit:
        bare, value, written = (first, second, other_unit) if not unit else (second, first, unit)
        if isinstance(bare, SCALARS) and symbols(bare) and (letters := in_letters(written)):  # 12 m^3 for 12\text{ m}^3
            factors = (Power(Symbol(letter), Number(Fraction(power))) for letter, power in letters)
            return same(bare, value) or same(bare, Product((value, *factors)))
    agree = units_agree(unit, other_unit, ONE in (first, second))
    if agree is False:
        return False
    if type(one) is Relation or type(other) is Relation:
        equal = _relations(one, other)
    elif type(first) is Collection and type(second) is Collection:
        equal = _collections(first, second)
    else:
        equal = same(first, second)
    if agree is None and (equal or says_how_many(unit or other_unit)):
        raise UndecidableError
    return equal


def _residues(one: Node, other: Node) -> bool:
    """Compares `2 \\pmod 7` with a class, with a relation, or a number: the one written, or the remainder."""
    if type(one) is Relation or type(other) is Relation:
        return _relations(one, other)
    if type(one) is Residue and type(other) is Residue:
        if not same(one.modulus, other.modulus):
            return False
        values = exact(one.value), exact(other.value), exact(one.modulus)
        if None in values or values[2] <= 0:
            return same(one.value, other.value)
        return (values[0] - values[1]) % values[2] == 0
    residue, number = (one, other) if type(one) is Residue else (other, one)
    return same(residue.value, number) or same(Call("mod", (residue.value, residue.modulus)), number)


def _texts(one: Node, other: Node) -> bool:
    words = [node.words if type(node) is Text else spelled(node) for node in (one, other)]
    if None in words:
        for text, node in ((one, other), (other, one)):
            if type(node) is Relation and node.operators == ("=",) and is_name(node.operands[0]):
                return same(text, node.operands[1])
        if {type(one), type(other)} <= {Text, Symbol, SetOperation, Bracket}:
            return _as_sets(one, other) is True
        text, node = (one, other) if type(one) is Text else (other, one)
        if isinstance(node, SCALARS) and is_number_unread(text.words):
            raise UndecidableError
        return False
    return run_together(words[0]) == run_together(words[1])


def _definition(node: Relation) -> Node | None:
    """Returns the value of `x = 5`, `x = 2 + 3 = 5` or `2 + 3 = 5`; None where the relation is more than that."""
    if set(node.operators) != {"="}:
        return None
    values = list(node.operands)
    if is_name(values[0]) or (type(values[-1]) is Matrix and not contains(values[0], (Matrix,))):  # A^{-1} = …
        values = values[1:]
    elif len(values) == 2 and is_name(values[1]) and not symbols(values[0]):
        values = values[:1]
    elif len(values) == 2 and (symbols(values[0]) or symbols(values[1])):
        return None
    try:
        return values[-1] if all(same(values[0], value) for value in values[1:]) else None
    except UndecidableError:
        return None


def _relations(one: Node, other: Node) -> bool:
    if type(one) is Relation and type(other) is Relation:
        if _chains(one, other):
            return True
        if one.operands[0] == other.operands[0] and is_name(one.operands[0]):  # x = 5 for x = 10/2 = 5
            values = _definition(one), _definition(other)
            if None not in values:
                return same(*values)
        first, second = sets.interval_of(one), sets.interval_of(other)
        if first is not None and second is not None and variable(one) == variable(other):
            return same(first, second)
        names = [n.operands[0] if set(n.operators) == {"="} else None for n in (one, other)]
        if None not in names and {type(name) for name in names} == {Symbol, Call} and all(map(is_name, names)):
            return same(one.operands[-1], other.operands[-1])  # y = 2x for f(x) = 2x
        return False
    if type(other) is Relation:
        one, other = other, one
    if type(other) is Collection and (parts := by_component(one)) is not None:
        return _collections(parts, other)
    if one.operators[-1:] == ("approx",) and is_name(one.operands[0]):  # x = a \approx b
        rest = one.operands[1:]
        return same(rest[0] if len(rest) == 1 else Relation(rest, one.operators[1:]), other)
    if one.operators == ("approx",):
        return approximates(one) and any(same(side, other) for side in one.operands)
    value = _definition(one)
    if value is None and (value := sets.interval_of(one)) is None and (inequality := inequality_of(other, one)):
        return _chains(one, inequality)  # 2x \le 6 for (-\infty, 3]
    if value is None or contains(value, (Relation,)):
        return False
    return same(value, other)


def _chains(one: Relation, other: Relation) -> bool:
    """Compares relation by relation, each as left minus right, scaled by any constant (a positive one for < and >)."""
    links, others = links_of(one), links_of(other)
    if links is None or others is None:
        return one.operators == other.operators and all(map(same, one.operands, other.operands))
    if len(links) != len(others):
        return False
    for operator, node in links:
        for position, (found, candidate) in enumerate(others):
            if found == operator:
                sign = ratio_is_constant(node, candidate)
                if not sign and operator in ("=", "ne"):  # xy = 1 for y = 1/x
                    sign = ratio_is_constant(numerator(node), numerator(candidate))
                if sign > 0 or (sign < 0 and operator in ("=", "ne")):
                    del others[position]
                    break
        else:
            return False
    return True


def _set_like(node: Node) -> bool:
    return type(node) is SetOperation or node == Symbol("mathbbR")


def _as_sets(one: Node, other: Node) -> bool | None:
    try:
        return sets.same_set(sets.real_set(one), sets.real_set(other))
    except sets.NotASetError:
        return None


def _sets(one: Node, other: Node) -> bool:
    """Compares unions and differences as sets of numbers; where the ends are unknown, part by part."""
    if type(one) is Collection or type(other) is Collection:  # x < 1 or x > 5 for a union
        one, other = (_joined(node) if type(node) is Collection and not node.braces else node for node in (one, other))
    decided = _as_sets(one, other)
    if decided is not None:
        return decided
    if type(one) is not SetOperation or type(other) is not SetOperation or one.operator != other.operator:
        return False
    if one.operator == "setminus":
        return all(map(same, one.operands, other.operands))
    return _matched(list(one.operands), list(other.operands))


def _joined(node: Collection) -> Node:
    excluded = any(type(item) is Relation and item.operators == ("ne",) for item in node.items)
    parts = [points_of(item) if type(item) is Relation else without(item) if excluded else item for item in node.items]
    return SetOperation("cap" if excluded else "cup", tuple(parts)) if None not in parts else node


def _collections(one: Node, other: Node) -> bool:
    if type(one) is not Collection or type(other) is not Collection:
        single, many = (other, one) if type(one) is Collection else (one, other)
        if type(single) in (Bracket, Matrix) and (point := point_of(many)) is not None:
            return _ordered(point, single)
        joined = _joined(many)
        if type(single) in (Bracket,) and type(joined) is SetOperation and any(type(i) is Relation for i in many.items):
            return _as_sets(joined, single) is True
        if many.braces or not many.items:
            unique = _unique(many.items)
            return len(unique) == 1 and not getattr(unique[0], "braces", False) and same(unique[0], single)
        return False
    first, second = list(one.items), list(other.items)
    if one.braces and other.braces:
        first, second = _unique(first), _unique(second)
    return _matched(first, second)


def _unique(items) -> list[Node]:
    kept: list[Node] = []
    for item in items:
        if item not in kept and (len(kept) > _MOST_UNMATCHED or not any(same(item, other) for other in kept)):
            kept.append(item)
    return kept


def _matched(one: list[Node], other: list[Node]) -> bool:
    """Returns whether the elements can be paired off, each with one that is the same."""
    if len(one) != len(other):
        return False
    rest = list(other)
    unmatched = []
    for item in one:
        if item in rest:
            rest.remove(item)
        else:
            unmatched.append(item)
    if len(unmatched) > _MOST_UNMATCHED:
        raise UndecidableError
    for item in unmatched:
        for position, candidate in enumerate(rest):
            if same(item, candidate):
                del rest[position]
                break
        else:
            return False
    return True


def _ordered(one: Node, other: Node) -> bool:
    """Compares tuples, intervals and matrices; a row or column of a matrix is also a tuple."""
    if type(one) is Matrix and type(other) is Matrix:
        shapes = [(len(node.rows), len(node.rows[0])) for node in (one, other)]
        return shapes[0] == shapes[1] and all(map(same, sum(one.rows, ()), sum(other.rows, ())))
    if type(one) not in (Bracket, Matrix) or type(other) not in (Bracket, Matrix):
        if type(one) is Matrix or type(other) is Matrix:
            matrix, scalar = (one, other) if type(one) is Matrix else (other, one)
            return len(matrix.rows) == len(matrix.rows[0]) == 1 and same(matrix.rows[0][0], scalar)
        return False
    if type(one) is Bracket and type(other) is Bracket:
        if (one.opening, one.closing) != (other.opening, other.closing):
            return False
        return len(one.items) == len(other.items) and all(map(same, one.items, other.items))
    matrix, point = (one, other) if type(one) is Matrix else (other, one)
    if len(matrix.rows) != 1 and len(matrix.rows[0]) != 1 or (point.opening, point.closing) not in (("(", ")"), ("[", "]")):
        return False
    entries = sum(matrix.rows, ())
    return len(entries) == len(point.items) and all(map(same, entries, point.items))


def _ratios(one: Node, other: Node) -> bool:
    if type(one) is Ratio and type(other) is Ratio:
        if len(one.parts) != len(other.parts):
            return False
        if one.time or other.time:
            return all(map(same_scalar, one.parts, other.parts))
        a, b = one.parts[0], other.parts[0]
        return all(
            same_scalar(Product((_valued(x), b)), Product((_valued(y), a)))
            for x, y in zip(one.parts[1:], other.parts[1:], strict=True)
        )
    ratio, value = (one, other) if type(one) is Ratio else (other, one)
    if len(ratio.parts) != 2 or exact(value) is None and not isinstance(value, SCALARS):
        return False
    return same_scalar(Product((_valued(ratio.parts[0]), Power(_valued(ratio.parts[1]), sets.MINUS_ONE))), _valued(value))


def _numerals(one: Node, other: Node) -> bool:
    if type(one) is BaseNumeral and type(other) is BaseNumeral:
        return one.base == other.base and one.digits == other.digits
    numeral, value = (one, other) if type(one) is BaseNumeral else (other, one)
    found = exact(value) if isinstance(value, SCALARS) else None
    return found is not None and found.denominator == 1 and abs(found) < 10**40 and str(int(found)) == numeral.digits
