"""Links from the pages into the sources: a hook of mkdocs.yml, and what tests/test_docs.py checks the same links with.

A page links to a file of the repository as GitHub shows it, and the link's title holds words of the line that it means:

    [whitening](../e2h_jax/algorithms/advantages.py "def whiten")

The site gets a page for every file that is linked so, and the link leads to the line. Exactly one line of the file may hold the
title, so a link never leads astray when the code moves: it breaks.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
FORMULAS = ROOT / "e2h_jax/evaluation/report/page"  # the report's scripts set the site's equations too

_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$|(`+)[^`].*?\2", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)(?: "(?P<title>[^"]*)")?\)')


class Link(NamedTuple):
    """A link of a page.

    Attributes:
      span: where it stands in the page's text.
      target: as written, such as "ppo.md#formulas" or "../e2h_jax/main.py".
      title: "" where it has none.
    """

    span: tuple[int, int]
    text: str
    target: str
    title: str


def links(markdown: str) -> Iterator[Link]:
    """The links of a page, but for those inside code."""
    code = [match.span() for match in _CODE.finditer(markdown)]
    for match in _LINK.finditer(markdown):
        start = match.start("target")
        if not any(begin <= start < end for begin, end in code):
            yield Link(match.span(), match["text"], match["target"], match["title"] or "")


def source(page: str, target: str) -> Path | None:
    """The file of the repository, outside docs/, that a link of docs/`page` leads to; None for any other link."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return None
    path = (ROOT / "docs" / page).parent.joinpath(target.partition("#")[0]).resolve()
    return None if path.is_relative_to(ROOT / "docs") else path


def line_of(path: Path, words: str) -> int:
    """The number, from 1, of the line of a file that holds `words`; 1 for no words.

    Raises:
      ValueError: no line has them, or several.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if words else []
    found = [number for number, line in enumerate(lines, start=1) if words in line]
    if words and len(found) != 1:
        raise ValueError(f"{path.relative_to(ROOT)}: {len(found) or 'no'} lines hold {words!r}; a link needs words of one")
    return found[0] if found else 1


def _page_of(path: Path) -> str:
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def on_files(files: Any, config: Any) -> Any:
    """MkDocs: adds the pages of the linked sources, and the scripts that set equations."""
    from mkdocs.structure.files import File

    linked = set()
    for page in files.documentation_pages():
        linked |= {path for link in links(page.content_string) if (path := source(page.src_uri, link.target))}
    for path in sorted(linked):
        files.append(File.generated(config, _page_of(path), content=_listing(path)))
    for name in ("symbols.js", "formulas.js", "commands.js", "formulas.css"):
        files.append(File.generated(config, f"assets/formulas/{name}", abs_src_path=str(FORMULAS / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs: turns links to sources into links to their pages."""
    parts, at = [], 0
    for link in links(markdown):
        if path := source(page.file.src_uri, link.target):
            up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
            parts += [markdown[at : link.span[0]], f"[{link.text}]({up}{_page_of(path)}#L-{line_of(path, link.title)})"]
            at = link.span[1]
    return "".join([*parts, markdown[at:]])


def _listing(path: Path) -> str:
    """The page of a source file: its lines, each with an anchor."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TextLexer, get_lexer_for_filename
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    shown = HtmlFormatter(cssclass="highlight listing", linenos="inline", linespans="L")
    name = path.relative_to(ROOT).as_posix()
    body = highlight(path.read_text(encoding="utf-8"), lexer, shown)
    return f"---\ntitle: {name}\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n\n# `{name}`\n\n{body}"
