"""The host side of sampling: which prompt goes to which place, which sample starts next, and what came back.

Rows ask for samples in groups that share a prompt. When the samples of a prompt run out, the group's other place already holds
the next prompt; where there are no more prompts than groups, groups without work get copies of those with the most samples
left. Nothing here changes what a sample is, only when and where it is drawn. On several hosts each runs this same code on the
same logs and so decides the same.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from e2h_jax.parallel.compilation import clock
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
    """A request on its way; copies of it in several groups share the samples that wait."""

    def __init__(self, request: Request):
        self.request, self.number = request, problem_number(request.problem_id)
        self.waiting = deque(request.samples)
        self.groups: set[int] = set()  # that hold it


def problem_number(problem_id: str) -> int:
    """A stable uint32 of a problem's id for its random stream."""
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=4).digest(), "little")


def draw(
    kernel: Kernel, requests: Sequence[Request], stop: Callable[[np.ndarray], int | None] | None = None
) -> Iterator[Round]:
    """Draws every requested sample; yields dispatch by dispatch.

    Args:
      kernel: that has foreseen the lengths of all prompts.
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
            began = clock()
            if self._load_prompts():
                self.kernel.wait()
            loaded = clock()
            queued = self._fill_queue()
            if not self.active.any() and not self.work.queue_length.any():
                break
            log = self.kernel.decode(self.work, blocks=self._blocks(), oldest=int(self.row_age[self.active].max(initial=0)))
            if ready is not None:
                yield ready  # the caller works on it while the device computes
            waiting = clock()
            log = Log(*map(np.asarray, jax.device_get(log)))
            drawn = self._read(log, queued)
            decode_seconds = clock() - waiting
            ready = Round(drawn, int(log.steps), int(log.count.sum()), self.kernel.columns, loaded - began, decode_seconds)
        if ready is not None:
            yield ready

    def _load_prompts(self) -> bool:
        """Gives prompts to groups that have, or soon may have, more rows than samples; True if there was anything to load."""
        kernel, chosen = self.kernel, [[], []]
        per_shard = kernel.groups // kernel.shards
        # One group of each shard after the other: shards prefill side by side.
        order = sorted(range(kernel.groups), key=lambda group: (group % per_shard, group // per_shard))
        dealt = np.zeros(kernel.groups, int)
        left = {prompt: len(prompt.waiting) for place in self.places for prompt in place if prompt is not None}
        for limits in (self._idle(), np.full(kernel.groups, kernel.rows)):  # rows to start now; all, which may end meanwhile
            for group, _, prompt in self._deal(limits, dealt, left):
                dealt[group], left[prompt] = dealt[group] + 1, left[prompt] - 1
            for _ in self.places:
                for group in sorted(order, key=lambda group: dealt[group] - limits[group]):
                    lacking = limits[group] - dealt[group]
                    place = self._free_place(group) if lacking > 0 else None
                    prompt = self._next_prompt(group, left) if place is not None else None
                    if prompt is None:
                        continue
                    self._put(prompt, place, group)
                    chosen[place].append(group)
                    more = min(lacking, left.setdefault(prompt, len(prompt.waiting)))
                    dealt[group], left[prompt] = dealt[group] + more, left[prompt] - more
        for place, groups in enumerate(chosen):
            while groups:
                groups = self._prefill(place, groups)
        return any(chosen)

    def _idle(self) -> np.ndarray:
        """int [P], rows of each group that draw nothing."""
        return self.kernel.rows - self.active.sum(1)

    def _free_place(self, group: int) -> int | None:
        """A place of the group whose prompt, if any, is done with."""
        for place, prompts in enumerate(self.places):
            at_work = (self.active[group] & (self.row_place[group] == place)).any()
            if not at_work and (prompts[group] is None or not prompts[group].waiting):
                return place
        return None

    def _next_prompt(self, group: int, left: dict[_Prompt, int]) -> _Prompt | None:
        """One that nobody has yet, else the one with the most samples `left` for others than its groups."""
        if self.fresh:
            return self.fresh.popleft()
        others = (prompt for prompt, count in left.items() if count and group not in prompt.groups)
        return max(others, key=left.get, default=None)

    def _put(self, prompt: _Prompt, place: int, group: int) -> None:
        if self.places[place][group] is not None:
            self.places[place][group].groups.remove(group)
        self.places[place][group] = prompt
        prompt.groups.add(group)
        self.work.lengths[place, group] = len(prompt.request.tokens)
        self.work.problems[place, group] = prompt.number

    def _prefill(self, place: int, groups: list[int]) -> list[int]:
        """Computes the first group's prompt for all of these groups that have it, and one of its bucket in every other shard.

        Returns the groups that remain.
        """
        kernel, remaining = self.kernel, []
        bucket = kernel.bucket(self.work.lengths[place, groups[0]])
        ids, lengths = np.zeros((kernel.shards, bucket), np.int32), np.ones(kernel.shards, np.int32)
        prompts: list[_Prompt | None] = [None] * kernel.shards
        into = np.zeros(kernel.groups, bool)
        for group in groups:
            shard, prompt = group * kernel.shards // kernel.groups, self.places[place][group]
            tokens = prompt.request.tokens
            if kernel.bucket(len(tokens)) != bucket or prompts[shard] not in (None, prompt):
                remaining.append(group)
                continue
            prompts[shard], into[group] = prompt, True
            ids[shard, : len(tokens)], lengths[shard] = tokens, len(tokens)
        kernel.prefill(place, ids, lengths, into)
        return remaining

    def _deal(self, limits: np.ndarray, dealt: np.ndarray, left: dict[_Prompt, int]) -> Iterator[tuple[int, int, _Prompt]]:
        """Who gets the next sample: group, place and prompt, in turns, until each group has its limit or none is left for it.

        The caller counts: in `dealt`, what a group has got, in `left`, what waits.
        """
        held = [[(place, self.places[place][group]) for place in (0, 1)] for group in range(self.kernel.groups)]
        for mine in held:
            mine[:] = [(place, prompt) for place, prompt in mine if prompt is not None]
            # Of two, the one that fewer groups can draw; then the one that is being sampled, so that its place becomes free.
            mine.sort(key=lambda item: (len(item[1].groups), len(item[1].waiting) - len(item[1].request.samples)))
        turn = range(self.kernel.groups)
        while turn:
            served = []
            for group in turn:
                place, prompt = next((item for item in held[group] if left[item[1]]), (0, None))
                if prompt is not None and dealt[group] < limits[group]:
                    yield group, place, prompt
                    served.append(group)
            turn = served

    def _fill_queue(self) -> list[list[_Prompt]]:
        """Hands every group the samples that it may start in one dispatch."""
        work, queued, dealt = self.work, [[] for _ in range(self.kernel.groups)], self.work.queue_length
        dealt[:] = 0
        left = {prompt: len(prompt.waiting) for place in self.places for prompt in place if prompt is not None}
        idle = self._idle()
        ending = self.active & (self.row_age + BLOCK * BLOCKS >= self.kernel.settings.max_new_tokens)
        # First for rows that are idle, then for those that will be, then for those that may be.
        for limits in (idle, idle + ending.sum(1), np.full(self.kernel.groups, work.queue_place.shape[1])):
            for group, place, prompt in self._deal(limits, dealt, left):
                work.queue_place[group, dealt[group]] = place
                work.queue_sample[group, dealt[group]] = prompt.waiting.popleft()
                queued[group].append(prompt)
                dealt[group], left[prompt] = dealt[group] + 1, left[prompt] - 1
        return queued

    def _blocks(self) -> int:
        """Of the next dispatch. One where a group may run out of samples that others have: then the host must soon look in."""
        waiting = np.maximum(self.work.queue_length - self._idle(), 0)  # after the idle rows have begun theirs
        short = (waiting < self.kernel.rows) & (waiting < waiting.sum())
        return 1 if short.any() and not self.fresh else BLOCKS

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
