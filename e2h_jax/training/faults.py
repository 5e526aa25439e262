"""How training ends before its time: told to stop, it saves first; at a number that is not finite, it keeps the batch."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e2h_jax.data.storage import write_records
from e2h_jax.errors import UserError
from e2h_jax.parallel import hosts

LAG = 8  # steps after which a step's numbers are looked at: they are there by then, so that no device waits for it


@contextmanager
def interrupts() -> Iterator[Callable[..., int | None]]:
    """Turns Ctrl-C and SIGTERM (a preemption notice) into a flag, so that the loop can save first; yields a reader of it.

    The reader is asked between steps, on several hosts by all of them alike: they stop at the same step, whichever was told to;
    and with `last=True` once more when all is saved. Before it is asked for the first time, while programs are compiled say,
    there is nothing to save, and a signal ends the stage at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda last=False: None
        return
    caught: list[int] = []
    begun = False

    def catch(number: int, _: Any) -> None:
        if not begun:
            stop(number)
        caught.append(number)

    def read(last: bool = False) -> int | None:
        nonlocal begun
        begun = True
        return (hosts.stop_at_end if last else hosts.stop_together)(caught[0] if caught else None)

    old = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield read
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def stop(signal_number: int | None) -> None:
    """Ends the stage as the signal asks for, after everything has been saved; goes on without one."""
    if signal_number:
        raise KeyboardInterrupt if signal_number == signal.SIGINT else SystemExit(hosts.RESUMABLE)


class FiniteCheck:
    """Looks at every step's loss and gradient, some steps late, with the step's batch at hand until then."""

    def __init__(self, workdir: Path):
        self._workdir, self._waiting = workdir, deque()

    def add(self, step: int, metrics: Mapping[str, Any], batch: Mapping[str, np.ndarray]) -> None:
        """Takes the numbers of a step that may still be running; raises UserError if those of an earlier one are not finite."""
        self._waiting.append((step, metrics, batch))
        self.until(step - LAG)

    def until(self, step: int) -> None:
        """Looks at all steps up to this one; raises UserError as `check_finite` does."""
        while self._waiting and self._waiting[0][0] <= step:
            check_finite(self._workdir, *self._waiting.popleft())


def check_finite(
    workdir: Path, step: int, metrics: Mapping[str, Any], batch: Mapping[str, np.ndarray], records: Iterable[dict] = ()
) -> None:
    """Raises UserError when a step's loss or gradient is not finite.

    Before that it keeps the batch in `workdir/nan/step-N.npz`, on several hosts each its own part, and `records`, what else is
    known of it, in `step-N.jsonl`. No checkpoint is written after such a step: the loss is from before the step's update, but
    the parameters after it are broken.
    """
    names = [name for name in metrics if name.endswith(("loss", "grad_norm"))]
    bad = next((name for name in names if not np.isfinite(np.asarray(metrics[name])).all()), None)
    if bad is None:
        return
    part = f"-process-{jax.process_index()}" if jax.process_index() else ""
    path = workdir / "nan" / f"step-{step}{part}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **batch)
    if records:
        write_records(path.with_suffix(".jsonl"), records)
    what = bad.replace("_", " ").replace("grad norm", "gradient's norm")
    rate = f"config.{'value_' if bad.startswith('value_') else ''}optimizer.learning_rate"
    raise UserError(
        f"the {what} is {float(np.asarray(metrics[bad]))} at step {step}; lower {rate} and start in a fresh workdir; the "
        f"step's batch is kept in {path}"
    )
