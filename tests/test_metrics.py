import json
import math
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from e2h_jax import main as command
from e2h_jax import metrics, stage
from e2h_jax.errors import UserError
from e2h_jax.metrics import MetricsWriter


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Reads TensorBoard's event files: records of length (8 bytes), checksum (4), payload, checksum (4)."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length


def test_writes_json_lines_and_tensorboard(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, {"loss": np.float32(0.5), "count": 2})
        # Flushed at once: a killed process loses nothing.
        assert lines(tmp_path / "run")[0]["loss"] == 0.5
        writer.write(2, {"loss": 0.25})
    first, second = lines(tmp_path / "run")
    assert list(first) == ["step", "loss", "count", "time"] and second["step"] == 2
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "run") for v in e.summary.value]
    assert scalars == [(1, "loss", 0.5), (1, "count", 2.0), (2, "loss", 0.25)]


def test_resume_drops_later_lines_and_a_torn_last_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, {"loss": 30})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    # TensorBoard hides what was logged before at these steps.
    assert [e.step for e in events(tmp_path) if e.HasField("session_log")] == [0, 3]


def test_resume_at_0_starts_anew(tmp_path):
    for _ in range(2):
        with MetricsWriter(tmp_path) as writer:
            writer.write(0, {"loss": 1})
    assert [line["step"] for line in lines(tmp_path)] == [0]


def test_values_that_are_not_finite_stay_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": math.nan, "b": -math.inf})
    (line,) = lines(tmp_path)
    assert math.isnan(float(line["a"])) and float(line["b"]) == -math.inf
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)


def test_disabled_touches_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", enabled=False) as writer:
        writer.write(1, {"loss": 1})
    assert not (tmp_path / "run").exists()


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        MetricsWriter(tmp_path, resume_step=3)


class Wandb:
    """Stands in for the package of Weights & Biases, and records what it is told."""

    class Error(Exception):
        pass

    def __init__(self):
        self.runs = []

    def init(self, **about):
        if about["job_type"] == "refused":
            raise self.Error("no API key")
        run = types.SimpleNamespace(about=about, logged=[], summary={}, exit_code=None)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda exit_code: setattr(run, "exit_code", exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(metrics, "_wandb", None)  # and so it is left
    return package


RECIPE = """
from ml_collections import ConfigDict
from e2h_jax import recipe
from toys.toy import defaults

def get_config():
    config = recipe.defaults().unlock()
    config.stages = ("first", "second")
    for name in config.stages:
        config[name] = ConfigDict(defaults().to_dict() | {"stage": "toy"})
    return config.lock()
"""
LOGGING = """
from e2h_jax.metrics import MetricsWriter

def logging(run):
    def run_and_log(config, workdir):
        with MetricsWriter(workdir) as writer, MetricsWriter(workdir / "round-1" / "train") as inner:
            writer.write(1, {"loss": 0.5})
            inner.write(1, {"loss": 9})
        return run(config, workdir) | {"kind": "toy", "split": {"train": 3}}
    return run_and_log

run = logging(run)
"""


def test_one_flag_logs_every_stage_of_a_recipe_to_wandb(toy, wandb):
    (toy / "recipe.py").write_text(RECIPE)
    with open(toy / "toys" / "toy.py", "a") as file:
        file.write(LOGGING)
    assert command.main(["recipe", "--config=recipe.py", "--workdir=out", "--wandb"]) == 0
    first, second = wandb.runs
    assert [run.about["name"] for run in wandb.runs] == ["out/first", "out/second"]
    assert {run.about["group"] for run in wandb.runs} == {"out"}
    assert first.about["id"] != second.about["id"]
    assert (first.about["job_type"], first.about["config"]["optimizer"]["warmup"]) == ("toy", 2)
    # What the stage's own folder logs, not the training inside a round; and the numbers of the summary.
    assert first.logged == [(1, {"loss": 0.5})]
    assert (first.summary, first.exit_code) == ({"steps": 3, "rate": 0.5}, 0)
    assert lines(toy / "out" / "first")[0]["loss"] == 0.5


def test_without_the_flag_wandb_is_not_asked(toy, wandb):
    assert command.main(["toy", "--workdir=out"]) == 0
    assert wandb.runs == [] and not (toy / "out" / "wandb").exists()


def test_a_resumed_stage_goes_on_in_its_run_of_wandb(toy, wandb):
    assert command.main(["toy", "--workdir=out", "--wandb", "--config.steps=130"]) == 130
    assert command.main(["toy", "--workdir=out", "--wandb", "--config.steps=4"]) == 0  # nothing had come of it
    assert command.main(["toy", "--workdir=other", "--wandb"]) == 0
    broken, resumed, other = wandb.runs
    assert broken.about["id"] == resumed.about["id"] != other.about["id"]
    assert [run.exit_code for run in wandb.runs] == [1, 0, 0]


def test_mistakes_with_wandb_are_one_sentence(toy, wandb, monkeypatch, capsys):
    stage.STAGES["refused"] = "toys.toy"
    assert command.main(["refused", "--workdir=out", "--wandb"]) == 2
    assert "Weights & Biases: no API key; WANDB_MODE=offline" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert command.main(["toy", "--workdir=out", "--wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err


def test_a_stage_that_logs_nothing_leaves_its_summary_as_a_line(toy):
    assert command.main(["toy", "--workdir=out"]) == 0
    (line,) = lines(toy / "out")
    assert {name: line[name] for name in ("step", "steps", "rate")} == {"step": 1, "steps": 3, "rate": 0.5}
    scalars = [(e.step, v.tag, v.simple_value) for e in events(toy / "out") for v in e.summary.value]
    assert scalars == [(1, "steps", 3.0), (1, "rate", 0.5)]
