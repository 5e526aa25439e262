"""`tpu_vm.sh all` against a stand-in for gcloud that plays the states of a slice."""

import shlex
import subprocess

import pytest

RUN = "e2h recipe --config=configs/quickstart.py --workdir=/mnt/e2h/run --config.note".split() + ["it's two words"]
WHERE = ["--project=my-project", "--zone=us-west4-a"]
SLICE = ["--topology=v5e:4x4", "--share=10.0.0.2:/e2h"]


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
    assert gcloud.steps == [*looks, "status", *INSTALL, "status", "status", "status", "results", "delete"]
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
    assert gcloud.steps == [
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
    assert gcloud.steps[3:] == [
        *["status", *INSTALL, "status", "stop", *INSTALL, "status", "stop", *INSTALL, "status", "results", "delete"]
    ]


def test_interrupted_within_minutes_time_after_time(gcloud):
    """Workers that never find each other, say: it does not go on for ever."""
    gcloud.play(workers=["nothing", "143 143"])
    outcome = start(gcloud)
    assert outcome.returncode == 1 and "exit code 1" in outcome.stderr
    assert gcloud.steps.count("start") == 10 and gcloud.steps[-3:] == ["stop", "results", "delete"]


def test_preempted_while_installing(gcloud):
    gcloud.play(slice=["NONE", "ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"])
    gcloud.play(workers=["nothing", "LOST", "nothing", "0 0"], setup=["LOST", "ok"])
    assert start(gcloud).returncode == 0
    assert gcloud.steps[3:] == [
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
    assert gcloud.steps.count("create") == 1


def test_google_cloud_is_asked_again_when_it_refuses_what_was_there_before(gcloud):
    gcloud.play(slice=["NONE", "ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED", "NONE", "NONE", "ACTIVE"])
    gcloud.play(workers=["nothing", "LOST", "nothing", "0 0"], create=["ok", "no", "ok"], delete=["no", "ok"])
    outcome = start(gcloud)
    assert outcome.returncode == 0, outcome.stderr
    assert gcloud.steps[7:15] == ["status", "look", "look", "delete", "look", "delete", "look", "create"]
    assert gcloud.steps[15:] == ["look", "create", "look", "status", *INSTALL, "status", "results", "delete"]


def test_a_start_that_reached_only_some_workers(gcloud):
    gcloud.play(workers=["nothing", "running idle", "0 0"])
    assert start(gcloud).returncode == 0
    assert gcloud.steps[3:] == ["status", *INSTALL, "status", "stop", *INSTALL, "status", "results", "delete"]


def test_results_that_cannot_be_fetched_at_once(gcloud):
    gcloud.play(workers=["nothing", "0 0"], results=["no", "no", "ok"])
    assert start(gcloud).returncode == 0
    assert gcloud.steps[-4:] == ["results", "results", "results", "delete"]
    gcloud.play(slice=["ACTIVE"], workers=["0 0"], results=["no"])
    outcome = start(gcloud)
    assert outcome.returncode == 2 and "could not be fetched" in outcome.stderr
    assert gcloud.steps[-5:] == ["results"] * 5  # and the slice is there still


def test_deleted_by_somebody_it_is_not_made_again(gcloud):
    gcloud.play(slice=["NONE", "ACTIVE", "NONE"], workers=["nothing", "LOST"])
    outcome = start(gcloud)
    assert outcome.returncode == 2 and "deleted from elsewhere" in outcome.stderr
    assert gcloud.steps.count("create") == 1


@pytest.mark.parametrize(
    "workers, code, starts",
    [
        ("2 2", 2, 1),  # a mistake of the user's: never started again
        ("running 3", 3, 1),
        ("1 running", 1, 3),  # a bug: --retries=2 more
        ("143 137 143", 1, 3),  # killed, for want of memory say, and the others found it dead: not a preemption
        ("143 1 2", 2, 1),
    ],
)
def test_a_run_that_ends_with_an_error(gcloud, workers, code, starts):
    (gcloud.folder / "share" / "run" / "done.json").unlink()
    gcloud.play(workers=["nothing", workers])
    outcome = start(gcloud, "--retries=2")
    assert outcome.returncode == code
    assert gcloud.steps.count("start") == starts
    # The rest is stopped, the logs are fetched, and nothing goes on costing money.
    assert gcloud.steps[-3:] == ["stop", "results", "delete"]
    assert f"the run ended with exit code {code}" in outcome.stderr and "two" in outcome.stderr


def test_an_installation_that_keeps_failing(gcloud):
    gcloud.play(setup=["LOST"], workers=["nothing"])
    outcome = start(gcloud, "--retries=1")
    assert outcome.returncode == 2 and "the installation fails" in outcome.stderr
    assert gcloud.steps.count("setup") == 2


def test_without_done_json_nothing_is_deleted(gcloud):
    (gcloud.folder / "share" / "run" / "done.json").unlink()
    gcloud.play(workers=["nothing", "0 0"])
    outcome = start(gcloud)
    assert outcome.returncode == 2 and "there is no runs/run/done.json" in outcome.stderr
    assert "delete" not in gcloud.steps


def test_called_again_it_goes_on(gcloud):
    # The terminal was closed: the slice is there and the run at work. Neither is made a second time.
    gcloud.play(slice=["ACTIVE"], workers=["running running", "0 0"])
    assert start(gcloud, "--keep").returncode == 0
    assert gcloud.steps == ["look", "status", "status", "results"]


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
