"""Which answers of one problem are the same candidate, for voting."""

from collections import Counter
from collections.abc import Sequence

from e2h_jax.grading.equality import Answered, answer_key, as_text, is_equal


def group_answers(answers: Sequence[Answered | None], rules: str = "default") -> list[int]:
    """Returns the number of each answer's group; -1 for None and what else is no answer (`equality.as_text`). Groups are
    numbered from 0 as they first occur.

    Answers with the same key are one candidate, and so are keys whose answers grade equal. Being equal is not quite
    transitive: `5` is `5 cm` and is `5 m`, which are not each other. So keys join in order of their votes, each the first
    group that it equals in every member: the most common reading takes what has no unit.

    With `strict` rules the key decides alone: those rules are no equivalence relation, and the key is the closest one.
    """
    keys = [None if as_text(answer) is None else answer_key(answer, rules) for answer in answers]
    votes = Counter(key for key in keys if key is not None)
    first = {key: answer for key, answer in reversed(list(zip(keys, answers, strict=True))) if key is not None}
    groups: list[list[str]] = []
    for key, _ in votes.most_common():
        for group in groups if rules != "strict" else ():
            if all(_equal(first[key], first[member], rules) for member in group):
                group.append(key)
                break
        else:
            groups.append([key])
    number_of = {key: number for number, group in enumerate(groups) for key in group}
    numbers: dict[int, int] = {}
    return [-1 if key is None else numbers.setdefault(number_of[key], len(numbers)) for key in keys]


def _equal(one: str, other: str, rules: str) -> bool:
    return is_equal(one, other, rules) or is_equal(other, one, rules)
