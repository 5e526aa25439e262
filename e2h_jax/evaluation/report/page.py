"""The page as one file: markup, style and scripts of `page/`, and the data in compressed parts that the browser inflates when
they are looked at. It asks nothing of the network; a content security policy forbids it, and every script but its own.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from e2h_jax.evaluation.report.curves import METRICS
from e2h_jax.evaluation.report.gather import Evaluation

LIMIT = 9_500_000  # bytes of a page
PER_PART = 20  # problems inflated at once
INDEX_SHARE = 0.4  # of a page, at most: the list of problems with what was decided; the rest is for their solutions

_PARTS = files("e2h_jax.evaluation.report").joinpath("page")
_FORMULAS = ("symbols.js", "formulas.js", "commands.js")  # with formulas.css; docs/links.py gives the site these too
_CHARTS = ("charts.js", "figures.js", "tables.js", "curves.js")
_SCRIPTS = ("data.js", "text.js", *_FORMULAS, "markdown.js", *_CHARTS, "problems.js", "start.js")


def build(title: str, evaluations: Sequence[Evaluation], training: Sequence[dict], limit: int = LIMIT) -> str:
    """Returns the page. Where it would exceed `limit` bytes, samples are left out, and where one per problem is still too much,
    problems; the page says so.
    """
    shares = max(1, sum(bool(evaluation.problems) for evaluation in evaluations))
    summaries = [evaluation.summary for evaluation in evaluations]
    core = {"title": title, "metrics": METRICS, "evaluations": summaries, "training": training}
    indices = [_index(number, evaluation, limit * INDEX_SHARE / shares) for number, evaluation in enumerate(evaluations)]
    room = limit - 200_000 - sum(map(len, indices)) - len(_pack(core))  # 200,000: the page itself, and to spare
    details = []
    for number, evaluation in enumerate(evaluations):
        drawn, listed = evaluation.kept_samples, evaluation.kept_problems
        details += _details(number, evaluation, room // shares)
        kept = {"samples": evaluation.kept_samples, "problems": evaluation.kept_problems, "listed": listed}
        evaluation.summary["shown"] = kept
        evaluation.summary["drawn"] = {"samples": drawn, "problems": len(evaluation.problems)}
    script = "\n".join(map(_read, _SCRIPTS))
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    filled = {
        "title": html.escape(title),
        "policy": _policy(script),
        "style": _read("page.css") + _read("formulas.css"),
        "data": "\n".join([_script("core", _pack(core)), *indices, *details]),
        "script": script,
    }
    # One pass: what is filled in may itself hold something that looks like a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], _read("page.html"))


def _index(number: int, evaluation: Evaluation, room: float) -> str:
    """The index, of as many problems as there is room for."""
    while True:
        script = _script(f"index-{number}", _pack(evaluation.first(evaluation.kept_problems)))
        if len(script) <= room or evaluation.kept_problems < 2:
            return script
        evaluation.kept_problems = max(1, int(0.95 * evaluation.kept_problems * room / len(script)))


def _details(number: int, evaluation: Evaluation, room: int) -> list[str]:
    """The solutions in parts of `PER_PART` problems: as many samples of each, and as many problems, as there is room for."""
    count = evaluation.kept_problems
    if some := range(0, count, -(-count // PER_PART) or 1):  # first from a few of them: all may be half a million solutions
        size = count / len(some) * len(_pack([evaluation.detail(problem) for problem in some]))
        evaluation.kept_samples = max(1, int(evaluation.kept_samples * min(1.0, room / size)))
    while True:
        rows = [evaluation.detail(problem) for problem in range(evaluation.kept_problems)]
        starts = range(0, len(rows), PER_PART)
        parts = [_script(f"part-{number}-{i // PER_PART}", _pack(rows[i : i + PER_PART])) for i in starts]
        size = sum(map(len, parts))
        if size <= room or not rows:
            return parts
        share = 0.95 * room / size
        if evaluation.kept_samples > 1:
            evaluation.kept_samples = max(1, int(evaluation.kept_samples * share))
        else:
            evaluation.kept_problems = int(evaluation.kept_problems * share)


def _read(name: str) -> str:
    return _PARTS.joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def _pack(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _script(identity: str, content: str) -> str:
    return f'<script type="text/plain" id="{identity}">{content}</script>'
