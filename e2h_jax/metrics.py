"""Metrics of a stage: one JSON line per step, the same numbers for TensorBoard. Ground floor; imports without JAX."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from e2h_jax.errors import UserError


class MetricsWriter:
    """Writes `workdir/metrics.jsonl` and `workdir/tensorboard/`; a context manager.

    The JSON lines are the record: every line is with the operating system before `write` returns, so a killed process
    loses none of them. TensorBoard's events follow within ten seconds.

    Args:
      workdir: the stage's folder; made if absent.
      resume_step: the last step that survived (the checkpoint's). Lines of later steps are dropped, because they will
        be written again, and so is a torn last line. 0 means that nothing survived: the file starts anew.
      enabled: False on every process but the first; nothing is then touched.
      wandb: also log to Weights & Biases.

    Raises:
      UserError: `wandb` is asked for and not installed, or a line of metrics.jsonl other than the last is damaged.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int = 0, enabled: bool = True, wandb: bool = False):
        self._file = self._tensorboard = self._wandb = None
        self.last: dict[str, Any] = {}  # scalars of the last line that survived
        if not enabled:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if wandb:
            self._wandb = _start_wandb(workdir)
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
        if self._wandb is not None:
            self._wandb.log(values, step=int(step))

    def close(self) -> None:
        """Flushes and closes everything; a second call does nothing."""
        if self._file is not None:
            file, events, self._file, self._tensorboard = self._file, self._tensorboard, None, None
            file.close()
            events.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        self.latest, self._since = {}, time.perf_counter()

    def stop(self, phase: str) -> None:
        """Everything since the last phase's end was this one."""
        now = time.perf_counter()
        name = f"seconds/{phase}"
        self.latest[name], self._since = now - self._since, now
        self.total[name] = self.total.get(name, 0.0) + self.latest[name]


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


def _start_wandb(workdir: Path) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("logging to Weights & Biases needs its package: pip install wandb.") from None
    # The folder names the run, so that a resumed stage goes on in the same one.
    identity = "-".join(workdir.absolute().parts[-2:])
    return wandb.init(project="e2h_jax", id=identity, name=identity, dir=str(workdir), resume="allow")
