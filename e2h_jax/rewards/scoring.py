"""Scores of every step of a solution from one forward pass of a reward model.

The solution's text is tokenised with the reward model's own tokenizer, so policies and evaluators may differ in theirs.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e2h_jax.data.batches import plan_rows
from e2h_jax.data.steps import EncodedSolution, read_positions
from e2h_jax.models.attention import packed_causal
from e2h_jax.parallel.programs import Program, Unit
from e2h_jax.parallel.rules import constrain


class Batch(NamedTuple):
    """Solutions that are scored together, in rows of one length."""

    indices: list[int]
    places: list[tuple[int, int]]  # row and column at which each begins
    tokens: np.ndarray  # int32 [B, L]
    positions: np.ndarray  # int32 [B, L], each solution's own
    segment_ids: np.ndarray  # int32 [B, L]; 0 is padding


def plan(
    encoded: Sequence[EncodedSolution], *, granularity: int, tokens_per_batch: int, shards: int, row_length: int = 0
) -> list[Batch]:
    """Groups solutions into batches of one fixed shape per row length.

    A row holds one solution, padded to a multiple of `granularity`: a solution's shape depends on its own length alone, and so
    do its scores' last bits. With `row_length` rows hold as many solutions as fit: one shape for all and hardly any padding,
    but the last bits depend on the plan.
    """
    lengths = [len(solution.tokens) for solution in encoded]
    rows: dict[int, list[list[int]]] = defaultdict(list)
    if row_length and lengths:
        rows[row_length] = [row.tolist() for row in plan_rows(lengths, length=row_length, seed=0, epochs=1)]
    else:
        for index, length in enumerate(lengths):
            rows[-(-length // granularity) * granularity].append([index])
    batches = []
    for length, members in sorted(rows.items()):
        size = batch_rows(tokens_per_batch, length, shards)
        batches += [_batch(encoded, members[i : i + size], size, length) for i in range(0, len(members), size)]
    return batches


def batch_rows(tokens_per_batch: int, length: int, shards: int) -> int:
    """Rows of a batch: a multiple of the mesh's batch shards."""
    return max(1, tokens_per_batch // length // shards) * shards


def _batch(encoded: Sequence[EncodedSolution], rows: Sequence[Sequence[int]], size: int, length: int) -> Batch:
    batch = Batch([], [], *(np.zeros((size, length), np.int32) for _ in range(3)))
    for row, members in enumerate(rows):
        start = 0
        for segment, index in enumerate(members, start=1):
            tokens = encoded[index].tokens
            where = (row, slice(start, start + len(tokens)))
            batch.tokens[where], batch.positions[where], batch.segment_ids[where] = tokens, np.arange(len(tokens)), segment
            batch.indices.append(index)
            batch.places.append((row, start))
            start += len(tokens)
    return batch


class Scorer:
    """A reward model's forward pass on a mesh, compiled once per shape of batch."""

    def __init__(self, graph: nnx.GraphDef, params: nnx.State, mesh: Mesh):
        self.params, self.mesh = params, mesh

        def logits(params, tokens_BxL, positions_BxL, segment_ids_BxL):
            tokens_BxL = constrain(tokens_BxL, "batch", None)
            logits_BxL = nnx.merge(graph, params)(tokens_BxL, positions_BxL, packed_causal(segment_ids_BxL))[0]
            return constrain(logits_BxL, None, None)  # every host reads its solutions' scores

        self._logits = jax.jit(logits)

    def logits(self, batch: Batch) -> jax.Array:
        """Score logits float32 [B, L], not waited for."""
        with jax.set_mesh(self.mesh):
            return self._logits(self.params, batch.tokens, batch.positions, batch.segment_ids)

    def programs(
        self, rows: int, length: int, held: Mapping[str, Any], unit: Unit, runs: float, name: str = "score"
    ) -> Iterator[Program]:
        """The program of `logits` for batches [rows, length]; `held` is what lies on the devices, the parameters included."""
        tokens = jax.ShapeDtypeStruct((rows, length), np.int32)
        yield Program(name, self._logits, (self.params, tokens, tokens, tokens), self.mesh, held, unit, runs)

    def score(
        self, encoded: Sequence[EncodedSolution], batches: Sequence[Batch], where: str
    ) -> Iterator[dict[int, list[float]]]:
        """Yields, batch by batch, {index of the solution: its step scores}; one batch is computed while the last is read."""
        waiting: tuple[Batch, jax.Array] | None = None
        for batch in [*batches, None]:
            result = None if batch is None else (batch, self.logits(batch))
            if waiting is not None:
                finished, logits = waiting[0], np.asarray(waiting[1])
                yield {
                    index: step_scores(encoded[index], logits[row, start:], where)
                    for index, (row, start) in zip(finished.indices, finished.places, strict=True)
                }
            waiting = result


def step_scores(solution: EncodedSolution, logits_L: np.ndarray, where: str) -> list[float]:
    """Probabilities that each step is right, the final answer's last.

    A step read at several tokens takes the smallest logit (original-system.md section 6.5). A solution without a final answer
    is not a solution: its last entry is 0.
    """
    lowest = np.array([logits_L[positions].min() for positions in read_positions(solution, where)], np.float64)
    scores = [float(p) for p in np.exp(-np.logaddexp(0.0, -lowest))]  # the sigmoid, without overflow
    return scores if solution.has_answer else [*scores, 0.0]
