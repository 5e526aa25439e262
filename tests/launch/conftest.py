"""Stand-ins for the clouds' programs: they write down how they were called and answer as a test has set them up."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# `next_of FILE`: the first line of the file, which is then dropped unless it is the last one.
STAND_IN = """#!/usr/bin/env bash
. ROOT/launch/commands.sh
cd PLAY
e2h_quoted "$(basename "$0")" "$@" >>calls
next_of() {
    head -n 1 "$1"
    if [ "$(wc -l <"$1")" -gt 1 ]; then sed -i 1d "$1"; fi
}
ANSWERS
"""

# Answers with states of a slice and of its workers, as a test has set them up (`play`).
GCLOUD = r"""
case "$*" in
    *queued-resources\ describe*)
        case $(next_of slice) in
            NONE) echo 'ERROR: (gcloud) NOT_FOUND: Resource was not found' >&2; exit 1 ;;
            DENIED) echo 'ERROR: (gcloud) PERMISSION_DENIED: you may not' >&2; exit 1 ;;
            FAILED) echo 'FAILED;v5litepod-16;;Quota exceeded' ;;
            OTHER) echo 'ACTIVE;v6e-8;;' ;;
            TORUS) echo 'ACTIVE;;4x4x12;' ;;
            CREATING) echo 'CREATING;v5litepod-16;;' ;;
            PROVISIONING) echo 'PROVISIONING;v5litepod-16;;' ;;
            ACTIVE) echo 'ACTIVE;v5litepod-16;;' ;;
            SUSPENDING) echo 'SUSPENDING;v5litepod-16;;' ;;
            SUSPENDED) echo 'SUSPENDED;v5litepod-16;;' ;;
        esac ;;
    *queued-resources\ create*) [ "$(next_of create)" = ok ] ;;
    *queued-resources\ delete*) [ "$(next_of delete)" = ok ] ;;
    *tpu-vm\ describe*) next_of node ;;
    *worker.sh\ status*)
        answer=$(next_of workers)
        if [ "$answer" = LOST ]; then echo 'ssh: connect to host: Connection timed out' >&2; exit 255; fi
        worker=0
        for word in $answer; do
            case $word in [0-9]*) word="exit $word" ;; esac
            if [ "$word" != nothing ]; then echo "e2h-worker $worker $word"; fi
            worker=$((worker + 1))
        done ;;
    *worker.sh\ setup*) [ "$(next_of setup)" != LOST ] || exit 255 ;;
    *worker.sh\ results*) [ "$(next_of results)" = ok ] && tar -C share -cz . ;;
    *config\ get-value*) echo '(unset)' >&2 ;;
esac
"""

# What a call does, in a word.
STEPS = {
    r"queued-resources describe": "look",
    r"queued-resources create": "create",
    r"queued-resources delete": "delete",
    r"tpu-vm describe": "node",
    r"tpu-vm scp": "copy",
    r"worker\.sh (setup|status|start|stop|results|logs)": None,
}


class Cloud:
    """A folder of stand-ins at the front of PATH, and what they were asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)
        self.environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "E2H_POLL_SECONDS": "0",
            # Git would refuse a clone that belongs to another user, as in a container.
            **{"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
        }

    def program(self, name: str, answers: str = "") -> None:
        text = STAND_IN.replace("ROOT", str(ROOT)).replace("PLAY", str(self.folder)).replace("ANSWERS", answers)
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def play(self, **files: list[str]) -> None:
        """Lines that the stand-ins answer with, one a call; the last one for ever."""
        for name, lines in files.items():
            (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def run(self, script: str, *arguments: str, answer: str = "", **environment: str) -> subprocess.CompletedProcess:
        command = ["bash", str(ROOT / "launch" / script), *arguments]
        environment = self.environment | environment
        return subprocess.run(
            command, env=environment, cwd=self.folder, input=answer, text=True, capture_output=True, timeout=60
        )

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def steps(self) -> list[str]:
        """What was asked of gcloud, in a word each."""
        found = []
        for call in self.calls:
            match, name = next((match, name) for pattern, name in STEPS.items() if (match := re.search(pattern, call)))
            found.append(name or match[1])
        return found

    def words(self) -> list[list[str]]:
        return [shlex.split(call) for call in self.calls]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path / "cloud")


@pytest.fixture
def without(cloud: Cloud) -> str:
    """A PATH with what the scripts use of the system, and nothing else."""
    folder = cloud.folder / "system"
    folder.mkdir()
    for name in "bash basename dirname sed grep mktemp rm date cat tail git tar head wc mkdir id awk".split():
        for where in ("/usr/bin", "/bin"):
            if os.path.exists(f"{where}/{name}"):
                (folder / name).symlink_to(f"{where}/{name}")
                break
    return str(folder)


@pytest.fixture
def gcloud(cloud):
    cloud.program("gcloud", GCLOUD)
    cloud.play(slice=["NONE", "ACTIVE"], workers=["nothing", "finished"], setup=["ok"], node=["READY"])
    cloud.play(create=["ok"], delete=["ok"], results=["ok"])
    share = cloud.folder / "share"
    for name, text in {"run/done.json": "{}", "run/table.md": "| |", "run.logs/worker-0.txt": "one\ntwo\n"}.items():
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_text(text)
    return cloud
