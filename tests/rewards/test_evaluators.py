"""Evaluators of the Hub: tiny stand-ins of each kind, imported and scored, against the same scores computed from their tensors.

The reference knows nothing of folded heads or of our steps: it writes the text by hand, cuts it into tokens itself, and takes
the logits as each system does. Its network is plain numpy, and transformers where torch is installed.
"""

import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from e2h_jax.config import override
from e2h_jax.data.records import read_many
from e2h_jax.data.rewrite import rewrite
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import RECORD, get_template, write_template
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.main import parse
from e2h_jax.models import convert, evaluators, store
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards import score

CHAT = ("<|im_start|>", "<|im_end|>", "<extra_0>")
PIECES = [*map(chr, range(32, 127)), "\n", "ки", " ки"]
TOKENS = re.compile("|".join(map(re.escape, [*CHAT, " ки", "ки"])) + r"|[\s\S]")
WIDTH, VOCAB = 32, 4 + len(PIECES) + len(CHAT)
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=400, rope_theta=1e4, rms_norm_eps=1e-5, torch_dtype="float32",
    sliding_window=None,
)  # fmt: skip

QUESTION = "1+2?"
ANSWERED, OPEN = "a=1\n\nb=2\n\n# Answer\n\n3", "a=1\n\nb=2"
E2H = f"# Question\n\n{QUESTION}\n\n# Solution\n\n"
QWEN = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\na=1<extra_0>b=2<extra_0>"
)
BOXED = "The final answer is $\\boxed{3}$.<extra_0>"
# kind: model_type, end of the class's name, tensors of the head
KINDS = {
    "mean_logits": ("llama", "ForCausalLM", {"lm_head.weight": (VOCAB, WIDTH)}),
    "step_tag": ("mistral", "ForCausalLM", {"lm_head.weight": (VOCAB, WIDTH)}),
    "one_label": ("llama", "ForTokenClassification", {"score.weight": (1, WIDTH), "score.bias": (1,)}),
    "two_labels": ("qwen2", "ForTokenClassification", {"score.weight": (2, WIDTH), "score.bias": (2,)}),
    "sequence_classification": ("mistral", "ForSequenceClassification", {"score.weight": (2, WIDTH)}),
    "separator_head": (
        "qwen2", "ForProcessRewardModel",
        {"score.0.weight": (WIDTH, WIDTH), "score.0.bias": (WIDTH,), "score.2.weight": (2, WIDTH), "score.2.bias": (2,),
         "lm_head.weight": (VOCAB, WIDTH)},
    ),
}  # fmt: skip


def texts(kind: str) -> list[tuple[str, list[int]]]:
    """Of the answered and of the open solution: the text that the model reads, and where, in characters, reading ends."""
    if kind == "step_tag":
        both = [f"{QUESTION} Step 1: a=1 ки\nStep 2: b=2{end} ки" for end in (" The answer is: 3", "")]
        return [(text, [match.end() for match in re.finditer("ки", text)]) for text in both]
    if kind == "separator_head":
        return [(text, [match.end() for match in re.finditer("<extra_0>", text)]) for text in (QWEN + BOXED, QWEN)]
    newlines = {"mean_logits": 1, "sequence_classification": 0}.get(kind, 2)  # how many of those after the step
    first = len(E2H + "a=1") + newlines
    second = len(E2H + "a=1\n\nb=2")
    return [(E2H + ANSWERED, [first, second + newlines, len(E2H + ANSWERED)]), (E2H + OPEN, [first, second])]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = build_tokenizer(PIECES, folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT)})
    tokenizer.save_pretrained(folder)
    return folder, tokenizer.get_vocab()


def make_hub(folder: Path, kind: str, tokenizer: Path, dtype=np.float32, **changes) -> dict[str, np.ndarray]:
    """A model with random weights as the Hub has it."""
    family, classes, head = KINDS[kind]
    shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)} | head
    for layer in range(SHAPE["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows in (("q", 32), ("k", 16), ("v", 16)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, WIDTH)
            shapes |= {f"{at}self_attn.{name}_proj.bias": (rows,)} if family == "qwen2" else {}
        shapes |= {f"{at}self_attn.o_proj.weight": (WIDTH, 32), f"{at}mlp.down_proj.weight": (WIDTH, 40)}
        shapes |= {f"{at}mlp.{name}_proj.weight": (40, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{at}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    rng = np.random.default_rng(list(KINDS).index(kind))
    tensors = {name: rng.normal("norm" in name, 0.3, shape).astype(dtype) for name, shape in shapes.items()}
    if kind == "mean_logits":  # as published: two rows, repeated
        tensors["lm_head.weight"] = np.resize(tensors["lm_head.weight"][:2], (VOCAB, WIDTH))
    prefix = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[family]
    text = SHAPE | {"model_type": family, "architectures": [prefix + classes]}
    if kind == "separator_head":
        text["auto_map"] = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    if "score.weight" in head:
        text["id2label"] = {str(n): f"LABEL_{n}" for n in range(head["score.weight"][0])}
        text["pad_token_id"] = 0
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(text | changes))
    for path in tokenizer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return tensors


def hidden_states(tensors: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The network in float64 numpy: [T, D] after the final norm."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * t[name]

    def rotated(x):  # [T, heads, h]
        angle = np.arange(len(x))[:, None, None] / 1e4 ** (np.arange(4) / 4)
        a, b = x[..., :4], x[..., 4:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    x = t["model.embed_tokens.weight"][tokens]
    for layer in range(2):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (y @ t[f"{at}self_attn.{n}_proj.weight"].T + t.get(f"{at}self_attn.{n}_proj.bias", 0)).reshape(len(x), -1, 8)
            for n in "qkv"
        )
        q, k, v = rotated(q), rotated(k).repeat(2, 1), v.repeat(2, 1)
        scores = np.einsum("qnh,knh->nqk", q, k) / np.sqrt(8) + np.triu(np.full((len(x), len(x)), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("nqk,knh->qnh", weights / weights.sum(-1, keepdims=True), v).reshape(len(x), -1)
        x = x + out @ t[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate = y @ t[at + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ t[at + "mlp.up_proj.weight"].T)) @ t[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight")


def numpy_logits(folder: Path, tokens: list[int], upto: int) -> np.ndarray:
    """What the model's own class gives at token `upto` - 1."""
    tensors = load_file(folder / "model.safetensors")
    hidden = hidden_states(tensors, tokens)[upto - 1]
    if "score.0.weight" in tensors:
        hidden = np.maximum(tensors["score.0.weight"] @ hidden + tensors["score.0.bias"], 0)
        return tensors["score.2.weight"] @ hidden + tensors["score.2.bias"]
    name = "score" if "score.weight" in tensors else "lm_head"
    return tensors[f"{name}.weight"] @ hidden + tensors.get(f"{name}.bias", 0)


def torch_logits(folder: Path, tokens: list[int], upto: int) -> np.ndarray:
    import torch
    import transformers

    text = json.loads((folder / "config.json").read_text())
    own = "auto_map" in text  # Qwen's class, whose code is not here: its head is two linear maps
    classes = transformers.Qwen2Model if own else getattr(transformers, text["architectures"][0])
    config = transformers.AutoConfig.for_model(**{key: value for key, value in text.items() if key != "auto_map"})
    model = classes.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    ids = torch.tensor([tokens])
    with torch.no_grad():
        if not own:
            if "Sequence" in text["architectures"][0]:
                return model(ids[:, :upto]).logits[0].numpy()
            return model(ids).logits[0, upto - 1].numpy()
        head = {
            name: torch.tensor(v) for name, v in load_file(folder / "model.safetensors").items() if name.startswith("score")
        }
        layer = torch.relu(model(ids).last_hidden_state[0, upto - 1] @ head["score.0.weight"].T + head["score.0.bias"])
        return (head["score.2.weight"] @ layer + head["score.2.bias"]).numpy()


def probability(kind: str, logits: np.ndarray, vocab: dict[str, int]) -> float:
    """The score that each system makes of its logits."""
    if kind == "mean_logits":
        return 1 / (1 + np.exp(-logits.mean(dtype=np.float64)))
    if kind == "step_tag":
        logits = logits[[vocab["-"], vocab["+"]]]
    if len(logits) == 1:
        return 1 / (1 + np.exp(-logits[0]))
    odds = np.exp(logits - logits.max())
    return odds[1] / odds.sum()


def expected(kind: str, folder: Path, vocab: dict[str, int], logits=numpy_logits) -> list[list[float]]:
    found = []
    for text, ends in texts(kind):
        pieces = TOKENS.findall(text)
        lengths = np.cumsum([len(piece) for piece in pieces]).tolist()
        tokens = [vocab["<s>"], *(vocab[piece] for piece in pieces)]
        scores = [probability(kind, logits(folder, tokens, 2 + lengths.index(end)), vocab) for end in ends]
        found.append(scores)
    return [found[0], [*found[1], 0.0]]  # without an answer, a solution is none


def imported(hub: Path, workdir: Path, **fields) -> Path:
    config = convert.defaults().unlock()
    config.update({"source": str(hub)} | fields)
    assert convert.run(config, workdir)["kind"] == "reward"
    return workdir / "model"


def scored(model: Path, folder: Path, samples=(ANSWERED, OPEN), **fields) -> list[list[float]]:
    write_records(folder / "problems.jsonl", [{"id": "p", "question": QUESTION, "answer": "3", "level": 1}])
    lines = [
        {"problem_id": "p", "sample": n, "text": text, "finish": "stop", "logprob": None} for n, text in enumerate(samples)
    ]
    write_records(folder / "samples.jsonl", lines)
    config = score.defaults()
    paths = {"model": str(model), "samples": str(folder / "samples.jsonl"), "problems": str(folder / "problems.jsonl")}
    config.update(paths | {"length_bucket": 256, "tokens_per_batch": 512, "written_in": "e2h"} | fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "make_mesh", lambda shape, **_: make_mesh((1, 1, 1), jax.devices()[:1]))
        score.run(config, folder / "scored")
    return [r["step_scores"] for r in sorted(read_many(folder / "scored", "scored"), key=lambda r: r["sample"])]


def reward_field(kind: str) -> dict[str, str]:
    return {"reward": kind} if kind in ("mean_logits", "step_tag") else {}  # the others tell by their architecture


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_are_those_of_the_evaluators_own_system(kind, tokenizer, tmp_path):
    make_hub(tmp_path / "hub", kind, tokenizer[0])
    model = imported(tmp_path / "hub", tmp_path, **reward_field(kind))
    ours, theirs = scored(model, tmp_path), expected(kind, tmp_path / "hub", tokenizer[1])
    print(kind, max(float(np.abs(np.subtract(mine, other)).max()) for mine, other in zip(ours, theirs, strict=True)))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
    assert len({round(p, 4) for scores in theirs for p in scores}) > 3  # they differ, and are not all 0 or 1
    assert "trunk.lm_head" not in {path.name for path in (model / "params").iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_the_same_reference(kind, tokenizer, tmp_path):
    pytest.importorskip("torch")
    make_hub(tmp_path / "hub", kind, tokenizer[0])
    both = (expected(kind, tmp_path / "hub", tokenizer[1], logits) for logits in (numpy_logits, torch_logits))
    for mine, other in zip(*both, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_the_documented_commands_are_those():
    """docs/models.md: a convert and a score line for each kind, with the fields that the tests of this file use."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    blocks = re.findall(r"^# .*: (\w+)\ne2h convert (.+)\ne2h score (.+)$", text, re.MULTILINE)
    assert [kind for kind, *_ in blocks] == [
        "mean_logits", "step_tag", "token_classification", "token_classification", "sequence_classification", "separator_head",
    ]  # fmt: skip
    for kind, *lines in blocks:
        given = []
        for line, module in zip(lines, (convert, score), strict=True):
            config = module.defaults()
            override(config, parse([kind, *line.replace("$SAMPLES", "").split()]).overrides)  # refuses a misspelt field
            given.append(config)
        assert given[0].reward == reward_field(kind).get("reward", "")
        foreign = evaluators.EVALUATORS[kind].template != "e2h"
        assert given[1].written_in == ("e2h" if foreign else "") and given[1].model.endswith("/model")


def test_samples_in_the_models_own_format(tokenizer, tmp_path):
    make_hub(tmp_path / "hub", "step_tag", tokenizer[0])
    model = imported(tmp_path / "hub", tmp_path, reward="step_tag")
    theirs = expected("step_tag", tmp_path / "hub", tokenizer[1])
    own = [text.removeprefix(QUESTION + " ") for text, _ in texts("step_tag")]
    for ours, other in zip(scored(model, tmp_path, own, written_in=""), theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)
    with pytest.raises(UserError, match="no sample has a step tag 'ки', .*config.written_in"):
        scored(model, tmp_path / "other", written_in="")
    # What `sample` recorded beside its samples is the format in which they are written.
    write_template(tmp_path / "other" / RECORD, get_template("e2h"))
    assert scored(model, tmp_path / "other", written_in="") == scored(model, tmp_path / "said")
    with pytest.raises(UserError, match='drawn in the template "e2h", not "qwen_boxed"; set config.written_in=e2h'):
        scored(model, tmp_path / "other", written_in="qwen_boxed")


def test_half_precision_and_names_of_labels(tokenizer, tmp_path):
    """Heads are folded in float32 whatever they are stored in; labels may stand in the other order."""
    for n, names in enumerate(({}, {"0": "correct", "1": "wrong"})):
        text = {"id2label": names} if names else {}
        tensors = make_hub(tmp_path / f"{n}/hub", "two_labels", tokenizer[0], ml_dtypes.bfloat16, **text)
        model = imported(tmp_path / f"{n}/hub", tmp_path / f"{n}")
        params = store.load(model, make_mesh((1, 1, 1), jax.devices()[:1]), "reward")[2]
        rows = tensors["score.weight"].astype(np.float32)
        np.testing.assert_array_equal(np.asarray(params["score_head"][...]), rows[n ^ 1] - rows[n])
    make_hub(tmp_path / "mean/hub", "mean_logits", tokenizer[0], ml_dtypes.bfloat16)
    imported(tmp_path / "mean/hub", tmp_path / "mean", reward="mean_logits")


def test_what_the_model_reads_is_recorded_and_may_be_overridden(tokenizer, tmp_path, capsys):
    make_hub(tmp_path / "hub", "mean_logits", tokenizer[0])
    model = imported(tmp_path / "hub", tmp_path, reward="mean_logits")
    assert store.load_reads(model) == {"template": "e2h", "read_at": "separator_first"}
    own = scored(model, tmp_path / "a")
    assert "the model is made for" not in capsys.readouterr().err
    other = scored(model, tmp_path / "b", read_at="separator_last")
    assert "config.read_at=separator_last, but the model is made for separator_first" in capsys.readouterr().err
    assert other[0][2] == own[0][2] and other[0][0] != own[0][0]


def test_export_gives_a_token_classifier_or_says_why_not(tokenizer, tmp_path):
    make_hub(tmp_path / "hub", "two_labels", tokenizer[0])
    model = imported(tmp_path / "hub", tmp_path)
    config = convert.defaults().unlock()
    config.update({"source": str(model), "to": "huggingface"})
    convert.run(config, tmp_path)
    again = imported(tmp_path / "huggingface", tmp_path / "again")
    for ours, other in zip(scored(model, tmp_path / "a"), scored(again, tmp_path / "b"), strict=True):
        assert ours == other
    make_hub(tmp_path / "prm/hub", "separator_head", tokenizer[0])
    config.source = str(imported(tmp_path / "prm/hub", tmp_path / "prm"))
    with pytest.raises(UserError, match="has a score head of two layers, for which transformers has no class"):
        convert.run(config, tmp_path / "prm")
    assert not list((tmp_path / "prm").glob("huggingface*"))


def test_solutions_are_rewritten_between_formats():
    e2h, shepherd, boxed, prm = map(get_template, ("e2h", "math_shepherd", "deepseek_boxed", "qwen_prm"))
    tagged = "Step 1: a=1 ки\nStep 2: b=2 The answer is: 3 ки"
    assert rewrite(ANSWERED, e2h, e2h) == ANSWERED
    assert rewrite(ANSWERED, e2h, shepherd) == tagged
    assert rewrite(tagged.removesuffix(" ки"), shepherd, shepherd) == tagged + "\n"  # a tag that was not sampled
    assert rewrite(tagged, shepherd, e2h) == "a=1\n\nb=2 The answer is: 3\n\n# Answer\n\n3"
    assert rewrite("a=1\n\nSo $\\boxed{3}$.\n\nmore", boxed, prm) == "a=1<extra_0>So $\\boxed{3}$.<extra_0>"
    assert rewrite("a<extra_0>b", e2h, prm) == "ab<extra_0>" and rewrite("", e2h, shepherd) == ""


def retensor(edit):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def without_token(token: str):
    def apply(folder: Path) -> None:
        build_tokenizer([piece for piece in PIECES if token not in piece], folder)

    return apply


BAD = {
    "a policy": ("mean_logits", None, {"reward": "token_classification"}, "CausalLM is not supported; .*LlamaForTokenC"),
    "unknown": ("mean_logits", None, {"reward": "mean_logit"}, "'mean_logit' is unknown .did you mean .mean_logits"),
    "no step tag": ("step_tag", without_token("ки"), {}, "the tokenizer has no token 'ки', which this kind"),
    "no minus": ("step_tag", without_token("-"), {}, "the tokenizer has no token '-'"),
    "no separator": ("separator_head", without_token("none"), {}, "the tokenizer has no token '<extra_0>'"),
    "three labels": (
        "two_labels", retensor(lambda t: t.update({"score.weight": np.ones((3, WIDTH), np.float32)})), {}, "bias has shape .2,",
    ),
    "five labels": (
        "sequence_classification", retensor(lambda t: t.update({"score.weight": np.ones((5, WIDTH), np.float32)})), {},
        "the head has 5 labels; an evaluator has 1 or 2",
    ),
    "narrow head": (
        "one_label", retensor(lambda t: t.update({"score.weight": np.ones((1, 8), np.float32)})), {},
        r"score\.weight has shape \(1, 8\), where \(labels, 32\) is expected",
    ),
    "no head": ("one_label", retensor(lambda t: t.pop("score.weight")), {}, "holds no score.weight, the head of an evaluator"),
    "half a head": ("separator_head", retensor(lambda t: t.pop("score.2.weight")), {}, "holds no score.2.weight"),
    "pickle": (
        "one_label", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), {}, "is a pickle",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_evaluator_is_one_sentence_and_leaves_nothing(name, tokenizer, tmp_path):
    kind, spoil, fields, message = BAD[name]
    make_hub(tmp_path / "hub", kind, tokenizer[0])
    if spoil:
        spoil(tmp_path / "hub")
    with pytest.raises(UserError, match=message) as error:
        imported(tmp_path / "hub", tmp_path / "out", **(reward_field(kind) | fields))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_scoring_with_a_tokenizer_that_lacks_the_tag(tokenizer, tmp_path):
    make_hub(tmp_path / "hub", "one_label", tokenizer[0])
    model = imported(tmp_path / "hub", tmp_path)
    without_token("ки")(model)
    with pytest.raises(UserError, match="the tokenizer has no token 'ки', which ends the steps of the template math_shepherd"):
        scored(model, tmp_path, template="math_shepherd")
