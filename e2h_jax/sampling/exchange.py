"""What the sampler's host and device sides tell each other with every dispatch, and what stays on the device between two.

Shapes: P groups, N rows of each, V vocabulary, C blocks of BLOCK steps, Q queue; see kernel.py.
"""

from typing import NamedTuple

import jax
import numpy as np


class Rows(NamedTuple):
    """What the rows are doing; stays on the device."""

    logits: jax.Array  # float32 [P, N, V] of the next token
    age: jax.Array  # int32 [P, N], tokens drawn so far
    active: jax.Array  # bool [P, N]
    place: jax.Array  # int32 [P, N]
    sample: jax.Array  # uint32 [P, N], sample index


class Work(NamedTuple):
    """What the host sends with every dispatch: the prompts that are loaded, and samples to start."""

    lengths: np.ndarray  # int32 [2, P] of the prompts, by place; 1 where there is none
    problems: np.ndarray  # uint32 [2, P], the problem's number in the random stream
    queue_place: np.ndarray  # int32 [P, Q], samples to start next, group by group
    queue_sample: np.ndarray  # uint32 [P, Q]
    queue_length: np.ndarray  # int32 [P]
    cancel: np.ndarray  # bool [P, N], rows to give up


class Log(NamedTuple):
    """What happened in each block of a dispatch: the block's rows, and their tokens."""

    age: jax.Array  # int32 [C, P, N] at the beginning of the block
    place: jax.Array  # int32 [C, P, N]
    sample: jax.Array  # uint32 [C, P, N]
    count: jax.Array  # int32 [C, P, N], tokens drawn in the block, EOS included; 0 where no row was active
    ended: jax.Array  # bool [C, P, N]: the row ended in this block, by EOS or at the limit
    tokens: jax.Array  # int32 [C, P, N, BLOCK]
    logprobs: jax.Array  # float32 [C, P, N, BLOCK], under the model's own distribution
    sampling_logprobs: jax.Array  # float32 [C, P, N, BLOCK], under the tempered and restricted one
    steps: jax.Array  # int32 [], steps computed
    taken: jax.Array  # int32 [P], entries of the queue that were started
    active: jax.Array  # bool [P, N] in the end


def targets_of(into: np.ndarray, shards: int) -> tuple[np.ndarray, np.int32]:
    """Of groups, bool [P], that get their shard's prompt: their numbers within the shards, and how many lines of these count.

    The i-th line, int32 [P / shards, shards], has the i-th of them of every shard; P / shards, which is none, where there are
    fewer.
    """
    into = into.reshape(shards, -1)
    targets = np.full(into.shape[::-1], into.shape[1], np.int32)
    for shard, groups in enumerate(into):
        targets[: groups.sum(), shard] = np.flatnonzero(groups)
    return targets, np.int32(into.sum(1).max())
