"""launch/tpu_vm.sh against a stand-in for gcloud that plays the states of a slice."""

import re
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RUN = "e2h recipe --config=configs/quickstart.py --workdir=/mnt/e2h/run --config.note".split() + ["it's two words"]
WHERE = ["--project=my-project", "--zone=us-west4-a"]
SLICE = ["--topology=v5e:4x4", "--share=10.0.0.2:/e2h"]

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
    *queued-resources\ create*) [ ! -e refuse_create ] ;;
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
    *worker.sh\ results*) tar -C share -cz . ;;
    *config\ get-value*) echo '(unset)' >&2 ;;
esac
"""

# What a call does, in a word: the end of gcloud's words, or what is run on the workers.
NAMES = {
    r"queued-resources describe": "look",
    r"queued-resources create": "create",
    r"queued-resources delete": "delete",
    r"tpu-vm describe": "node",
    r"tpu-vm scp": "copy",
    r"worker\.sh (setup|status|start|stop|results|logs)": None,
}


def short(calls):
    found = []
    for call in calls:
        (match, name) = next((match, name) for pattern, name in NAMES.items() if (match := re.search(pattern, call)))
        found.append(name or match[1])
    return found


@pytest.fixture
def gcloud(cloud):
    cloud.program("gcloud", GCLOUD)
    cloud.play(slice=["NONE", "ACTIVE"], workers=["nothing", "finished"], setup=["ok"], node=["READY"])
    share = cloud.folder / "share"
    for name, text in {"run/done.json": "{}", "run/table.md": "| |", "run.logs/worker-0.txt": "one\ntwo\n"}.items():
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_text(text)
    return cloud


def start(gcloud, *flags, **environment):
    return gcloud.run("tpu_vm.sh", "all", "my-run", *WHERE, *SLICE, *flags, "--", *RUN, **environment)


INSTALL = ["copy", "setup", "start"]


def test_an_undisturbed_run(gcloud):
    gcloud.play(
        slice=["NONE", "CREATING", "PROVISIONING", "ACTIVE"], workers=["nothing", "running running", "running 0", "0 0"]
    )
    outcome = start(gcloud)
    assert outcome.returncode == 0, outcome.stderr
    looks = ["look", "create", "look", "look", "look"]
    assert short(gcloud.calls) == [*looks, "status", *INSTALL, "status", "status", "status", "results", "delete"]
    assert (gcloud.folder / "runs" / "run" / "done.json").exists()
    assert [line[9:] for line in outcome.stdout.splitlines()] == [
        "my-run: NONE",
        "my-run: CREATING",
        "my-run: PROVISIONING",
        "my-run: ACTIVE",
        "my-run: installing on all workers",
        f"my-run: starting {shlex.join(RUN)}".replace('"\'"', "\\'"),
        "my-run: running",
        "my-run: finished",
        "my-run: the run's files are in runs",
    ]


def test_the_words_of_an_undisturbed_run(gcloud):
    gcloud.play(workers=["nothing", "0 0"])
    assert start(gcloud, "--service-account=a@b", "--ref=HEAD").returncode == 0
    tpus = ["gcloud", "compute", "tpus"]
    where = [*WHERE, "--quiet"]
    look, create, _, _, copy, setup, run, _, results, delete = gcloud.words()
    assert look[:-1] == [*tpus, "queued-resources", "describe", "my-run", *where]
    slice_flags = [
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
        "--service-account=a@b",
    ]
    assert create == [*tpus, "queued-resources", "create", "my-run", "--node-id=my-run", *where, *slice_flags]
    archive = gcloud.folder / "e2h-my-run.tar.gz"
    assert copy == [*tpus, "tpu-vm", "scp", str(archive), "my-run:e2h_jax.tar.gz", *where, "--worker=all"]
    ssh = [*tpus, "tpu-vm", "ssh", "my-run", *where]
    assert setup[:-1] == run[:-1] == [*ssh, "--worker=all"]
    assert setup[-1].endswith(" && bash e2h_jax/launch/worker.sh setup 10.0.0.2:/e2h")
    # The remote shell takes the command apart into the words that were given here.
    assert shlex.split(run[-1].removeprefix("--command="))[3:] == RUN
    assert results == [*ssh, "--worker=0", "--command=bash e2h_jax/launch/worker.sh results"]
    assert delete == [*tpus, "queued-resources", "delete", "my-run", *where, "--force"]


def test_preempted_twice_until_done(gcloud):
    gcloud.play(
        slice=[
            *["NONE", "ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED", "NONE", "PROVISIONING", "ACTIVE"],
            *["ACTIVE", "NONE", "ACTIVE"],
        ],
        workers=["nothing", "running running", "LOST", "nothing", "running running", "LOST", "nothing", "running", "0 0"],
        node=["PREEMPTED"],
    )
    outcome = start(gcloud)
    assert outcome.returncode == 0, outcome.stderr
    assert short(gcloud.calls) == [
        *["look", "create", "look", "status", *INSTALL, "status"],
        # Gone: what is left of it is deleted, it is requested anew, and the same command is started.
        *["status", "look", "look", "look", "delete", "look", "create", "look", "look", "status", *INSTALL, "status"],
        # The second time the machine says it before the queued resource does.
        *["status", "look", "node", "delete", "look", "create", "look", "status", *INSTALL, "status", "status"],
        *["results", "delete"],
    ]
    starts = [call for call in gcloud.calls if "worker.sh start" in call]
    assert len(starts) == 3 and len(set(starts)) == 1


def test_the_notice_of_a_preemption(gcloud):
    # 143 on one worker or all: what is left is stopped and all is started again, on the same slice if it is still there. No
    # error, so however often.
    gcloud.play(workers=["nothing", "143 running", "143 143", "0 0"])
    assert start(gcloud, "--retries=0").returncode == 0
    assert short(gcloud.calls)[3:] == [
        *["status", *INSTALL, "status", "stop", *INSTALL, "status", "stop", *INSTALL, "status", "results", "delete"]
    ]


def test_preempted_while_installing(gcloud):
    gcloud.play(slice=["NONE", "ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"])
    gcloud.play(workers=["nothing", "LOST", "nothing", "0 0"], setup=["LOST", "ok"])
    assert start(gcloud).returncode == 0
    assert short(gcloud.calls)[3:] == [
        *["status", "copy", "setup", "look", "status", "look", "look", "delete", "look", "create", "look"],
        *["status", *INSTALL, "status", "results", "delete"],
    ]


def test_silent_workers_of_a_slice_that_is_there_are_waited_for(gcloud):
    gcloud.play(
        slice=["NONE", "ACTIVE", "ACTIVE", "DENIED", "ACTIVE"], workers=["nothing", "running", "LOST", "LOST", "LOST", "0"]
    )
    outcome = start(gcloud)
    assert outcome.returncode == 0
    assert "workers do not answer (ssh: connect to host: Connection timed out)" in outcome.stdout
    assert short(gcloud.calls).count("create") == 1


def test_deleted_by_somebody_it_is_not_made_again(gcloud):
    gcloud.play(slice=["NONE", "ACTIVE", "NONE"], workers=["nothing", "LOST"])
    outcome = start(gcloud)
    assert outcome.returncode == 2 and "deleted from elsewhere" in outcome.stderr
    assert short(gcloud.calls).count("create") == 1


@pytest.mark.parametrize(
    "workers, code, starts",
    [
        ("2 2", 2, 1),  # a mistake of the user's: never started again
        ("running 3", 3, 1),
        ("1 running", 1, 3),  # a bug: --retries=2 more
        ("143 137 143", 1, 3),  # killed, for want of memory say, and the others found it dead: not a preemption
        ("143 2 1", 2, 1),
    ],
)
def test_a_run_that_ends_with_an_error(gcloud, workers, code, starts):
    (gcloud.folder / "share" / "run" / "done.json").unlink()
    gcloud.play(workers=["nothing", workers])
    outcome = start(gcloud, "--retries=2")
    assert outcome.returncode == code
    assert short(gcloud.calls).count("start") == starts
    # The rest is stopped, the logs are fetched, and nothing goes on costing money.
    assert short(gcloud.calls)[-3:] == ["stop", "results", "delete"]
    assert f"the run ended with exit code {code}" in outcome.stderr and "two" in outcome.stderr


def test_an_installation_that_keeps_failing(gcloud):
    gcloud.play(setup=["LOST"], workers=["nothing"])
    outcome = start(gcloud, "--retries=1")
    assert outcome.returncode == 2 and "the installation fails" in outcome.stderr
    assert short(gcloud.calls).count("setup") == 2


def test_without_done_json_nothing_is_deleted(gcloud):
    (gcloud.folder / "share" / "run" / "done.json").unlink()
    gcloud.play(workers=["nothing", "0 0"])
    outcome = start(gcloud)
    assert outcome.returncode == 2 and "there is no runs/run/done.json" in outcome.stderr
    assert "delete" not in short(gcloud.calls)


def test_called_again_it_goes_on(gcloud):
    # The terminal was closed: the slice is there and the run at work. Neither is made a second time.
    gcloud.play(slice=["ACTIVE"], workers=["running running", "0 0"])
    assert start(gcloud, "--keep").returncode == 0
    assert short(gcloud.calls) == ["look", "status", "status", "results"]


def test_a_dry_run_prints_what_the_run_does(gcloud):
    gcloud.play(workers=["nothing", "0"])
    flags = [*WHERE, *SLICE, "--dry-run", "--", *RUN]
    printed = gcloud.run("tpu_vm.sh", "all", "my-run", *flags)
    assert printed.returncode == 0 and gcloud.calls == []
    assert not (gcloud.folder / "runs").exists()
    assert start(gcloud).returncode == 0
    commands = [line for line in printed.stdout.splitlines() if line.startswith("gcloud")]
    assert [line.split(" > ")[0] for line in commands] == gcloud.calls
    # Pasted, all of it is the same run again.
    calls = gcloud.calls
    (gcloud.folder / "calls").unlink()
    gcloud.play(slice=["ACTIVE"], workers=["nothing", "0"])
    pasted = subprocess.run(
        ["bash", "-e"],
        input=printed.stdout,
        text=True,
        env=gcloud.environment,
        cwd=gcloud.folder,
        capture_output=True,
        timeout=60,
    )
    assert pasted.returncode == 0, pasted.stderr
    assert gcloud.calls == calls


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
    (gcloud.folder / "refuse_create").touch()
    outcome = gcloud.run("tpu_vm.sh", "up", "my-run", *WHERE, *SLICE)
    assert outcome.returncode == 2 and "Google Cloud refuses the slice my-run" in outcome.stderr


def test_a_failed_request_of_before_is_made_again(gcloud):
    gcloud.play(slice=["FAILED", "NONE", "ACTIVE"])
    assert gcloud.run("tpu_vm.sh", "up", "my-run", *WHERE, *SLICE).returncode == 0
    assert short(gcloud.calls) == ["look", "delete", "look", "create", "look"]


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
    assert short(gcloud.calls) == calls


def test_run_once(gcloud):
    gcloud.play(slice=["ACTIVE"], workers=["nothing"])
    assert gcloud.run("tpu_vm.sh", "run", "my-run", *WHERE, *SLICE, "--", *RUN).returncode == 0
    assert short(gcloud.calls) == ["look", "status", *INSTALL]
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
    assert short(gcloud.calls) == ["look", "status", "logs", "stop", "results"]
    assert "--worker=3" in gcloud.calls[2] and gcloud.calls[4].endswith("results --everything'")
    assert (gcloud.folder / "here" / "run" / "table.md").exists()


def test_a_broken_fetch_leaves_what_was_there(gcloud):
    (gcloud.folder / "share").rename(gcloud.folder / "unreachable")
    (gcloud.folder / "runs").mkdir()
    (gcloud.folder / "runs" / "table.md").write_text("before")
    outcome = gcloud.run("tpu_vm.sh", "fetch", "my-run", *WHERE)
    assert outcome.returncode == 2 and "could not be fetched" in outcome.stderr
    assert (gcloud.folder / "runs" / "table.md").read_text() == "before"
