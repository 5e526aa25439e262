"""Two processes that share a mesh: each writes its own shard, and together what one process writes. They stop together."""

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
        return [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()


def logs(folder):
    return [path.read_text()[-3000:] for path in sorted(folder.glob("log*.txt"))]


def run_on_two(stages, folder):
    assert codes_of(start(stages, folder)) == [0, 0], logs(folder)


def by_key(folder, kind):
    return {(record["problem_id"], record["sample"]): record for record in read_many(folder, kind)}


def test_sampling_and_scoring(tmp_path):
    tokenizer = build_tokenizer(arithmetic.PIECES, tmp_path / "tokenizer")
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_length=160)
    for kind, name in (("policy", "model"), ("reward", "judge")):
        mesh = make_mesh((1, 1, 1), jax.devices()[:1])
        store.save(tmp_path / name, kind, config, store.create(kind, config, mesh, seed=3)[1], tokenizer)
    write_records(tmp_path / "problems.jsonl", arithmetic.problems(0, "test", 3, 12))
    common = {"problems": str(tmp_path / "problems.jsonl"), "mesh": (2, 2, 1)}
    sampling = common | dict(model=str(tmp_path / "model"), samples=8, temperature=1.0, top_k=0, max_new_tokens=40, rows=16)
    scoring = common | {"model": str(tmp_path / "judge"), "samples": str(tmp_path / "samples"), "length_bucket": 128}
    stages = [("sample", sampling, str(tmp_path / "samples")), ("score", scoring, str(tmp_path / "scored"))]

    # Interrupted at some time: the first process's shard is torn, the second's has lost its end.
    run_on_two(stages, tmp_path)
    whole = {name: by_key(tmp_path / name, kind) for name, kind in (("samples", "sample"), ("scored", "scored"))}
    assert len(whole["samples"]) == len(whole["scored"]) == 12 * 8
    for name in whole:
        shards = sorted((tmp_path / name).glob("*-of-00002.jsonl"))
        assert [shard.name[-20:] for shard in shards] == ["00000-of-00002.jsonl", "00001-of-00002.jsonl"]
        assert all(shard.read_bytes().count(b"\n") > 20 for shard in shards)
        for shard, keep in zip(shards, (0.5, 0.8), strict=True):
            shard.write_bytes(shard.read_bytes()[: int(shard.stat().st_size * keep)])
        (tmp_path / name / "done.json").unlink()
    run_on_two(stages, tmp_path)
    assert by_key(tmp_path / "samples", "sample") == whole["samples"]
    assert by_key(tmp_path / "scored", "scored") == whole["scored"]

    alone = stage.load("sample").defaults()
    alone.update(sampling | {"mesh": (4, 2, 1)})
    stage.execute("sample", alone, tmp_path / "alone")
    for key, record in by_key(tmp_path / "alone", "sample").items():
        assert record["text"] == whole["samples"][key]["text"]
        assert record["logprob"] == pytest.approx(whole["samples"][key]["logprob"], abs=1e-3)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A folder, the fields of a training of 80 steps in it, and its parameters when one process runs it.

    Not all records are trained on: some are of another level, some have no solution, one is too long.
    """
    folder = tmp_path_factory.mktemp("training")
    build_tokenizer(arithmetic.PIECES, folder / "tokenizer")
    template, problems = get_template("e2h"), list(arithmetic.problems(0, "train", 1, 170))
    problems = [*arithmetic.problems(0, "train", 2, 15), *problems]
    solved = [p | {"solution": template.format_solution(*arithmetic.solve(p["question"]))} for p in problems]
    solved[20]["solution"] *= 9
    write_records(folder / "solved.jsonl", solved[:100] + problems[100:109] + solved[109:])
    fields = {"tokenizer": str(folder / "tokenizer"), "data": str(folder / "solved.jsonl"), "length": 64, "batch_size": 8}
    fields["levels"] = [1]
    fields |= {"epochs": 4, "log_every": 1, "checkpoint_every": 15, "mesh": [2, 2, 1]}
    assert codes_of(start([("sft", fields, str(folder / "whole"))], folder, count=1)) == [0], logs(folder)
    return folder, fields, parameters(folder / "whole")


def parameters(workdir):
    return {name: np.asarray(array.read().result()) for name, array in open_arrays(workdir / "model" / "params").items()}


def wait_for_steps(workdir, count, process):
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        time.sleep(0.01)


def test_a_recipe_may_begin_with_converting(tmp_path):
    """The first process converts, alone; the model is there for both."""
    tokenizer = build_tokenizer(arithmetic.PIECES, tmp_path / "tokenizer")
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_length=160)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    params = store.create("policy", config, mesh, seed=3)[1]
    store.save(tmp_path / "model", "policy", config, params, tokenizer)
    export = stage.load("convert").defaults()
    export.update({"source": str(tmp_path / "model"), "to": "huggingface"})
    stage.execute("convert", export, tmp_path / "out")
    write_records(tmp_path / "problems.jsonl", arithmetic.problems(0, "test", 1, 2))

    sampling = {"model": str(tmp_path / "in" / "model"), "problems": str(tmp_path / "problems.jsonl"), "mesh": (2, 2, 1)}
    sampling |= dict(samples=2, temperature=1.0, top_k=0, max_new_tokens=8, rows=4)
    stages = [
        ("convert", {"source": str(tmp_path / "out" / "huggingface")}, str(tmp_path / "in")),
        ("sample", sampling, str(tmp_path / "samples")),
    ]
    run_on_two(stages, tmp_path)
    assert len(by_key(tmp_path / "samples", "sample")) == 4
    found = store.load(tmp_path / "in" / "model", mesh, "policy")[2]
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(params)))


def test_a_tensor_axis_may_leave_its_host(training, tmp_path):
    """Both processes then have all rows."""
    folder, fields, _ = training
    runs = {}
    for count in (2, 1):
        workdir = tmp_path / f"run{count}"
        stages = [("sft", fields | {"epochs": 1, "mesh": [1, 1, 4]}, str(workdir))]
        assert codes_of(start(stages, tmp_path, count)) == [0] * count, logs(tmp_path)
        runs[count] = parameters(workdir)
    for name, value in runs[1].items():
        np.testing.assert_allclose(runs[2][name], value, atol=1e-5, err_msg=name)


def test_told_to_stop_two_go_on_as_one(training, tmp_path):
    """Each tokenises every second record; the one that goes on takes what they have made."""
    folder, fields, expected = training
    data, workdir = tmp_path / "solved.jsonl", tmp_path / "run"
    data.write_bytes((folder / "solved.jsonl").read_bytes())
    stages = [("sft", fields | {"data": str(data)}, str(workdir))]
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
    summaries = [json.loads((path / "done.json").read_text())["metrics"] for path in (workdir, folder / "whole")]
    resumed, whole = ({name: s[name] for name in ("examples", "dropped", "tokens", "steps")} for s in summaries)
    assert resumed == whole and whole["examples"] == 160 and whole["dropped"] == 1
    assert not (workdir / ".examples").exists()
    found = parameters(workdir)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_mistake_in_the_slice_of_one_is_told_by_both(training, tmp_path):
    folder, fields, _ = training
    lines = (folder / "solved.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_bytes(b"".join([*lines[:7], b"{}\n", *lines[7:]]))
    processes = start([("sft", fields | {"data": str(tmp_path / "data.jsonl")}, str(tmp_path / "run"))], tmp_path)
    assert codes_of(processes) == [2, 2], logs(tmp_path)
    assert all('data.jsonl:8: field "id" is missing' in log for log in logs(tmp_path))


@pytest.mark.parametrize("dead", [0, 1])
def test_the_death_of_one_is_the_end_of_both(training, tmp_path, dead):
    folder, fields, _ = training
    processes = start([("sft", fields | {"epochs": 400}, str(tmp_path / "run"))], tmp_path)
    wait_for_steps(tmp_path / "run", 5, processes[0])
    processes[dead].kill()
    began = time.monotonic()
    codes = codes_of(processes)
    assert codes[dead] == -9 and codes[1 - dead] == 143, logs(tmp_path)
    assert time.monotonic() - began < 40  # with a heartbeat of 10 s
    assert "e2h: another process of this job has died (see above); run the same command on all" in logs(tmp_path)[1 - dead]
