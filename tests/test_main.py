import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict

from e2h_jax import __version__, stage
from e2h_jax import main as command

CONFIG = """
from toys.toy import defaults

def get_config():
    config = defaults()
    config.steps = 4
    return config
"""


@pytest.fixture
def e2h(toy, capsys):
    """Runs the command in this process; returns its exit code, stdout and stderr."""
    (toy / "four.py").write_text(CONFIG)

    def run(*argv):
        code = command.main([str(arg) for arg in argv])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_runs_a_stage_with_a_config_file_and_overrides(e2h, toy):
    code, out, err = e2h("toy", "--config=four.py", "--config.rate=0.25", "--workdir=out")
    assert (code, err) == (0, "")
    assert "steps                   4" in out and "rate                    0.25" in out
    assert "toy finished in 0.0 s; its files are in out" in out
    assert (toy / "out" / "runs.txt").read_text() == "4\n"


def test_without_a_config_file_the_defaults_hold(e2h, toy):
    assert e2h("--workdir", "out", "toy", "--config.steps=6", "--config.steps=7")[0] == 0
    assert (toy / "out" / "runs.txt").read_text() == "7\n"


def test_run_again_it_skips_and_shows_the_summary(e2h, toy):
    e2h("toy", "--workdir=out")
    code, out, _ = e2h("toy", "--workdir=out")
    assert code == 0 and "done already, skipped" in out and "steps                   3" in out
    assert (toy / "out" / "runs.txt").read_text() == "3\n"


BAD = {
    "stage": (["tyo", "--workdir=out"], 'there is no stage "tyo" (did you mean "toy"?); the stages are toy, recipe.'),
    "no stage": (["--workdir=out"], "which stage?"),
    "flag": (["toy", "--wrokdir=out"], 'there is no flag "--wrokdir" (did you mean "--workdir"?)'),
    "flag with a dot": (["toy", "--cofnig.steps=1"], 'there is no flag "--cofnig.steps" (did you mean "--config"?)'),
    "flag without value": (["toy", "--workdir"], "Missing value for flag --workdir"),
    "word too many": (["toy", "tyo", "--workdir=out"], '"tyo" is a word too many'),
    "no workdir": (["toy"], "--workdir=DIR is missing"),
    "empty workdir": (["toy", "--workdir="], "--workdir is empty; name a folder."),
    "blank workdir": (["toy", "--workdir", " "], "--workdir is empty; name a folder."),
    "empty config": (["toy", "--config=", "--workdir=out"], "--config is empty; name a file."),
    "a space for =": (
        ["toy", "--config.source", "a.jsonl", "--workdir=out"],
        '--config.source needs its value behind a "=", without a space: --config.source=a.jsonl',
    ),
    "a space, nested": (["toy", "--workdir=out", "-config.optimizer.warmup", "-3"], "-config.optimizer.warmup=-3"),
    "no value": (["toy", "--config.shuffle", "--workdir=out"], "without a space: --config.shuffle=…"),
    "no value at the end": (["toy", "--workdir=out", "--config.shuffle"], "without a space: --config.shuffle=…"),
    "plan, a space for =": (["plan", "--config.seed", "1"], '--config.seed needs its value behind a "=", without a space'),
    "field": (["toy", "--config.stpes=1", "--workdir=out"], '"config.stpes" (did you mean "config.steps"?).'),
    "nested field": (
        ["toy", "--config.optimizer.wramup=1", "--workdir=out"],
        'did you mean "config.optimizer.warmup"?',
    ),
    "type": (["toy", "--config.steps=few", "--workdir=out"], "\"config.steps\" is 'few', which is not a whole number."),
    "config file": (["toy", "--config=fuor.py", "--workdir=out"], 'no config file fuor.py (did you mean "four.py"?).'),
    "config folder": (["toy", "--config=nowhere/x.py", "--workdir=out"], "the folder nowhere does not exist."),
    "config not python": (["toy", "--config=four.json", "--workdir=out"], "does not end in .py"),
    "config with an error": (["toy", "--config=bad.py", "--workdir=out"], "bad.py:2: ZeroDivisionError"),
    "workdir is a file": (["toy", "--workdir=four.py"], "cannot make the folder four.py"),
    "refused by the stage": (["toy", "--config.source=lost.jsonl", "--workdir=out"], "there is no lost.jsonl."),
    "help of no stage": (["tyo", "--help"], '(did you mean "toy"?)'),
    "recipe without config": (["recipe", "--workdir=out"], "--config=configs/quickstart.py"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence_and_exit_code_2(e2h, toy, case):
    argv, sentence = BAD[case]
    (toy / "bad.py").write_text("def get_config():\n    return 1 / 0\n")
    code, out, err = e2h(*argv)
    assert code == 2 and out == ""
    assert err.startswith("e2h: ") and err.count("\n") == 1 and sentence in err and "Traceback" not in err
    assert not (toy / "out" / "runs.txt").exists()


def test_a_changed_config_on_an_old_folder_is_refused(e2h, toy):
    e2h("toy", "--workdir=out")
    code, _, err = e2h("toy", "--workdir=out", "--config.optimizer.warmup=9")
    assert code == 2 and "(optimizer.warmup: 2 -> 9)" in err and err.count("\n") == 1


def test_our_bug_keeps_its_traceback(e2h):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        e2h("toy", "--config.steps=-1", "--workdir=out")


@pytest.mark.parametrize("code", [130, 143])
def test_ctrl_c_and_sigterm_leave_a_resumable_folder(e2h, toy, code):
    before = signal.getsignal(signal.SIGTERM)
    got, _, err = e2h("toy", f"--config.steps={code}", "--workdir=out")
    assert got == code and err.strip() == "e2h: interrupted; run the same command to resume."
    assert (toy / "out" / "config.json").exists() and not (toy / "out" / "done.json").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_of_the_command_lists_the_stages(e2h):
    for argv in ([], ["--help"], ["-h"]):
        code, out, err = e2h(*argv)
        assert (code, err) == (0, "")
        assert "  toy       Counts to `steps`; stands for a stage in the tests.\n" in out
        assert "  recipe    A recipe: stages in order" in out and "e2h <stage> --help" in out


def test_the_version_and_help_in_words(e2h):
    assert e2h("--version") == (0, f"e2h {__version__}\n", "")
    for words, flags in ((["help"], ["--help"]), (["help", "toy"], ["toy", "--help"]), (["help", "show"], ["show", "--help"])):
        assert e2h(*words) == e2h(*flags) and e2h(*words)[0] == 0
    assert "e2h --version" in e2h("help")[1] and "e2h show runs/quickstart" in e2h("help", "show")[1]
    code, _, err = e2h("help", "tyo")
    assert code == 2 and 'did you mean "toy"?' in err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_what_may_not_be_read_or_written_is_one_sentence(e2h, monkeypatch, number):
    def run(command):
        try:
            raise OSError(number, os.strerror(number), "runs/a/model")
        except OSError as error:
            raise ValueError("a save failed") from error

    monkeypatch.setattr(command, "_run", run)
    code, out, err = e2h("toy", "--workdir=out")
    assert (code, out) == (2, "")
    assert err.startswith(f"e2h: runs/a/model: {os.strerror(number).lower()}; change its permissions")


def test_help_of_a_stage_shows_its_docstring_and_commented_defaults(e2h):
    code, out, _ = e2h("toy", "--help")
    assert code == 0
    assert "A second paragraph." in out and "e2h toy --config=FILE.py" in out
    assert "\nconfig.steps = 3  # how far to count\n" in out and "return config.lock()" not in out


def test_every_stage_explains_itself(capsys):
    for name in stage.STAGES:
        assert command.main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert "\nconfig." in out and f"e2h {name} --config=FILE.py" in out


@pytest.mark.parametrize("name", ["rest_em", "dpo"])
def test_help_lists_each_field_of_a_stage_made_of_stages_once(name, capsys):
    def paths(config, prefix):
        for field, value in config.items():
            below = isinstance(value, ConfigDict)
            yield from paths(value, f"{prefix}.{field}") if below else [f"{prefix}.{field}"]

    command.main([name, "--help"])
    shown = re.findall(r"^(config\.[\w.]+) = ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(shown) == sorted(paths(stage.load(name).defaults(), "config"))


def test_the_installed_command_is_quick_and_loads_no_jax():
    """Help and refusals answer within a second on an idle machine; the bound here allows for a loaded one."""
    script = (
        "import sys; from e2h_jax.main import main; code = main(sys.argv[1:]); "
        "sys.exit(99 if {'jax', 'flax', 'transformers', 'numpy'} & set(sys.modules) else code)"
    )
    began = time.perf_counter()
    helped = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and time.perf_counter() - began < 5
    program = os.path.join(os.path.dirname(sys.executable), "e2h")
    refused = subprocess.run([program, "smaple", "--workdir=out"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stdout == "" and 'did you mean "sample"?' in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_nobody_reads_ends_the_command_quietly(unbuffered, both):
    """As `e2h sft --help | head -0` and `e2h sft --help 2>&1 | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "e2h_jax.main", "sft", "--help"]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=writer if both else subprocess.PIPE, env=env)
    os.close(writer)
    assert done.returncode == 141 and not done.stderr


def test_a_broken_pipe_to_a_worker_is_our_bug(e2h, monkeypatch):
    def run(command):
        raise BrokenPipeError("a worker")

    monkeypatch.setattr(command, "_run", run)
    with pytest.raises(BrokenPipeError, match="a worker"):
        e2h("toy", "--workdir=out")


def test_a_full_disk_is_one_sentence(e2h, monkeypatch):
    def run(command):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/metrics.jsonl")
        except OSError as error:
            raise ValueError("a save failed") from error

    monkeypatch.setattr(command, "_run", run)
    code, _, err = e2h("toy", "--workdir=out")
    assert code == 2 and err.startswith("e2h: the disk is full (No space left on device)") and err.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_a_bug_after_a_handled_error_is_our_bug(e2h, monkeypatch, number):
    def run(command):
        try:
            raise OSError(number, os.strerror(number), "out/metrics.jsonl")
        except OSError:
            raise ZeroDivisionError("a bug") from None

    monkeypatch.setattr(command, "_run", run)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        e2h("toy", "--workdir=out")


def test_a_process_of_several_that_fails_leaves_its_job(e2h, monkeypatch):
    left = []
    monkeypatch.setattr(command.hosts, "joined", lambda: True)
    monkeypatch.setattr(command.hosts, "leave", lambda *how: left.append(how))
    e2h("tyo", "--workdir=out")

    def run(command):
        raise RuntimeError("gloo")

    monkeypatch.setattr(command, "_run", run)
    with pytest.raises(RuntimeError):
        e2h("toy", "--workdir=out")
    assert left[0] == (2,) and left[1][0] == 1 and "RuntimeError: gloo" in left[1][1]
