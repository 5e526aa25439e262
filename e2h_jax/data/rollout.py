"""Rollouts: solutions that a policy drew, as tokens and as text. What reinforcement learning rewards and learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from e2h_jax.data.batches import plan_rows
from e2h_jax.errors import UserError

ARRAYS = ("tokens", "targets", "positions", "segment_ids")  # of packed rows


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled solution of one problem.

    Attributes:
      problem: the problem's record (DESIGN section 5).
      sample: index of the sample.
      prompt: int32 [S], the tokens that the policy was given.
      tokens: int32 [T], T >= 1, the response; the last one is EOS (or another end token of the template) where that ended it.
      logprobs: float32 [T], under the policy's own distribution.
      sampling_logprobs: float32 [T], under the tempered and restricted one they were drawn from.
      stopped: ended by itself, not by the limit.
      text: the response as text, without special tokens, cut at the template's stop text.
    """

    problem: Mapping[str, Any]
    sample: int
    prompt: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    stopped: bool
    text: str


class Rows(NamedTuple):
    """Rollouts packed into rows, for one forward pass.

    Attributes:
      arrays: tokens, targets, positions, segment_ids (0 is padding), each int32 [rows, length].
      places: (index of the rollout, row, column at which its first response token is predicted, response length).
    """

    arrays: dict[str, np.ndarray]
    places: list[tuple[int, int, int, int]]

    def spread(self, values_BxR: np.ndarray) -> np.ndarray:
        """Values of response tokens at the columns that predict them, float32 [rows, length]; 0 elsewhere."""
        laid = np.zeros(self.arrays["tokens"].shape, np.float32)
        for index, row, column, length in self.places:
            laid[row, column : column + length] = values_BxR[index, :length]
        return laid

    def collect(self, laid: np.ndarray, values_BxR: np.ndarray) -> None:
        """The opposite of `spread`: fills in the rows' rollouts."""
        for index, row, column, length in self.places:
            values_BxR[index, :length] = laid[row, column : column + length]


def pack(rollouts: Sequence[Rollout], indices: Sequence[int], *, rows: int, length: int) -> list[Rows]:
    """Packs the rollouts with these indices into as few batches of [rows, length] as needed; the last is filled with padding.

    Raises UserError for one that is longer than a row.
    """
    sizes = [len(rollouts[index].prompt) + len(rollouts[index].tokens) - 1 for index in indices]
    if max(sizes, default=0) > length:
        raise UserError(f"a rollout has {max(sizes)} tokens, more than config.length={length}; raise it")
    planned = plan_rows(sizes, length=length, seed=0, epochs=1)
    batches = []
    for start in range(0, len(planned), rows):
        batch = Rows({name: np.zeros((rows, length), np.int32) for name in ARRAYS}, [])
        for row, members in enumerate(planned[start : start + rows]):
            column = 0
            for segment, member in enumerate(members.tolist(), start=1):
                rollout, size = rollouts[indices[member]], sizes[member]
                tokens, where = np.concatenate([rollout.prompt, rollout.tokens]), (row, slice(column, column + size))
                values = (tokens[:-1], tokens[1:], np.arange(size), segment)
                for name, value in zip(ARRAYS, values, strict=True):
                    batch.arrays[name][where] = value
                batch.places.append((int(indices[member]), row, column + len(rollout.prompt) - 1, len(rollout.tokens)))
                column += size
        batches.append(batch)
    return batches
