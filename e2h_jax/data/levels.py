"""Which levels of difficulty are easy, and which are hard: said here, once.

A stage that tells easy problems from hard ones has the fields `easy_levels` and `hard_levels`, with these defaults: the
levels of MATH as the easy-to-hard paper divides them. A problem of a level in neither, or of no level, is neither easy
nor hard: it counts where all problems count, alone.
"""

from collections.abc import Collection

from e2h_jax.errors import UserError

EASY_LEVELS = (1, 2, 3)  # what generators and evaluators are trained on
HARD_LEVELS = (4, 5)  # what they are to generalise to


def group_of(level: int | None, easy: Collection[int], hard: Collection[int]) -> str | None:
    """Returns "easy", "hard", or None for a level in neither and for no level."""
    return "easy" if level in easy else "hard" if level in hard else None


def check_levels(easy: Collection[int], hard: Collection[int], where: str = "config") -> None:
    """Raises UserError where a level is both; `where`: the group of the fields."""
    if both := set(easy) & set(hard):
        raise UserError(f"{where}.easy_levels and {where}.hard_levels share {sorted(both)}; a level is one or the other.")
