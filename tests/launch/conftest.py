"""Stand-ins for the clouds' programs: they write down how they were called and answer as a test has set them up."""

import os
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
