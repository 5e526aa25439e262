"""What share of the computed tokens is kept, by numbers of prompts and samples: the scheduler alone, without a model.

    python benchmarks/sampling_rows.py [--rows=32] [--shards=1]

Solutions of 64 tokens, and skewed ones (geometric, 64 tokens on average, 256 at most; means of eight draws). list: what list
scheduling keeps, which gives each sample, in order, to the first row that is free, knows no prompts and looks every 8 steps.
prefills: calls, each of a prompt a shard. Takes seconds.
"""

import argparse
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.exchange import Log, Work
from e2h_jax.sampling.grouping import grouping
from e2h_jax.sampling.kernel import BLOCK, BLOCKS, Kernel
from e2h_jax.sampling.scheduler import Request, draw

END = 1  # the token with which every solution ends
SHAPES = ((1, 32), (2, 16), (4, 8), (8, 4), (16, 2), (32, 1), (64, 1), (3, 11), (5, 32), (100, 3))


class Simulated:
    """A kernel whose model is a table: the length of a sample by its problem's prompt (one token) and its index.

    Attributes:
      prefilled: the prompts of each call of `prefill`, by shard; None where there was none.
      schedule: (group, row, prompt, sample, step at which it began) of every sample.
    """

    nothing_to_do = Kernel.nothing_to_do

    def __init__(self, groups: int, rows: int, lengths: np.ndarray, shards: int = 1):
        self.groups, self.rows, self.shards = groups, rows, shards
        self.settings, self.columns = Settings(int(lengths.max()), (END,)), (0, 0)
        self.lengths, self.step = lengths, 0
        self.prefilled, self.schedule = [], []
        self._prompts = np.full((2, groups), -1)
        self._age, self._place, self._sample = (np.zeros((groups, rows), int) for _ in range(3))
        self._active = np.zeros((groups, rows), bool)

    def bucket(self, length: int) -> int:
        return 8

    def prefill(self, place: int, ids: np.ndarray, lengths: np.ndarray, into: np.ndarray) -> None:
        groups = np.flatnonzero(into)
        shards = groups * self.shards // self.groups
        assert (lengths[shards] == 1).all() and not (self._active & (self._place == place))[groups].any()
        self._prompts[place, groups] = ids[shards, 0]
        self.prefilled.append([int(ids[shard, 0]) if shard in shards else None for shard in range(self.shards)])

    def wait(self) -> None:
        pass

    def decode(self, work: Work, *, blocks: int, oldest: int) -> Log:
        shape = (BLOCKS, self.groups, self.rows)
        age, place, sample, count = (np.zeros(shape, int) for _ in range(4))
        ended, tokens = np.zeros(shape, bool), np.zeros((*shape, BLOCK), np.int32)
        taken, began, block = np.zeros(self.groups, int), self.step, 0
        self._active &= ~work.cancel
        while block < blocks and (self._active.any() or (taken < work.queue_length).any()):
            for group, row in zip(*np.nonzero(~self._active), strict=True):
                if taken[group] < work.queue_length[group]:
                    entry = group, taken[group]
                    self._place[group, row], self._sample[group, row] = work.queue_place[entry], work.queue_sample[entry]
                    self._age[group, row], self._active[group, row] = 0, True
                    prompt = self._prompts[self._place[group, row], group]
                    self.schedule.append((group, row, prompt, self._sample[group, row], self.step))
                    taken[group] += 1
            age[block], place[block], sample[block] = self._age, self._place, self._sample
            for group, row in zip(*np.nonzero(self._active), strict=True):
                prompt = self._prompts[self._place[group, row], group]
                left = self.lengths[prompt, self._sample[group, row]] - self._age[group, row]
                count[block, group, row] = min(BLOCK, left)
                if left <= BLOCK:
                    ended[block, group, row], tokens[block, group, row, left - 1] = True, END
            self._age += count[block]
            self._active &= ~ended[block]
            self.step += count[block].max()
            block += 1
        drawn = tokens.astype(np.float32)
        return Log(age, place, sample, count, ended, tokens, drawn, drawn, self.step - began, taken, self._active.copy())


class Found(NamedTuple):
    """What came of a run."""

    useful: float
    by_list: float  # what list scheduling keeps over the same rows
    kernel: Simulated


def simulate(lengths: np.ndarray, rows: int, *, shards: int = 1, shared: int = 0) -> Found:
    """Draws samples of these lengths [prompts, samples], the longest of which end at the limit; `shared`: rows_per_prompt."""
    kernel = Simulated(*grouping(rows, shards, *lengths.shape, shared), lengths, shards)
    requests = [Request(str(prompt), np.array([prompt], np.int32), range(len(own))) for prompt, own in enumerate(lengths)]
    drawn = {(int(d.problem_id), d.sample): len(d.tokens) for round_ in draw(kernel, requests) for d in round_.drawn}
    assert drawn == dict(np.ndenumerate(lengths)) and len(kernel.schedule) == lengths.size
    rows = kernel.groups * kernel.rows
    listed = list_scheduling(lengths.reshape(-1), rows)
    return Found(lengths.sum() / (rows * kernel.step), lengths.sum() / (rows * listed), kernel)


def skewed(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.minimum(np.random.default_rng(seed).geometric(1 / 64, shape), 256)


def list_scheduling(lengths: Sequence[int], rows: int) -> int:
    """Steps of list scheduling: each sample, in order, to the row that is free first; a row is free when its block is over."""
    free = [0] * rows
    over = 0
    for length in lengths:
        began = heapq.heappop(free)
        over = max(over, began + length)
        heapq.heappush(free, began + -(-length // BLOCK) * BLOCK)
    return over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--shards", type=int, default=1)
    arguments = parser.parse_args()
    print("| prompts × N | groups × rows | one length | list | prefills | skewed | list | prefills |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        cells = []
        for lengths in [np.full(shape, 64)], [skewed(shape, seed) for seed in range(8)]:
            found = [simulate(own, arguments.rows, shards=arguments.shards) for own in lengths]
            cells += [f"{np.mean([one.useful for one in found]):.2f}", f"{np.mean([one.by_list for one in found]):.2f}"]
            cells += [f"{np.mean([len(one.kernel.prefilled) for one in found]):.0f}"]
        kernel = found[0].kernel
        print(f"| {shape[0]} × {shape[1]} | {kernel.groups} × {kernel.rows} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
