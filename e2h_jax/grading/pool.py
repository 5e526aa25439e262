"""Grading many answers in processes of their own, each pair bounded in time and memory.

The rules of `equality.py` are bounded by construction; the pool is for speed (all cores) and as the second wall for
text that nobody trusts, such as a policy's answers during training: a worker that overruns its time or its memory is
killed and replaced, its pair is undecided, and nothing else is lost.

Workers are fresh interpreters (`python -m e2h_jax.grading.worker`) that speak JSON over pipes: no fork, so the pool works
in threads, under pytest and after JAX has started, and the caller needs no `if __name__ == "__main__"`.
"""

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from e2h_jax.grading.equality import RULES, Verdict, as_text

_CHUNK = 200  # pairs sent to a worker at a time
_START_S = 60.0  # a worker may take so long to start


class GradingPool:
    """Worker processes that grade; use it as a context manager, or `close` it. Its methods may be called from any thread.

    Attributes:
      replaced: how many workers were killed or died so far.
    """

    def __init__(self, workers: int | None = None, timeout_s: float = 1.0, memory_mb: int = 1024):
        """Starts no process yet: each worker starts when it is first needed.

        Args:
          workers: processes; None for one per core, eight at most.
          timeout_s: the most that one pair may take.
          memory_mb: the most address space of a worker (RLIMIT_AS; macOS does not enforce it).
        """
        self.workers = workers or min(os.cpu_count() or 1, 8)
        self.timeout_s, self.memory_mb = timeout_s, memory_mb
        self.replaced = 0
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(None)
        self._closed = False

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def grade(self, prediction: str | None, reference: str, rules: str = "default") -> Verdict:
        """As `e2h_jax.grading.grade`, in a worker."""
        return self.grade_many([(prediction, reference)], rules)[0]

    def grade_many(self, pairs: Iterable[tuple[str | None, str]], rules: str = "default") -> list[Verdict]:
        """Returns the verdicts on (prediction, reference) pairs, in order; "undecided" (timeout, died) where a worker fell.

        Raises:
          ValueError: no such rules.
          RuntimeError: the pool is closed, or its workers cannot be started.
        """
        if rules not in RULES:
            raise ValueError(f'there are no rules "{rules}"; use {", ".join(RULES)}')
        if self._closed:
            raise RuntimeError("the pool is closed")
        pairs = list(pairs)
        size = max(1, min(_CHUNK, -(-len(pairs) // self.workers)))
        chunks = [range(start, min(start + size, len(pairs))) for start in range(0, len(pairs), size)]
        verdicts: list[Verdict] = [Verdict("undecided", "died")] * len(pairs)
        pending: queue.SimpleQueue[range] = queue.SimpleQueue()
        for chunk in chunks:
            pending.put(chunk)
        failures: list[BaseException] = []

        def serve() -> None:
            while not failures:
                try:
                    chunk = pending.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._serve(chunk, pairs, rules, verdicts)
                except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                    failures.append(error)

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(self.workers, len(chunks)) - 1)]
        for thread in threads:
            thread.start()
        serve()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return verdicts

    def _serve(self, chunk: range, pairs: Sequence, rules: str, verdicts: list[Verdict]) -> None:
        """Grades a chunk with one worker, replacing it as often as it falls."""
        worker = self._idle.get()
        try:
            start = chunk.start
            while start < chunk.stop:
                worker = worker or _Worker(self.memory_mb)
                failed = worker.grade(pairs, range(start, chunk.stop), rules, self.timeout_s, verdicts)
                if failed is None:
                    return
                index, reason = failed
                worker.kill()
                worker = None
                with self._lock:
                    self.replaced += 1
                verdicts[index] = Verdict("undecided", reason)
                start = index + 1
        finally:
            if self._closed and worker:
                worker.kill()
            else:
                self._idle.put(worker)

    def close(self) -> None:
        """Ends the workers; calls that are under way finish first, or fail."""
        self._closed = True
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                return
            if worker:
                worker.kill()


class _Worker:
    """One process. Requests and answers are lines of JSON; the pairs of a request are answered one by one."""

    def __init__(self, memory_mb: int):
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(entry for entry in (root, os.environ.get("PYTHONPATH", "")) if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "e2h_jax.grading.worker", str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
            bufsize=0,
        )
        self.buffer = b""
        self.sender: threading.Thread | None = None
        if self._line(_START_S) is None:
            self.kill()
            raise RuntimeError(f"a grading worker does not start: {sys.executable} -m e2h_jax.grading.worker")

    def grade(self, pairs, indices: range, rules: str, timeout_s: float, verdicts: list) -> tuple[int, str] | None:
        """Fills in the verdicts of `indices`; returns (index, reason) of the pair at which the worker fell, or None."""
        self.sender = threading.Thread(target=self._send, args=([pairs[i] for i in indices], rules), daemon=True)
        self.sender.start()  # a pipe holds little, and the worker answers before it has read everything
        for index in indices:
            line = self._line(timeout_s)
            if line is None:
                return index, "timeout" if self.process.poll() is None else "died"
            word, reason = json.loads(line)
            verdicts[index] = Verdict(word, reason)
        self.sender.join()
        return None

    def _send(self, pairs: list, rules: str) -> None:
        try:
            for prediction, reference in pairs:
                request = json.dumps([as_text(prediction), as_text(reference), rules]).encode() + b"\n"
                view = memoryview(request)
                while view:
                    view = view[self.process.stdin.write(view) :]
        except (OSError, ValueError):
            pass  # the worker has fallen; the reader sees it

    def _line(self, timeout_s: float) -> bytes | None:
        """Returns the next line of output; None when none comes in time or the process has ended."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                self.process.wait()
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        if self.sender:  # its write fails now; were the pipe closed under it, it could write to whatever gets the number next
            self.sender.join()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                pass


def grade_many(
    pairs: Iterable[tuple[str | None, str]], rules: str = "default", workers: int | None = None, timeout_s: float = 1.0
) -> list[Verdict]:
    """Grades pairs in a pool of its own that ends with the call; keep a `GradingPool` for repeated use."""
    pairs = list(pairs)
    with GradingPool(workers, timeout_s) as pool:
        return pool.grade_many(pairs, rules)
