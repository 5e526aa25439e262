"""Try a model: type a problem, watch its solution appear, every step with an evaluator's score.

    e2h try --checkpoint=runs/quickstart/sft/model --evaluator=runs/quickstart/prm/model
    e2h try --checkpoint=MODEL --samples=16               the first solution as it is drawn; all of them vote
    echo "a=5;b=a+3" | e2h try --checkpoint=MODEL         problems from a pipe, one a line

--temperature=0.7  0 = greedy           --top-k=20            0 = off
--max-new-tokens=N default: 1024, or half of the model's positions
--template=NAME    text that the policy reads (default: the model's own, or e2h)
--seed=0           of the random stream: the same problems in the same order draw the same solutions
--verbose          show the first problem as the policy reads it, in text and tokens

A problem ends with an empty line. Ctrl-C stops a solution, or empties what was typed; Ctrl-D ends.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from e2h_jax.config import check_fields
from e2h_jax.data.chat import policy_template
from e2h_jax.data.rewrite import rewrite
from e2h_jax.data.steps import encode_prompt, encode_solutions, split_steps
from e2h_jax.data.templates import CHAT, Template, get_template, recorded_template
from e2h_jax.data.tokenizer import decode_solution, end_ids, load_tokenizer
from e2h_jax.errors import UserError, nearest
from e2h_jax.evaluation.report.terminal import printable, scored_step
from e2h_jax.evaluation.voting import aggregate
from e2h_jax.grading import group_answers
from e2h_jax.models import store
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import axis_size
from e2h_jax.rewards.scoring import Scorer, plan
from e2h_jax.sampling import sample
from e2h_jax.sampling.prompts import show_first
from e2h_jax.sampling.scheduler import problem_number

_FLAGS = ("checkpoint", "evaluator", "samples", "temperature", "top-k", "max-new-tokens", "template", "seed", "verbose")
_GRANULARITY = 128  # solutions are padded to a multiple of it for scoring: a program is compiled for each length


def main(arguments: Sequence[str]) -> int:
    """Runs `e2h try`; returns its exit code."""
    asked = _parse(arguments)
    console = Console()
    talking = sys.stdin.isatty()
    policy = Policy(asked)
    judge = Judge(asked.evaluator, policy.template) if asked.evaluator else None
    for turn, question in enumerate(_questions(sys.stdin, console, talking)):
        if not talking:
            console.print(Text(question, style="bold"))
        try:
            solve(console, policy, judge, question, turn)
        except KeyboardInterrupt:
            if not talking:
                raise
            console.print(Text("stopped", style="dim"))
        except UserError as error:  # this problem is too long, say; the next may not be
            if not talking:
                raise
            console.print(Text(f"e2h: {error}"))
    return 0


class Policy:
    """A generator that draws the samples of one problem side by side, in rows of one group."""

    def __init__(self, asked: argparse.Namespace):
        folder = _model_folder(asked.checkpoint)
        kind, config = store.load_config(folder)
        if kind != "policy":
            raise UserError(f"{folder} holds a reward model; give --checkpoint a policy, and this as --evaluator.")
        fields = {name: getattr(asked, name) for name in ("samples", "temperature", "top_k", "seed")}
        self.config = sample.defaults().unlock()
        self.config.update(fields | {"rows_per_prompt": asked.samples, "prompt_bucket": 128})  # most problems: one program
        self.config.max_new_tokens = asked.max_new_tokens or min(1024, config.max_length // 2)
        if min(self.config.samples, self.config.max_new_tokens) < 1:
            raise UserError("--samples and --max-new-tokens must be at least 1.")
        if self.config.max_new_tokens >= config.max_length:
            room = f"the model has {config.max_length} positions"
            raise UserError(f"--max-new-tokens={asked.max_new_tokens} leaves no room for a problem: {room}; lower it.")
        try:
            check_fields(self.config, sample.defaults())
            sample.check(self.config)
        except UserError as error:  # it names fields of the stage
            raise UserError(re.sub(r"config\.(\w+)", lambda m: f"--{m[1].replace('_', '-')}", str(error))) from None
        self.samples, self._longest = asked.samples, config.max_length - self.config.max_new_tokens
        self.tokenizer, self._verbose = load_tokenizer(folder), asked.verbose
        own = CHAT if recorded_template(folder) else "e2h"
        self.template = policy_template(asked.template or own, folder, self.tokenizer, tell=True, field="--template")
        mesh = make_mesh(self.config.mesh, rows=(1,))  # a problem is drawn by one device
        self.config.rows = asked.samples * mesh.devices.size
        graph, config, params = store.load_frozen(folder, mesh, "policy", store.compute_dtype(folder, mesh))
        self._ends = end_ids(self.tokenizer, self.template)
        self._kernel = sample.make_kernel(self.config, graph, config, params, mesh, self._ends, 0)
        self._stop = sample.stop_texts(self.tokenizer, self.template)

    def draw(self, question: str, turn: int) -> Iterator[list[tuple[str, bool]]]:
        """Yields after every few tokens the text of each sample so far, and whether it is complete.

        Raises:
          UserError: the problem is longer than the model can read.
        """
        kernel, tokens = self._kernel, encode_prompt(self.tokenizer, question, self.template)
        if self._verbose:
            show_first(self.tokenizer, [tokens], self.template)
        if len(tokens) > self._longest:
            raise UserError(f"the problem has {len(tokens)} tokens, and with --max-new-tokens the model takes {self._longest}.")
        kernel.foresee([len(tokens)])
        ids = np.zeros((kernel.shards, kernel.bucket(len(tokens))), np.int32)
        ids[0, : len(tokens)] = tokens
        lengths = np.array([len(tokens), *[1] * (kernel.shards - 1)], np.int32)
        kernel.prefill(0, ids, lengths, np.arange(kernel.groups) == 0)
        work = kernel.nothing_to_do()
        work.lengths[0, 0], work.problems[0, 0] = len(tokens), problem_number(f"{turn}")
        work.queue_sample[0, : self.samples] = np.arange(self.samples)
        work.queue_length[0] = self.samples
        work.cancel[:] = True  # rows of a problem that was stopped
        drawn: list[list[int]] = [[] for _ in range(self.samples)]
        over = [False] * self.samples
        while not all(over):
            log = jax.device_get(kernel.decode(work, blocks=1, oldest=max(map(len, drawn))))
            # Only now: until the log is there, the device may still be reading these very arrays.
            work.queue_length[:], work.cancel[:] = 0, False
            which, count, new, active = log.sample[0, 0], log.count[0, 0], log.tokens[0, 0], log.active[0]
            for row in np.flatnonzero(count):
                number = int(which[row])
                drawn[number] += new[row, : count[row]].tolist()
                kept = self._stop(np.array(drawn[number])) if self._stop else None
                if kept is not None:
                    work.cancel[0, row] = True
                over[number] = over[number] or kept is not None or not active[row]
            yield [(self._text(tokens), ended) for tokens, ended in zip(drawn, over, strict=True)]

    def _text(self, tokens: list[int]) -> str:
        return decode_solution(self.tokenizer, tokens, self.template, self._ends)


class Judge:
    """An evaluator that scores the steps of solutions as they grow."""

    def __init__(self, checkpoint: str, written: Template):
        folder = _model_folder(checkpoint)
        kind, config = store.load_config(folder)
        if kind != "reward":
            raise UserError(f"{folder} holds a policy; give --evaluator a reward model.")
        self._written, self._template = written, recorded_template(folder) or get_template("e2h")
        self._where = store.load_reads(folder).get("read_at", "separator_last")
        self._tokenizer, self._longest = load_tokenizer(folder), config.max_length
        mesh = make_mesh((1, -1, 1), rows=(1,))
        self._shards = axis_size(mesh, "batch")
        graph, _, params = store.load_frozen(folder, mesh, "reward", store.compute_dtype(folder, mesh))
        self._scorer = Scorer(graph, params, mesh)

    def scores(self, question: str, texts: Sequence[str]) -> list[list[float] | None]:
        """The step scores of each text, in order; None of one that is too long for the model."""
        texts = [rewrite(text, self._written, self._template) for text in texts]
        questions = [question] * len(texts)
        encoded = encode_solutions(self._tokenizer, questions, texts, self._template, add_eos=False)
        fits = [index for index, solution in enumerate(encoded) if len(solution.tokens) <= self._longest]
        found: list[list[float] | None] = [None] * len(texts)
        kept = [encoded[index] for index in fits]
        batches = plan(kept, granularity=_GRANULARITY, tokens_per_batch=_GRANULARITY, shards=self._shards)
        for scores in self._scorer.score(kept, batches, self._where):
            for index, values in scores.items():
                found[fits[index]] = values
        return found


def solve(console: Console, policy: Policy, judge: Judge | None, question: str, turn: int) -> None:
    """Prints the first sample step by step as it is drawn; with more than one, then what they vote for."""
    printed, last = 0, []
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for last in policy.draw(question, turn):
            text, over = last[0]
            steps = [text[step.start : step.end] for step in split_steps(text, policy.template)]
            complete = len(steps) if over else max(0, len(steps) - 1)
            if console.is_terminal:
                waiting = f"   {sum(over for _, over in last)} of {len(last)} solutions" if len(last) > 1 else ""
                live.update(Text.assemble(printable("".join(steps[complete:])), (waiting, "dim")))
            if complete > printed:
                (scores,) = judge.scores(question, [text]) if judge else (None,)
                for number in range(printed, complete):
                    score = scores[number] if scores is not None and number < len(scores) else None
                    live.console.print(scored_step(steps[number], score))
                printed = complete
            live.refresh()
    if not policy.template.extract_answer(last[0][0]):
        console.print(Text("      no final answer", style="dim"))
    if len(last) > 1:
        console.print(_votes(policy, judge, question, [text for text, _ in last]))


def _votes(policy: Policy, judge: Judge | None, question: str, texts: list[str]) -> Table:
    """Each answer with its votes; with an evaluator, the share of their weight (prod) and the best score (min)."""
    given = [policy.template.extract_answer(text) for text in texts]
    numbers = np.array(group_answers(given))
    table = Table(box=box.SIMPLE, pad_edge=False)
    columns: list[tuple[str, list[float], str]] = []
    found = sorted({number for number in numbers.tolist() if number >= 0})
    columns.append(("votes", [int((numbers == number).sum()) for number in found], "d"))
    if judge:
        scores = [values or [] for values in judge.scores(question, texts)]
        weight, least = aggregate(scores, "prod"), aggregate(scores, "min")
        whole = weight[numbers >= 0].sum() or 1.0
        columns.append(("weight (prod)", [weight[numbers == number].sum() / whole for number in found], ".0%"))
        columns.append(("best (min)", [least[numbers == number].max() for number in found], ".2f"))
    table.add_column("answer")
    for name, _, _ in columns:
        table.add_column(name, justify="right")
    for index in sorted(range(len(found)), key=lambda i: -columns[0][1][i]):
        cells = [f"{'*' if values[index] == max(values) else ''}{values[index]:{form}}" for _, values, form in columns]
        answer = next(answer for answer, number in zip(given, numbers, strict=True) if number == found[index])
        table.add_row(Text(printable(answer)), *cells)
    if none := int((numbers < 0).sum()):
        table.add_row(Text("(no answer)", style="dim"), str(none))
    return table


def _questions(stream: TextIO, console: Console, talking: bool) -> Iterator[str]:
    """The problems: from a terminal several lines each, ended by an empty one; from a pipe one a line."""
    if not talking:
        try:
            yield from (line.strip() for line in stream if line.strip())
        except UnicodeDecodeError as error:
            raise UserError(f"the problems from the pipe are no UTF-8 text ({error.reason}); convert them first.") from None
        return
    import readline  # noqa: F401 (input() then edits the line)

    console.print(Text("Type a problem and end it with an empty line; Ctrl-D ends.", style="dim"))
    lines: list[str] = []
    while True:
        try:
            line = input("… " if lines else "> ")
        except KeyboardInterrupt:
            print()
            lines = []
            continue
        except EOFError:
            print()
            return
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


def _model_folder(path: str) -> Path:
    """The model/ folder itself, or that of a stage's folder."""
    folder = Path(path)
    return folder / "model" if (folder / "model" / "model.json").exists() else folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; the command is: e2h try --checkpoint=MODEL [--evaluator=MODEL] (e2h try --help).")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name, kind, value in (
        ("checkpoint", str, None),
        ("evaluator", str, None),
        ("template", str, None),
        ("samples", int, 1),
        ("temperature", float, 0.7),
        ("top-k", int, 20),
        ("max-new-tokens", int, 0),
        ("seed", int, 0),
    ):
        parser.add_argument(f"--{name}", type=kind, default=value)
    parser.add_argument("--verbose", action="store_true")
    asked, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].partition("=")[0]
        parser.error(f'there is no flag "{name}"{nearest(name, [f"--{flag}" for flag in _FLAGS])}')
    if "" in (asked.evaluator, asked.template):  # --evaluator=$PRM, say, where PRM is not set
        parser.error(f"--{'evaluator' if asked.evaluator == '' else 'template'} is empty")
    if not asked.checkpoint:
        parser.error("--checkpoint=MODEL is missing, the model/ folder of a policy")
    return asked
