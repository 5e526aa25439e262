"""The host side of sampling: which prompt goes to which place, which sample starts next, and what came back.

Rows ask for samples in groups that share a prompt. When the samples of a prompt run out, the group's other place already holds
the next prompt; when the prompts run out, idle groups take over samples of the busiest. Nothing here changes what a sample is,
only when and where it is drawn. On several hosts each runs this same code on the same logs and so decides the same.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from e2h_jax.sampling.exchange import Log
from e2h_jax.sampling.kernel import BLOCK, BLOCKS, Kernel


class Request(NamedTuple):
    """A prompt and the sample indices still to be drawn for it."""

    problem_id: str
    tokens: np.ndarray  # int32 [length]
    samples: Sequence[int]


class Drawn(NamedTuple):
    """One sampled continuation."""

    problem_id: str
    sample: int
    tokens: np.ndarray  # int32 [length]; the last one is EOS (or another end token) where that ended it
    logprobs: np.ndarray  # float32 [length], log-probability of each token under the model's own distribution
    sampling_logprobs: np.ndarray  # float32 [length], under the tempered and restricted one it was drawn from
    stopped: bool  # ended by EOS or a stop text, not by the limit
    group: int  # of the rows that drew it


class Round(NamedTuple):
    """What one dispatch of the decoder brought."""

    drawn: list[Drawn]
    steps: int  # of all rows together
    busy_tokens: int  # tokens drawn in them; rows x steps if none was idle
    columns: tuple[int, int]  # of a group's prompts and of a row's suffix that every step read
    prefill_seconds: float
    decode_seconds: float


class _Prompt:
    """A request on its way; copies of it in several places share the samples that wait."""

    def __init__(self, request: Request):
        self.request, self.number = request, problem_number(request.problem_id)
        self.waiting = deque(request.samples)


def problem_number(problem_id: str) -> int:
    """A stable uint32 of a problem's id for its random stream."""
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=4).digest(), "little")


def draw(
    kernel: Kernel, requests: Sequence[Request], stop: Callable[[np.ndarray], int | None] | None = None
) -> Iterator[Round]:
    """Draws every requested sample; yields dispatch by dispatch.

    Args:
      kernel: compiled for the lengths of all prompts.
      requests: no problem twice.
      stop: given a row's tokens so far, how many of them to keep if the row is over, else None. Asked between dispatches.
    """
    return _Draw(kernel, requests, stop).rounds()


class _Draw:
    def __init__(self, kernel: Kernel, requests: Sequence[Request], stop):
        self.kernel, self.stop = kernel, stop
        shape, width = (kernel.groups, kernel.rows), kernel.settings.max_new_tokens + BLOCK
        # Long prompts first: long solutions should not be what everything waits for in the end.
        requests = sorted((r for r in requests if r.samples), key=lambda request: len(request.tokens), reverse=True)
        self.fresh = deque(map(_Prompt, requests))
        self.places: list[list[_Prompt | None]] = [[None] * kernel.groups for _ in range(2)]
        self.active = np.zeros(shape, bool)
        self.row_place = np.zeros(shape, np.int32)
        self.row_sample = np.zeros(shape, np.uint32)
        self.row_age = np.zeros(shape, np.int32)
        self.tokens = np.zeros((*shape, width), np.int32)
        self.logprobs = np.zeros((*shape, width), np.float32)
        self.sampling_logprobs = np.zeros((*shape, width), np.float32)
        self.work = kernel.nothing_to_do()

    def rounds(self) -> Iterator[Round]:
        ready: Round | None = None
        while True:
            began = time.perf_counter()
            if self._load_prompts():
                self.kernel.wait()
            loaded = time.perf_counter()
            queued = self._fill_queue()
            if not self.active.any() and not self.work.queue_length.any():
                break
            log = self.kernel.decode(self.work, blocks=BLOCKS, oldest=int(self.row_age[self.active].max(initial=0)))
            if ready is not None:
                yield ready  # the caller works on it while the device computes
            waiting = time.perf_counter()
            log = Log(*map(np.asarray, jax.device_get(log)))
            drawn = self._read(log, queued)
            decode_seconds = time.perf_counter() - waiting
            ready = Round(drawn, int(log.steps), int(log.count.sum()), self.kernel.columns, loaded - began, decode_seconds)
        if ready is not None:
            yield ready

    def _load_prompts(self) -> bool:
        """Fills free places where a group may run out of samples soon; True if there was anything to load."""
        kernel, chosen = self.kernel, [[], []]
        per_shard = kernel.groups // kernel.shards
        waiting = lambda group: sum(  # noqa: E731
            len(place[group].waiting) for place in self.places if place[group] is not None
        )
        for place, prompts in enumerate(self.places):
            for group in np.argsort([waiting(group) for group in range(kernel.groups)], kind="stable"):
                at_work = (self.active[group] & (self.row_place[group] == place)).any()
                if at_work or (prompts[group] is not None and prompts[group].waiting) or waiting(group) >= kernel.rows:
                    continue
                prompt = self._next_prompt(waiting(group) > 0)
                if prompt is None:
                    continue
                prompts[group] = prompt
                self.work.lengths[place, group] = len(prompt.request.tokens)
                self.work.problems[place, group] = prompt.number
                chosen[place].append(group)
        loaded = any(chosen)
        for place, groups in enumerate(chosen):
            while groups:
                bucket = kernel.bucket(self.work.lengths[place, groups[0]])
                ids = np.zeros((kernel.shards, bucket), np.int32)
                lengths, targets = np.ones(kernel.shards, np.int32), np.full(kernel.shards, per_shard, np.int32)
                for group in list(groups):
                    shard, target = divmod(int(group), per_shard)
                    tokens = self.places[place][group].request.tokens
                    if targets[shard] == per_shard and kernel.bucket(len(tokens)) == bucket:
                        ids[shard, : len(tokens)], lengths[shard], targets[shard] = tokens, len(tokens), target
                        groups.remove(group)
                kernel.prefill(place, ids, lengths, targets)
        return loaded

    def _next_prompt(self, has_work: bool) -> _Prompt | None:
        """A prompt for a group: one that nobody has yet, else for an idle group the one with the most samples waiting."""
        if self.fresh:
            return self.fresh.popleft()
        held = [prompt for place in self.places for prompt in place if prompt is not None]
        busiest = max(held, key=lambda prompt: len(prompt.waiting), default=None)
        if has_work or busiest is None or 2 * len(busiest.waiting) < self.kernel.rows:
            return None
        return busiest

    def _fill_queue(self) -> list[list[_Prompt]]:
        """Hands every group the samples that it may start in one dispatch."""
        work, queued = self.work, [[] for _ in range(self.kernel.groups)]
        size = work.queue_place.shape[1]
        for group in range(self.kernel.groups):
            mine = [(place, prompts[group]) for place, prompts in enumerate(self.places) if prompts[group] is not None]
            # First the prompt that is being sampled, so that its place becomes free.
            mine.sort(key=lambda item: len(item[1].waiting) - len(item[1].request.samples))
            for place, prompt in mine:
                while prompt.waiting and len(queued[group]) < size:
                    work.queue_place[group, len(queued[group])] = place
                    work.queue_sample[group, len(queued[group])] = prompt.waiting.popleft()
                    queued[group].append(prompt)
            work.queue_length[group] = len(queued[group])
        return queued

    def _read(self, log: Log, queued: list[list[_Prompt]]) -> list[Drawn]:
        """Takes in what a dispatch returned; gives back the samples that ended."""
        for group, prompts in enumerate(queued):  # what was not started waits again, in the same order
            for index in range(len(prompts) - 1, log.taken[group] - 1, -1):
                prompts[index].waiting.appendleft(int(self.work.queue_sample[group, index]))
        drawn = []
        columns = np.arange(BLOCK)
        for block in range(BLOCKS):
            group, row = np.nonzero(log.count[block])
            age, count = log.age[block][group, row], log.count[block][group, row]
            where = (group[:, None], row[:, None], age[:, None] + columns)
            self.tokens[where] = log.tokens[block][group, row]
            self.logprobs[where] = log.logprobs[block][group, row]
            self.sampling_logprobs[where] = log.sampling_logprobs[block][group, row]
            self.row_age[group, row] = age + count
            self.row_place[group, row] = log.place[block][group, row]
            self.row_sample[group, row] = log.sample[block][group, row]
            drawn += [self._finish(g, r) for g, r in zip(*np.nonzero(log.ended[block]), strict=True)]
        self.active, self.work.cancel[:] = log.active.copy(), False
        if self.stop is not None:
            for group, row in zip(*np.nonzero(self.active), strict=True):
                sample = self._finish(group, row, still_active=True)
                if sample is not None:
                    drawn.append(sample)
                    self.active[group, row], self.work.cancel[group, row] = False, True
        return drawn

    def _finish(self, group: int, row: int, still_active: bool = False) -> Drawn | None:
        """The sample of a row; None if the row is still active and nothing stops it."""
        length = int(self.row_age[group, row])
        tokens = self.tokens[group, row, :length]
        kept = self.stop(tokens) if self.stop is not None else None
        if kept is None and still_active:
            return None
        stopped = kept is not None or tokens[-1] in self.kernel.settings.end_ids
        return Drawn(
            self.places[self.row_place[group, row]][group].request.problem_id,
            int(self.row_sample[group, row]),
            tokens[:kept].copy(),
            self.logprobs[group, row, :length][:kept].copy(),
            self.sampling_logprobs[group, row, :length][:kept].copy(),
            bool(stopped),
            int(group),
        )
