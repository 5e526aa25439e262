"""A bandit: four questions of seven possible answers each, and a tiny policy that gives all of them alike."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from e2h_jax.algorithms import rest_em, reward_model, sft
from e2h_jax.data.arithmetic import PIECES
from e2h_jax.data.storage import write_records
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh


def one_device(shape=None, **_):
    """Stands for `make_mesh`: an eighth of the compiling."""
    return make_mesh((1, 1, 1), jax.devices()[:1])


def patch_meshes(patch: pytest.MonkeyPatch) -> None:
    modules = ("algorithms.rounds", "training.loop", "sampling.sample", "rewards.score")
    for module in modules:
        patch.setattr(f"e2h_jax.{module}.make_mesh", one_device)


@pytest.fixture
def on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_meshes(monkeypatch)


@pytest.fixture(scope="session")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders `policy` and `reward` (a judge that knows the answers), files `questions` and `validation`.

    Questions a=0 … a=3, answers 3 … 6; those of level 4, a=2 and a=3, have hidden answers.
    """
    folder: Path = tmp_path_factory.mktemp("bandit")
    tokenizer = build_tokenizer(PIECES, folder / "tokenizer")
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, max_length=64)
    store.save(folder / "random", "policy", config, store.create("policy", config, one_device(), seed=0)[1], tokenizer)
    questions = [
        {"id": f"bandit/{a}", "question": f"a={a}", "answer": str(a + 3), "level": 1 if a < 2 else 4} for a in range(4)
    ]
    write_records(folder / "validation.jsonl", questions)
    write_records(folder / "questions.jsonl", [q | ({"answer": None} if q["level"] == 4 else {}) for q in questions])
    texts = [(question, f"# Answer\n\n{answer}") for question in questions for answer in range(7)]
    solved = [q | {"id": f"{q['id']}/{text[-1]}", "solution": text} for q, text in texts]
    write_records(folder / "solved.jsonl", solved)
    labelled = [
        {"problem_id": None, "question": q["question"], "prefix": "", "steps": [text]}
        | {"labels": [float(text[-1] == q["answer"])], "level": q["level"]}
        for q, text in texts
    ]
    write_records(folder / "labelled.jsonl", labelled)
    training = {"init": str(folder / "random"), "length": 16, "batch_size": 4, "log_every": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch_meshes(patch)
        for module, data, name, epochs in ((sft, "solved", "policy", 10), (reward_model, "labelled", "reward", 120)):
            fields = module.defaults().unlock()
            fields.update(training | {"data": str(folder / f"{data}.jsonl"), "epochs": epochs})
            fields.optimizer.learning_rate = 1e-2
            module.run(fields, folder / name)
    return SimpleNamespace(
        policy=str(folder / "policy" / "model"),
        reward=str(folder / "reward" / "model"),
        questions=str(folder / "questions.jsonl"),
        validation=str(folder / "validation.jsonl"),
        demonstrations=str(folder / "solved.jsonl"),
    )


@pytest.fixture
def configured(bandit: SimpleNamespace):
    """`configured(module, **fields)`: a quick config of rest_em or dpo on the bandit; train.epochs is written train__epochs."""

    def configured(module, **fields):
        config = module.defaults().unlock()
        config.update({"init": bandit.policy, "questions": bandit.questions, "rounds": 1, "reward_model": bandit.reward})
        config.validation.problems = bandit.validation
        config.sample.update({"samples": 24, "max_new_tokens": 8, "rows": 32, "prompt_bucket": 16, "top_k": 0})
        config.score.update({"length_bucket": 16, "tokens_per_batch": 512})
        config.train.update({"length": 16 if module is rest_em else 32, "batch_size": 4, "epochs": 8, "log_every": 1})
        config.train.optimizer.learning_rate = 3e-3
        for name, value in fields.items():
            *groups, last = name.split("__")
            holder = config
            for group in groups:
                holder = holder[group]
            holder[last] = value
        return config.lock()

    return configured


@pytest.fixture
def chances():
    """`chances(model)`: {question: probability of the right answer} of the bandit under a policy's folder."""
    return _chances


def _chances(model: str | Path) -> dict[str, float]:
    from flax import nnx

    from e2h_jax.data.steps import encode_solution
    from e2h_jax.data.templates import get_template
    from e2h_jax.data.tokenizer import load_tokenizer
    from e2h_jax.models.attention import packed_causal

    graph, _, params = store.load(Path(model), one_device(), "policy")
    tokenizer, found = load_tokenizer(str(model)), {}
    for a in range(4):
        encoded = encode_solution(tokenizer, f"a={a}", f"# Answer\n\n{a + 3}", get_template("e2h"), add_eos=True)
        tokens = np.asarray(encoded.tokens)[None]
        policy = nnx.merge(graph, params)
        hidden, _ = policy(tokens, np.arange(tokens.shape[1])[None], packed_causal(np.ones_like(tokens)))
        logprobs = np.asarray(jax.nn.log_softmax(hidden @ policy.output_matrix()))[0, encoded.prompt_length - 1 : -1]
        found[f"a={a}"] = float(np.exp(np.take_along_axis(logprobs, tokens[0, encoded.prompt_length :, None], axis=1).sum()))
    return found
