"""The estimate of a stage's duration: told once, where it is worth it."""

import pytest
from tqdm import tqdm

from e2h_jax.parallel.progress import Estimate, about


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(41.4, "41 s"), (1080, "18 minutes"), (5399, "90 minutes"), (3 * 3600 + 1800, "3.5 hours"), (4 * 24 * 3600, "4 days")],
)
def test_durations_in_words(seconds, words):
    assert about(seconds) == words


@pytest.mark.parametrize(
    ("disable", "estimates", "told"),
    [
        (False, [(1080, 52), (900, 60)], "samples: about 18 minutes at 52 tokens/s\n"),
        (False, [(3, 52), (900, 60)], ""),  # nothing to wait for
        (True, [(1080, 52)], ""),  # not the first process
    ],
)
def test_an_estimate_is_told_once(disable, estimates, told, capsys):
    with tqdm(total=3, desc="samples", disable=disable) as bar:
        estimate = Estimate(bar)
        assert estimate.told == disable
        for one in estimates:
            estimate.tell(*one)
        assert estimate.told
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.splitlines(keepends=True)]
    assert "".join(line for line in lines if "about" in line) == told
