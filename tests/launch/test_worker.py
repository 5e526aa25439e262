"""launch/worker.sh, run for real: this machine plays a worker of a slice."""

import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Saves when it gets SIGTERM, as a stage does.
E2H = """#!/usr/bin/env bash
echo "process $E2H_PROCESS_INDEX in $PWD: $*"
trap 'echo saved; exit 143' TERM
case $1 in
    end) exit "${2#--code=}" ;;
    hang) trap '' TERM ;;
    slow) trap 'sleep 0.3; echo saved; exit 5' TERM ;;
esac
while :; do sleep 0.02; done
"""


class Worker:
    def __init__(self, cloud):
        self.cloud = cloud
        self.tree = cloud.folder / "e2h_jax"
        self.state = cloud.folder / "e2h_run"
        self.workdir = cloud.folder / "share" / "run"
        shutil.copytree(ROOT / "launch", self.tree / "launch")
        for name in ("constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.tree)
        cloud.program("curl", "echo 3")
        self.started = []  # ids of processes, to end what a failed test leaves
        programs = self.tree / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "e2h").write_text(E2H)
        (programs / "e2h").chmod(0o755)

    def __call__(self, *arguments, **environment):
        return subprocess.run(
            ["bash", "e2h_jax/launch/worker.sh", *map(str, arguments)],
            env=self.cloud.environment | environment,
            cwd=self.cloud.folder,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def start(self, *words):
        outcome = self("start", "e2h", *words, f"--workdir={self.workdir}")
        assert outcome.returncode == 0, outcome.stderr
        self.started += [parent_of(self.pid), self.pid]
        return outcome.stdout

    @property
    def status(self):
        return self("status").stdout

    def becomes(self, status):
        for _ in range(100):
            if self.status == f"e2h-worker 3 {status}\n":
                return True
            time.sleep(0.05)
        return False

    @property
    def pid(self):
        return int((self.state / "pid").read_text().split()[0])

    @property
    def log(self):
        return (self.cloud.folder / "share" / "run.logs" / "worker-3.txt").read_text()


@pytest.fixture
def worker(cloud):
    worker = Worker(cloud)
    yield worker
    for pid in worker.started:
        if f"HOME={cloud.folder}".encode() in environment_of(pid):
            os.kill(pid, signal.SIGKILL)


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except FileNotFoundError:
        return 0


def test_from_start_to_end(worker):
    assert worker.status == "e2h-worker 3 idle\n"
    assert worker.start("end", "--code=0", "it's two") == "worker 3: started\n"
    assert worker.becomes("exit 0")
    assert f"process 3 in {worker.tree}: end --code=0 it's two --workdir={worker.workdir}" in worker.log
    worker.start("end", "--code=2")
    assert worker.becomes("exit 2")
    assert worker.log.count("process 3") == 2  # the log of the first try is kept


def test_started_twice(worker):
    worker.start("run")
    assert worker.becomes("running")
    pid = worker.pid
    assert worker.start("run") == "worker 3: a command is running already\n"
    assert worker.pid == pid and worker.log.count("process 3") == 1


def test_stop_lets_the_run_save(worker):
    worker.start("run")
    assert worker("stop").returncode == 0
    assert worker.becomes("exit 143")
    assert worker.log.count("saved") == 1
    assert worker("stop").returncode == 0  # nothing runs any more


def test_stop_ends_what_does_not_end(worker):
    worker.start("hang")
    assert worker("stop", E2H_GRACE_SECONDS="1").returncode == 0
    assert worker.becomes("exit 137")


@pytest.mark.parametrize("kind, code", [("run", 143), ("slow", 5)])
def test_the_machine_shuts_down(worker, kind, code):
    # Everything gets SIGTERM: the command saves, and its own exit code is kept, however long it takes.
    worker.start(kind)
    os.kill(parent_of(worker.pid), signal.SIGTERM)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.becomes(f"exit {code}")
    assert worker.log.count("saved") == 1


def test_killed(worker):
    worker.start("run")
    os.kill(parent_of(worker.pid), signal.SIGKILL)
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.becomes("exit 137")
    # And after the machine was started anew, when somebody else has its number.
    (worker.state / "pid").write_text(f"{os.getpid()} another-boot\n")
    assert worker.status == "e2h-worker 3 exit 137\n"


def test_the_folder_is_refused_where_it_is_not_whole(worker):
    outcome = worker("start", "e2h", "run", "--workdir=runs/x")
    assert outcome.returncode == 2 and "with a whole path" in outcome.stderr


@pytest.mark.parametrize("flags, there", [([], False), (["--everything"], True)])
def test_results(worker, flags, there):
    large = {"sft/model/weights", "sft/checkpoints/7/state", "sft/checkpoints-damaged/8/state", ".compiled/program"}
    for name in ("table.md", "sft/done.json", *large):
        (worker.workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (worker.workdir / name).write_text(name)
    outcome = worker("results")
    assert outcome.returncode == 2 and "nothing was run" in outcome.stderr
    worker.start("end", "--code=0")
    assert worker.becomes("exit 0")
    archive = worker.cloud.folder / "results.tar.gz"
    command = ["bash", "e2h_jax/launch/worker.sh", "results", *flags]
    archive.write_bytes(
        subprocess.run(command, env=worker.cloud.environment, cwd=worker.cloud.folder, stdout=-1, check=True).stdout
    )
    names = set(tarfile.open(archive).getnames())
    assert {"run/table.md", "run/sft/done.json", "run.logs/worker-3.txt"} <= names
    assert names & {f"run/{name}" for name in large} == ({f"run/{name}" for name in large} if there else set())


def test_setup_mounts_once_and_installs_for_tpu(worker):
    cloud = worker.cloud
    cloud.program("sudo", '[ "$1" = mkdir ] || [ "$1" = chmod ] || "$@"')
    cloud.program("apt-get")
    cloud.program("mount", "touch mounted")
    cloud.program("mountpoint", "[ -e mounted ]")
    (worker.tree / ".venv" / "bin" / "activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    python = worker.tree / ".venv" / "bin" / "python"
    # What it is asked to install; each time there is a version to tell.
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *install*) echo "$*" >>{cloud.folder}/installed ;; *) echo Python 3.12 ;; esac\n'
    )
    python.chmod(0o755)
    cloud.program("python3", "exit 0")
    for _ in range(2):
        outcome = worker("setup", "10.0.0.2:/e2h")
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.splitlines()[-1] == f"worker 3: Python 3.12, e2h_jax in {worker.tree}"
    mounts = [call for call in cloud.calls if call.startswith("mount ")]
    assert mounts == ["mount -t nfs -o vers=3,hard,nolock,lookupcache=none 10.0.0.2:/e2h /mnt/e2h"]
    (installed,) = (cloud.folder / "installed").read_text().splitlines()
    assert installed.endswith("-c constraints.txt -e .[tpu]")


def test_setup_gets_a_newer_python_where_the_image_has_an_old_one(worker, without):
    cloud = worker.cloud
    (worker.tree / ".venv" / "bin" / "activate").write_text("")
    # Python 3.10, with which uv can be installed, and which then says where it has put 3.12.
    cloud.program("python3", f'case "$*" in -c*) exit 1 ;; *"uv python find"*) echo {cloud.folder}/python3.12 ;; esac')
    new = cloud.folder / "python3.12"
    new.write_text(
        '#!/bin/sh\ncase "$*" in "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;; -c*) ;; *) echo "$*" ;; esac\n'
    )
    new.chmod(0o755)
    for name in ("cksum", "cp", "mv"):
        (Path(without) / name).symlink_to(f"/usr/bin/{name}")
    outcome = worker("setup", PATH=f"{cloud.programs}:{without}")
    assert outcome.returncode == 0, outcome.stderr
    assert [call.split()[2:4] for call in cloud.calls if " -m " in call] == [
        ["pip", "install"],
        ["uv", "python"],
        ["uv", "python"],
    ]
    assert "install" in outcome.stdout and ".[tpu]" in outcome.stdout
