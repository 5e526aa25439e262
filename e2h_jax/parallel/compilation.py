"""Compiled programs: kept for the next start, and a line on stderr while this process waits for the compiler."""

import contextlib
import hashlib
import os
import platform
import re
import sys
import threading
import time
from pathlib import Path

import filelock
import jax
import jaxlib
from tqdm import tqdm

from e2h_jax.parallel import hosts

MOST_BYTES = 5 * 10**9  # kept for one kind of machine; the programs that were not used for longest go first
IDLE_SECONDS = 30 * 24 * 3600  # then the programs for another kind of machine, or of another version of JAX, go
KEPT_SECONDS = 0.2  # a program that took longer to compile is kept
SLOW_SECONDS = 1.0  # … and one that takes longer than this is counted, and told of on a terminal, every second
FILE_SECONDS = 10.0  # in a file, where every line stays

_folder: Path | None = None
_watch: "Watch | None" = None


def keep_programs(folder: Path) -> None:
    """Keeps programs for accelerators in `folder`, a stage's or a recipe's, instead of the user's; the first call counts."""
    global _folder
    _folder = _folder or folder


def start(backend: str) -> None:
    """To be called before anything is compiled for devices of this kind ("cpu", "tpu", …): what is, is kept from then on.

    Programs for CPUs are kept in a folder of the user's, so are those for accelerators outside of a stage. A folder that JAX
    was told (JAX_COMPILATION_CACHE_DIR) counts. One that cannot be made or written is no mistake: nothing is kept.
    """
    global _watch
    _watch = _watch or Watch()
    if jax.config.jax_compilation_cache_dir is not None:
        return
    if _folder is not None and backend != "cpu":
        jax.config.update("jax_compilation_cache_dir", str(_folder.absolute()))
    elif folder := _users_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        for name, value in (
            ("jax_compilation_cache_max_size", MOST_BYTES),
            ("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS),
        ):
            if name.upper() not in os.environ:
                jax.config.update(name, value)


def clock() -> float:
    """`time.perf_counter()` without the seconds in which this process waited for the compiler."""
    return time.perf_counter() - seconds()


def seconds() -> float:
    """How long this process has waited for the compiler: traced, lowered, compiled, or read what was kept."""
    return _watch.seconds if _watch is not None else 0.0


def _users_folder() -> Path | None:
    """The folder for this machine in $E2H_CACHE, or $XDG_CACHE_HOME/e2h_jax/compiled; None where it cannot be written.

    Machine code runs on machines of its own kind, and a home may be shared by several.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = Path(os.environ.get("E2H_CACHE") or home / "e2h_jax" / "compiled").absolute()
        folder = root / _machine()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # nobody else may put programs there
        os.utime(folder)
        with filelock.FileLock(folder / ".lockfile", timeout=5):  # JAX holds it while it reads or writes
            _mend(folder)
        for other in root.iterdir():
            if re.fullmatch("[0-9a-f]{16}", other.name) and time.time() - other.stat().st_mtime > IDLE_SECONDS:
                _empty(other)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder


def _machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Stands for all that programs for this CPU depend on: its kind, its features, and the compiler."""
    kind = ("vendor_id", "cpu family", "model", "model name", "flags")
    kind += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")
    facts = {platform.machine(), platform.processor(), jax.__version__, jaxlib.__version__}
    with contextlib.suppress(OSError):  # not on Linux
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        facts |= {line for line in lines if line.partition(":")[0].strip() in kind}
    return hashlib.blake2b("\n".join(sorted(facts)).encode(), digest_size=8).hexdigest()


def _mend(folder: Path) -> None:
    """Removes what a killed process has left half-written.

    JAX writes a program's time of use after the program; over one without, it stumbles at each program that it would add.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink()


def _empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another process does the same, say
        for path in [*folder.glob("*-cache"), *folder.glob("*-atime"), folder / ".lockfile"]:
            path.unlink(missing_ok=True)
        folder.rmdir()


class Watch:
    """Listens to JAX: how long the main thread waits for the compiler, told on stderr while it does."""

    def __init__(self):
        self.seconds = 0.0  # of waits that are over
        self._programs, self._depth, self._since = 0, 0, 0.0
        self._line, self._told = None, 0.0
        self._lock = threading.Lock()
        jax.monitoring.register_scalar_listener(self._began)
        jax.monitoring.register_event_duration_secs_listener(self._ended)
        threading.Thread(target=self._tell, daemon=True).start()

    def _began(self, event: str, _: float, **__) -> None:
        if _is_wait(event):
            with self._lock:
                if not self._depth:
                    self._since = self._told = time.perf_counter()
                self._depth += 1

    def _ended(self, event: str, duration: float, **_) -> None:
        if _is_wait(event):
            with self._lock:
                self._programs += event.endswith("/backend_compile_duration") and duration > SLOW_SECONDS
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - self._since
                    if self._line is not None:
                        self._line.close()
                        self._line = None

    def _tell(self) -> None:
        while True:
            time.sleep(0.25)
            with self._lock:
                now, terminal = time.perf_counter(), sys.stderr.isatty()
                if not self._depth or now - self._told < (SLOW_SECONDS if terminal else FILE_SECONDS) or hosts.process_index():
                    continue
                self._told = now
                seconds = self.seconds + now - self._since
                text = f"compiling program {self._programs + 1} ({seconds:.0f} s so far)"
                if terminal:  # a bar of tqdm's, which finds a line beside the stage's own
                    if self._line is None:
                        self._line = tqdm(bar_format="{desc}", leave=False)
                    self._line.set_description_str(text)
                else:
                    print(text, file=sys.stderr, flush=True)


def _is_wait(event: str) -> bool:
    """Tracing, lowering and compiling are told one after the other; what other threads compile, nobody waits for."""
    return event.startswith("/jax/core/compile/") and threading.current_thread() is threading.main_thread()
