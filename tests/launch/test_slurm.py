"""launch/slurm against stand-ins; the batch script is run for real, with an srun of two processes."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ["e2h", "recipe", "--config=configs/quickstart.py", "--workdir=/shared/run", "--config.note=it's two"]

# Two processes; the highest exit code, as srun has it.
SRUN = """
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task "$@" >>task-$task.txt 2>&1 &
    echo $! >>tasks
done
code=0
for task in $(cat tasks); do
    wait $task || { ended=$?; [ $ended -le $code ] || code=$ended; }
done
exit $code
"""

E2H = """#!/usr/bin/env bash
workdir=${!#}
workdir=${workdir#--workdir=}
echo "process $SLURM_PROCID: $*"
trap 'echo saved; exit 143' TERM
case $1 in
    finish) echo '{}' >"$workdir/done.json" ;;
    end) exit $2 ;;
    wait) touch "$workdir/ready-$SLURM_PROCID"; while :; do sleep 0.02; done ;;
esac
"""


@pytest.fixture
def slurm(cloud):
    for name in ("sbatch", "scontrol"):
        cloud.program(name, "[ ! -e refuse ]")
    cloud.program("squeue", "cat queued 2>/dev/null || true")
    cloud.program("srun", SRUN)
    cloud.program("scancel", "kill -TERM $(cat tasks)")
    tree = cloud.folder / "tree"
    shutil.copytree(ROOT / "launch", tree / "launch")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    programs = tree / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("")
    (programs / "e2h").write_text(E2H)
    (programs / "python").write_text(f'#!/bin/sh\necho "$*" >>{cloud.folder}/installed\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    (cloud.folder / "run").mkdir()
    (cloud.folder / "run.logs").mkdir()
    return cloud


def submit(cloud, *flags, run=RUN, **environment):
    command = ["bash", "tree/launch/slurm/submit.sh", *flags, "--", *run]
    return subprocess.run(
        command, env=cloud.environment | environment, cwd=cloud.folder, capture_output=True, text=True, timeout=60
    )


def job(cloud, *command, restarts=0, retries=1):
    workdir = f"--workdir={cloud.folder}/run"
    return subprocess.Popen(
        ["bash", str(ROOT / "launch/slurm/job.sbatch"), str(retries), "e2h", *command, workdir],
        env=cloud.environment | {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(restarts), "SLURM_CPUS_PER_TASK": "32"},
        cwd=cloud.folder / "tree",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process):
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def test_submitted(slurm):
    flags = ["my-run", "--nodes=2", "--gpus=4", "--time=8:00:00", "--sbatch=--partition=a100"]
    run = [word.replace("/shared", str(slurm.folder)) for word in RUN]
    outcome = submit(slurm, *flags, run=run)
    assert outcome.returncode == 0, outcome.stderr
    queue, batch = slurm.words()
    assert queue == ["squeue", "--me", "--noheader", "--format=%i", "--name=my-run"]
    tree = slurm.folder / "tree"
    assert batch == [
        *["sbatch", "--job-name=my-run", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=32"],
        *[
            "--gpus-per-node=4",
            f"--chdir={tree}",
            f"--output={slurm.folder}/run.logs/slurm.txt",
            "--time=8:00:00",
            "--partition=a100",
        ],
        *[f"{tree}/launch/slurm/job.sbatch", "3", *run],
    ]
    assert (slurm.folder / "installed").read_text().strip().endswith("-c constraints.txt -e .[gpu]")


def test_a_dry_run_prints_what_the_run_does(slurm):
    run = [word.replace("/shared", str(slurm.folder)) for word in RUN]
    printed = submit(slurm, "my-run", "--dry-run", run=run)
    assert printed.returncode == 0 and slurm.calls == [] and not (slurm.folder / "installed").exists()
    assert submit(slurm, "my-run", run=run).returncode == 0
    assert [line for line in printed.stdout.splitlines() if line.split()[0] in ("squeue", "sbatch")] == slurm.calls


def test_submitted_twice(slurm):
    (slurm.folder / "queued").write_text("4711\n")
    outcome = submit(slurm, "my-run")
    assert outcome.returncode == 0 and "at work already (job 4711); nothing was submitted" in outcome.stdout
    assert len(slurm.calls) == 1


@pytest.mark.parametrize(
    "flags, run, said",
    [
        (["My_run"], RUN, "cannot be a name"),
        (["r", "--gpus=all"], RUN, "--gpus=all is not a number"),
        (["r", "--nodes=0"], RUN, "--nodes=0 is not a number"),
        (["r", "--cpus=x"], RUN, "--cpus=x is not a number"),
        (["r", "--partition=a100"], RUN, 'there is no flag "--partition=a100"'),
        (["r"], [], "the command to run is missing"),
        (["r"], ["e2h", "sft", "--workdir=runs/x"], "with a whole path"),
    ],
)
def test_mistakes(slurm, flags, run, said):
    outcome = submit(slurm, *flags, run=run)
    assert outcome.returncode == 2 and said in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    assert slurm.calls == []


def test_without_slurm(cloud, without):
    outcome = cloud.run("slurm/submit.sh", "r", "--", *RUN, PATH=without)
    assert outcome.returncode == 2 and "sbatch is not installed here" in outcome.stderr


def test_refused_by_sbatch(slurm):
    (slurm.folder / "refuse").touch()
    assert submit(slurm, "my-run", run=[f"--workdir={slurm.folder}/run"]).returncode == 1


def test_a_run_that_finishes(slurm):
    code, output = ended(job(slurm, "finish"))
    assert code == 0 and "finished" in output
    assert slurm.calls[0].startswith("srun --cpus-per-task=32 --kill-on-bad-exit=0 --wait=300 ")
    assert len(slurm.calls) == 1
    for task in range(2):
        assert (slurm.folder / f"task-{task}.txt").read_text().startswith(f"process {task}: finish")


def test_a_notice_saves_and_queues_again(slurm):
    # However often: what is interrupted is no error.
    for restarts in range(3):
        (slurm.folder / "tasks").unlink(missing_ok=True)
        process = job(slurm, "wait", restarts=restarts, retries=0)
        while not all((slurm.folder / "run" / f"ready-{task}").exists() for task in range(2)):
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        code, output = ended(process)
        assert code == 0 and "interrupted: queued again" in output
        for task in range(2):
            assert (slurm.folder / f"task-{task}.txt").read_text().count("saved") == restarts + 1
            (slurm.folder / "run" / f"ready-{task}").unlink()
    assert slurm.calls[1:3] == ["scancel --signal=TERM 77", "scontrol requeue 77"]


def test_errors_are_tried_again_and_then_given_up(slurm):
    for restarts, (code, said) in enumerate([(0, "exit code 1: queued again"), (1, "exit code 1, and 1 retries are used up")]):
        (slurm.folder / "tasks").unlink(missing_ok=True)
        assert (found := ended(job(slurm, "end", "1", restarts=restarts)))[0] == code and said in found[1]
    # Submitted anew, it is counted anew.
    (slurm.folder / "tasks").unlink()
    assert ended(job(slurm, "end", "1"))[0] == 0


@pytest.mark.parametrize("code", [2, 3])
def test_a_mistake_is_not_tried_again(slurm, code):
    assert ended(job(slurm, "end", str(code)))[0] == code
    assert len(slurm.calls) == 1


def test_143_without_a_notice_is_an_error(slurm):
    # A process has lost another one, which may have met with a bug: that is not tried for ever.
    assert ended(job(slurm, "end", "143", retries=0))[0] == 1


def test_an_end_without_done_json(slurm):
    code, output = ended(job(slurm, "end", "0"))
    assert code == 2 and "there is no" in output
