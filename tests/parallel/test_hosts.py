"""Which environments make a job of several processes, what JAX is told then, and who this process is before it has joined."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import pytest

from e2h_jax.errors import UserError
from e2h_jax.parallel import hosts

NAMES = ("JAX_", "E2H_PROCESS", "TPU_", "MEGASCALE_", "SLURM_", "KUBERNETES_", "JOB_COMPLETION")
SLURM = {
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
    **{"SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"},
}
GKE = {"TPU_WORKER_HOSTNAMES": "job-0.svc,job-1.svc", "TPU_WORKER_ID": "1"}
EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.fixture
def started(monkeypatch):
    """`started(environment)`: the arguments with which JAX would be started in it; None if it is left alone."""
    calls = []
    for name in [name for name in os.environ if name.startswith(NAMES) and name != "JAX_PLATFORMS"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(hosts.ctypes, "CDLL", lambda _: SimpleNamespace(signal=lambda *_: None))

    def started(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        hosts.start()
        for call in calls:
            assert call.pop("heartbeat_timeout_seconds") == call.pop("shutdown_timeout_seconds") == 60
            assert call.pop("initialization_timeout") == 300
        return calls[0] if calls else None

    yield started
    hosts._met = False


@pytest.mark.parametrize(
    ("environment", "arguments", "index"),
    [
        ({}, None, 0),
        (EXPLICIT, {"num_processes": 4, "process_id": 3}, 3),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None, 0),
        (GKE, {}, 1),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None, 0),
        (GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}, {}, 3),
        (SLURM, {}, 1),
        # One task a host has all of its GPUs; a task a GPU is left to JAX.
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"}, {"local_device_ids": [0, 1, 2, 3]}, 1),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_GPUS_ON_NODE": "4"}, {}, 1),
        # A batch script and an interactive shell have the allocation's variables, and are one process.
        ({name: value for name, value in SLURM.items() if "STEP" not in name}, None, 0),
        (SLURM | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, None, 0),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None, 0),
        # A pod of an indexed Job is alone unless JAX can ask Kubernetes for the others.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.9", "JOB_COMPLETION_INDEX": "2"}, None, 0),
        (EXPLICIT | {"E2H_PROCESS_INDEX": "2"}, {"num_processes": 4, "process_id": 3}, 2),
    ],
)
def test_environments(started, environment, arguments, index):
    assert started(environment) == arguments
    assert hosts.process_index() == index


def test_a_job_of_kubernetes_is_left_to_jax_where_it_can_ask(started, monkeypatch):
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: name == "kubernetes")
    assert started({"KUBERNETES_SERVICE_HOST": "10.0.0.9", "JOB_COMPLETION_INDEX": "2"}) == {}
    assert hosts.process_index() == 2


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a Cloud TPU VM, the second of two."""

    answers = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unused:0:10.0.0.1,unused:1:10.0.0.2",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'",
    }

    def do_GET(self):
        answer = self.answers.get(self.path.rpartition("/")[2])
        self.send_response(200 if answer else 404)
        self.end_headers()
        self.wfile.write((answer or "").encode())

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("endpoints", "arguments", "index"), [(2, {}, 1), (1, None, 0)])
def test_a_cloud_tpu_vm_needs_nothing_set(started, monkeypatch, endpoints, arguments, index):
    pytest.importorskip("requests")  # comes with libtpu
    from jax._src.clusters import cloud_tpu_cluster

    workers = ",".join(f"unused:{i}:10.0.0.{i + 1}" for i in range(endpoints))
    monkeypatch.setitem(Metadata.answers, "worker-network-endpoints", workers)
    monkeypatch.setattr(hosts, "_has_tpu_chips", lambda: True)
    hosts._cloud_tpu_workers.cache_clear()
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    with http.server.ThreadingHTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "localhost")
        assert started({"GCE_METADATA_IP": f"localhost:{server.server_port}"}) == arguments
        assert hosts.process_index() == index
        server.shutdown()
    hosts._cloud_tpu_workers.cache_clear()


def test_an_incomplete_environment_is_one_sentence(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setattr(hosts.ctypes, "CDLL", lambda _: SimpleNamespace(signal=lambda *_: None))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(UserError, match=r"cannot join its job \(Number of processes must be defined\): set JAX_COORD"):
        hosts.start()


def test_processes_that_never_come():
    program = "from e2h_jax.parallel import hosts\nhosts.JOIN_SECONDS = 1\nhosts.start()\n"
    environment = {"JAX_COORDINATOR_ADDRESS": "localhost:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == hosts.RESUMABLE
    assert "e2h: not all processes of the job have come to localhost:9 within 1 s: start the same" in ended.stderr


def test_a_job_of_one_stops_when_it_is_told_to():
    assert hosts.stop_together(None) is None
    assert hosts.stop_together(15) == 15
    hosts.wait("nobody")


AT_THE_END = """
import os, signal, sys
from e2h_jax import main
from e2h_jax.parallel import hosts
from e2h_jax.training.faults import interrupts, stop

def run(_):
    hosts.start()
    with interrupts() as interrupted:
        interrupted()  # the last step's boundary
        if hosts.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # while the last checkpoint is written
    stop(interrupted(last=True))
    return 0

main._run, main.parse = run, lambda _: None
sys.exit(main.main(["stage"]))
"""


def test_one_told_to_stop_behind_the_last_step_both_do():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    environments = [os.environ | job | {"JAX_PROCESS_ID": str(index)} for index in range(2)]
    processes = [subprocess.Popen([sys.executable, "-c", AT_THE_END], env=environment) for environment in environments]
    try:
        assert [process.wait(timeout=120) for process in processes] == [hosts.RESUMABLE] * 2
    finally:
        for process in processes:
            process.kill()
