"""Every config file: that it loads, fits its stages and their slices, says what it should; and that the paper's recipes run."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from flax import nnx

from e2h_jax import recipe, stage
from e2h_jax.config import load_file, override
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.models import convert, store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.presets import get_preset
from e2h_jax.parallel.mesh import make_mesh

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if path.name != "stages.py")
PAPER = [path for path in CONFIGS if path.parent.name == "paper"]
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
every_recipe = pytest.mark.parametrize(
    "path", [path for path in CONFIGS if "recipe" in path.read_text()], ids=lambda path: path.stem
)
of_the_paper = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)


@every_config
def test_a_config_fits_its_stage_and_tells_its_command(path):
    command = re.search(rf"e2h (\w+) --config={re.escape(str(path.relative_to(ROOT)))}\b", path.read_text())
    assert command, f"{path}: its docstring holds no command that runs it"
    stage.check_config(command[1], load_file(str(path)))


def written(config) -> set[str]:
    """What a stage leaves in its folder for others to read: paths, and "" for the folder itself."""
    if config.stage in ("sample", "score"):
        return {""}
    if config.stage == "labels":
        return {f"{config.name or {'outcome': 'orm', 'completions': 'prm'}[config.method]}/train"}
    if config.stage != "prepare":
        return {"model"}
    if config.source == "few_shot":
        return {"template.json"}
    if config.source in ("arithmetic", "arithmetic_labels", "rerank_pool"):
        names = {
            "arithmetic": "corpus demonstrations demonstrations_all evaluator_questions test rl_questions validation",
            "arithmetic_labels": "prm orm oprm",
            "rerank_pool": "problems",
        }
        others = {"arithmetic": {"tokenizer"}, "arithmetic_labels": set(), "rerank_pool": {"samples", "scored"}}
        return {f"{name}.jsonl" for name in names[config.source].split()} | others[config.source]
    splits = ("train", "valid", "test") if config.source in ("math", "jsonl") else ("train",)
    return {f"{config.name or config.source}/{split}" for split in splits} | {"tokenizer"}


def strings(value):
    if isinstance(value, str):
        yield value
    elif hasattr(value, "items"):
        for _, entry in value.items():
            yield from strings(entry)
    elif isinstance(value, tuple):
        for entry in value:
            yield from strings(entry)


@every_recipe
def test_what_a_recipe_s_stage_reads_is_what_one_before_it_writes(path):
    config = load_file(str(path))
    before = {}
    for name in config.stages:
        for source, file in re.findall(r"\{run\}/([\w-]+)/?([^,\s]*)", "\n".join(strings(config[name]))):
            assert file in before[source], f"{name} reads {source}/{file}, but {source} writes {before[source]}"
        before[name] = written(config[name])
    for source, _ in config.publish:
        assert source.split("/")[0] in before


@of_the_paper
def test_a_config_of_the_paper_says_what_it_reproduces_and_where(path):
    text = path.read_text().split('"""')[1]
    assert re.match(r"(Tables?|Figures?|\S+ on|Iterative DPO on) ", text)
    assert re.search(r"^Expected \(.*(Table|[Ff]igure|MATH500)", text, re.MULTILINE)
    assert len(re.findall(r"^Slice: (?:v5e|v5p):\d+x\d+(?:x\d+)?$", text, re.MULTILINE)) == 1


@of_the_paper
def test_a_config_of_the_paper_fits_the_shards_of_its_slice(path):
    topology = re.search(r"^Slice: \w+:([\dx]+)$", path.read_text(), re.MULTILINE)[1]
    chips = math.prod(map(int, topology.split("x")))
    config = load_file(str(path))
    for name in config.stages:
        fields = config[name]
        if "mesh" not in fields:
            continue
        data, fsdp, tensor = (-chips // math.prod(fields.mesh) if size == -1 else size for size in fields.mesh)
        shards, model = data * fsdp, get_preset(f"llemma_{name.rsplit('_')[-1]}")
        assert shards * tensor == chips and not model["kv_heads"] % tensor and not model["width"] % fsdp
        training = fields.get("train", fields)
        if "batch_size" in training:
            assert not training.batch_size % (training.microbatches * shards), name
        for rows in ("forward_rows", "update_rows"):
            assert not fields.get(rows, 0) % shards, name
        drawing = fields.get("sample", fields)
        assert "rows" not in drawing or not drawing.rows % shards, name


def test_the_schedule_of_the_paper():
    """Peak after a fifth of an epoch, a hundredth of it in the end; embeddings, head and norms stay (Table 4, section 3.6)."""
    config = load_file(str(ROOT / "configs/paper/rerank_prm800k_7b.py"))
    for name, rate, epochs in (("sft_easy_7b", 2e-5, 3), ("prm_7b", 2e-5, 2), ("oprm_7b", 2e-5, 2)):
        optimizer = config[name].optimizer
        assert (optimizer.learning_rate, config[name].epochs, optimizer.final_fraction) == (rate, epochs, 0.01)
        assert optimizer.warmup_fraction * epochs == pytest.approx(0.2)
        kind = "policy" if name.startswith("sft") else "reward"
        params = store.abstract(kind, LlamaConfig(8, 8, 1, 1, 1, 8, 8))[1]
        names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)]
        trained = {n.split(".")[-1] for n in names if not any(re.search(pattern, n) for pattern in optimizer.freeze)}
        own = {"score_head", "score_bias"} if kind == "reward" else set()
        assert trained == {"q", "k", "v", "o", "gate", "up", "down"} | own


def test_a_stage_of_one_name_is_the_same_in_every_recipe_of_its_data():
    seen = {}
    for path in PAPER:
        config = load_file(str(path))
        data = re.search(r"prm800k|metamath", path.stem)[0]
        for name in config.stages:
            assert seen.setdefault((data, name), config[name].to_json()) == config[name].to_json(), (path.stem, name)


def test_a_config_imports_what_lies_beside_it(tmp_path):
    for folder, steps in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "shared.py").write_text(f"STEPS = {steps}\n")
        text = "from ml_collections import ConfigDict\nfrom shared import STEPS\n\n\n"
        (tmp_path / folder / "own.py").write_text(text + "def get_config():\n    return ConfigDict({'steps': STEPS})\n")
    assert [load_file(str(tmp_path / folder / "own.py")).steps for folder in ("one", "two", "one")] == [1, 2, 1]


# The paper's recipes at toy size: a world of questions "a=12?", whose answers are one digit.

PIECES = ("# Question", "# Solution", "# Answer", "\n", "So it is.", "No.", *"ab=?0123456789")
LEVELS = (1, 2, 3, 4, 5)


def question(number: int) -> str:
    return f"a={number:02}?"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, str]:
    """A folder of the Hub with a tiny Llama, and files in the formats of MATH, PRM800K, MetaMath and Math-Shepherd."""
    folder = tmp_path_factory.mktemp("world")
    shape = {"width": 64, "layers": 1, "heads": 4, "kv_heads": 4, "head_dim": 16, "mlp_width": 64, "max_length": 256}
    tokenizer = build_tokenizer(PIECES, folder / "tokenizer")
    model = LlamaConfig(len(tokenizer), **shape)
    store.save(folder / "random", "policy", model, store.create("policy", model, one_device(), seed=0)[1], tokenizer)
    fields = {"source": str(folder / "random"), "to": "huggingface"}
    convert.run(recipe.configure("convert", fields), folder)

    problems = []  # of each level four to train on, two for validation among them, and one of MATH500
    for number in range(35):
        level, place = LEVELS[number % 5], number // 5
        sides = {"split": "train" if place < 3 else "test", "in_math500": place == 6}
        solution = f"So it is. \\boxed{{{number % 4}}}"
        problems.append({"problem": question(number), "solution": solution, "level": level, "subject": "Algebra"} | sides)
    (folder / "math").mkdir()
    write_records(folder / "math" / "all.jsonl", problems)

    # Demonstrations guess, so that a generator trained on them is sometimes right: answers are 0 to 3.
    prm800k, metamath, shepherd = [], [], []
    for number, problem in enumerate(problems):
        for guess in range(4):
            good = [{"text": "So it is.", "rating": 1}, {"text": "No.", "rating": -1}]
            last = [{"text": f"# Answer\n\n{guess}", "rating": 1}]
            steps = [{"completions": found, "chosen_completion": 0, "human_completion": None} for found in (good, last)]
            about = {"problem": problem["problem"], "ground_truth_answer": str(number % 4)}
            prm800k.append({"question": about, "label": {"steps": steps}})
            response = f"So it is.\nThe answer is: {guess}"
            source = {"type": "MATH_AnsAug", "original_question": problem["problem"]}
            metamath.append({"query": problem["problem"], "response": response} | source)
            text = f"{problem['problem']} Step 1: So it is. ки\nStep 2: No. The answer is: {guess} ки"
            label = text.replace("ки", "+" if guess == number % 4 else "-")
            shepherd.append({"input": text, "label": label, "task": "MATH"})
    for name, rows in (("prm800k", prm800k), ("metamath", metamath), ("math_shepherd", shepherd)):
        write_records(folder / name / "train.jsonl", rows)
    return {name: str(folder / name) for name in ("huggingface", "math", "prm800k", "metamath", "math_shepherd")}


def one_device(shape=None, **_):
    return make_mesh((1, 1, 1), jax.devices()[:1])


def shrink(config, world: dict[str, str]) -> None:
    """Makes every stage read the toy world, and run for seconds."""
    training = {"batch_size": 8, "length": 64, "microbatches": 1}
    drawing = {"rows": 16, "max_new_tokens": 24, "prompt_bucket": 64}
    small = {
        "prepare": {},
        "convert": {"source": world["huggingface"], "vocab_size": 0},
        "sft": training | {"optimizer.learning_rate": 1e-2, "epochs": 40},
        "reward": training | {"optimizer.learning_rate": 1e-2},
        "sample": drawing,
        "labels": {},
        "score": {"row_length": 64, "tokens_per_batch": 512},
        "evaluate": {"bootstrap": 100},
    }
    rounds = {f"sample.{name}": value for name, value in (drawing | {"samples": 8}).items()} | {"rounds": 1}
    rounds |= {f"train.{name}": value for name, value in training.items()}
    small["rest_em"] = rounds
    scoring = {f"score.{name}": value for name, value in small["score"].items()}
    small["dpo"] = rounds | scoring | {"train.length": 96, "margin": 0.0, "margin_hidden": 0.0}
    small["ppo"] = {f"sample.{name}": value for name, value in drawing.items()}
    small["ppo"] |= {"steps": 1, "questions_per_step": 8, "minibatches": 2, "length": 64, "validation.every": 1}
    small["ppo"] |= {"reward.row_length": 64, "reward.tokens_per_batch": 512, "reward.grade_workers": 1}
    for name in config.stages:
        fields = dict(small[config[name].stage])
        if config[name].stage == "sample" and config[name].samples > 1:
            fields["samples"] = 8
        if config[name].stage == "prepare":
            source = config[name].source
            fields |= {"path": world[source]} if source in world else {}
            fields |= {"math": world["math"]} if source in ("prm800k", "metamath", "math_shepherd") else {}
            fields |= {"valid": 5} if source == "math" else {}
            fields |= {"tokenizer": world["huggingface"]} if config[name].tokenizer else {}
        override(config, [f"{name}.{field}={value}" for field, value in fields.items()])


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """finished(name, wanted): the workdir in which a recipe's wanted stages have run; recipes of one data set share theirs."""
    modules = ("algorithms.rounds", "algorithms.ppo")
    folder = tmp_path_factory.mktemp("paper")

    def run(name: str, wanted: Callable[[str], bool] = lambda stage: True) -> Path:
        config = load_file(str(ROOT / "configs" / "paper" / f"{name}.py")).unlock()
        shrink(config, world)
        config.stages = tuple(filter(wanted, config.stages))
        workdir = folder / re.search(r"prm800k|metamath", name)[0]
        stage.check_config("recipe", config)
        stage.execute("recipe", config, workdir)
        return workdir

    with pytest.MonkeyPatch.context() as patch:
        for module in (*modules, "training.loop", "sampling.sample", "rewards.score"):  # one device: an eighth of the compiling
            patch.setattr(f"e2h_jax.{module}.make_mesh", one_device)
        yield run


def results(workdir: Path, name: str) -> set[tuple]:
    rows = json.loads((workdir / f"{name}_results.json").read_text())["rows"]
    return {(row["generator"], row["decoding"], row["evaluator"]) for row in rows}


def test_rerank_of_prm800k_runs(finished):
    workdir = finished("rerank_prm800k_7b")
    found = results(workdir, "rerank_7b")
    assert {("sft_7b", "weighted", name) for name in ("prm", "orm", "oprm")} <= found
    assert ("sft_7b", "greedy", None) in found and ("sft_7b", "majority", None) in found
    levels = {record["level"] for record in read_many(workdir / "outcome_labels_7b/orm/train", "labelled")}
    assert levels and levels <= {1, 2, 3}
    parts = {record["part"] for record in read_many(workdir / "mixed_labels_7b/oprm/train", "labelled")}
    assert parts == {"prm", "orm"}


def test_in_context_learning_and_fine_tuning_on_metamath_run(finished):
    workdir = finished("table1_metamath_7b")
    pools = [f"{kind}_{pool}" for kind in ("icl", "sft") for pool in ("full", "easy")]
    assert {(name, "majority", None) for name in (*pools, "icl_hard")} <= results(workdir, "table1_7b")
    shots = get_template(str(workdir / "shots_hard/template.json")).prompt
    assert {int(number) % 5 + 1 for number in re.findall(r"a=(\d+)", shots)} <= {4, 5} and shots.count("# Question") == 5


@pytest.mark.parametrize(("name", "policies"), [("rest_em", ("easy", "hard", "answered")), ("dpo", ("easy", "answered"))])
def test_rounds_on_prm800k_run(finished, name, policies):
    workdir = finished(f"{name}_prm800k_7b")
    learnt = [f"{name}_{questions}_7b" for questions in policies]
    assert {(policy, "greedy", None) for policy in ("sft_easy_7b", *learnt)} <= results(workdir, f"{name}_table_7b")
    drawn = {policy: read_many(workdir / policy / "round-1/samples", "sample") for policy in learnt}
    levels = {problem["id"]: problem["level"] for problem in read_many(workdir / "math/math/train", "problem")}
    found = {policy: {levels[sample["problem_id"]] for sample in samples} for policy, samples in drawn.items()}
    of = {"easy": {1, 2, 3}, "hard": {4, 5}, "answered": {1, 2, 3, 4, 5}}
    assert found == {f"{name}_{questions}_7b": of[questions] for questions in policies}


def test_ppo_on_prm800k_runs(finished):
    # Two of the four, and so without their table: the others are as ppo_outcome_easy, with other questions.
    workdir = finished("ppo_prm800k_7b", lambda stage: not re.search("outcome_hard|answered|table", stage))
    for policy, process in (("ppo_all_7b", True), ("ppo_outcome_easy_7b", False)):
        metrics = [json.loads(line) for line in (workdir / policy / "metrics.jsonl").read_text().splitlines()]
        assert metrics[-1]["step"] == 1 and (metrics[-1]["reward/process"] != 0) == process
        assert (workdir / policy / "model" / "model.json").exists() and (workdir / f"greedy_{policy}" / "done.json").exists()
