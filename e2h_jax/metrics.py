"""Metrics of a stage: one JSON line per step, the same numbers for TensorBoard, and for Weights & Biases if asked for.

Ground floor; imports without JAX.
"""

import contextlib
import json
import math
import os
import re
import resource
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from e2h_jax.errors import UserError

_wandb: Any = None  # the package, once `log_to_wandb` was called
_wandb_runs: dict[Path, Any] = {}  # folder of the stage at work -> its run


class MetricsWriter:
    """Writes `workdir/metrics.jsonl` and `workdir/tensorboard/`; a context manager.

    The JSON lines are the record: every line is with the operating system before `write` returns, so a killed process
    loses none of them. TensorBoard's events follow within ten seconds.

    Args:
      workdir: the stage's folder; made if absent.
      resume_step: the last step that survived (the checkpoint's). Lines of later steps are dropped, because they will
        be written again, and so is a torn last line. 0 means that nothing survived: the file starts anew.
      enabled: False on every process but the first; nothing is then touched.

    Raises:
      UserError: a line of metrics.jsonl other than the last is damaged.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int = 0, enabled: bool = True):
        self._file = self._tensorboard = self._wandb_run = None
        self.last: dict[str, Any] = {}  # scalars of the last line that survived
        if not enabled:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._wandb_run = _wandb_runs.get(workdir.absolute())  # none of the training inside a round
        path = workdir / "metrics.jsonl"
        self.last = _drop_after(path, resume_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        self._tensorboard = _Events(workdir / "tensorboard", resume_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs `scalars` at `step` and adds "time" (Unix seconds). Not finite: written as "nan", "inf", "-inf"."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in scalars.items()}
        record = {"step": int(step), **{name: _json_number(value) for name, value in values.items()}}
        self._file.write(json.dumps(record | {"time": round(time.time(), 3)}) + "\n")
        self._file.flush()
        self._tensorboard.write(int(step), values)
        if self._wandb_run is not None:
            self._wandb_run.log(values, step=int(step))

    def close(self) -> None:
        """Flushes and closes everything; a second call does nothing."""
        if self._file is not None:
            file, events, self._file, self._tensorboard = self._file, self._tensorboard, None, None
            file.close()
            events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_summary(workdir: Path, summary: Mapping[str, Any]) -> None:
    """The numbers of a finished stage's summary, for Weights & Biases; of a stage without metrics also as their only line."""
    numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    if numbers and not (workdir / "metrics.jsonl").exists():
        with MetricsWriter(workdir) as writer:
            writer.write(1, numbers)
    if run := _wandb_runs.get(workdir.absolute()):
        run.summary.update(numbers)


def log_to_wandb() -> None:
    """Has every stage of this process logged to Weights & Biases from now on; UserError if that is not installed."""
    global _wandb
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs the package of Weights & Biases: pip install wandb.") from None
    _wandb = wandb


@contextlib.contextmanager
def wandb_run(stage: str, config: Mapping[str, Any], workdir: Path) -> Iterator[None]:
    """Around a stage: one run of Weights & Biases for what is logged in `workdir`; nothing unless `log_to_wandb` was called.

    The run's id is kept in workdir/wandb, so that a resumed stage goes on in the same one.

    Raises:
      UserError: Weights & Biases does not start a run.
    """
    if _wandb is None:
        yield
        return
    folder = workdir.absolute()
    kept = folder / "wandb" / "id"
    kept.parent.mkdir(parents=True, exist_ok=True)
    identity = kept.read_text(encoding="utf-8") if kept.exists() else uuid.uuid4().hex
    kept.write_text(identity, encoding="utf-8")
    where = {"project": "e2h_jax", "id": identity, "name": "/".join(folder.parts[-2:]), "group": folder.parent.name}
    try:
        run = _wandb.init(**where, job_type=stage, config=dict(config), dir=str(folder), resume="allow")
    except _wandb.Error as error:
        raise UserError(f"Weights & Biases: {error}; WANDB_MODE=offline keeps the run on this machine.") from error
    _wandb_runs[folder] = run
    failed = 1
    try:
        yield
        failed = 0
    finally:
        del _wandb_runs[folder]
        run.finish(exit_code=failed)


class _Events:
    """TensorBoard's file of events. tensorboardX's own writer has a thread; when a full disk ends it, the run waits for it."""

    def __init__(self, folder: Path, resume_step: int):
        # Not at the top: it takes 0.2 s, and a reader of this module's other users pays it too.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar, self._flushed = Event, scalar, 0.0
        folder.mkdir(exist_ok=True)
        # The file is named by the second, and one that is there already would be overwritten.
        self._writer = EventsWriter(str(folder / "events"), f".{resume_step}")
        start = SessionLog(status=SessionLog.START)  # hides what was logged before from this step on
        self._writer.write_event(Event(step=resume_step + 1 if resume_step else 0, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value)))
        if time.time() > self._flushed + 10:
            self._writer.flush()
            self._flushed = time.time()

    def close(self) -> None:
        self._writer.close()


class Seconds:
    """Wall time by phase, of the latest step and of all."""

    def __init__(self):
        self.latest: dict[str, float] = {}
        self.total: dict[str, float] = {}

    def start(self) -> None:
        """Begins a step, and its first phase."""
        self.latest, self._since = {}, time.perf_counter()

    def stop(self, phase: str) -> None:
        """Everything since the last phase's end was this one."""
        now = time.perf_counter()
        name = f"seconds/{phase}"
        self.latest[name], self._since = now - self._since, now
        self.total[name] = self.total.get(name, 0.0) + self.latest[name]


def begin_peak() -> None:
    """Lets this process's peak of memory begin anew, where the system can."""
    with contextlib.suppress(OSError):  # not on Linux
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Bytes of main memory that this process has had at most since `begin_peak`."""
    with contextlib.suppress(OSError, ValueError):
        (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _json_number(value: float) -> float | str:
    # JSON has no word for these; python's float() and numpy's read the strings back.
    return value if math.isfinite(value) else str(value)


def _drop_after(path: Path, resume_step: int) -> dict[str, Any]:
    """Rewrites `path` without the lines after `resume_step`, through a temporary name; returns the scalars of the last one."""
    if not path.exists():
        return {}
    kept = []
    lines = path.read_bytes().split(b"\n")
    # After the last newline comes nothing, or what a killed process left of a line.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number}: not a line of metrics; remove it.") from None
        if 0 < step <= resume_step or (step == 0 and resume_step):
            kept.append(line + b"\n")
    last = json.loads(kept[-1]) if kept else {}
    last = {name: value for name, value in last.items() if name not in ("step", "time")}
    if len(kept) == len(lines) - 1 and not lines[-1]:
        return last
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return last
