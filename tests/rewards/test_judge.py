"""The judge: reward model, grades and shaping together, whatever tokenizer and template the reward model has."""

import numpy as np
import pytest

from e2h_jax.data.rewrite import rewrite
from e2h_jax.data.rollout import Rollout
from e2h_jax.data.sampled_steps import locate
from e2h_jax.data.steps import encode_prompt, encode_solution, split_steps
from e2h_jax.data.templates import get_template, with_answer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.rewards import judge as judges
from e2h_jax.rewards import original, shaping
from e2h_jax.rewards.judge import Judge, align
from e2h_jax.rewards.shaping import Verdict

E2H, BOXED = get_template("e2h"), get_template("deepseek_boxed")


@pytest.fixture(scope="module")
def world(tmp_path_factory, judge, judge_of, tokenizers, llama2_like):
    """Reward models: same/ (the policy's tokenizer), bpe/ (another's), boxed/ (another's, and another template), lines/ (whose
    every newline is a token); and policy/."""
    folder = tmp_path_factory.mktemp("judges")
    bpe, lines = judge_of(tokenizers["bpe"]), judge_of(llama2_like)
    for name, model, reads in (
        ("same", judge, None),
        ("bpe", bpe, {"template": "e2h", "read_at": "min3"}),
        ("boxed", bpe, {"template": "deepseek_boxed", "read_at": "last_token"}),
        ("lines", lines, None),
    ):
        store.save(folder / name, "reward", model.config, model.params, model.tokenizer, reads)
    (folder / "policy").mkdir()
    store.save_description(folder / "policy", "policy", judge.config)
    return {"folder": folder, "same": judge, "bpe": bpe, "boxed": bpe, "lines": lines}


@pytest.fixture
def make(world, tokenizers):
    """A judge by the name of its reward model and by fields of its config."""
    opened = []

    def open_judge(name="", template=E2H, tokenizer=None, **fields):
        config = judges.defaults()
        config.update({"model": str(world["folder"] / name) if name else "", "row_length": 300, "tokens_per_batch": 900})
        config.update({"grade_workers": 1} | fields)
        opened.append(Judge(config, world["same"].mesh, tokenizer or tokenizers["words"], template))
        return opened[-1]

    yield open_judge
    for judge in opened:
        judge.close()


def sampled(tokenizer, problem, text, *, stopped=True, prompt=None):
    prompt = encode_prompt(tokenizer, problem["question"], E2H) if prompt is None else prompt
    tokens = encode_solution(tokenizer, problem["question"], text, E2H, add_eos=stopped).tokens[len(prompt) :]
    zeros = np.zeros(len(tokens), np.float32)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Rollout(problem, 0, prompt, tokens, zeros, zeros, stopped, text)


@pytest.fixture(scope="module")
def rollouts(tokenizers, texts):
    """Right, wrong, answerless and odd solutions; of every third the true answer is hidden, of every sixth known to nobody."""
    found = []
    for index, (problem, text) in enumerate(texts):
        if index % 3 == 0:
            truth = {"gt_answer": problem["answer"]} if index % 2 else {}
            problem = problem | {"answer": "unavailable"} | truth
        found.append(sampled(tokenizers["words"], problem, text, stopped=index % 5 > 0 or not text))
    return found


@pytest.mark.parametrize(("name", "read_at"), [("same", "separator_last"), ("bpe", "min3"), ("boxed", "last_token")])
def test_rewards_are_the_scores_and_grades_of_each_solution_alone(world, make, tokenizers, rollouts, name, read_at):
    judge = make(name, upper_bound=1.0)
    config = judge._config
    template = BOXED if name == "boxed" else E2H
    kinds = set()
    for rollout, shaped in zip(rollouts, judge(rollouts), strict=True):
        text = rewrite(rollout.text, E2H, template)
        encoded = encode_solution(world[name].tokenizer, rollout.problem["question"], text, template, add_eos=False)
        scores = world[name].plain_scores(encoded, read_at)[: len(encoded.steps)]
        hidden = rollout.problem["answer"] == "unavailable"
        truth = rollout.problem.get("gt_answer") if hidden else rollout.problem["answer"]
        answer = E2H.extract_answer(rollout.text)
        correct = None if truth is None else answer == truth
        steps = locate(tokenizers["words"], rollout.prompt, rollout.tokens, E2H)
        assert len(steps.steps) == len(split_steps(rollout.text, E2H))
        assert len(scores) == len(steps.steps) or rollout.text.rstrip().endswith("# Answer")  # which is no box
        judged = steps, align(scores, len(steps.steps)), Verdict(correct, hidden)
        expected = shaping.shape(config, E2H, rollout, rollout.text, answer, *judged)
        np.testing.assert_allclose(shaped.rewards, expected.rewards, atol=1e-5)
        assert shaped.parts == pytest.approx(expected.parts, abs=1e-5)
        kinds.add((correct, hidden, bool(shaped.parts["scorable"])))
    assert len(kinds) >= 7  # of 10 that there are


def test_one_program_whatever_the_lengths(make, rollouts):
    judge = make("bpe")
    for some in (rollouts, rollouts[:1], rollouts[5:9] * 9, []):
        assert len(judge(some)) == len(some)
    assert judge._model._scorer._logits._cache_size() == 1


def test_a_solution_s_reward_does_not_depend_on_the_others(make, rollouts):
    judge = make("same")
    together = judge(rollouts)
    for index in (0, 7, 30):
        np.testing.assert_allclose(judge([rollouts[index]])[0].rewards, together[index].rewards, atol=1e-5)


def test_without_process_rewards_no_model_is_loaded(make, rollouts, monkeypatch):
    monkeypatch.setattr(store, "load", None)
    shaped = make(process="none")(rollouts)
    for rollout, reward in zip(rollouts, shaped, strict=True):
        assert not reward.rewards[:-1].any() and reward.parts["process"] == 0
        right = E2H.extract_answer(rollout.text) == rollout.problem["answer"] and rollout.stopped
        if rollout.problem["answer"] != "unavailable":
            assert reward.parts["outcome"] == right


def test_int8_scores_are_near(make, rollouts):
    exact, near = (make("same", quantize=quantize, upper_bound=1.0)(rollouts) for quantize in ("", "int8"))
    differences = [np.abs(a.rewards - b.rewards).max() for a, b in zip(exact, near, strict=True)]
    assert 0 < max(differences) < 0.1


def test_too_long_for_the_reward_model_is_unscorable(make, rollouts):
    longest = max(rollouts, key=lambda rollout: len(rollout.prompt) + len(rollout.tokens) if rollout.stopped else 0)
    shortest = next(r for r in rollouts if r.stopped and len(r.prompt) + len(r.tokens) < 60 and E2H.extract_answer(r.text))
    length = len(longest.prompt) + len(longest.tokens)
    parts = [shaped.parts["scorable"] for shaped in make("same", row_length=length - 5)([shortest, longest])]
    assert parts == [1, 0]


def test_a_problem_s_prefix_is_scored_but_not_rewarded(world, make, tokenizers, texts):
    problem, text = next((p, t) for p, t in texts if len(split_steps(t, E2H)) > 3)
    steps = split_steps(text, E2H)
    prefix, rest = text[: steps[1].end], text[steps[2].start :]
    words = tokenizers["words"]
    prompt = encode_solution(words, problem["question"], prefix + "\n\n", E2H, add_eos=False).tokens
    tokens = encode_solution(words, problem["question"], text, E2H, add_eos=True).tokens
    np.testing.assert_array_equal(tokens[: len(prompt)], prompt)
    zeros = np.zeros(len(tokens) - len(prompt), np.float32)
    rollout = Rollout(problem | {"prefix": prefix}, 0, prompt, tokens[len(prompt) :], zeros, zeros, True, rest)
    scores = world["bpe"].plain_scores(
        encode_solution(world["bpe"].tokenizer, problem["question"], text, E2H, add_eos=False), "min3"
    )
    (shaped,) = make("bpe", process="delta", upper_bound=0.0)([rollout])
    assert shaped.parts["process"] == pytest.approx(scores[len(steps) - 1], abs=1e-5)
    first = len(words.encode(text[steps[2].start : steps[2].end], add_special_tokens=False))
    assert shaped.rewards[first] == pytest.approx(scores[2], abs=1e-5)


@pytest.mark.parametrize(("begun", "text"), [("a=1+1=2\n\n# Answer", "2"), ("a=1+1=2\n\n# Answer\n\n2", "a=2")])
def test_a_rollout_that_goes_on_from_within_its_answer_has_the_answer_s_score(world, make, tokenizers, texts, begun, text):
    words, problem = tokenizers["words"], texts[0][0] | {"prefix": begun, "answer": "2"}
    prompt = encode_solution(words, problem["question"], begun + "\n\n", E2H, add_eos=False).tokens
    tokens = np.array([*words.encode(text, add_special_tokens=False), words.eos_token_id], np.int32)
    zeros = np.zeros(len(tokens), np.float32)
    (shaped,) = make("same", process="min", upper_bound=1.0)([Rollout(problem, 0, prompt, tokens, zeros, zeros, True, text)])
    whole = encode_solution(words, problem["question"], f"{begun}\n\n{text}", E2H, add_eos=False)
    assert shaped.parts["scorable"] == shaped.parts["outcome"] == 1 and shaped.parts["format"] == 0
    assert shaped.parts["process"] == pytest.approx(world["same"].plain_scores(whole)[-1] - 1, abs=1e-5)


def test_a_box_in_the_prefix_is_no_answer_where_another_follows(make, tokenizers, monkeypatch):
    """By itself the prefix ends with its box, and what stands behind it would be no step of it."""
    judge = make("boxed", template=BOXED, tokenizer=tokenizers["bpe"], process="min", scale=1.0, upper_bound=1.0)
    monkeypatch.setattr(judge._model, "scores", lambda *_: lambda: [[0.9, 0.2, 0.8, 0.7]])
    problem = {"id": "p", "question": "a=1", "answer": "5", "prefix": "First \\boxed{3}.\n\nThen we go on."}
    text = "Add two.\n\nSo \\boxed{5}."
    tokens = np.array([*tokenizers["bpe"].encode(text, add_special_tokens=False), 1], np.int32)
    zeros = np.zeros(len(tokens), np.float32)
    (shaped,) = judge([Rollout(problem, 0, np.ones(1, np.int32), tokens, zeros, zeros, True, text)])
    assert shaped.parts["scorable"] == shaped.parts["outcome"] == 1
    assert shaped.parts["process"] == pytest.approx(0.7 - 1.0)  # of "Add two." and the answer


def test_the_paper_s_preset(world, make, llama2_like, texts):
    judge, newline = make("lines", tokenizer=llama2_like, **shaping.paper()), llama2_like.convert_tokens_to_ids("\n")
    rollouts = [sampled(llama2_like, problem, text, stopped=i % 4 > 0) for i, (problem, text) in enumerate(texts[:40:5])]
    found = 0
    for rollout, shaped in zip(rollouts, judge(rollouts), strict=True):
        tokens = rollout.tokens[:-1] if rollout.stopped else rollout.tokens
        solution = locate(llama2_like, rollout.prompt, tokens, E2H)
        logits = [world["lines"].plain_scores(with_end_at(solution, i), "last_token")[0] for i in range(len(solution.tokens))]
        logits = np.log(logits) - np.log1p(-np.array(logits))
        pairs = original.step_pairs(tokens, logits[len(rollout.prompt) - 1 :], newline, rollout.text)
        right = original.extract_answer(rollout.text) == rollout.problem["answer"]
        expected = original.shape(judge._config, rollout, len(tokens), pairs, Verdict(right))
        np.testing.assert_allclose(shaped.rewards, expected.rewards, atol=1e-5)
        assert shaped.trained == len(rollout.tokens) - rollout.stopped == expected.trained
        assert shaped.parts == pytest.approx(expected.parts, abs=1e-5)
        found += len(pairs)
    assert found > 10


def with_end_at(solution, position):
    """The solution with one step, read at the token `position`."""
    from dataclasses import replace

    span = np.array([[position, position + 1]], np.int32)
    return replace(solution, steps=span, separators=span[:, 1:].repeat(2, 1), has_answer=True)


def test_undecided_grades_are_counted(make, rollouts, monkeypatch):
    judge = make(process="none")
    monkeypatch.setattr(judge._pool, "grade_many", lambda pairs, rules: ["undecided"] * len(pairs))
    known = [r for r in rollouts if r.problem["answer"] != "unavailable"]
    assert all(s.parts["undecided"] == 1 and s.parts["accuracy"] == s.parts["outcome"] == 0 for s in judge(known))


def test_steps_are_matched_by_index():
    assert align([0.1, 0.2, 0.3], 3) == [0.1, 0.2, 0.3]
    assert align([0.1, 0.9, 0.3], 2) == [0.1, 0.3]  # a template that has the answer in a step of its own
    assert align([0.1, 0.9], 3) == [0.1, 0.9, 0.9]  # or within the last step
    assert align([], 2) is align([0.5], 0) is None


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "config.reward.model is empty"),
        ({"name": "policy"}, "holds a policy model"),
        ({"name": "same", "row_length": 10**6}, "row_length=1000000"),
        ({"name": "same", "read_at": "seperator_last"}, "did you mean"),
        ({"name": "same", "rules": "original", "format": "none"}, "newline"),
        ({"name": "same", "template": BOXED, "rules": "original", "format": "none"}, "template e2h"),
        ({"template": with_answer(E2H, "any"), "rules": "original", "format": "none", "process": "none"}, "config.answer=te"),
    ],
)
def test_mistakes_in_one_sentence(make, fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


def test_the_original_needs_one_tokenizer_for_both(make, llama2_like):
    with pytest.raises(UserError, match="another tokenizer"):
        make("bpe", tokenizer=llama2_like, **shaping.paper())


def test_hidden_answers_cannot_be_rewarded_by_all(make, rollouts):
    judge = make(process="none", outcome="all")
    with pytest.raises(UserError, match="gt_answer"):
        judge(rollouts)
    judge([r for r in rollouts if "gt_answer" in r.problem or r.problem["answer"] != "unavailable"])
    with pytest.raises(UserError, match="gt_answer"):
        judge.check_answers([{"id": "p", "answer": None, "gt_answer": " "}])
