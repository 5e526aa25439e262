"""The worker pool: order, bounds, replacement, threads; and a program that has JAX running."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from e2h_jax.grading import GradingPool, Verdict, grade, grade_many

PAIRS = [(str(n), str(n + (n % 3 == 0))) for n in range(500)] + [(None, "5"), ("\ud800", "5"), (r"\frac12", "0.5")]


@pytest.fixture(scope="module")
def pool():
    with GradingPool(workers=2, timeout_s=5.0) as pool:
        yield pool


def test_many_pairs_in_order(pool):
    verdicts = pool.grade_many(PAIRS)
    assert verdicts == [grade(*pair) for pair in PAIRS]
    assert [verdict.reason for verdict in verdicts] == [grade(*pair).reason for pair in PAIRS]
    assert pool.grade("meter", "mile", "strict") == "correct"
    assert pool.grade_many([]) == []


def test_it_serves_several_threads(pool):
    results = {}
    threads = [threading.Thread(target=lambda k=k: results.update({k: pool.grade_many(PAIRS)})) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[k] == [grade(*pair) for pair in PAIRS] for k in range(4))


def test_a_worker_that_dies_is_replaced(pool):
    pool.grade("1", "1")
    replaced = pool.replaced
    worker = pool._idle.get()
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    pool._idle.put(worker)
    assert pool.grade("1", "1") == Verdict("undecided", "died")
    assert pool.grade("1", "1") == "correct"
    assert pool.replaced == replaced + 1


def test_ctrl_c_and_a_preemption_notice_are_for_the_parent_alone(pool):
    """They reach the whole process group; a worker that ended by them would leave its pair undecided."""
    pool.grade("1", "1")
    replaced, worker = pool.replaced, pool._idle.get()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.process.pid, number)
    pool._idle.put(worker)
    assert pool.grade("1", "1") == "correct" and pool.replaced == replaced


def test_a_pair_that_takes_too_long_is_undecided_and_costs_no_other():
    with GradingPool(workers=1, timeout_s=0.5) as pool:
        assert pool.grade("1", "1") == "correct"
        worker = pool._idle.get()
        pool._idle.put(worker)
        os.kill(worker.process.pid, signal.SIGSTOP)  # it will answer nothing
        verdicts = pool.grade_many([("1", "1"), ("2", "2"), ("3", "4")])
        assert verdicts == ["undecided", "correct", "wrong"]
        assert verdicts[0].reason == "timeout"
        assert pool.replaced == 1


HOG = """
import time
from e2h_jax.grading import equality
grade = equality.grade
def hog(prediction, reference, rules="default"):
    if prediction == "too much":
        bytearray(2 << 30)
    while prediction == "too long":
        time.sleep(1)
    return grade(prediction, reference, rules)
equality.grade = hog
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not enforce a limit of address space")
def test_a_pair_beyond_the_memory_or_time_limit_is_undecided_and_the_pool_goes_on(tmp_path, monkeypatch):
    """The rules are bounded themselves, so the workers get some that are not, by a sitecustomize of theirs."""
    (tmp_path / "sitecustomize.py").write_text(HOG)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with GradingPool(workers=1, timeout_s=1.0, memory_mb=1024) as pool:
        verdicts = pool.grade_many([("1", "1"), ("too much", "1"), ("2", "2"), ("too long", "1"), ("3", "4"), ("4", "4")])
        assert verdicts == ["correct", "undecided", "correct", "undecided", "wrong", "correct"]
        assert [verdict.reason for verdict in verdicts if verdict == "undecided"] == ["memory", "timeout"]
        assert pool.replaced == 1  # running out of memory costs no worker


def test_misuse():
    with pytest.raises(ValueError, match="no rules"):
        grade_many([("1", "1")], "lenient")
    pool = GradingPool(workers=1)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade("1", "1")


PROGRAM = """
import jax.numpy as jnp
assert float(jnp.ones(3).sum()) == 3
from e2h_jax.grading import grade_many
print(*grade_many([("0.5", "1/2"), ("9**9**9**9", "5")], workers=1))
"""


def test_a_program_that_runs_jax():
    """At the top level of a script, without `if __name__`, after JAX has started its threads."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["correct", "undecided"], result.stderr
