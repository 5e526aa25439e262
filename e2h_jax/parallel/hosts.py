"""The processes of a job on several hosts: how they join, agree to stop, and end when one of them has died.

JAX is imported only where a job is joined, so that stages without it can ask for `process_index`.
"""

import contextlib
import ctypes
import functools
import glob
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from e2h_jax.errors import UserError

JOIN_SECONDS = 300  # until all processes must have come
HEARTBEAT_SECONDS = 60  # a process that JAX has not heard of for so long is dead, and the job with it
RESUMABLE = 143  # exit code: run the same command again

_met = False  # all processes have come


def process_index() -> int:
    """This process's number in its job, 0 in a job of one. Needs no JAX: before the processes have joined, it is what
    the launcher says: E2H_PROCESS_INDEX, or the number with which `start` will join.
    """
    if joined():
        return sys.modules["jax"].process_index()
    if "E2H_PROCESS_INDEX" in os.environ:
        return int(os.environ["E2H_PROCESS_INDEX"])
    return 0 if _cluster() is None else _index_by_launcher()


def start() -> None:
    """Joins the processes of a job that the environment tells of; does nothing in a job of one, or a second time.

    To be called before JAX touches its devices. What is understood: JAX_COORDINATOR_ADDRESS (host:port of process 0) with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID; and what JAX finds by itself on Cloud TPU, on GKE and under Slurm.

    When not all processes come within JOIN_SECONDS, JAX ends this one, see `_aborted`. Raises UserError for an incomplete
    environment.
    """
    global _met
    if joined() or (arguments := _cluster()) is None:
        return
    import jax

    # Who is asked to stop is asked in Python (training/faults.py); JAX's own handler of SIGTERM would take that away.
    jax.config.update("jax_enable_preemption_service", False)
    if jax.config.jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"this process cannot join its job ({reason}): set JAX_COORDINATOR_ADDRESS (host:port of the first process), "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset them all to run alone."
        ) from None
    _met = True


def joined() -> bool:
    """Whether this process is one of a job's."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _cluster() -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize beyond what JAX finds by itself; None in a job of one process."""
    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        given = {field: int(environment[name]) for field, name in names.items() if name in environment}
        return None if given.get("num_processes") == 1 else given
    if _tpu_workers() * int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return {}
    if _slurm_tasks() > 1:
        # JAX gives each task of Slurm one GPU. A host's only task gets all of them.
        alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
        gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
        return {"local_device_ids": list(range(gpus))} if alone and gpus else {}
    # A Job of Kubernetes, whose address and size JAX asks of the cluster.
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys() and importlib.util.find_spec("kubernetes"):
        return {}
    return None


def _slurm_tasks() -> int:
    """Tasks of this step of Slurm; 1 outside of a step (`srun`), as in a batch script or an interactive allocation."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(name in os.environ for name in needed):
        return 1
    return min(int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ["SLURM_NTASKS"])))


def _tpu_workers() -> int:
    """Hosts of this TPU slice: GKE tells it by the environment, a Cloud TPU VM is asked through JAX. 1 without a TPU."""
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if name in os.environ:
            return len(os.environ[name].split(","))
    return _cloud_tpu_workers() if _has_tpu_chips() and "TPU_SKIP_MDS_QUERY" not in os.environ else 1


@functools.cache
def _cloud_tpu_workers() -> int:
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster  # JAX has no public way to ask without joining

    try:
        return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1
    except OSError:  # a TPU that is not Google's cloud's has no metadata server
        return 1


def _has_tpu_chips() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    devices = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in platforms and bool(devices) and importlib.util.find_spec("libtpu") is not None


def _index_by_launcher() -> int:
    environment = os.environ
    if "JAX_PROCESS_ID" in environment:
        return int(environment["JAX_PROCESS_ID"])
    if "TPU_WORKER_ID" in environment:
        return int(environment["TPU_WORKER_ID"]) + int(environment.get("MEGASCALE_SLICE_ID") or 0) * _tpu_workers()
    for name in ("SLURM_PROCID", "JOB_COMPLETION_INDEX"):
        if name in environment:
            return int(environment[name])
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    return GceTpuCluster.get_process_id()


WEEK = 7 * 24 * 3600 * 1000  # milliseconds: for as long as it takes; when another process dies, JAX ends this one
_waits: dict[str, int] = {}


def wait(name: str) -> None:
    """Returns when every process of the job has come here. Nothing passes through the devices, however long it takes."""
    if not joined():
        return
    number = _waits[name] = _waits.get(name, 0) + 1  # JAX lets a name be used once
    _state().client.wait_at_barrier(f"e2h/wait/{name}/{number}", WEEK)


@contextlib.contextmanager
def together(name: str) -> Iterator[None]:
    """Around work of which every process does a share: returns when all have done theirs.

    A UserError of one is raised by all, so that no process waits for one that has met with a user's mistake.
    """
    if not joined():
        yield
        return
    client, key = _state().client, f"e2h/mistake/{name}/{_waits.get(name, 0)}/"
    try:
        yield
    except UserError as mistake:
        client.key_value_set(f"{key}{process_index():05d}", str(mistake))
    wait(name)
    for _, sentence in sorted(client.key_value_dir_get(key))[:1]:
        raise UserError(sentence)


def leave(code: int, traceback: str = "") -> NoReturn:
    """Ends this process of a joined job, in which something has gone wrong.

    JAX would first wait for processes that may never come. Here the others, who have often met with the same, get ten seconds
    to say so too. An error with a `traceback` may come from another process's death: when JAX finds one dead, this process ends
    as `_aborted` says, and the traceback is not shown.
    """
    if traceback:
        sentence = traceback.strip().rpartition("\n")[2][:300]
        print(f"e2h: {sentence}\ne2h: looking whether another process has died …", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        _state().client.wait_at_barrier("e2h/leave", 1000 * (HEARTBEAT_SECONDS + 15 if traceback else 10))
    except Exception as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            time.sleep(15)  # JAX is about to end this process
    if traceback:
        print(traceback, file=sys.stderr, flush=True)
    os._exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """Called on SIGABRT, by which JAX ends a process that finds no others or has lost one; its words are on stderr already."""
    if _met:
        sentence = "another process of this job has died (see above); run the same command on all hosts to resume."
    else:
        sentence = (
            f"not all processes of the job have come to {_state().coordinator_address} within {JOIN_SECONDS} s: start the same "
            "command on every host, and see that the first one can be reached from the others at this port."
        )
    os.write(2, f"\ne2h: {sentence}\n".encode())
    os._exit(RESUMABLE)


def _state():
    from jax._src import distributed  # JAX's own multihost_utils goes this way

    return distributed.global_state


class StopVote:
    """Makes all processes of a job stop at the same boundary between two steps when one of them is asked to.

    The processes run at different speeds, and one that stops early leaves the others waiting in a collective. So each tells
    how far it is and waits at its next boundary; all then go on to the one after the farthest.
    """

    def __init__(self):
        self._boundary, self._stop_at, self._number, self._asked = 0, None, 0, False
        self._voting, self._decided, self._lock = False, threading.Event(), threading.Lock()
        threading.Thread(target=self._vote, daemon=True).start()

    def __call__(self, asked: int | None) -> int | None:
        """To be called at every boundary, by all processes alike. Returns the signal to stop for, None to go on.

        `asked`: the signal that this process has received.
        """
        if asked and not self._asked:
            self._asked = True
            _state().client.key_value_set("e2h/stop", str(asked), allow_overwrite=True)
        with self._lock:
            self._boundary += 1
            if not self._voting:
                return None
        self._decided.wait()
        return self._number if self._boundary >= self._stop_at else None

    def _vote(self) -> None:
        import jax

        client = _state().client
        while True:
            time.sleep(0.5)
            try:
                self._number = int(client.key_value_try_get("e2h/stop"))
                break
            except jax.errors.JaxRuntimeError:  # nobody has been asked
                continue
        with self._lock:
            self._voting = True
            client.key_value_set(f"e2h/boundary/{jax.process_index()}", str(self._boundary))
        others = range(jax.process_count())
        reached = [client.blocking_key_value_get(f"e2h/boundary/{index}", WEEK) for index in others]  # one may be compiling
        self._stop_at = max(map(int, reached)) + 1
        self._decided.set()


_stop_vote: StopVote | None = None


def stop_together(asked: int | None) -> int | None:
    """`asked`, the signal that this process is asked to stop by; in a job of several the one all have agreed to stop for.

    To be called at every boundary between two steps, by all processes alike.
    """
    global _stop_vote
    if not joined():
        return asked
    _stop_vote = _stop_vote or StopVote()
    return _stop_vote(asked)


_ends = 0


def stop_at_end(asked: int | None) -> int | None:
    """As `stop_together`, behind the last boundary of a stage: there is no further one at which all could stop.

    To be called by all processes alike. Each waits until all have come and said whether they are asked.
    """
    global _ends
    if not joined():
        return asked
    import jax

    _ends += 1
    client, name = _state().client, f"e2h/end/{_ends}"
    client.key_value_set(f"{name}/{jax.process_index()}", str(asked or 0))
    return max(int(client.blocking_key_value_get(f"{name}/{index}", WEEK)) for index in range(jax.process_count())) or None
