"""Programs are kept where they may be, for machines that can run them; and whoever waits for the compiler is told."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from e2h_jax.parallel import compilation
from e2h_jax.parallel.mesh import make_mesh


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """What JAX is told by `start` in a process of its own, with an empty home."""

    def start(backend: str, *, folder: Path | None = None, told: str | None = None, **environment: str) -> dict:
        for name in ("E2H_CACHE", "XDG_CACHE_HOME", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"HOME": str(tmp_path / "home")} | environment).items():
            monkeypatch.setenv(name, value)
        changed = {}
        monkeypatch.setattr(jax, "config", SimpleNamespace(jax_compilation_cache_dir=told, update=changed.__setitem__))
        monkeypatch.setattr(compilation, "_folder", None)
        if folder:
            compilation.keep_programs(folder)
            compilation.keep_programs(folder / "of a later stage")
        compilation.start(backend)
        return changed

    compilation.start("cpu")  # listens to the true JAX
    return start


def test_programs_for_cpus_are_kept_in_the_users_folder_and_bounded(kept, tmp_path):
    folder = compilation._machine()
    for environment, root in (
        ({}, tmp_path / "home/.cache/e2h_jax/compiled"),
        ({"XDG_CACHE_HOME": str(tmp_path / "xdg")}, tmp_path / "xdg/e2h_jax/compiled"),
        ({"XDG_CACHE_HOME": str(tmp_path / "xdg"), "E2H_CACHE": str(tmp_path / "own")}, tmp_path / "own"),
    ):
        changed = kept("cpu", folder=tmp_path / "stage", **environment)
        assert changed["jax_compilation_cache_dir"] == str(root / folder)
        assert changed["jax_compilation_cache_max_size"] == compilation.MOST_BYTES
        assert (root / folder).stat().st_mode & 0o077 == 0


def test_programs_for_accelerators_are_kept_with_the_first_stage(kept, tmp_path):
    assert kept("tpu", folder=tmp_path / "stage") == {"jax_compilation_cache_dir": str(tmp_path / "stage")}
    assert kept("gpu", E2H_CACHE=str(tmp_path))["jax_compilation_cache_dir"].startswith(str(tmp_path))  # `e2h try`


def test_what_the_user_has_told_jax_counts(kept, tmp_path):
    assert kept("cpu", told=str(tmp_path)) == kept("tpu", told=str(tmp_path), folder=tmp_path / "stage") == {}
    assert not (tmp_path / "home").exists()
    size = "jax_compilation_cache_max_size"
    assert size not in kept("cpu", **{size.upper(): "7"})


def test_without_a_folder_nothing_is_kept(kept, tmp_path):
    (tmp_path / "file").write_text("")
    assert kept("cpu", E2H_CACHE=str(tmp_path / "file")) == {}


def test_unlike_machines_have_folders_of_their_own(tmp_path):
    text = "processor : {n}\nmodel name : A\nflags : fma avx2{more}\ncpu MHz : {n}\n\n"
    names = []
    for n, more in ((0, ""), (1, ""), (0, " avx512f")):
        (tmp_path / "cpuinfo").write_text(text.format(n=n, more=more))
        names.append(compilation._machine(tmp_path / "cpuinfo"))
    assert names[0] == names[1] != names[2]
    assert compilation._machine(tmp_path / "there is none")


def test_folders_of_other_machines_go_when_nobody_uses_them(kept, tmp_path):
    old, new, mine = tmp_path / f"{7:016x}", tmp_path / f"{8:016x}", tmp_path / "mine"
    for folder in (old, new, mine):
        folder.mkdir()
        (folder / "a-cache").write_text("")
        (folder / "a-atime").write_text("")
    for folder in (old, mine):
        os.utime(folder, (0, 0))
    kept("cpu", E2H_CACHE=str(tmp_path))
    assert not old.exists() and (new / "a-cache").exists() and (mine / "a-cache").exists()


PROGRAM = """
import jax, sys
from e2h_jax.parallel import compilation
from e2h_jax.parallel.mesh import make_mesh
make_mesh((1, 1, -1))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
print(jax.jit(lambda x: x * 3)(14.0), events.count("cache_hits"))
"""


def test_a_second_start_finds_the_programs_whatever_a_killed_one_has_left(tmp_path):
    """Of an entry that was cut while it was written nothing is left; JAX itself would refuse to add any other from then on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment |= {"E2H_CACHE": str(tmp_path), "HOME": str(tmp_path / "home"), "PYTHONWARNINGS": "error"}

    def run() -> list[str]:
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert run() == ["42.0", "0"]
    (folder,) = tmp_path.glob("*")
    assert list(folder.glob("*-cache"))
    (folder / "torn-cache").write_bytes(b"half a pro")
    assert run() == ["42.0", "1"]
    assert not (folder / "torn-cache").exists()


def slowly(x):
    time.sleep(1.2)  # while it is traced
    return x + 1


@pytest.mark.parametrize("terminal", [True, False])
def test_who_waits_for_the_compiler_is_told(terminal, monkeypatch, capsys):
    make_mesh((1, 1, -1))
    monkeypatch.setattr(compilation._watch, "seconds", 0.0)  # other tests of this process have compiled programs, too
    monkeypatch.setattr(compilation._watch, "_programs", 0)
    monkeypatch.setattr(compilation, "FILE_SECONDS", 0.5)
    monkeypatch.setattr(compilation, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    waited, clock, began = compilation.seconds(), compilation.clock(), time.perf_counter()
    assert jax.jit(lambda x: slowly(x))(1) == 2
    assert 1.2 < compilation.seconds() - waited <= time.perf_counter() - began
    assert compilation.clock() - clock < 0.5
    told = capsys.readouterr().err
    assert re.search(r"compiling program 1 \(\d s so far\)", told)
    assert told.endswith("\r") == terminal  # the line goes when the waiting is over
    jax.jit(lambda x: x + 2)(1)
    assert capsys.readouterr().err == ""
