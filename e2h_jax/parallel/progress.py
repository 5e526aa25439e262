"""How long the rest of a stage takes, by what its first steps took: told once, in a line of its own above the stage's bar."""

import sys

from tqdm import tqdm

WORTH_TELLING = 10.0  # seconds


def about(seconds: float) -> str:
    """A duration in the words of someone who does not know it exactly: "40 s", "18 minutes", "3.5 hours", "4 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 36 else f"{hours / 24:.0f} days"


class Estimate:
    """Tells of a stage once: "samples: about 18 minutes at 52 tokens/s". `bar`: the stage's."""

    def __init__(self, bar: tqdm):
        self._bar, self.told = bar, bar.disable

    def tell(self, seconds: float, tokens_per_second: float) -> None:
        """Only what is worth telling, and only the first time; processes whose bar is off say nothing."""
        if not self.told and seconds > WORTH_TELLING:
            text = f"{self._bar.desc.removesuffix(': ')}: about {about(seconds)} at {tokens_per_second:,.0f} tokens/s"
            self._bar.write(text, file=sys.stderr)
        self.told = True
