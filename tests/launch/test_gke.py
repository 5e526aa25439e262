"""launch/gke/submit.sh: the manifest, and a stand-in for kubectl."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RUN = ["e2h", "recipe", "--config=configs/quickstart.py", "--workdir=/mnt/e2h/run", """--config.note=it's "two": \\d & {x}"""]
FLAGS = ["--image=europe-docker.pkg.dev/p/e2h/e2h:1", "--share=10.0.0.2:/e2h"]
KUBECTL = """
case "$*" in
    get*) cat found; cat error >&2 2>/dev/null && exit 1; exit 0 ;;
    apply*) cat >manifest; [ ! -e refuse ] ;;
esac
"""


@pytest.fixture
def kubectl(cloud):
    cloud.program("kubectl", KUBECTL)
    (cloud.folder / "found").write_text("")
    return cloud


def submit(cloud, *flags, topology="v5e:4x4", run=RUN):
    return cloud.run("gke/submit.sh", "my-run", f"--topology={topology}", *FLAGS, *flags, "--", *run)


def manifest_of(text):
    volume, claim, jobset = yaml.safe_load_all(text)
    (job,) = jobset["spec"]["replicatedJobs"]
    return volume, claim, jobset, job["template"]["spec"]


def test_the_manifest(cloud):
    outcome = submit(cloud, "--dry-run", "--restarts=7", "--grace=90", "--service-account=trainer")
    assert outcome.returncode == 0 and cloud.calls == []
    first, *lines, last = outcome.stdout.splitlines()
    assert (first, last) == ("kubectl apply -f - <<'END'", "END")
    volume, claim, jobset, job = manifest_of("\n".join(lines))
    assert volume["spec"]["nfs"] == {"server": "10.0.0.2", "path": "/e2h"}
    assert {"nolock", "lookupcache=none"} <= set(volume["spec"]["mountOptions"])
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "my-run"
    assert jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    assert (job["parallelism"], job["completions"], job["completionMode"], job["backoffLimit"]) == (4, 4, "Indexed", 0)
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2, 3]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"], pod["serviceAccountName"]) == ("Never", 90, "trainer")
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["command"] == RUN
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/mnt/e2h"]
    assert pod["volumes"] == [{"name": "share", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}]
    assert "@" not in re.sub("#.*", "", "\n".join(lines))


@pytest.mark.parametrize(
    "topology, accelerator, shape, pods, chips",
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5e:16x16", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v6e:2x4", "tpu-v6e-slice", "2x4", 2, 4),
        ("v4:2x2x4", "tpu-v4-podslice", "2x2x4", 4, 4),
        ("v5p:4x4x12", "tpu-v5p-slice", "4x4x12", 48, 4),
        ("tpu7x:2x2x1", "tpu7x", "2x2x1", 1, 4),
        ("tpu7x:4x4x4", "tpu7x", "4x4x4", 16, 4),
    ],
)
def test_slices(cloud, topology, accelerator, shape, pods, chips):
    outcome = submit(cloud, "--dry-run", "--capacity=on-demand", topology=topology)
    *_, job = manifest_of("\n".join(outcome.stdout.splitlines()[1:-1]))
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert job["parallelism"] == job["completions"] == pods
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_a_reservation(cloud):
    outcome = submit(cloud, "--dry-run", "--capacity=reservation:ours")
    assert '              cloud.google.com/reservation-name: "ours"\n' in outcome.stdout


def test_submitted(kubectl):
    outcome = submit(kubectl)
    assert outcome.returncode == 0, outcome.stderr
    dry = submit(kubectl, "--dry-run").stdout.splitlines()[1:-1]
    assert (kubectl.folder / "manifest").read_text().splitlines() == dry
    assert [call.split()[:2] for call in kubectl.calls] == [["kubectl", "get"], ["kubectl", "apply"]]
    assert "kubectl logs -f" in outcome.stdout


@pytest.mark.parametrize(
    "found, error, code, said",
    [
        ("my-run:", "", 0, "at work already; nothing was submitted"),
        ("my-run:Failed", "", 2, "my-run has ended (Failed): kubectl delete jobset my-run"),
        ("", 'error: the server doesn\'t have a resource type "jobset"', 2, "this cluster does not know JobSet"),
        ("", "Unable to connect to the server: timeout", 2, "kubectl does not reach the cluster: Unable to connect"),
    ],
)
def test_not_submitted(kubectl, found, error, code, said):
    (kubectl.folder / "found").write_text(found)
    if error:
        (kubectl.folder / "error").write_text(error)
    outcome = submit(kubectl)
    assert outcome.returncode == code and said in outcome.stdout + outcome.stderr
    assert len(kubectl.calls) == 1


def test_kubectl_refuses(kubectl):
    (kubectl.folder / "refuse").touch()
    outcome = submit(kubectl)
    assert outcome.returncode == 1 and "is submitted" not in outcome.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["My_run"], "cannot be a name"),
        (["r"], "--topology is missing"),
        (["r", "--topology=v5e:5x5", *FLAGS, "--", *RUN], "is no slice"),
        (["r", "--topology=v5e:4x4", FLAGS[0], "--", *RUN], "--share=SERVER:/PATH is missing"),
        (["r", "--topology=v5e:4x4", FLAGS[1], "--", *RUN], "--image is missing"),
        (["r", "--topology=v5e:4x4", *FLAGS], "the command to run is missing"),
        (["r", "--topology=v5e:4x4", *FLAGS, "--", "e2h", "sft", "--workdir=/tmp/x"], "is not on the share"),
        (["r", "--topology=v5e:4x4", *FLAGS, "--capacity=free", "--", *RUN], "spot, on-demand or reservation:NAME"),
        (["r", "--topology=v5e:4x4", *FLAGS, "--grace=soon", "--", *RUN], "--grace=soon is not a number"),
        (["r", "--topo=v5e:4x4"], 'there is no flag "--topo=v5e:4x4"'),
    ],
)
def test_mistakes(kubectl, arguments, said):
    outcome = kubectl.run("gke/submit.sh", *arguments)
    assert outcome.returncode == 2 and said in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    assert kubectl.calls == []


def test_without_kubectl(cloud, without):
    outcome = cloud.run("gke/submit.sh", "r", "--topology=v5e:4x4", *FLAGS, "--", *RUN, PATH=without)
    assert outcome.returncode == 2 and "kubectl is not installed here" in outcome.stderr


def test_the_other_files():
    (pod,) = yaml.safe_load_all((ROOT / "launch" / "gke" / "files.yaml").read_text())
    assert pod["kind"] == "Pod" and pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "e2h"
    dockerfile = (ROOT / "launch" / "gke" / "Dockerfile").read_text()
    kept = [line[1:] for line in (ROOT / "launch/gke/Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    copied = [word for line in re.findall("^COPY (.*) .*$", dockerfile, re.M) for word in line.split()]
    assert sorted(copied) == sorted(kept) and all((ROOT / name).exists() for name in copied)
