"""tpu_vm.sh and worker.sh together: the slice of this gcloud is a folder, in which everything asked of it is really done."""

import json

import pytest

# A slice is the home of its one worker, `home/`. It is preempted when the run waits for that: its processes are killed, and the
# home is gone.
GCLOUD = r"""
on_worker() {
    (cd home && HOME=$PWD bash -c "$1")
}
case "$*" in
    *queued-resources\ describe*)
        if [ ! -e state ]; then echo 'NOT_FOUND' >&2; exit 1; fi
        echo "$(cat state);v6e-8;;" ;;
    *queued-resources\ create*)
        echo ACTIVE >state
        mkdir -p home/e2h_jax && cp -r image home/e2h_jax/.venv ;;
    *queued-resources\ delete*) rm -rf state home ;;
    *tpu-vm\ describe*) echo READY ;;
    *tpu-vm\ scp*) cp "$5" "home/${6#*:}" ;;
    *tpu-vm\ ssh*)
        [ "$(cat state)" = ACTIVE ] || exit 255
        for word in "$@"; do case $word in --command=*) command=${word#--command=} ;; esac; done
        case $command in
            *worker.sh\ status)
                if [ -e disk/waiting ]; then
                    rm disk/waiting
                    read -r pid _ <home/e2h_run/pid
                    kill -KILL "$(ps -o ppid= -p "$pid" | tr -d ' ')" "$pid"
                    echo SUSPENDED >state
                    rm -rf home
                    exit 255
                fi ;;
        esac
        on_worker "$command" ;;
esac
"""

# A stage: counts to 60 in a file, from where the file ends; then it is done. As long as there are preemptions to come, it gets
# a part of the way and waits for the next one.
E2H = """#!/usr/bin/env bash
workdir=${!#}
workdir=${workdir#--workdir=}
mkdir -p "$workdir"
touch "$workdir/lines"
echo >>"$workdir/../starts"
starts=$(wc -l <"$workdir/../starts")
goal=60
if [ "$starts" -le "$(cat "$workdir/../preemptions")" ]; then goal=$((20 * starts)); fi
for ((i = $(wc -l <"$workdir/lines"); i < goal; i++)); do echo "$i" >>"$workdir/lines"; done
if [ $goal -lt 60 ]; then
    touch "$workdir/../waiting"
    exec sleep 60
fi
echo '{"seconds": 1}' >"$workdir/done.json"
"""


@pytest.fixture
def folder_cloud(cloud):
    cloud.program("gcloud", GCLOUD)
    cloud.program("curl", "echo 0")
    programs = cloud.folder / "image" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("")
    (programs / "python").write_text("#!/bin/sh\necho Python 3.12\n")
    (programs / "e2h").write_text(E2H)
    for program in programs.iterdir():
        program.chmod(0o755)
    return cloud


@pytest.mark.parametrize("preemptions", [0, 2])
def test_a_run_is_finished_whatever_happens_to_its_slice(folder_cloud, preemptions):
    disk = folder_cloud.folder / "disk"
    disk.mkdir()
    (disk / "preemptions").write_text(str(preemptions))
    where = ["--project=p", "--zone=z", "--topology=v6e:2x4", "--capacity=on-demand"]
    command = ["e2h", "recipe", f"--workdir={disk}/run"]
    outcome = folder_cloud.run("tpu_vm.sh", "all", "my-run", *where, "--", *command, E2H_POLL_SECONDS="0.1")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert sum(" queued-resources create " in call for call in folder_cloud.calls) == 1 + preemptions
    fetched = folder_cloud.folder / "runs" / "run"
    assert json.loads((fetched / "done.json").read_text()) == {"seconds": 1}
    assert (fetched / "lines").read_text().split() == [str(i) for i in range(60)]
    log = (folder_cloud.folder / "runs" / "run.logs" / "worker-0.txt").read_text()
    assert log.count("e2h recipe") == 1 + preemptions and log.endswith("exit 0\n")
    assert not (folder_cloud.folder / "home").exists()  # and nothing is left to pay for
