"""kill -9 at two random moments of scoring and of PPO, as benchmarks/faults.py does at ten of every stage."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--stages=score,ppo", "--kills=2"]
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"  # the last one counts
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "XLA_FLAGS": flags}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert "| score | 2 | 2 |\n| ppo | 2 | 2 |" in ended.stdout
