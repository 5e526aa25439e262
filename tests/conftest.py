"""Every test process: JAX on the CPU, with eight simulated devices. Fixtures that several test files share."""

import os
import re
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

# A test that takes long on a busy machine is no mistake; all else is as the environment says (CI: the same examples each time).
hypothesis.settings.register_profile("unhurried", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unhurried")

# Before the first import of JAX, which reads all of these. Most of a test's time would go into compiling programs that run for
# a moment: XLA's older emitters without LLVM's optimisations take a sixth of it. What XLA makes of a program before that, such
# as its partition over devices, is the same. A flag that is given already counts.
os.environ["JAX_PLATFORMS"] = "cpu"
for flag in (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
):
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
# Two threads for each simulated device. With one, XLA waits for ever once 32 programs are under way: each thread holds a
# program that waits for its turn on its device, and those whose turn it is wait for a thread.
os.environ["PJRT_NPROC"] = "16"

# Many tests compile the same programs: each is compiled once for all of this run, its workers and child processes. The folder
# goes with the process that made it, so no run finds another's programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="e2h_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

ROOT = Path(__file__).parents[1]

# A file's tests run in one worker (launch/test.sh). The longest files come first, by CPU seconds, so that no worker is left
# with one of them when the others have ended; `pytest --durations=0` tells when a file belongs here.
LONGEST = (
    "planning/test_llemma_7b.py",
    "test_quickstart.py",
    "test_two_processes.py",
    "test_configs.py",
    "algorithms/test_ppo.py",
    "test_notebooks.py",
    "test_killed_runs.py",
    "models/test_parity.py",
    "algorithms/test_dpo.py",
    "training/test_resume.py",
    "training/test_mesh_equality.py",
    "models/test_quantize.py",
    "models/test_torch.py",
    "sampling/test_sample.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    assert all(path.exists() for path in place)
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (see its SOURCES.md): $E2H_DATA, or shared/data beside the clone."""
    folder = Path(os.environ.get("E2H_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set E2H_DATA)")
    return folder


TOY = '''"""Counts to `steps`; stands for a stage in the tests.

A second paragraph.
"""

import os
import signal
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from e2h_jax.errors import UserError


def defaults():
    config = ConfigDict()
    config.steps = 3  # how far to count
    config.rate = 0.5
    config.shuffle = False
    config.source = ""  # a file to read
    config.levels = (1, 2)
    config.limit = config_dict.placeholder(int)
    config.optimizer = ConfigDict({"learning_rate": 0.1, "warmup": 2})
    config.generators = ConfigDict()  # open
    return config.lock()


def run(config, workdir: Path):
    if config.source and not Path(config.source).exists():
        raise UserError(f"there is no {config.source}.")
    if config.steps < 0:
        raise ZeroDivisionError("a bug")
    if config.steps == 143:
        os.kill(os.getpid(), signal.SIGTERM)
    if config.steps == 130:
        raise KeyboardInterrupt
    with open(workdir / "runs.txt", "a") as file:
        file.write(f"{config.steps}\\n")
    return {"steps": config.steps, "rate": config.rate}
'''


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes `toy` the only stage besides `recipe`, and the test's folder the working folder; returns that."""
    from e2h_jax import stage

    package = tmp_path / "toys"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "toy.py").write_text(TOY)
    for name in [name for name in sys.modules if name.split(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stage, "STAGES", {"toy": "toys.toy", "recipe": "e2h_jax.recipe"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def metric_names() -> list[str]:
    """The names that docs/metrics.md defines; <group> and the like stand for what differs from run to run."""
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
