"""The pages say what is so: links, commands, names of files and of metrics. Without mkdocs; launch/docs.sh builds them."""

import functools
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from e2h_jax import config as configs
from e2h_jax import main, stage
from e2h_jax.errors import UserError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

spec = importlib.util.spec_from_file_location("docs_links", DOCS / "links.py")
links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(links)


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(markdown):
    """The headings of a page as GitHub and the site write them in addresses."""
    without_code = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def wrong_link(page, link):
    """What is wrong with a link, or None."""
    if "://" in link.target or link.target.startswith("mailto:"):
        return None
    name, _, anchor = link.target.partition("#")
    path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
    if not path.exists():
        return f"{link.target}: there is no such file"
    if path.suffix == ".md" and anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
        return f"{link.target}: there is no such heading"
    if path.suffix != ".md" and anchor:
        return f"{link.target}: name the line by words in the link's title"
    if link.title:
        try:
            links.line_of(path, link.title)
        except ValueError as error:
            return str(error)
    return None


@pytest.mark.parametrize("page", NAMES)
def test_every_link_leads_somewhere(page):
    assert [wrong for link in links.links(text(page)) if (wrong := wrong_link(page, link))] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text(page))
    assert [name for name in pictures if not ((ROOT / page).parent / name).exists()] == []


def test_wrong_links_are_found():
    page = "docs/ppo.md"
    found = links.links(
        'See [a](none.md), [b](rewards.md#no-heading), [c](../e2h_jax/algorithms/ppo.py "no such words"), '
        '[d](../e2h_jax/algorithms/ppo.py "config."), [e](../e2h_jax/main.py#L3), [f](rewards.md#options) and '
        '[g](../e2h_jax/algorithms/ppo.py "def learn("), `[h](none.md)`.\n\n```\n[i](none.md)\n```\n'
    )
    assert [(link.text, wrong_link(page, link) is not None) for link in found] == [
        (name, name in "abcde") for name in "abcdefg"
    ]


def test_a_link_to_a_line_becomes_one_on_the_site():
    class Page:
        class file:  # noqa: N801
            src_uri = "ppo.md"

    line = links.line_of(ROOT / "e2h_jax/algorithms/advantages.py", "def gae(")
    seen = links.on_page_markdown('x [g](../e2h_jax/algorithms/advantages.py "def gae(") y [p](rewards.md)', Page, None, None)
    assert seen == f"x [g](source/e2h_jax/algorithms/advantages.py.md#L-{line}) y [p](rewards.md)"


def commands(page):
    """The `e2h` commands of a page's bash blocks and of its inline code."""
    shown = re.findall(r"^```bash\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in shown for line in block.replace("\\\n", " ").splitlines()]
    without_code = re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(e2h [^`]+)`", without_code)
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("e2h ")]


def wrong_command(line):
    """What is wrong with a command, or None. … and $NAME stand for the reader's own, as does a config without a folder."""
    own = ("…", "$", "<", "--config.…")
    words = [word for word in shlex.split(line)[1:] if not word.startswith(own)]
    if not words or words[0] in main.COMMANDS:
        return None
    try:
        command = main.parse(words)
        if command.stage is None:
            return None
        defaults = stage.load(command.stage).defaults()
        config = defaults.copy_and_resolve_references().lock()
        if command.config and "/" in command.config and not re.search("[…<]", command.config):
            config = configs.load_file(str(ROOT / command.config))
        elif command.stage == "recipe":  # its fields are those of its config
            return None
        for override in command.overrides:
            name, _, value = override.partition("=")
            if "…" in value or "$" in value:
                functools.reduce(lambda group, part: group[part], name.split("."), config)
            else:
                configs.override(config, [override], defaults)
    except (UserError, KeyError, TypeError) as error:
        return f"{line}: {error}"
    return None


@pytest.mark.parametrize("page", [page for page in NAMES if commands(page)])
def test_every_command_names_real_stages_files_and_fields(page):
    assert [wrong for line in commands(page) if (wrong := wrong_command(line))] == []


def test_wrong_commands_are_found():
    assert wrong_command("e2h stf --workdir=x")
    assert wrong_command("e2h sft --config.epoch=3 --workdir=x")
    assert wrong_command("e2h sft --config.epochs=three --workdir=x")
    assert wrong_command("e2h sft --config.optimizer.rate=… --workdir=x")
    assert wrong_command("e2h recipe --config=configs/quickstrat.py --workdir=x")
    assert wrong_command("e2h recipe --config=configs/quickstart.py --config.ppo.clipp=0.1 --workdir=x")
    assert wrong_command("e2h sft --config=… --config.optimizer.learning_rate=… --workdir=x") is None


@pytest.mark.parametrize("page", NAMES)
def test_every_file_named_exists(page):
    named = set(re.findall(r"(?<![\w/.…*-])((?:[\w-]+/)+[\w-]+\.(?:py|sh|yml|toml))\b", text(page)))
    named |= set(re.findall(r"\b(?:bash|python) ((?:[\w-]+/)+[\w-]+\.(?:sh|py))", text(page)))
    walked = {"e2h_jax/data/sources/svamp.py", "configs/data/svamp.py", "e2h_jax/algorithms/raft.py"}  # extending.md makes them
    places = (ROOT, ROOT / "e2h_jax", DOCS)
    assert [name for name in sorted(named - walked) if not any((place / name).exists() for place in places)] == []


def test_the_site_has_every_page_and_every_picture_is_shown():
    navigation = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    assert navigation == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    everything = "\n".join(map(text, NAMES))
    assert [path.name for path in (DOCS / "images").iterdir() if f"images/{path.name}" not in everything] == []


def test_every_room_is_in_the_reference():
    rooms = {path.parent.name for path in (ROOT / "e2h_jax").glob("*/__init__.py")}
    shown = set(re.findall(r"^::: e2h_jax\.(\w+)$", "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), re.M))
    assert rooms <= shown


def test_the_metrics_page_defines_nothing_that_is_not_written(metric_names):
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "e2h_jax").rglob("*.py"))
    unknown = []
    for name in metric_names:
        parts = [part for part in re.split(r"<\w+>|/|^value_", name) if part and part.strip("_@")]
        # The training loop names the sum of "loss_weights" "loss_tokens".
        spelled = [{part, part.replace("_tokens", "_weights"), part.strip("_@")} for part in parts]
        if not all(any(re.search(rf"\b{re.escape(way)}", sources) for way in ways) for ways in spelled):
            unknown.append(name)
    assert len(metric_names) > 100 and unknown == []
