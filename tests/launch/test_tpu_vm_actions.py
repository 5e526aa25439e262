"""launch/tpu_vm.sh: slices, mistakes, and the actions one by one."""

import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ["e2h", "recipe", "--workdir=/mnt/e2h/run"]
WHERE = ["--project=my-project", "--zone=us-west4-a"]
SLICE = ["--topology=v5e:4x4", "--share=10.0.0.2:/e2h"]
INSTALL = ["copy", "setup", "start"]


@pytest.mark.parametrize(
    "topology, flags",
    {
        "v5e:1x1": "--accelerator-type=v5litepod-1 --runtime-version=v2-alpha-tpuv5-lite",
        "v5e:2x4": "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite",
        "v5e:4x4": "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite",
        "v5e:16x16": "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite",
        "v5litepod-32": "--accelerator-type=v5litepod-32 --runtime-version=v2-alpha-tpuv5-lite",
        "v6e:4x4": "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e",
        "v6e-64": "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e",
        "v4:2x2x1": "--accelerator-type=v4-8 --runtime-version=tpu-ubuntu2204-base",
        "v4:2x2x4": "--accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base",
        "v4-64": "--accelerator-type=v4-64 --runtime-version=tpu-ubuntu2204-base",
        "v5p:2x2x2": "--accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5",
        "v5p:4x4x4": "--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5",
        "v5p-256": "--accelerator-type=v5p-256 --runtime-version=v2-alpha-tpuv5",
        # No accelerator type stands for this shape of 192 chips.
        "v4:4x4x12": "--type=v4 --topology=4x4x12 --runtime-version=tpu-ubuntu2204-base",
        "v5p:4x4x12": "--type=v5p --topology=4x4x12 --runtime-version=v2-alpha-tpuv5",
    }.items(),
)
def test_slices(cloud, topology, flags):
    outcome = cloud.run("tpu_vm.sh", "up", "my-run", *WHERE, f"--topology={topology}", "--dry-run", "--capacity=reserved")
    (create,) = (line for line in outcome.stdout.splitlines() if " create " in line)
    assert create.endswith(f"--quiet {flags} --reserved")
    assert create.startswith("gcloud alpha ") == flags.startswith("--type=v5p")  # gcloud's own --type goes up to v4


def test_every_slice_that_can_be_planned_can_be_rented(cloud):
    planned = pytest.importorskip("e2h_jax.planning.topologies", reason="e2h plan is not there yet").SHAPES
    script = ". launch/commands.sh; . launch/slices.sh; for name in $0; do e2h_find_slice $name; echo $family:$shape; done"
    names = [f"{kind}:{shape}" for kind, shapes in planned.items() for shape in shapes]
    found = subprocess.run(["bash", "-c", script, " ".join(names)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == names


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["begin"], '"begin" is no action'),
        (["up"], "which slice?"),
        (["up", "My_Run", *SLICE], '"My_Run" cannot be a name'),
        (["up", "my-run"], "--topology is missing"),
        (["up", "my-run", "--topology=v5e:3x3"], '"v5e:3x3" is no slice'),
        (["up", "my-run", "--topology=v5p:4x8x4"], '"v5p:4x8x4" is no slice'),
        (["up", "my-run", "--topology=v5litepod-12"], '"v5litepod-12" is no slice'),
        (["up", "my-run", "--topology=v5litepod-x"], '"v5litepod-x" is no slice'),
        (["up", "my-run", "--topology=h100:8"], '"h100:8" is no slice'),
        (["up", "my-run", "--topology=tpu7x:2x2x1"], "through Kubernetes only"),
        (["up", "my-run", *SLICE, "--capacity=cheap"], "spot, reserved or on-demand"),
        (["up", "my-run", *SLICE, "--spot"], 'no flag "--spot"'),
        (["up", "my-run", *SLICE, "--share=here"], "is not SERVER:/PATH"),
        (["all", "my-run", *SLICE], "the command to run is missing"),
        (["all", "my-run", *SLICE, "--", "e2h", "recipe"], "needs --workdir=DIR"),
        (["all", "my-run", *SLICE, "--", "e2h", "recipe", "--workdir=runs/x"], "with a whole path"),
        (["all", "my-run", *SLICE, "--", "e2h", "recipe", "--workdir=/home/me/x"], "is not on the share"),
        (
            ["all", "my-run", "--topology=v6e:2x4", "--", "e2h", "recipe", "--workdir=/home/x"],
            "--share=SERVER:/PATH is missing",
        ),
        (["run", "my-run", "--", "e2h", "recipe", "--workdir=/home/x"], "--share=SERVER:/PATH is missing"),
        (["all", "my-run", *SLICE, "--retries=many", "--", *RUN], "--retries=many is not a number"),
    ],
)
def test_mistakes_are_refused_before_anything_is_called(gcloud, arguments, said):
    outcome = gcloud.run("tpu_vm.sh", *arguments)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("tpu_vm.sh: ") and said in line
    assert gcloud.calls == []


def test_one_worker_that_is_not_preempted_needs_no_share(cloud):
    flags = ["--topology=v6e:2x4", "--capacity=on-demand", "--dry-run"]
    outcome = cloud.run("tpu_vm.sh", "all", "my-run", *WHERE, *flags, "--", "e2h", "recipe", "--workdir=/home/me/run")
    assert outcome.returncode == 0, outcome.stderr
    assert "worker.sh setup'" in outcome.stdout


@pytest.mark.parametrize("missing, said", [("zone", "--zone is missing"), ("project", "--project is missing")])
def test_neither_zone_nor_project(gcloud, missing, said):
    where = [flag for flag in WHERE if missing not in flag]
    outcome = gcloud.run("tpu_vm.sh", "up", "my-run", *where, *SLICE)
    assert outcome.returncode == 2 and said in outcome.stderr


def test_without_gcloud(cloud, without):
    outcome = cloud.run("tpu_vm.sh", "up", "my-run", *WHERE, *SLICE, PATH=without)
    assert outcome.returncode == 2 and "gcloud is not installed here; see https" in outcome.stderr


@pytest.mark.parametrize(
    "slices, said",
    [
        (["OTHER"], "the name my-run is taken by another slice (v6e-8)"),
        (["TORUS"], "the name my-run is taken by another slice (4x4x12)"),
        (["DENIED"], "PERMISSION_DENIED"),
        (["NONE", "PROVISIONING", "FAILED"], "could not be made: Quota exceeded"),
    ],
)
def test_no_slice(gcloud, slices, said):
    gcloud.play(slice=slices)
    outcome = gcloud.run("tpu_vm.sh", "up", "my-run", *WHERE, *SLICE)
    assert outcome.returncode == 2 and said in outcome.stderr.splitlines()[-1]


def test_create_refused(gcloud):
    gcloud.play(create=["no"])
    outcome = gcloud.run("tpu_vm.sh", "up", "my-run", *WHERE, *SLICE)
    assert outcome.returncode == 2 and "Google Cloud refuses the slice my-run" in outcome.stderr


def test_a_failed_request_of_before_is_made_again(gcloud):
    gcloud.play(slice=["FAILED", "NONE", "ACTIVE"])
    assert gcloud.run("tpu_vm.sh", "up", "my-run", *WHERE, *SLICE).returncode == 0
    assert gcloud.steps == ["look", "delete", "look", "create", "look"]


@pytest.mark.parametrize(
    "slices, flags, code, said, calls",
    [
        (["ACTIVE"], ["--yes"], 0, "", ["look", "delete"]),
        (["ACTIVE"], [], 2, "say --yes where nobody can be asked", ["look"]),
        (["NONE"], [], 0, "there is no slice my-run: nothing to delete", ["look"]),
        (["ACTIVE"], ["--dry-run"], 0, "queued-resources delete my-run", []),
    ],
)
def test_down_asks(gcloud, slices, flags, code, said, calls):
    gcloud.play(slice=slices)
    outcome = gcloud.run("tpu_vm.sh", "down", "my-run", *WHERE, *flags)
    assert outcome.returncode == code
    assert said in outcome.stdout + outcome.stderr
    assert gcloud.steps == calls


def test_run_once(gcloud):
    gcloud.play(slice=["ACTIVE"], workers=["nothing"])
    assert gcloud.run("tpu_vm.sh", "run", "my-run", *WHERE, *SLICE, "--", *RUN).returncode == 0
    assert gcloud.steps == ["look", "status", *INSTALL]
    # What runs is not overwritten.
    gcloud.play(workers=["running running"])
    outcome = gcloud.run("tpu_vm.sh", "run", "my-run", *WHERE, *SLICE, "--", *RUN)
    assert outcome.returncode == 2 and "a command is running on my-run" in outcome.stderr
    gcloud.play(slice=["SUSPENDED"])
    outcome = gcloud.run("tpu_vm.sh", "run", "my-run", *WHERE, *SLICE, "--", *RUN)
    assert outcome.returncode == 2 and "is not there (state SUSPENDED)" in outcome.stderr


def test_what_is_installed(gcloud):
    gcloud.play(slice=["ACTIVE"], workers=["nothing"])
    assert gcloud.run("tpu_vm.sh", "run", "my-run", *WHERE, *SLICE, "--", *RUN).returncode == 0
    names = tarfile.open(gcloud.folder / "e2h-my-run.tar.gz").getnames()
    assert {"launch/worker.sh", "launch/venv.sh", "constraints.txt", "e2h_jax/main.py"} <= set(names)
    assert not any(name.startswith((".venv", ".git/", "runs/")) for name in names)


def test_status_logs_stop_fetch(gcloud):
    gcloud.play(slice=["ACTIVE"], workers=["running 143"])
    outcome = gcloud.run("tpu_vm.sh", "status", "my-run", *WHERE)
    assert outcome.stdout == "my-run: ACTIVE\ne2h-worker 0 running\ne2h-worker 1 exit 143\n"
    assert gcloud.run("tpu_vm.sh", "logs", "my-run", *WHERE, "--worker=3").returncode == 0
    assert gcloud.run("tpu_vm.sh", "stop", "my-run", *WHERE).returncode == 0
    assert gcloud.run("tpu_vm.sh", "fetch", "my-run", *WHERE, "--into=here", "--everything").returncode == 0
    assert gcloud.steps == ["look", "status", "logs", "stop", "results"]
    assert "--worker=3" in gcloud.calls[2] and gcloud.calls[4].endswith("results --everything'")
    assert (gcloud.folder / "here" / "run" / "table.md").exists()


@pytest.mark.parametrize("action", "up run status logs stop fetch down".split())
def test_a_dry_run_of_every_action(gcloud, action):
    command = ["--", *RUN] if action == "run" else []
    outcome = gcloud.run("tpu_vm.sh", action, "my-run", *WHERE, *SLICE, "--dry-run", *command)
    assert outcome.returncode == 0 and outcome.stderr == "" and gcloud.calls == []
    programs = {line.split()[0] for line in outcome.stdout.splitlines()}
    assert "gcloud" in programs and programs <= {"gcloud", "git", "mkdir", "tar", "rm", "#"}


def test_a_broken_fetch_leaves_what_was_there(gcloud):
    (gcloud.folder / "share").rename(gcloud.folder / "unreachable")
    (gcloud.folder / "runs").mkdir()
    (gcloud.folder / "runs" / "table.md").write_text("before")
    outcome = gcloud.run("tpu_vm.sh", "fetch", "my-run", *WHERE)
    assert outcome.returncode == 2 and "could not be fetched" in outcome.stderr
    assert (gcloud.folder / "runs" / "table.md").read_text() == "before"
