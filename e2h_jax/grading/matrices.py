"""Arithmetic of matrices within an answer: sums, multiples and products as one matrix."""

from e2h_jax.grading.tree import Matrix, Node, Product, Sum, contains

_MOST_ENTRIES = 64  # of a product: more would be work for nothing


def as_matrix(node: Node) -> Node | None:
    """Returns a sum, multiple or product of matrices as one matrix; None for other expressions with matrices."""
    if type(node) is Sum:
        parts = [as_matrix(term) for term in node.terms]
        if None in parts or len({(len(part.rows), len(part.rows[0])) for part in parts}) != 1:
            return None
        rows = zip(*(part.rows for part in parts), strict=True)
        return Matrix(tuple(tuple(Sum(entries) for entries in zip(*row, strict=True)) for row in rows))
    if type(node) is Matrix:
        return node
    if type(node) is not Product:
        return None
    scalars = tuple(factor for factor in node.factors if not contains(factor, (Matrix,)))
    product = None
    for factor in node.factors:
        if contains(factor, (Matrix,)):
            matrix = as_matrix(factor)
            product = matrix if product is None or matrix is None else _times(product, matrix)
            if product is None:
                return None
    if product is None:
        return None
    return Matrix(tuple(tuple(Product((*scalars, entry)) for entry in row) for row in product.rows))


def _times(one: Matrix, other: Matrix) -> Matrix | None:
    columns = tuple(zip(*other.rows, strict=True))
    small = all(len(rows) * len(rows[0]) <= _MOST_ENTRIES for rows in (one.rows, other.rows, columns))
    if not small or len(one.rows[0]) != len(other.rows) or contains(one, (Sum,)):
        return None
    return Matrix(tuple(tuple(Sum(tuple(map(_pair, row, column))) for column in columns) for row in one.rows))


def _pair(one: Node, other: Node) -> Node:
    return Product((one, other))
