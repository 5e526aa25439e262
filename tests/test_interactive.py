"""`e2h try`: what it draws is what the sampler draws, what it scores is what the scorer scores, and it talks sensibly."""

import builtins
import io
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from e2h_jax import interactive
from e2h_jax import main as command
from e2h_jax.data import arithmetic
from e2h_jax.data.steps import encode_prompt, encode_solutions, split_steps
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer, end_ids
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards.scoring import Scorer, plan
from e2h_jax.sampling import sample
from e2h_jax.sampling.scheduler import Request, draw

E2H = get_template("e2h")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """One of the simulated devices: programs for all of them take much longer to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interactive, "make_mesh", lambda shape, **_: make_mesh((1, 1, 1), jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A policy and a reward model with random weights, saved as a stage saves them."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer(arithmetic.PIECES, folder / "tokenizer")
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_length=128)
    mesh = interactive.make_mesh(())
    for kind, seed in (("policy", 3), ("reward", 4)):
        _, params = store.create(kind, config, mesh, seed)
        if kind == "reward":  # a fresh score head is zero
            head = params["score_head"]
            head.set_value(jax.random.normal(jax.random.key(5), head.get_value().shape))
        store.save(folder / kind / "model", kind, config, params, tokenizer)
    return folder


SETTINGS = ("--max-new-tokens=40", "--top-k=0", "--temperature=1", "--samples=3", "--seed=7")


def test_it_draws_what_the_sampler_draws(models):
    policy = interactive.Policy(interactive._parse([f"--checkpoint={models}/policy", *SETTINGS]))
    seen = list(policy.draw("x=1", turn=0))
    texts = [text for text, _ in seen[-1]]
    assert all(over for _, over in seen[-1])
    assert len(seen) > 1
    assert all(final.startswith(early.rstrip("\ufffd")) for (early, _), final in zip(seen[0], texts, strict=True))
    config, mesh = policy.config, interactive.make_mesh(())
    graph, model_config, params = store.load(models / "policy" / "model", mesh, "policy")
    tokens = encode_prompt(policy.tokenizer, "x=1", E2H)
    ends = end_ids(policy.tokenizer, E2H)
    kernel = sample.make_kernel(config, graph, model_config, params, mesh, ends, len(tokens))
    kernel.foresee([len(tokens)])
    drawn = [one for round_ in draw(kernel, [Request("0", tokens, range(3))]) for one in round_.drawn]
    expected = [policy.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in sorted(drawn, key=lambda d: d.sample)]
    assert texts == expected
    # Left in the middle, as by Ctrl-C, the next problem begins anew.
    next(policy.draw("y=2", turn=1))
    assert [text for text, _ in list(policy.draw("x=1", turn=0))[-1]] == expected


def test_it_scores_what_the_scorer_scores(models):
    judge = interactive.Judge(str(models / "reward"), E2H)
    texts = ["a=1\n\nb=2\n\n# Answer\n\n3", "a=1", "a=1\n\n" * 200]
    *scores, too_long = judge.scores("x=1", texts)
    assert too_long is None
    mesh = interactive.make_mesh(())
    graph, _, params = store.load(models / "reward" / "model", mesh, "reward")
    encoded = encode_solutions(judge._tokenizer, ["x=1"] * 2, texts[:2], E2H, add_eos=False)
    batches = plan(encoded, granularity=64, tokens_per_batch=64, shards=1)
    found = {i: s for batch in Scorer(graph, params, mesh).score(encoded, batches, "separator_last") for i, s in batch.items()}
    assert [len(values) for values in scores] == [3, 2]
    for index, values in enumerate(scores):
        np.testing.assert_allclose(values, found[index], rtol=1e-5)
    assert 0 < scores[0][0] < 1


class Scripted:
    """A policy that writes what the test says, three characters at a time."""

    template = E2H

    def __init__(self, *texts):
        self.texts = texts

    def draw(self, question, turn):
        for end in range(3, max(map(len, self.texts)) + 3, 3):
            yield [(text[:end], end >= len(text)) for text in self.texts]


class Fixed:
    """An evaluator for which a solution with an 8 in it is wrong from there on."""

    def scores(self, question, texts):
        found = []
        for text in texts:
            steps = split_steps(text, E2H)
            values = [0.1 if "8" in text[: step.end] else 0.9 for step in steps]
            found.append(values if steps and steps[-1].is_answer else [*values, 0.0])
        return found


def solved(policy, judge, **console):
    out = io.StringIO()
    interactive.solve(Console(file=out, width=80, **console), policy, judge, "?", 0)
    return out.getvalue()


RIGHT, WRONG = "a=1\n\nb=2\n\n# Answer\n\n3", "a=8\n\n# Answer\n\n4"


def test_steps_appear_with_their_scores():
    lines = [line.split() for line in solved(Scripted(RIGHT), Fixed()).split("\n") if line.strip()]
    assert lines == [["0.90", "a=1"], ["0.90", "b=2"], ["0.90", "#", "Answer"], ["3"]]
    assert "0.90" not in solved(Scripted(RIGHT), None)
    assert "no final answer" in solved(Scripted("a=1"), Fixed())


def test_several_samples_vote():
    text = solved(Scripted(WRONG, WRONG, RIGHT, "a=1"), Fixed())
    rows = [line.split() for line in text.split("\n")]
    assert ["4", "*2", "3%", "0.10"] in rows
    assert ["3", "1", "*97%", "*0.90"] in rows
    assert ["(no", "answer)", "1"] in rows


def test_a_terminal_sees_the_step_being_written():
    text = solved(Scripted(RIGHT), Fixed(), force_terminal=True)
    assert "\x1b[" in text
    assert "b=" in text


def test_problems_of_several_lines_are_typed_and_taken_back(monkeypatch, capsys):
    typed = iter(["", "a=1", "b=a", "", "oops", KeyboardInterrupt, "c=2", "", EOFError])

    def answer(prompt):
        line = next(typed)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", answer)
    assert list(interactive._questions(sys.stdin, Console(), talking=True)) == ["a=1\nb=a", "c=2"]


def test_problems_from_a_pipe(models, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x=1\n\ny=2\n"))
    flags = [f"--checkpoint={models}/policy/model", f"--evaluator={models}/reward", *SETTINGS]
    assert command.main(["try", *flags]) == 0
    out = capsys.readouterr().out
    assert out.index("x=1") < out.index("y=2")


def test_a_pipe_that_is_no_text_is_one_sentence():
    with pytest.raises(UserError, match="no UTF-8 text"):
        list(interactive._questions(io.TextIOWrapper(io.BytesIO(b"x=1\n\xff\n"), "utf-8"), Console(), talking=False))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--checkpoint=MODEL is missing"),
        (["--checkpiont=x"], 'there is no flag "--checkpiont" (did you mean "--checkpoint"?)'),
        (["--checkpoint={models}/nothing"], "holds no model"),
        (["--checkpoint={models}/reward"], "holds a reward model; give --checkpoint a policy"),
        (["--checkpoint={models}/policy", "--evaluator={models}/policy"], "holds a policy; give --evaluator a reward model"),
        (["--checkpoint={models}/policy", "--temperature=0", "--samples=2"], "--temperature=0 draws the same solution"),
        (["--checkpoint={models}/policy", "--temperature=nan"], '"--temperature" is nan; give a finite number'),
        (["--checkpoint={models}/policy", "--samples=x"], "argument --samples: invalid int value"),
        (["--checkpoint={models}/policy", "--samples=0"], "--samples and --max-new-tokens must be at least 1"),
        (["--checkpoint={models}/policy", "--max-new-tokens=128"], "leaves no room for a problem: the model has 128 positions"),
        (["--checkpoint={models}/policy", "--template=e2"], 'there is no template "e2"'),
        (["--checkpoint={models}/policy", "--max-new-tokens=126"], "and with --max-new-tokens the model takes 2"),
    ],
)
def test_mistakes_are_one_sentence(models, monkeypatch, capsys, flags, sentence):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x=1\n"))
    assert command.main(["try", *(flag.format(models=models) for flag in flags)]) == 2
    assert sentence in capsys.readouterr().err
