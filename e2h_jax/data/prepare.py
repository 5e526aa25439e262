"""Prepare: turns a source into the records that the other stages read, with a dataset card.

`source` is one of

  math            MATH, in the split of Hendrycks or of PRM800K: train, valid, test
  gsm8k           GSM8K: train, test
  prm800k         step ratings by people, phases 1 and 2: train, test
  metamath        MetaMathQA: train
  math_shepherd   steps labelled automatically: train
  prmbench        solutions with edited errors: train, test
  processbench    models' solutions with their first error: gsm8k, math, olympiadbench, omnimath
  jsonl           your own records ({"id": …, "question": …, …}): train, valid, test
  mixture         labelled records of several data sets in a stated ratio, such as an OPRM's: train
  prefixes        beginnings of sampled solutions, to be completed by `sample` for automatic labels: train

and from these come a TFDS data set in ArrayRecord files (WORKDIR/NAME/1.0.0) or JSON Lines (WORKDIR/NAME), with card.json and
README.md. `e2h prepare --show --workdir=DIR` prints the card and some records. The other sources write files of their own:

  few_shot           a prompt with solved problems in front, as a template: template.json
  arithmetic         the built-in curriculum: corpus.jsonl, demonstrations.jsonl, evaluator_questions.jsonl, test.jsonl, and
                     for reinforcement learning rl_questions.jsonl (answers of hard questions hidden) and validation.jsonl
  arithmetic_labels  labels sampled solutions of it by the exact checker: prm.jsonl, orm.jsonl, oprm.jsonl
  rerank_pool        the public pool of 16,000 scored solutions: problems.jsonl, samples/, scored/
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from e2h_jax.data import arithmetic, dataset
from e2h_jax.data.cards import Card
from e2h_jax.data.catalog import CATALOG, COMMON
from e2h_jax.data.few_shot import write_few_shot
from e2h_jax.data.lengths import within
from e2h_jax.data.sources import rerank_pool
from e2h_jax.data.sources.math import MathIndex
from e2h_jax.data.storage import as_json
from e2h_jax.data.templates import Template, get_template
from e2h_jax.data.tokenizer import check_vocab_size, load_tokenizer, train_bpe
from e2h_jax.errors import UserError, nearest


def defaults() -> ConfigDict:
    """Fields of the `prepare` stage."""
    config = ConfigDict()
    config.source = "arithmetic"  # see above
    config.records = ""  # sft | prm | rl: which records to make of it; "" = the source's first kind
    config.format = "tfds"  # tfds (ArrayRecord) | jsonl
    config.name = ""  # of the data set; "" = the source's
    config.path = ""  # a local file or folder, or "owner/name" on the Hugging Face Hub; "" = the source's place there
    config.test_path = ""  # math: MATH500, if the rows of `path` do not tell it ("hub" = the Hub); jsonl: test problems
    config.math = ""  # MATH, for the levels and the test problems of prm800k, metamath, math_shepherd and prmbench
    config.math500 = ""  # MATH500, if the rows of `math` do not tell it ("hub" = the Hub)
    config.split = "prm800k"  # of math: prm800k (12,000/500) | hendrycks (7,500/5,000) | none (hold out `test`)
    config.levels = ()  # levels to train on, such as EASY_LEVELS of data/levels.py; tests keep all; () = all
    config.level_field = ""  # jsonl: the field of your records that holds the level, an integer from 1 to 5; "" = level
    # jsonl: the level that each value of that field stands for, where it is none: {"easy": 1, "hard": 5}. On the command line
    # --config.level_map.easy=1. An integer that is not among them stays as it is; null is no level.
    config.level_map = ConfigDict()
    config.keep_unknown = True  # training records whose problem is not in MATH, whatever `levels` says
    config.neutral = "positive"  # a PRM800K rating of 0: positive | drop (not trained on)
    config.per_question = 0  # metamath: solutions of one question; 0 = all
    config.tasks = ("MATH",)  # math_shepherd: MATH, GSM8K
    config.max_tokens = 0  # leave out longer records, counted with `tokenizer` and the template; 0 = keep all
    config.valid = 200  # math, jsonl: validation problems, mixed like the test's subjects and levels
    config.test = 500  # math with split none, jsonl without test_path: test problems held out
    config.seed = 0  # of every choice
    # Text format, see data/templates.py; chat = the one that `sample` recorded in `samples`, or model.json in the model/ folder
    # that `tokenizer` names.
    config.template = "e2h"
    config.tokenizer = ""  # folder or Hub name; copied to tokenizer/
    config.vocab_size = 0  # without `tokenizer`: train a byte-level BPE on the training text, to tokenizer/; 0 = none
    config.mixture = ConfigDict()  # of mixture: a name for each part, {"path": …, "share": …}
    # of mixture: shares are of labelled `tokens` (as a reward model with label_tokens=all weighs them; needs `tokenizer`), of
    # labelled `steps` (label_tokens=end) or of `records`; "" = tokens with a tokenizer, else steps
    config.mixture_by = ""
    config.samples = ""  # of prefixes: sampled solutions of the problems in `path`
    config.per_problem = 0  # of prefixes: solutions of each problem; 0 = all
    config.shots = 4  # of few_shot: solved problems, drawn from `path` and its `levels`
    config.arithmetic = arithmetic.defaults()  # of the two arithmetic sources, which use none of the fields above
    return config.lock()


def run(config: ConfigDict, workdir: Path) -> dict:
    """Writes the source's records into `workdir`; returns counts. Raises UserError for bad settings or data."""
    workdir = Path(workdir)
    check_values(config)
    return FILES[config.source](config, workdir) if config.source in FILES else _prepare(config, workdir)


def check_values(config: ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    if config.source in FILES:
        return
    if config.source not in CATALOG:
        known = (*CATALOG, *FILES)
        raise UserError(
            f'config.source="{config.source}" is unknown{nearest(config.source, known)}; there are: {", ".join(known)}.'
        )
    entry, given, preset = CATALOG[config.source], config.to_dict(), defaults().to_dict()
    if config.records and config.records not in entry.kinds:
        raise UserError(
            f'config.records="{config.records}": of {config.source} only {", ".join(entry.kinds)} records can be made.'
        )
    for field in preset:
        if field not in (*COMMON, *entry.fields, "arithmetic") and given[field] != preset[field]:
            raise UserError(f'config.{field} is set, but source "{config.source}" does not read it; leave it out.')
    if wrong := set(config.levels) - {1, 2, 3, 4, 5}:
        raise UserError(f"config.levels={tuple(config.levels)}: a level is 1, 2, 3, 4 or 5, not {min(wrong)}.")
    if config.max_tokens and not config.tokenizer:
        raise UserError("config.max_tokens counts tokens: set config.tokenizer to a folder or Hub name.")
    if config.vocab_size:
        check_vocab_size(config.vocab_size)
    dataset.check_format(config.format)
    entry.check(config)


def show(workdir: Path) -> str:
    """What `e2h prepare --show` prints: the card and some records of what is in `workdir`."""
    return dataset.show(workdir)


def _prepare(config: ConfigDict, workdir: Path) -> dict:
    entry = CATALOG[config.source]
    config = config.copy_and_resolve_references().unlock()
    config.records = config.records or next(iter(entry.kinds))
    config.lock()
    kind = entry.kinds[config.records]
    fields = [field for field in config if field in (*COMMON, *entry.fields)]
    card = Card(entry.source)
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    template = get_template(config.template, config.samples or config.tokenizer, tokenizer)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(workdir / "tokenizer"))
    index = MathIndex(config.math, config.math500, template) if entry.needs_index else None
    stream = entry.read(config, template, index, card)
    if config.max_tokens and not entry.measures:
        stream = within(stream, kind, config.max_tokens, tokenizer, template, card)
    asked, preset = (as_json({field: of.to_dict()[field] for field in fields}) for of in (config, defaults()))
    name = config.name or config.source
    facts = dataset.write_dataset(workdir, name, kind, stream, card, asked, preset, config.format)
    if not config.tokenizer and config.vocab_size:
        train = dataset.read_split_of(dataset.dataset_folder(workdir, name, config.format), "train", kind)
        train_bpe(_texts(train, template), config.vocab_size, workdir / "tokenizer")
    counts = {split: numbers["records"] for split, numbers in facts["splits"].items()}
    return counts | facts["counts"] | {"fingerprint": facts["fingerprint"]}


def _texts(records: Iterator[dict], template: Template) -> Iterator[str]:
    """Each record as a whole text, prompt included."""
    for record in records:
        steps = record["steps"] if "steps" in record else [record["solution"] or ""]
        yield template.format_prompt(record["question"]) + template.join_steps(record.get("prefix", ""), steps)


def _rerank_pool(config: ConfigDict, workdir: Path) -> dict:
    if not config.path:
        raise UserError('config.path is empty; source "rerank_pool" needs the file to read.')
    return rerank_pool.convert(config.path, workdir)


FILES: dict[str, Callable[[ConfigDict, Path], dict]] = {
    "arithmetic": arithmetic.prepare,
    "arithmetic_labels": arithmetic.prepare_labels,
    "rerank_pool": _rerank_pool,
    "few_shot": write_few_shot,
}
