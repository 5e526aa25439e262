"""Two processes that share a mesh: each writes its own shard, and together what one process writes. They stop together.

A start costs more than a stage of this size: one process runs all stages in a row (`alone`), then two do (`together`).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from e2h_jax import stage
from e2h_jax.data import arithmetic
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.models import store
from e2h_jax.models.arrays import open_arrays
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh

PROGRAM = """
import json, sys
from pathlib import Path
from e2h_jax import main, stage
from e2h_jax.parallel import hosts
hosts.HEARTBEAT_SECONDS = 10

def run(stages):
    for name, fields, folder in stages:
        config = stage.load(name).defaults()
        config.update(fields)
        stage.execute(name, config, Path(folder))
    return 0

main._run = run  # in place of a command line's stage
main.parse = lambda path: json.load(open(path[0]))
main.COMMANDS = {}
sys.exit(main.main(sys.argv[1:]))
"""


def start(stages, folder, count=2):
    """Starts stages, to be run one after the other, in `count` processes of four devices together."""
    (folder / "stages.json").write_text(json.dumps(stages))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(count):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={4 // count}"  # the last one counts
        environment = os.environ | {"XLA_FLAGS": flags}
        if count > 1:
            environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
            environment |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        with open(folder / f"log{index}.txt", "wb") as log:
            command = [sys.executable, "-c", PROGRAM, str(folder / "stages.json")]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    return processes


def codes_of(processes):
    try:
        return [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()


def logs(folder):
    return [path.read_text()[-3000:] for path in sorted(folder.glob("log*.txt"))]


def by_key(folder, kind):
    return {(record["problem_id"], record["sample"]): record for record in read_many(folder, kind)}


def parameters(workdir):
    return {name: np.asarray(array.read().result()) for name, array in open_arrays(workdir / "model" / "params").items()}


def assert_same(found, expected, atol=0.0):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=atol, err_msg=name)


def stages_of(folder, workdir, policy):
    """{name: (stage, its fields, its folder)}, with the data in `folder` and the reward model that is trained there."""
    judge, few = str(folder / "alone" / "reward" / "model"), str(folder / "few.jsonl")
    training = {"length": 64, "batch_size": 8, "log_every": 1, "mesh": [2, 2, 1], "optimizer": {"learning_rate": 1e-2}}
    sft = {"init": str(folder / "random"), "data": str(folder / "solved.jsonl"), "levels": [1], "epochs": 4}
    across = {"mesh": [1, 1, 4], "epochs": 1, "optimizer": {"learning_rate": 1e-4}}
    reward = {"init": str(folder / "random"), "data": str(folder / "labelled.jsonl"), "lm_loss": 0.3, "position_gap": 20}
    drawing = {"samples": 8, "temperature": 1.0, "top_k": 0, "max_new_tokens": 40, "rows": 16}
    sample = drawing | {"model": policy, "problems": few, "mesh": [2, 2, 1]}
    batches = {"length_bucket": 128, "tokens_per_batch": 1024}
    score = batches | {"model": judge, "samples": str(workdir / "sample"), "problems": few, "mesh": [2, 2, 1]}
    rounds = {"init": policy, "questions": str(folder / "hidden.jsonl"), "rounds": 1, "mesh": [2, 2, 1], "sample": drawing}
    rounds |= {"reward_model": judge, "score": batches, "train": {"length": 128, "batch_size": 8, "log_every": 1}}
    ppo = {"init": policy, "questions": few, "mesh": [2, 2, 1], "steps": 2, "questions_per_step": 4, "sample": drawing}
    ppo |= {"advantage": "rloo", "whiten_advantages": "none", "kl": {"coef": 0.0}, "reward": {"process": "none"}}
    ppo |= {"optimizer": {"learning_rate": 1e-3}}
    ppo |= {"minibatches": 2, "length": 128, "forward_rows": 4, "update_rows": 4}
    stages = {
        "sft": ("sft", training | sft | {"checkpoint_every": 15}),
        "across": ("sft", training | sft | across),
        "reward": ("reward", training | reward),
        "sample": ("sample", sample),
        "score": ("score", score),
        "rest_em": ("rest_em", rounds | {"threshold": 0.0}),
        "dpo": ("dpo", rounds | {"margin": 0.0, "margin_hidden": 0.0}),
        "ppo": ("ppo", ppo),
    }
    return {name: (stage, fields, str(workdir / name)) for name, (stage, fields) in stages.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with data, and in `alone/` what one process of four devices makes of it, stage by stage.

    Of the solved problems not all are trained on: some are of another level, some have no solution, one is too long.
    """
    folder = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer(arithmetic.PIECES, folder / "tokenizer")
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=4, head_dim=8, mlp_width=48, max_length=160)
    params = store.create("policy", config, make_mesh((1, 1, 1), jax.devices()[:1]), seed=3)[1]
    store.save(folder / "random", "policy", config, params, tokenizer)
    template, problems = get_template("e2h"), list(arithmetic.problems(0, "train", 1, 170))
    write_records(folder / "few.jsonl", problems[:12])
    write_records(folder / "hidden.jsonl", [problem | {"answer": None} for problem in problems[:12]])
    problems = [*arithmetic.problems(0, "train", 2, 15), *problems]
    solved = [p | {"solution": template.format_solution(*arithmetic.solve(p["question"]))} for p in problems]
    solved[20]["solution"] *= 9
    write_records(folder / "solved.jsonl", solved[:100] + problems[100:109] + solved[109:])
    labelled = [
        {"problem_id": None, "question": problem["question"], "prefix": "", "steps": [*steps, f"# Answer\n\n{answer}"]}
        | {"labels": [*[1.0] * len(steps), float(number % 2)], "level": 1}
        for number, problem in enumerate(problems[15:])
        for steps, answer in [arithmetic.solve(problem["question"])]
    ]
    write_records(folder / "labelled.jsonl", labelled)
    stages = stages_of(folder, folder / "alone", str(folder / "alone" / "sft" / "model"))
    assert codes_of(start([*stages.values()], folder, count=1)) == [0], logs(folder)
    return folder


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory):
    """The folder in which two processes have run the same stages, sampling and scoring where others had left off.

    Before that they convert the policy; in the end they meet with a mistake in the slice of one of them.
    """
    folder = tmp_path_factory.mktemp("together")
    export = stage.load("convert").defaults()
    export.update({"source": str(alone / "alone" / "sft" / "model"), "to": "huggingface"})
    stage.execute("convert", export, folder / "export")
    for name, stem in (("sample", "samples"), ("score", "scored")):
        lines = (alone / "alone" / name / f"{stem}-00000-of-00001.jsonl").read_bytes().splitlines(keepends=True)
        torn = {"00000-of-00001": lines[:20], "00000-of-00002": [*lines[20:40], lines[40][:30]], "00001-of-00002": lines[41:50]}
        (folder / name).mkdir()
        for shard, part in torn.items():
            (folder / name / f"{stem}-{shard}.jsonl").write_bytes(b"".join(part))
    lines = (alone / "solved.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "data.jsonl").write_bytes(b"".join([*lines[:7], b"{}\n", *lines[7:]]))

    stages = stages_of(alone, folder, str(folder / "convert" / "model"))
    _, fields, _ = stages.pop("sft")
    convert = ("convert", {"source": str(folder / "export" / "huggingface")}, str(folder / "convert"))
    mistake = ("sft", fields | {"data": str(folder / "data.jsonl")}, str(folder / "mistake"))
    assert codes_of(start([convert, *stages.values(), mistake], folder)) == [2, 2], logs(folder)
    assert all((folder / name / "done.json").exists() for name in ("convert", *stages)), logs(folder)
    return folder


def test_sampling_and_scoring(alone, together):
    for name, stem in (("sample", "samples"), ("score", "scored")):
        kind = "sample" if name == "sample" else "scored"
        found = by_key(together / name, kind)
        assert len(found) == 12 * 8 and found == by_key(alone / "alone" / name, kind)
        for index, begun in enumerate((20, 9)):
            assert (together / name / f"{stem}-0000{index}-of-00002.jsonl").read_bytes().count(b"\n") > begun + 5


@pytest.mark.parametrize("name", ["reward", "rest_em", "dpo", "ppo"])
def test_training(alone, together, name):
    assert_same(parameters(together / name), parameters(alone / "alone" / name), atol=2e-6)  # sums in another order
    for path in (alone / "alone" / name).glob("round-1/*.jsonl"):  # what was kept, what was paired
        assert path.read_bytes() == (together / path.relative_to(alone / "alone")).read_bytes()
    if name in ("rest_em", "dpo"):
        shards = [path for path in (together / name / "round-1").rglob("*-of-00002.jsonl") if path.stat().st_size]
        assert len(shards) == 4  # of samples and of scores, one of each process


def test_the_first_process_converts_and_the_model_is_there_for_both(alone, together):
    assert_same(parameters(together / "convert"), parameters(alone / "alone" / "sft"))


def test_a_tensor_axis_may_leave_its_host(alone, together):
    """Both processes then have all rows."""
    assert_same(parameters(together / "across"), parameters(alone / "alone" / "across"), atol=2e-6)


def test_a_mistake_in_the_slice_of_one_is_told_by_both(together):
    assert all('data.jsonl:8: field "id" is missing' in log for log in logs(together))


def training(alone, workdir, **fields):
    """The `sft` of `alone`, in another folder."""
    _, known, _ = stages_of(alone, alone, "")["sft"]
    return [("sft", known | fields, str(workdir))]


def wait_for_steps(workdir, count, process):
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        time.sleep(0.01)


def test_told_to_stop_two_go_on_as_one(alone, tmp_path):
    """Each tokenises every second record; the one that goes on takes what they have made."""
    data, workdir = tmp_path / "solved.jsonl", tmp_path / "run"
    data.write_bytes((alone / "solved.jsonl").read_bytes())
    stages = training(alone, workdir, data=str(data))
    processes = start(stages, tmp_path)
    wait_for_steps(workdir, 5, processes[0])
    processes[1].send_signal(signal.SIGTERM)  # one alone
    assert codes_of(processes) == [143, 143], logs(tmp_path)
    assert all("run the same command to resume" in log for log in logs(tmp_path))
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert [json.loads(line)["step"] for line in open(workdir / "metrics.jsonl")] == list(range(1, saved + 1))
    slices = {part.name: len(np.load(part / "records.npy")) for part in (workdir / ".examples").iterdir()}
    assert slices == {"00000-of-00002": 93, "00001-of-00002": 92}
    data.write_bytes(b"?" * data.stat().st_size)
    assert codes_of(start(stages, tmp_path, count=1)) == [0], logs(tmp_path)
    summaries = [json.loads((path / "done.json").read_text())["metrics"] for path in (workdir, alone / "alone" / "sft")]
    resumed, whole = ({name: s[name] for name in ("examples", "dropped", "tokens", "steps")} for s in summaries)
    assert resumed == whole and whole["examples"] == 160 and whole["dropped"] == 1
    assert not (workdir / ".examples").exists()
    assert_same(parameters(workdir), parameters(alone / "alone" / "sft"), atol=2e-6)  # sums in another order


@pytest.mark.parametrize("dead", [0, 1])
def test_the_death_of_one_is_the_end_of_both(alone, tmp_path, dead):
    processes = start(training(alone, tmp_path / "run", epochs=400), tmp_path)
    wait_for_steps(tmp_path / "run", 5, processes[0])
    processes[dead].kill()
    began = time.monotonic()
    codes = codes_of(processes)
    assert codes[dead] == -9 and codes[1 - dead] == 143, logs(tmp_path)
    assert time.monotonic() - began < 40  # with a heartbeat of 10 s
    assert "e2h: another process of this job has died (see above); run the same command on all" in logs(tmp_path)[1 - dead]
