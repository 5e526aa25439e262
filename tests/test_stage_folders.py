"""A stage's folder that an older version made, or something else; what a start does to it: test_refused_starts.py."""

import json
import re
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from e2h_jax import recipe, stage
from e2h_jax.config import fingerprint, plain
from e2h_jax.errors import UserError


def toy_config(**fields):
    config = stage.load("toy").defaults()
    config.update(fields)
    return config


def runs(workdir):
    return (workdir / "runs.txt").read_text().split()


def test_an_older_version_wrote_down_no_outputs(toy):
    stage.execute("toy", toy_config(), toy / "out")
    done = json.loads((toy / "out" / "done.json").read_text())
    del done["outputs"]
    (toy / "out" / "done.json").write_text(json.dumps(done))
    stage.execute("toy", toy_config(), toy / "out")
    (toy / "out" / "runs.txt").unlink()
    with pytest.raises(UserError, match="toy is done, but all it wrote is gone"):
        stage.execute("toy", toy_config(), toy / "out")


def newer(monkeypatch, **changes):
    """A later version of the toy: fields added, changed, or (None) removed; "a.b" is in the group a."""
    module = stage.load("toy")
    fields = module.defaults().to_dict()
    for name, value in changes.items():
        *groups, last = name.split("__")
        holder = fields
        for group in groups:
            holder = holder[group]
        holder[last] = value
        if value is None:
            del holder[last]
    monkeypatch.setattr(module, "defaults", lambda: ConfigDict(fields).lock())
    return ConfigDict(fields).unlock()


ADDED = {"gain": 2.0, "optimizer__b2": 0.95, "lora": {"rank": 0, "targets": ("q",)}}


def test_new_fields_with_their_defaults_are_no_other_config(toy, monkeypatch):
    stage.execute("toy", toy_config(steps=5), toy / "out")
    config = newer(monkeypatch, **ADDED)
    config.steps = 5
    assert stage.execute("toy", config, toy / "out")["steps"] == 5
    assert runs(toy / "out") == ["5"]
    # A version after that has another default of a field that the folder's first version did not have.
    later = newer(monkeypatch, gain=3.0)
    later.steps = 5
    with pytest.raises(UserError, match=r"\(gain: 2\.0 -> 3\.0\)"):
        stage.execute("toy", later, toy / "out")


def test_what_was_asked_for_stays_when_a_folder_is_taken_up(toy, monkeypatch, capsys):
    stage.execute("toy", toy_config(steps=5), toy / "out", inputs={"data": "a run"})
    before = json.loads((toy / "out" / "config.json").read_text())
    config = newer(monkeypatch, **ADDED)
    config.steps = 5
    for said in (True, False):
        stage.execute("toy", config, toy / "out")
        shown = capsys.readouterr().out
        assert ("begun by an older version, without gain, lora.rank, lora.targets, optimizer.b2; " in shown) == said
        assert json.loads((toy / "out" / "config.json").read_text()) == before | {"taken_up": plain(config)}
    later = newer(monkeypatch, **ADDED, speed=1.0)
    later.steps = 5
    stage.execute("toy", later, toy / "out")
    assert "begun by an older version, without speed; " in capsys.readouterr().out


def test_a_folder_that_0_2_0_has_taken_up_is_taken_up(toy, monkeypatch, capsys):
    """That version wrote the new fields into `config`."""
    stage.execute("toy", toy_config(), toy / "out")
    path, config = toy / "out" / "config.json", newer(monkeypatch, **ADDED)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": fingerprint(config), "config": plain(config)}))
    before = path.read_bytes()
    stage.execute("toy", config, toy / "out")
    assert path.read_bytes() == before and "older version" not in capsys.readouterr().out


def test_an_interrupted_run_of_an_older_version_goes_on(toy, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        stage.execute("toy", toy_config(steps=130), toy / "out")
    (toy / "out" / "part.jsonl").write_text("half of the work")
    before, config = plain(toy_config(steps=130)), newer(monkeypatch, **ADDED)
    config.steps = 130
    for said in (True, False):
        with pytest.raises(KeyboardInterrupt):
            stage.execute("toy", config, toy / "out")
        assert ("out: begun by an older version, without gain, lora.rank, " in capsys.readouterr().out) == said
    asked = json.loads((toy / "out" / "config.json").read_text())
    assert asked["config"] == before and asked["taken_up"] == plain(config)
    config = newer(monkeypatch, gain=3.0)
    config.steps = 130
    with pytest.raises(UserError, match=r"\(gain: 2\.0 -> 3\.0\)"):
        stage.execute("toy", config, toy / "out")


@pytest.mark.parametrize(
    ("changes", "asked", "difference"),
    [
        (ADDED, {"gain": 2.5}, "gain: (absent) -> 2.5"),
        (ADDED, {"lora": {"rank": 8}}, "lora.rank: (absent) -> 8"),
        ({"gain": 2.0}, {"gain": 2}, None),  # a number's field takes whole ones and makes them its own
        ({"flag": False}, {}, None),
        ({"rate": 0.7}, {}, "rate: 0.5 -> 0.7"),  # another default
        ({"optimizer__warmup": 3}, {}, "optimizer.warmup: 2 -> 3"),
        ({"rate": None}, {}, "rate: 0.5 -> (absent)"),  # removed
        ({"rate": None, "speed": 0.5}, {}, "rate: 0.5 -> (absent)"),  # renamed
        ({"steps": 3.0}, {}, "steps: 3 -> 3.0"),  # of another type
        ({"shuffle": 0}, {}, "shuffle: False -> 0"),
        ({"levels": ("1", "2")}, {}, "levels: [1, 2] -> ['1', '2']"),
        ({"limit": 5}, {}, "limit: None -> 5"),
        ({}, {"generators": {"sft": "a"}}, "generators.sft: (absent) -> a"),  # an open group has no defaults
        ({}, {"generators": {"sft": {"samples": "a"}}}, "generators.sft.samples: (absent) -> a"),
    ],
)
def test_what_a_later_version_takes_for_the_same_config(toy, monkeypatch, changes, asked, difference):
    stage.execute("toy", toy_config(), toy / "out")
    config = newer(monkeypatch, **changes)
    config.update(asked)
    if difference is None:
        stage.execute("toy", config, toy / "out")
        assert runs(toy / "out") == ["3"]
        return
    with pytest.raises(UserError) as error:
        stage.execute("toy", config, toy / "out")
    assert f"({difference})" in str(error.value)


def test_a_folder_of_something_else_is_not_taken(toy):
    (toy / "out").mkdir()
    (toy / "out" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"out/config\.json is not a stage's; give toy another --workdir"):
        stage.execute("toy", toy_config(), toy / "out")
    (toy / "out" / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"out/config\.json is damaged"):
        stage.execute("toy", toy_config(), toy / "out")


def test_a_folder_that_cannot_be_written_is_one_sentence(toy):
    (toy / "out" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write into the folder .*out: is a directory; give another --workdir"):
        stage.execute("toy", toy_config(), toy / "out")


OLD = Path(__file__).parent / "folders_b95a7db"
RECIPE = ("data", "base", "sft", "evaluator_samples", "labels", "prm", "samples", "score_prm", "rest_em", "dpo", "ppo")


@pytest.fixture
def old(tmp_path):
    """Finished folders of b95a7db, each with a file in place of what it wrote."""
    shutil.copytree(OLD, tmp_path / "run")
    for path in (tmp_path / "run").glob("*/done.json"):
        (path.parent / "written").write_text("x")
    return tmp_path / "run"


def as_asked(folder):
    """Stage and config of an old folder, in this version's fields: what was asked for then, and the new ones' defaults."""
    asked = json.loads((folder / "config.json").read_text())
    config = ConfigDict(stage.load(asked["stage"]).defaults()).unlock()

    def tuples(value):
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    def fill(group, values):
        for name, value in values.items():
            if isinstance(group.get(name), ConfigDict) and len(group[name]):
                fill(group[name], value)
            else:
                group[name] = ConfigDict(value) if isinstance(value, dict) else tuples(value)

    fill(config, asked["config"])
    return asked["stage"], config.lock()


def test_the_old_folders_are_of_all_stages():
    stages = {json.loads(path.read_text())["stage"] for path in OLD.glob("*/config.json")}
    assert stages == set(stage.STAGES) - {"recipe"}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in OLD.glob("*/config.json")))
def test_folders_of_b95a7db_are_taken_up(old, name, capsys):
    which, config = as_asked(old / name)
    metrics = json.loads((old / name / "done.json").read_text())["metrics"]
    assert stage.execute(which, config, old / name) == metrics
    assert "done already, skipped" in capsys.readouterr().out
    (old / name / "written").unlink()
    with pytest.raises(UserError, match=f"{which} is done, but all it wrote is gone"):
        stage.execute(which, config, old / name)


def test_a_recipe_of_b95a7db_is_taken_up(old, capsys):
    config = recipe.defaults().unlock()
    config.stages = RECIPE
    for name in RECIPE:
        which, config[name] = as_asked(old / name)
        config[name].unlock().stage = which
    stage.check_config("recipe", config)
    for said in (True, False):  # the second time by what the first has kept
        summary = stage.execute("recipe", config.lock(), old)
        assert list(summary["metrics"]) == list(RECIPE)
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.count("done already, skipped") == len(RECIPE)
        told = rf"{re.escape(str(old))}/prm: begun by an older version, without [a-z_, ]*lm_wrong"
        assert bool(re.search(told, shown)) == said


def test_a_default_that_has_changed_since_b95a7db_is_shown(old):
    which, config = as_asked(old / "ppo")
    config.unlock().whiten_rewards = stage.load("ppo").defaults().whiten_rewards
    with pytest.raises(UserError, match=r"holds a run with another config \(whiten_rewards: batch -> none\)"):
        stage.check_folder(which, config, old / "ppo")
