"""Solutions in which no final answer is recognised. Each counts as wrong, so many of them tell of a wrong template.

`labels` refuses to learn from them above a share, `evaluate` warns.
"""

import json

KEPT, SHOWN, ENDING = 1000, 3, 60  # different endings that are remembered, that are shown, and characters of each


class Unanswered:
    """Counts solutions, and those without a recognised answer; remembers how these end."""

    def __init__(self) -> None:
        self.count = self.solutions = 0
        self._endings: dict[str, None] = {}

    def add(self, text: str, answered: bool) -> None:
        """Counts one solution."""
        self.solutions += 1
        self.count += not answered
        if not answered and len(self._endings) < KEPT:
            self._endings[text.rstrip()[-ENDING:]] = None

    def sentence(self, most: float) -> str:
        """How many have no answer and how three of them end, without a full stop; "" where they are a share `most` or less."""
        if self.count <= most * self.solutions:
            return ""
        # The first, the middle and the last ending: neighbours are often of one problem.
        places = dict.fromkeys((0, len(self._endings) // 2, len(self._endings) - 1))
        ends = ", ".join(json.dumps(list(self._endings)[place], ensure_ascii=False) for place in list(places)[:SHOWN])
        counts = f"{self.count:,} of {self.solutions:,} solutions have no recognised answer"
        return f"{counts} ({self.count / self.solutions:.1%}, more than {most:.0%}); they end, for example, {ends}"
