import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict, config_dict

from e2h_jax import stage
from e2h_jax.config import check_fields, differences, fingerprint, load_file, override, plain, substitute
from e2h_jax.errors import UserError


def toy_config(**fields):
    config = stage.load("toy").defaults()
    config.update(fields)
    return config


def runs(workdir):
    path = workdir / "runs.txt"
    return path.read_text().split() if path.exists() else []


def test_execute_writes_config_and_done(toy):
    assert stage.execute("toy", toy_config(), toy / "out") == {"steps": 3, "rate": 0.5}
    asked, done = (json.loads((toy / "out" / name).read_text()) for name in ("config.json", "done.json"))
    assert asked["stage"] == "toy" and asked["config"]["optimizer"] == {"learning_rate": 0.1, "warmup": 2}
    assert done["fingerprint"] == asked["fingerprint"] == fingerprint(toy_config())
    assert done["metrics"] == {"steps": 3, "rate": 0.5} and 0 <= done["seconds"] < 60
    assert not (toy / "out" / "seconds.json").exists()


def test_a_finished_stage_is_skipped(toy, capsys):
    first = stage.execute("toy", toy_config(), toy / "out")
    assert stage.execute("toy", toy_config(), toy / "out") == first
    assert runs(toy / "out") == ["3"]
    assert "done already, skipped" in capsys.readouterr().out


def test_another_config_is_refused_and_the_difference_shown(toy):
    stage.execute("toy", toy_config(), toy / "out")
    with pytest.raises(UserError) as error:
        stage.execute("toy", toy_config(steps=5, optimizer={"learning_rate": 0.2}), toy / "out")
    assert "(optimizer.learning_rate: 0.1 -> 0.2; steps: 3 -> 5)" in str(error.value)
    assert "--workdir" in str(error.value)
    assert runs(toy / "out") == ["3"]


def test_a_mistake_that_the_stage_refuses_can_be_mended_in_the_same_folder(toy):
    with pytest.raises(UserError, match=r"there is no lost\.jsonl"):
        stage.execute("toy", toy_config(source="lost.jsonl"), toy / "out")
    (toy / "out" / "checkpoints").mkdir()
    assert stage.execute("toy", toy_config(), toy / "out")["steps"] == 3
    assert json.loads((toy / "out" / "config.json").read_text())["config"]["source"] == ""


def test_two_stages_in_one_folder_are_refused(toy):
    stage.execute("toy", toy_config(), toy / "out")
    stage.STAGES["other"] = "toys.toy"
    with pytest.raises(UserError, match='holds a run of "toy"; give "other" another --workdir'):
        stage.execute("other", toy_config(), toy / "out")


def test_an_interrupted_stage_runs_again_and_its_seconds_add_up(toy, monkeypatch):
    module = stage.load("toy")

    def interrupted(config, workdir):
        time.sleep(0.3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage.execute("toy", toy_config(), toy / "out")
    assert not (toy / "out" / "done.json").exists()
    (toy / "out" / "part.jsonl").write_text("half of the work")
    with pytest.raises(UserError, match="steps: 3 -> 4"):
        stage.execute("toy", toy_config(steps=4), toy / "out")
    stage.execute("toy", toy_config(), toy / "out")
    assert json.loads((toy / "out" / "done.json").read_text())["seconds"] >= 0.3


HOLDER = """
import sys, time
from e2h_jax import stage
with stage._lock(__import__("pathlib").Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_until_the_first_is_killed(toy):
    (toy / "out").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, toy / "out"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by another e2h process \\(process {holder.pid}\\)"):
            stage.execute("toy", toy_config(), toy / "out")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    stage.execute("toy", toy_config(), toy / "out")
    assert runs(toy / "out") == ["3"]


def test_only_the_first_process_of_a_job_writes(toy, monkeypatch):
    monkeypatch.setenv("E2H_PROCESS_INDEX", "1")
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    assert stage.execute("toy", toy_config(), toy / "out") == {"steps": 3, "rate": 0.5}
    assert os.listdir(toy / "out") == ["runs.txt"]


def test_a_stage_without_a_mesh_is_left_to_the_first_process(toy, monkeypatch):
    monkeypatch.setattr(stage, "ONE_HOST", {"toy"})
    monkeypatch.setenv("E2H_PROCESS_INDEX", "1")
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    assert stage.execute("toy", toy_config(), toy / "out") == {}
    assert os.listdir(toy / "out") == []


def test_kept_programs_and_examples_are_nothing_that_came_of_a_run(toy):
    for folder in (".compiled", ".examples"):
        (toy / "out" / folder).mkdir(parents=True)
        (toy / "out" / folder / "file").write_bytes(b"")
    (toy / "out" / "config.json").write_text(json.dumps({"stage": "other"}))
    assert stage.execute("toy", toy_config(), toy / "out")["steps"] == 3


def test_a_damaged_file_is_named(toy):
    (toy / "out").mkdir()
    (toy / "out" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"out/config\.json is damaged"):
        stage.execute("toy", toy_config(), toy / "out")


def test_a_folder_that_cannot_be_made_is_one_sentence(toy):
    (toy / "file").write_text("")
    for workdir in ("file", "file/below"):
        with pytest.raises(UserError, match=f"cannot make the folder {workdir}"):
            stage.execute("toy", toy_config(), workdir)


def test_unknown_stage_names_the_nearest():
    with pytest.raises(UserError, match=r'there is no stage "rewrad" \(did you mean "reward"\?\)'):
        stage.load("rewrad")


# Configs.


def test_fingerprint_knows_values_not_order():
    a = ConfigDict({"x": 1, "y": {"z": (1, 2)}})
    assert fingerprint(a) == fingerprint(ConfigDict({"y": {"z": (1, 2)}, "x": 1}))
    assert fingerprint(a) != fingerprint(ConfigDict({"y": {"z": (2, 1)}, "x": 1}))
    assert fingerprint(ConfigDict({"x": 1})) != fingerprint(ConfigDict({"x": True}))


def test_plain_turns_numbers_of_arrays_into_json():
    value = plain({"a": np.float32(0.5), "b": np.int64(2), "c": float("nan"), "d": (1, None), "e": np.ones(1)})
    assert value == {"a": 0.5, "b": 2, "c": "nan", "d": [1, None], "e": 1.0}
    json.dumps(value, allow_nan=False)
    with pytest.raises(UserError, match=r"config\.a\[1\] holds a set"):
        plain({"a": [1, {2}]})


def test_differences_of_groups():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1.0, "b": {"c": 2, "e": 4}}
    assert differences(old, new) == ["a: 1 -> 1.0", "b.e: (absent) -> 4", "b.d: 3 -> (absent)"]


def test_substitute_reaches_everywhere_and_leaves_the_original():
    config = ConfigDict({"a": "{run}/x", "b": {"c": ("{run}", ("n", "{run}{run}"))}, "d": 1, "e": None, "f": {}})
    config.placeholder = config_dict.placeholder(str)
    config.placeholder = "{run}/p"
    assert substitute(config, "R").to_dict() == {
        **{"a": "R/x", "b": {"c": ("R", ("n", "RR"))}, "d": 1, "e": None, "f": {}},
        "placeholder": "R/p",
    }
    assert config.a == "{run}/x" and config.placeholder == "{run}/p"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stepz": 1}, 'there is no field "config.stepz" (did you mean "config.steps"?).'),
        ({"warmup": 1}, 'there is no field "config.warmup" (did you mean "config.optimizer.warmup"?).'),
        (
            {"optimizer": {"lerning_rate": 1.0}},
            'there is no field "config.optimizer.lerning_rate" (did you mean "config.optimizer.learning_rate"?).',
        ),
        ({"steps": "many"}, "the field \"config.steps\" is 'many', which is not a whole number."),
        ({"steps": True}, 'the field "config.steps" is True, which is not a whole number.'),
        ({"steps": None}, 'the field "config.steps" is None, which is not a whole number.'),
        ({"limit": 0.5}, 'the field "config.limit" is 0.5, which is not a whole number.'),
        ({"levels": (1, "two")}, "the field \"config.levels\" is (1, 'two'), which is not a tuple of whole numbers."),
        ({"optimizer": 3}, 'the field "config.optimizer" is 3, which is not a group of fields.'),
        ({"rate": float("nan")}, 'the field "config.rate" is nan; give a finite number.'),
        ({"rate": float("-inf")}, 'the field "config.rate" is -inf; give a finite number.'),
        (
            {"optimizer": {"learning_rate": float("inf")}},
            'the field "config.optimizer.learning_rate" is inf; give a finite number.',
        ),
        ({"levels": (1, float("nan"))}, 'the field "config.levels[1]" is nan; give a finite number.'),
        (
            {"generators": {"sft": {"share": float("nan")}}},
            'the field "config.generators.sft.share" is nan; give a finite number.',
        ),
        ({"rate": 1, "limit": 4, "levels": (), "generators": {"sft": {"samples": "x"}}}, None),
    ],
)
def test_check_fields(toy, change, sentence):
    fields = toy_config().to_dict()
    fields["optimizer"] |= change.pop("optimizer", {}) if isinstance(change.get("optimizer"), dict) else {}
    config = ConfigDict(fields | change)
    if sentence is None:
        check_fields(config, toy_config())
        return
    with pytest.raises(UserError) as error:
        check_fields(config, toy_config())
    assert str(error.value) == sentence


def float_fields(group, path=""):
    for name, value in group.items():
        if isinstance(value, ConfigDict):
            yield from float_fields(value, f"{path}{name}.")
        elif group.get_type(name) is float:
            yield f"{path}{name}"


@pytest.mark.parametrize("name", [name for name in stage.STAGES if name != "recipe"])
def test_no_stage_takes_a_number_that_is_not_finite(name):
    defaults = stage.load(name).defaults()
    stage.check_config(name, defaults)
    for path in float_fields(defaults):
        for value in ("nan", "inf", "-inf"):
            config = defaults.copy_and_resolve_references().lock()
            override(config, [f"{path}={value}"])
            with pytest.raises(UserError, match=f'the field "config.{path}" is {value}; give a finite number'):
                stage.check_config(name, config)


def test_a_missing_field_is_refused(toy):
    fields = toy_config().to_dict()
    del fields["optimizer"]["warmup"]
    with pytest.raises(UserError, match=r'the field "config\.optimizer\.warmup" is missing'):
        check_fields(ConfigDict(fields), toy_config())


def test_override_reads_values_as_the_fields_type(toy):
    config = toy_config()
    config.generators = ConfigDict({"sft": "a"})
    override(
        config,
        [
            *("steps=7", "rate=1e-3", "shuffle=true", "source=a=b", "levels=3,4,5", "limit=2"),
            *("optimizer.learning_rate=2", "generators.sft=b"),
        ],
    )
    assert (config.steps, config.rate, config.shuffle, config.source, config.limit) == (7, 1e-3, True, "a=b", 2)
    assert config.levels == (3, 4, 5) and config.optimizer.learning_rate == 2.0 and config.generators.sft == "b"
    override(config, ["limit=none", "levels=8"])
    assert config.limit is None and config.levels == (8,)


def test_override_in_an_open_group_takes_new_names(toy):
    config, defaults = toy_config(), toy_config()
    with defaults.unlocked():
        defaults.generators = ConfigDict()  # open
    new = ["generators.my-sft.samples=1", "generators.my-sft.scored.rm.x=a=b", "generators.other.path="]
    override(config.lock(), [*new, "generators.my-sft.samples=2"], defaults)
    assert config.generators["my-sft"].to_dict() == {"samples": "2", "scored": {"rm": {"x": "a=b"}}}
    assert config.generators.other.path == ""
    for assignment, sentence in (
        ("generators.my-sft=x", '"config.generators.my-sft" is a group of fields'),
        ("generators.other.path.x=1", '"config.generators.other.path" is a single field'),
        ("generators..x=1", 'there is no field "config.generators."'),
        ("optimizer.warmpu=1", 'there is no field "config.optimizer.warmpu"'),
        ("generator.sft.samples=x", 'there is no field "config.generator" (did you mean "config.generators"?)'),
    ):
        with pytest.raises(UserError) as error:
            override(config, [assignment], defaults)
        assert str(error.value).startswith(sentence)
    assert config.is_locked and "generator" not in config


def test_override_of_a_tuple_of_names_needs_no_quotes():
    config = ConfigDict({"stages": ("a", "b")})
    for text in ("c,d", "('c','d')", '["c","d"]'):
        override(config, [f"stages={text}"])
        assert config.stages == ("c", "d")


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("steps=many", "the field \"config.steps\" is 'many', which is not a whole number."),
        ("shuffle=perhaps", "the field \"config.shuffle\" is 'perhaps', which is not true or false."),
        ("levels=1,b", "the field \"config.levels\" is '1,b', which is not a tuple of whole numbers."),
        ("optimizer.warmup=1.5", "the field \"config.optimizer.warmup\" is '1.5', which is not a whole number."),
        (
            "optimizer.warmpu=1",
            'there is no field "config.optimizer.warmpu" (did you mean "config.optimizer.warmup"?).',
        ),
        (
            "learning_rate=1",
            'there is no field "config.learning_rate" (did you mean "config.optimizer.learning_rate"?).',
        ),
        (
            "optimizer=1",
            '"config.optimizer" is a group of fields; set one of them, such as --config.optimizer.learning_rate=…',
        ),
        ("steps.x=1", '"config.steps" is a single field, so there is no "config.steps.x".'),
        ("steps", "--config.steps needs a value: --config.steps=…"),
    ],
)
def test_override_refuses(toy, assignment, sentence):
    with pytest.raises(UserError) as error:
        override(toy_config(), [assignment])
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "{file} has no function get_config()."),
        ("def get_config(:\n", "{file}:1: invalid syntax."),
        ("def get_config():\n    return 1 / 0\n", "{file}:2: ZeroDivisionError: division by zero"),
        ("import nowhere\n", "{file}:1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    return {}\n", "get_config() of {file} returns a dict, not a ConfigDict."),
        (
            "from toys.toy import defaults\n\n\ndef get_config():\n    c = defaults()\n    c.optimizer.warmpu = 3\n",
            '{file}:6: there is no field "warmpu" (did you mean "warmup"?).',
        ),
        (
            "from toys.toy import defaults\n\n\ndef get_config():\n    c = defaults()\n    c.steps = c.setps + 1\n",
            '{file}:6: there is no field "setps" (did you mean "steps"?).',
        ),
    ],
)
def test_an_error_in_a_config_file_is_one_sentence_with_its_line(toy, text, sentence):
    (toy / "bad.py").write_text(text)
    with pytest.raises(UserError) as error:
        load_file("bad.py")
    assert str(error.value) == sentence.format(file="bad.py")
    with pytest.raises(UserError):
        load_file(str(toy / "bad.py"))


def test_a_wrong_type_in_a_config_file_has_its_line(toy):
    (toy / "bad.py").write_text("from toys.toy import defaults\ndef get_config():\n    defaults().steps = 'x'\n")
    with pytest.raises(UserError, match=r"^bad\.py:3: TypeError: .*steps.*int"):
        load_file("bad.py")
