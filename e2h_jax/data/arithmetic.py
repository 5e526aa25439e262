"""The built-in curriculum: chained assignments modulo 7, written by authors who err by habit, labelled by an exact checker.

A problem of n operations, its solution and answer:

    a=5;d=a-3;c=d*4      d=5-3=2 ⏎⏎ c=2*4=1 ⏎⏎ # Answer ⏎⏎ 1

Levels 1-5 have OPERATIONS[level] operations; levels 1-3 are easy, 4-5 hard, unless `easy_levels` and `hard_levels` say
otherwise. Every operation (+1…3, -1…3, *2…5) is a bijection modulo the prime 7, so one wrong step makes a wrong answer;
only a second error can heal it.

Habits: for a share of all facts `value operation operand` the seed draws one fixed wrong ("folk") value. A document of the
base corpus has an author; careless authors write folk values, and hard problems have more careless authors. So a model of that
corpus makes *systematic* errors that voting cannot remove, while a judge who learns the facts on easy problems can see them on
hard ones.

Held out: a seeded hash of a problem up to renaming of its letters puts it on the training or the test side, at every level.
"""

import hashlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator
from pathlib import Path

import ml_collections

from e2h_jax.data.levels import EASY_LEVELS, HARD_LEVELS, check_levels
from e2h_jax.data.records import read_many
from e2h_jax.data.steps import split_steps
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.errors import UserError

OPERATIONS = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6}  # level -> number of operations
LETTERS = "abcdefghijklmnop"
MODULUS = 7  # prime, so that multiplying is a bijection
MOVES = [(op, b) for op in "+-" for b in (1, 2, 3)] + [("*", b) for b in (2, 3, 4, 5)]
TEST_SHARE = 0.2  # of all problems
PIECES = ("# Question\n\n", "\n\n# Solution\n\n", "# Answer\n\n", "\n\n", *LETTERS, *"0123456+-*=;")
STEP = re.compile(r"([a-p])=([0-6])([-+*])([0-6])=([0-6])")


def defaults() -> ml_collections.ConfigDict:
    """Fields of `config.arithmetic` in the `prepare` stage."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.easy_levels = EASY_LEVELS  # the levels with answers to learn from
    config.hard_levels = HARD_LEVELS  # all others
    config.corpus = 20_000  # documents of the base corpus, all levels alike
    config.demonstrations = 100  # clean solutions for SFT on easy problems
    config.demonstrations_hard = 67  # beside them, clean solutions of hard problems: SFT on all levels, to compare with
    config.evaluator_questions = 22_000  # easy questions whose sampled solutions the checker will label
    config.test_easy = 300  # held-out problems, easy levels in equal shares
    config.test_hard = 600  # hard levels in equal shares
    config.rl_questions = 1500  # for reinforcement learning, all levels alike; the answers of hard ones are hidden
    config.validation_easy = 90  # other held-out problems, to choose among checkpoints; answers known
    config.validation_hard = 200
    config.folk_share = 0.44  # share of facts with a folk value
    config.careless_easy = 0.40  # share of careless authors on easy problems
    config.careless_hard = 0.75
    config.folk_if_careless = 0.90  # how often an author writes the folk value of a fact that has one
    config.folk_if_careful = 0.05
    config.slip_easy = 0.03  # a random wrong value in a step, any author
    config.slip_hard = 0.05
    # Of "arithmetic_labels" only:
    config.samples = ()  # folders of sampled solutions
    config.problems = ""  # the problems they answer
    config.repeats = False  # label every sample, also one whose text the problem has already
    config.oprm_outcomes = 0.25  # share of the solutions that enter oprm.jsonl with their outcome, not their step labels
    return config


def compute(a: int, op: str, b: int) -> int:
    """The true value of `a op b` modulo 7."""
    return (a + b if op == "+" else a - b if op == "-" else a * b) % MODULUS


def folk_table(seed: int, share: float) -> dict[tuple[int, str, int], int]:
    """Fixed wrong values for a random `share` of the 70 facts, drawn afresh for each seed."""
    rng = random.Random(f"folk-{seed}")
    facts = [(a, op, b) for op, b in MOVES for a in range(MODULUS)]
    chosen = rng.sample(facts, round(share * len(facts)))
    return {fact: (compute(*fact) + rng.randrange(1, MODULUS)) % MODULUS for fact in chosen}


def is_test(seed: int, start: int, moves: list[tuple[str, int]]) -> bool:
    """Whether the problem, whatever its letters, is on the test side."""
    digest = hashlib.blake2b(f"{seed}:{start}:{moves}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < TEST_SHARE * 2**64


def problems(
    seed: int, name: str, level: int, count: int, test: bool = False, taken: Collection[Hashable] = ()
) -> Iterator[dict]:
    """Yields `count` problem records of a level, from the training or test side; test problems are all different.

    With `taken`, questions and `problem_key`s, none is in it, and training problems are all different too.
    """
    rng = random.Random(f"{name}-{seed}-{level}")
    seen: set = set(taken)
    tries = 0
    while count:
        tries += 1
        if tries > 1_000_000:
            raise UserError(f"cannot draw that many different level-{level} test problems; lower config.arithmetic.test_*")
        start = rng.randrange(MODULUS)
        moves = [rng.choice(MOVES) for _ in range(OPERATIONS[level])]
        letters = rng.sample(LETTERS, len(moves) + 1)
        parts = [f"{letters[0]}={start}"]
        parts += [f"{new}={old}{op}{b}" for old, new, (op, b) in zip(letters, letters[1:], moves, strict=False)]
        question, key = ";".join(parts), (start, *moves)
        if is_test(seed, start, moves) != test or key in seen or question in seen:
            continue
        if test or taken:
            seen.add(key if test else question)
        count -= 1
        value = start
        for op, b in moves:
            value = compute(value, op, b)
        yield {
            "id": f"{name}/{level}/{count}",
            "question": question,
            "answer": str(value),
            "level": level,
            "subject": "arithmetic",
            "solution": None,
        }


def parse(question: str) -> tuple[int, list[tuple[str, str, int]]]:
    """Start value and (letter, operation, operand) of each assignment."""
    first, *rest = question.split(";")
    return int(first[2]), [(part[0], part[3], int(part[4])) for part in rest]


def problem_key(question: str) -> tuple:
    """The same for questions that differ in their letters alone."""
    value, moves = parse(question)
    return value, *((op, b) for _, op, b in moves)


def solve(question: str, author=compute) -> tuple[list[str], str]:
    """Steps and answer as `author(a, op, b)` would write them; the default author is always right."""
    value, moves = parse(question)
    steps = []
    for letter, op, b in moves:
        result = author(value, op, b)
        steps.append(f"{letter}={value}{op}{b}={result}")
        value = result
    return steps, str(value)


def check(question: str, steps: list[str], answer: str | None) -> list[float | None]:
    """Labels of a solution's steps and, where there is one, of its final answer.

    1 = right, 0 = the first wrong one, None = after it (its truth depends on the error, as in PRM800K, where labelling stops).
    A step is right when it is the question's next assignment, takes over the previous value, and computes right.
    """
    value, moves = parse(question)
    labels: list[float | None] = []
    for index, step in enumerate(steps):
        match = STEP.fullmatch(step)
        right = False
        if match and index < len(moves):
            letter, op, b = moves[index]
            right = match.groups() == (letter, str(value), op, str(b), str(compute(value, op, b)))
            value = int(match[5])
        labels.append(1.0 if right else 0.0)
    if answer is not None:
        labels.append(1.0 if len(steps) == len(moves) and answer == str(value) else 0.0)
    if 0.0 in labels:
        first = labels.index(0.0)
        labels[first + 1 :] = [None] * (len(labels) - first - 1)
    return labels


def _share(count: int, level: int, levels: Iterable[int]) -> int:
    """`level`'s part of `count` problems: equal parts, the remainder one by one to the lowest levels."""
    levels = sorted(levels)
    return count // len(levels) + (levels.index(level) < count % len(levels))


def _corpus(config) -> Iterator[dict]:
    table = folk_table(config.seed, config.folk_share)
    rng = random.Random(f"authors-{config.seed}")
    template = get_template("e2h")
    for level in OPERATIONS:
        hard = level in config.hard_levels
        slip = config.slip_hard if hard else config.slip_easy
        for problem in problems(config.seed, "corpus", level, _share(config.corpus, level, OPERATIONS)):
            careless = rng.random() < (config.careless_hard if hard else config.careless_easy)
            habit = config.folk_if_careless if careless else config.folk_if_careful

            def author(a, op, b, habit=habit, slip=slip):
                if rng.random() < slip:
                    return (compute(a, op, b) + rng.randrange(1, MODULUS)) % MODULUS
                if rng.random() < habit:
                    return table.get((a, op, b), compute(a, op, b))
                return compute(a, op, b)

            steps, answer = solve(problem["question"], author)
            yield problem | {"solution": template.format_solution(steps, answer)}


def prepare(config, workdir: Path) -> dict:
    """Writes tokenizer/ and the files of problems, corpus.jsonl … validation.jsonl; returns counts."""
    config, workdir, template = config.arithmetic, Path(workdir), get_template("e2h")
    easy, hard = config.easy_levels, config.hard_levels
    check_levels(easy, hard, "config.arithmetic")
    if sorted({*easy, *hard}) != [*OPERATIONS] or not easy or not hard:
        raise UserError(
            f"config.arithmetic.easy_levels is {easy} and hard_levels {hard}: together they must be the levels "
            f"{', '.join(map(str, OPERATIONS))}, and neither may be empty."
        )
    build_tokenizer(PIECES, workdir / "tokenizer")

    def clean(problem):
        return problem | {"solution": template.format_solution(*solve(problem["question"]))}

    def spread(name, levels, count, test=False):
        return [p for level in levels for p in problems(config.seed, name, level, _share(count, level, levels), test)]

    files = {
        "corpus": list(_corpus(config)),
        "demonstrations": [clean(p) for p in spread("demonstration", easy, config.demonstrations)],
        "evaluator_questions": spread("evaluator", easy, config.evaluator_questions),
        "test": [clean(p) for p in spread("test", easy, config.test_easy, True) + spread("test", hard, config.test_hard, True)],
    }
    demonstrations_hard = [clean(problem) for problem in spread("demonstration", hard, config.demonstrations_hard)]
    files["demonstrations_all"] = files["demonstrations"] + demonstrations_hard
    # No question of reinforcement learning is in another file, and no validation problem in the test set under other letters.
    asked = {problem["question"] for records in files.values() for problem in records}
    questions = [
        problem | ({"answer": None} if level in hard else {})
        for level in OPERATIONS
        for problem in problems(config.seed, "rl", level, _share(config.rl_questions, level, OPERATIONS), taken=asked)
    ]
    tested = {problem_key(problem["question"]) for problem in files["test"]}
    shares = {level: _share(config.validation_easy, level, easy) for level in easy}
    shares |= {level: _share(config.validation_hard, level, hard) for level in hard}
    # Level 1 has 700 problems in all, about 140 of them held out: there may be fewer left.
    first = itertools.product(range(MODULUS), itertools.product(MOVES, repeat=OPERATIONS[1]))
    held_out = {(start, *moves) for start, moves in first if is_test(config.seed, start, list(moves))}
    shares[1] = min(shares[1], len(held_out - tested))
    validation = [
        clean(problem)
        for level, share in shares.items()
        for problem in problems(config.seed, "validation", level, share, True, taken=tested)
    ]
    files |= {"rl_questions": questions, "validation": validation}
    return {name: write_records(workdir / f"{name}.jsonl", records) for name, records in files.items()}


def prepare_labels(config, workdir: Path) -> dict:
    """Labels sampled solutions: prm.jsonl (steps), orm.jsonl (outcome on every step), oprm.jsonl (a mixture of the two).

    Returns counts and the share of right steps and outcomes.
    """
    config, workdir, template = config.arithmetic, Path(workdir), get_template("e2h")
    share = config.oprm_outcomes
    if not 0 <= share <= 1:
        raise UserError(f"config.arithmetic.oprm_outcomes={share} must be between 0 and 1")
    by_id = {problem["id"]: problem for problem in read_many(config.problems, "problem")}
    prm, orm, seen, counts = [], [], set(), Counter()
    for folder in config.samples:
        for sample in read_many(folder, "sample"):
            problem = by_id.get(sample["problem_id"])
            if problem is None:
                raise UserError(f"{folder}: problem_id {sample['problem_id']!r} is not in {config.problems}")
            if (problem["id"], sample["text"]) in seen and not config.repeats:
                continue
            seen.add((problem["id"], sample["text"]))
            text, answer = sample["text"], template.extract_answer(sample["text"])
            spans = split_steps(text, template)
            whole = [text[step.start : step.end] for step in spans]
            reasoning = [step for step, span in zip(whole, spans, strict=True) if not span.is_answer]
            labels = check(problem["question"], reasoning, None if reasoning == whole else answer or "")
            outcome = 1.0 if answer == problem["answer"] else 0.0
            record = {
                "problem_id": problem["id"],
                "sample": sample["sample"],
                "question": problem["question"],
                "prefix": "",
                "steps": whole,
                "level": problem["level"],
                "eos": sample["finish"] == "stop",
            }
            prm.append(record | {"labels": labels})
            orm.append(record | {"labels": [outcome] * len(whole)})
            counts["right"] += labels.count(1.0)
            counts["wrong"] += labels.count(0.0)
            counts["right_outcome"] += outcome == 1.0
    write_records(workdir / "prm.jsonl", prm)
    write_records(workdir / "orm.jsonl", orm)
    rng = random.Random(f"oprm-{config.seed}")
    write_records(workdir / "oprm.jsonl", (rng.choices(pair, (1 - share, share))[0] for pair in zip(prm, orm, strict=True)))
    return {
        "solutions": len(prm),
        "right_steps": counts["right"] / max(1, counts["right"] + counts["wrong"]),
        "right_outcomes": counts["right_outcome"] / max(1, len(prm)),
    }
