"""What `e2h convert` records of the text that a model reads, and the chain of stages that goes by it."""

import json

import jax
import pytest

from e2h_jax import interactive
from e2h_jax.algorithms import reward_model, sft
from e2h_jax.data.chat import chat_template
from e2h_jax.data.steps import encode_prompt
from e2h_jax.data.storage import write_json, write_records
from e2h_jax.data.templates import as_record, get_template, recorded_template
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards import labels, score
from e2h_jax.sampling import prompts, sample
from e2h_jax.training import loop

CHAT = "{% for m in messages %}{{ '<s>' + m.role[0] + 'w1' + m.content + '</s>' }}{% endfor %}<s>w2"


@pytest.fixture
def chat_hub(make_hub):
    """chat_hub(folder): a model of the Hub whose tokenizer has a chat template."""

    def make(folder, text=CHAT, name="llama"):
        make_hub(folder, name)
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": text}))
        return folder

    return make


def test_the_chat_template_of_a_policy_is_recorded(chat_hub, run_convert, tmp_path):
    hub = chat_hub(tmp_path / "hub")
    run_convert(hub, tmp_path / "a", system="w3", instruction="w4 {question}")
    expected = chat_template(load_tokenizer(hub), "w3", "w4 {question}")
    assert expected.prompt == "<s>sw1w3</s><s>uw1w4 {question}</s><s>w2"
    assert store.load_reads(tmp_path / "a/model") == {"template": json.loads(json.dumps(as_record(expected)))}
    assert recorded_template(tmp_path / "a/model") == expected
    # What is exported has the chat template, and records the same when it comes back.
    run_convert(tmp_path / "a/model", tmp_path / "b", to="huggingface")
    assert load_tokenizer(tmp_path / "b/huggingface").chat_template == CHAT
    run_convert(tmp_path / "b/huggingface", tmp_path / "c", answer="header")
    assert recorded_template(tmp_path / "c/model") == chat_template(load_tokenizer(hub), answer="header")


def test_what_is_recorded_otherwise(chat_hub, make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "base", "llama")
    run_convert(tmp_path / "base", tmp_path / "a")
    assert store.load_reads(tmp_path / "a/model") == {}  # as it was
    hub = chat_hub(tmp_path / "hub")
    run_convert(hub, tmp_path / "b", template="deepseek_boxed")
    assert store.load_reads(tmp_path / "b/model") == {"template": "deepseek_boxed"}
    write_json(tmp_path / "mine.json", {"name": "mine", "prompt": "{question}:"})
    run_convert(hub, tmp_path / "c", template=str(tmp_path / "mine.json"))
    assert recorded_template(tmp_path / "c/model") == get_template(str(tmp_path / "mine.json"))
    write_json(tmp_path / "mine.json", {"chat": {"system": "w3"}})
    run_convert(hub, tmp_path / "d", template=str(tmp_path / "mine.json"))
    assert recorded_template(tmp_path / "d/model") == chat_template(load_tokenizer(hub), "w3")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "e2h", "system": "w3"}, "are of a chat template; config.template=e2h is none: leave them out"),
        ({"template": "e2hh"}, 'there is no template "e2hh" .did you mean "e2h"'),
        ({"instruction": "gsm88k"}, 'no ready instruction "gsm88k"'),
        ({"answer": "boxes"}, 'no rule "boxes"'),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(chat_hub, run_convert, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        run_convert(chat_hub(tmp_path / "hub"), tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


def test_a_base_model_has_no_system_text_and_a_chat_template_that_cannot_be_had_says_so(
    chat_hub, make_hub, run_convert, tmp_path
):
    make_hub(tmp_path / "base", "llama")
    with pytest.raises(UserError, match="are of a chat template; the tokenizer in .*base has none: leave them out"):
        run_convert(tmp_path / "base", tmp_path / "out", instruction="gsm8k")
    with pytest.raises(UserError, match="has no chat template"):
        run_convert(tmp_path / "base", tmp_path / "out", template="chat")
    lowers = chat_hub(tmp_path / "hub", CHAT.replace("m.content", "m.content | lower"))
    with pytest.raises(UserError, match="changes the question .*; write the prompt as a template file"):
        run_convert(lowers, tmp_path / "out")
    run_convert(lowers, tmp_path / "out", template="e2h")  # the remedy


@pytest.fixture
def stages(monkeypatch):
    """stages(module, workdir, field=value, group__field=value, …): a stage on one device."""
    for module in (loop, sample, score, interactive):
        monkeypatch.setattr(module, "make_mesh", lambda shape=None, **_: make_mesh((1, 1, 1), jax.devices()[:1]))
    monkeypatch.setattr(prompts, "_shown", set())

    def run(module, workdir, **fields):
        config = module.defaults().unlock()
        config.update(fields)
        return module.run(config, workdir)

    return run


def test_from_convert_to_try_the_word_chat_is_enough(chat_hub, run_convert, stages, tmp_path, capsys):
    run_convert(chat_hub(tmp_path / "hub"), tmp_path / "converted", instruction="w4")
    solved = {"answer": "w7", "level": 1, "solution": "w8\n\nSo $\\boxed{w7}$."}
    write_records(tmp_path / "problems.jsonl", [{"id": f"p{n}", "question": f"w{n + 5}"} | solved for n in range(8)])
    data, first = str(tmp_path / "problems.jsonl"), str(tmp_path / "converted/model")
    own, train = recorded_template(first), {"length": 128, "batch_size": 8, "template": "chat"}
    draw = {"rows": 8, "samples": 2, "max_new_tokens": 8, "problems": data, "template": "chat"}
    for module, fields in ((sft, train | {"init": first, "data": data}), (sample, draw | {"model": first})):
        with pytest.raises(UserError, match="is a chat model .* config.template=e2h is another text format"):
            stages(module, tmp_path / "refused", **fields | {"template": "e2h"})
    capsys.readouterr()

    stages(sft, tmp_path / "sft", **train, init=first, data=data)
    tokens = encode_prompt(load_tokenizer(first), "w5", own).tolist()
    assert tokens == load_tokenizer(first).encode("<s>uw1w5\n\nw4</s><s>w2", add_special_tokens=False)
    shown, policy, samples = capsys.readouterr().err, str(tmp_path / "sft/model"), str(tmp_path / "samples")
    assert shown.count("e2h: the first prompt") == 1
    assert f"the first prompt, {len(tokens)} tokens ({tokens[0]} {tokens[1]} " in shown and f"{tokens[-1]}):\n  | <s>" in shown
    stages(sample, samples, **draw, model=policy)
    assert recorded_template(policy) == recorded_template(samples) == own
    labelling = {"problems": data, "samples": samples, "template": "chat", "ratio": 0.0, "max_no_answer": 1.0}
    stages(labels, tmp_path / "labels", **labelling, format="jsonl")
    stages(reward_model, tmp_path / "rm", **train, init=policy, data=str(tmp_path / "labels/orm/train.jsonl"))
    assert store.load_reads(tmp_path / "rm/model") == store.load_reads(policy) | {"read_at": "separator_last"}
    judged = stages(score, tmp_path / "scored", model=str(tmp_path / "rm/model"), samples=samples, problems=data)
    assert judged["solutions"] == 16 and not (tmp_path / "refused").exists()
    assert "the first prompt" not in capsys.readouterr().err  # the same template and vocabulary

    prompts._shown.clear()
    solver = interactive.Policy(interactive._parse([f"--checkpoint={policy}", "--max-new-tokens=4", "--verbose"]))
    assert solver.template == own and "the first prompt" not in capsys.readouterr().err
    next(solver.draw("w5", 0))
    assert capsys.readouterr().err.startswith(shown[shown.index("e2h: the first") :].partition(":\n")[0])
    with pytest.raises(UserError, match="is a chat model .* --template=e2h is another text format; set --template=chat"):
        interactive.Policy(interactive._parse([f"--checkpoint={policy}", "--template=e2h"]))


def test_told_once_the_other_template_is_the_models_own(chat_hub, run_convert, stages, tmp_path, capsys):
    run_convert(chat_hub(tmp_path / "hub"), tmp_path, template="e2h")
    record = {"id": "p", "question": "w5", "answer": "w7", "level": 1, "solution": "w8\n\n# Answer\n\nw7"}
    write_records(tmp_path / "problems.jsonl", [record])
    data = {"data": str(tmp_path / "problems.jsonl"), "length": 128, "batch_size": 8}
    stages(sft, tmp_path / "sft", **data, init=str(tmp_path / "model"))
    assert store.load_reads(tmp_path / "sft/model") == {"template": "e2h"}
    assert "has a chat template" not in capsys.readouterr().err
