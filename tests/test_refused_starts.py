"""A stage's folder: what a refused start leaves in it, what in it is the stage's own, and what a finished one must hold."""

import json
import shutil
import signal

import pytest

from e2h_jax import stage
from e2h_jax.errors import UserError

REFUSING = '''
import json
from toys.toy import *
from toys.toy import defaults as _defaults


def defaults():
    config = _defaults().unlock()
    config.writes = ("inputs.json", "shard.jsonl", "tokenizer/vocab.json", "round-1/samples/metrics.jsonl")  # empty files
    config.works = ""  # a file with content
    return config.lock()


def run(config, workdir):
    for name in (*config.writes, *filter(None, [config.works])):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text("{}" if name == config.works else "")
    if config.steps == 9:
        raise UserError("config.steps=9 is too long.")
    (workdir / "out.jsonl").write_text(f"{config.steps}\\n")
    return {"steps": config.steps} | ({"bad": {1, 2}} if config.steps == 8 else {})
'''


@pytest.fixture
def refusing(toy):
    (toy / "toys" / "refusing.py").write_text(REFUSING)
    stage.STAGES["refusing"] = "toys.refusing"

    def run(workdir="out", **fields):
        config = stage.load("refusing").defaults()
        config.update(fields)
        return stage.execute("refusing", config, toy / workdir)

    return run


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_refused_start_leaves_the_folder_as_it_was(refusing, toy):
    (toy / "out" / "mine").mkdir(parents=True)
    (toy / "out" / "mine" / "problems.jsonl").write_text("{}")
    with pytest.raises(UserError, match="too long"):
        refusing(steps=9)
    assert names(toy / "out") == [".lock", "mine/problems.jsonl"]
    (toy / "out" / "tokenizer").mkdir()  # of a start that was killed
    with pytest.raises(UserError, match="too long"):
        refusing(steps=9)
    assert refusing(steps=5) == {"steps": 5}
    done = json.loads((toy / "out" / "done.json").read_text())
    assert 0.02 < done["peak_memory_gib"] < 100 and "peak_device_memory_gib" not in done
    assert done["outputs"] == {"out.jsonl": 1, "shard.jsonl": 0, "tokenizer": 0}
    with pytest.raises(UserError, match=r"holds a run with another config \(steps: 5 -> 9\)"):
        refusing(steps=9)


@pytest.mark.parametrize("file", ["metrics.jsonl", "round-1/train/metrics.jsonl", "nan/step-3.npz", "checkpoints/5/x"])
def test_what_came_of_work_stays(refusing, toy, file):
    with pytest.raises(UserError, match="too long"):
        refusing(steps=9, works=file)
    assert {file, "config.json", "seconds.json"} <= set(names(toy / "out"))
    with pytest.raises(UserError, match=r"holds a run with another config \(steps: 9 -> 5\)"):
        refusing(steps=5, works=file)


def test_a_resumed_run_that_is_refused_stays(refusing, toy, monkeypatch):
    """Its config is fine: a file it reads is missing now, say."""
    module = stage.load("refusing")
    run = module.run
    monkeypatch.setattr(module, "run", lambda config, workdir: (run(config, workdir), signal.raise_signal(signal.SIGINT))[0])
    with pytest.raises(KeyboardInterrupt):
        refusing(steps=5)
    before = names(toy / "out")
    monkeypatch.setattr(module, "run", lambda config, workdir: (_ for _ in ()).throw(UserError("lost")))
    with pytest.raises(UserError, match="lost"):
        refusing(steps=5)
    assert names(toy / "out") == before


@pytest.fixture
def appending(refusing, toy, monkeypatch):
    """A stage that adds its steps to a shard, and then is interrupted (`ends=KeyboardInterrupt()`), refused, or finishes."""

    def run(steps, ends=None):
        def append(config, workdir):
            with open(workdir / "samples.jsonl", "a") as file:
                file.write(f"{config.steps}\n" if ends or steps > 2 else "")
            if ends:
                raise ends
            return {}

        monkeypatch.setattr(stage.load("refusing"), "run", append)
        return refusing(steps=steps)

    return run


def test_work_whose_config_is_lost_is_still_the_stage_s_own(appending, toy):
    for steps in (1, 2):  # deleting config.json is a way around "holds a run with another config"
        (toy / "out" / "config.json").unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            appending(steps, KeyboardInterrupt())
    with pytest.raises(UserError, match=r"holds a run with another config \(steps: 2 -> 3\)"):
        appending(3)
    appending(2)
    assert json.loads((toy / "out" / "done.json").read_text())["outputs"] == {"samples.jsonl": 1}
    (toy / "out" / "config.json").unlink()
    with pytest.raises(UserError, match=r"out holds a finished run, but its config\.json is gone"):
        appending(2)


def test_what_a_stage_found_done_is_its_output(appending, toy):
    (toy / "out").mkdir()
    (toy / "out" / "samples.jsonl").write_text("2\n")
    appending(2)
    (toy / "out" / "samples.jsonl").unlink()
    with pytest.raises(UserError, match=r"samples\.jsonl is gone"):
        appending(2)


def test_a_refusal_does_not_undo_what_was_changed(appending, toy):
    (toy / "out").mkdir()
    (toy / "out" / "samples.jsonl").write_text("1\n")
    with pytest.raises(UserError, match="too many"):
        appending(2, UserError("too many"))
    assert (toy / "out" / "samples.jsonl").read_text() == "1\n2\n"
    with pytest.raises(UserError, match=r"\(steps: 2 -> 3\)"):
        appending(3)


def test_names_that_0_2_0_wrote_down_are_beside(appending, toy):
    (toy / "out").mkdir()
    (toy / "out" / "mine.txt").write_text("x")
    with pytest.raises(KeyboardInterrupt):
        appending(1, KeyboardInterrupt())
    path = toy / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beside": ["mine.txt"]}))
    (toy / "out" / "mine.txt").write_text("changed")
    (toy / "out" / "samples.jsonl").unlink()
    appending(3)
    assert json.loads((toy / "out" / "done.json").read_text())["outputs"] == {"samples.jsonl": 1}


def test_a_start_that_cannot_be_undone_is_told_as_what_it_was(refusing, toy, monkeypatch):
    def busy(path):
        raise OSError(39, "directory not empty")  # of NFS, say

    monkeypatch.setattr(shutil, "rmtree", busy)
    with pytest.raises(UserError, match="too long"):
        refusing(steps=9)
    assert "config.json" in names(toy / "out")


def test_a_summary_that_cannot_be_written_removes_no_work(refusing, toy):
    with pytest.raises(UserError, match=r"summary\.bad holds a set"):
        refusing(steps=8)
    assert "out.jsonl" in names(toy / "out")


def test_a_finished_stage_whose_outputs_are_gone_is_not_done(refusing, toy):
    (toy / "out").mkdir()
    (toy / "out" / "mine.txt").write_text("x")
    refusing(works="model/params/a")
    for name in ("mine.txt", "inputs.json", "round-1/samples/metrics.jsonl", "shard.jsonl"):  # another's, not needed, or empty
        (toy / "out" / name).unlink(missing_ok=name != "shard.jsonl")
    refusing(works="model/params/a")
    (toy / "out" / "out.jsonl").write_text("")
    with pytest.raises(UserError, match=r"out: refusing is done, but out\.jsonl is gone; restore it, or delete the folder"):
        refusing(works="model/params/a")
    (toy / "out" / "out.jsonl").write_text("3\n")
    (toy / "out" / "model" / "params" / "a").unlink()
    with pytest.raises(UserError, match="model is gone"):
        refusing(works="model/params/a")


@pytest.mark.parametrize("name", ["data.jsonl", "metrics.jsonl.gz", "nano", "round-1.md", "inputs.jsonl", "tensorboards"])
def test_only_whole_names_are_spare(refusing, toy, name):
    refusing(works=name)
    (toy / "out" / name).unlink()
    with pytest.raises(UserError, match=f"{name} is gone"):
        refusing(works=name)
