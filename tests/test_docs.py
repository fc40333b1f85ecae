"""What the pages name exists: files, folders, links, commands and options; their words keep to the glossary.

docs/log.md is history and may name what is gone. Commands are looked up in docs/reference.md, which the gate
makes again from the commands' own help.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import COMMON

from tenth.core.metrics import METRICS
from tenth.devices import catalogue

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HISTORY = DOCS / "log.md"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path != HISTORY)]
BASES = (ROOT, ROOT / "src" / "tenth", DOCS)  # a path on a page begins at one of these

FILE = re.compile(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|toml|md|jsonl?|svg|png|css|js|html|jinja)\b")
FOLDER = re.compile(r"`((?:[\w.-]+/)+)`")
EXAMPLE = re.compile(r"[A-Z]{2,}|^(out|site|build)/")  # OUT/plan.json, sets/NAME.toml, out/first/report.html
PROPOSED = {"src/tenth/models/arch/helium.py"}  # the worked example of docs/contributing.md
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?<![\w./-])(?:[\w./-]*/)?tenth ([a-z]+)([^;|&]*)")
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
# Words that a page once used for what has a name in the glossary (docs/guide.md).
RETIRED = re.compile(r"\b(damages?|lessons?|outlooks?|menu|prices?|priced|pricing|walks?)\b", re.IGNORECASE)


def missing_files(text: str) -> list[str]:
    """Paths of files and folders on a page that lead nowhere."""
    text = re.sub(r"https?://\S+", "", text)
    named = {match.group() for match in FILE.finditer(text)} | set(FOLDER.findall(text))
    return sorted(
        name
        for name in named
        if not EXAMPLE.search(name)
        and name not in PROPOSED
        and not any((base / name).exists() for base in BASES)
    )


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(text: str, page: Path) -> list[str]:
    """Links to files or headings that do not exist; addresses on the web are not followed."""
    broken = []
    for link in LINK.findall(text):
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in slugs(target)):
            broken.append(link)
    return broken


def known_options() -> dict[str, set[str]]:
    """Verb -> its options, from the generated page."""
    parts = re.split(
        r"^## tenth (\w+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return {verb: set(OPTION.findall(text)) for verb, text in zip(parts[1::2], parts[2::2], strict=True)}


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(verb, options) of every `tenth VERB ...` in the code of a page; of "$ " lines where there are any."""
    for block, inline in CODE.findall(text):
        lines = (block or inline).splitlines()
        typed = [line for line in lines if line.startswith("$ ")] or lines
        for line in typed:
            for verb, rest in COMMAND.findall(re.sub(r"#.*", "", line)):
                yield verb, OPTION.findall(rest)


def unknown_commands(text: str) -> list[str]:
    """Verbs and options that tenth does not have."""
    known = known_options()
    return [
        f"tenth {verb} {option}".strip()
        for verb, options in commands(text)
        for option in (options or [""])
        if verb not in known or (option and option not in known[verb])
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing_files(text) == []
    assert broken_links(text, page) == []
    assert unknown_commands(text) == []
    assert RETIRED.findall(text) == []


def test_the_log_has_no_broken_link() -> None:
    assert broken_links(HISTORY.read_text(encoding="utf-8"), HISTORY) == []


def test_readme_and_guide_show_every_verb() -> None:
    shown = {
        verb
        for page in ("README.md", "docs/guide.md")
        for verb, _ in commands((ROOT / page).read_text("utf-8"))
    }
    assert shown == set(known_options())


def test_the_worked_examples_work(tmp_path: Path) -> None:
    text = (DOCS / "contributing.md").read_text(encoding="utf-8")
    family, row = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    defined: dict[str, Any] = {}
    exec(family, defined)
    config = COMMON | ast.literal_eval("{" + row + "}")["helium"]["plain"]
    helium = defined["ARCHITECTURE"]
    assert len(helium.specs(helium.complete(config))) == 3 + 9 * config["num_hidden_layers"]
    (toml,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "raspberry-pi-4-8gb.toml").write_text(toml, encoding="utf-8")
    assert catalogue.load(str(tmp_path / "raspberry-pi-4-8gb.toml")).kind == "board"


def test_the_glossary_says_of_a_metric_what_its_row_says() -> None:
    glossary = (DOCS / "guide.md").read_text(encoding="utf-8").partition("## Glossary")[2]
    for metric in METRICS.values():
        assert metric.meaning.removesuffix(".") in glossary, metric.name


def test_planted_faults_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading: of words\n", encoding="utf-8")
    assert missing_files("core/store.py and core/gone.py, `models/arch/` and `models/none/`") == [
        "core/gone.py",
        "models/none/",
    ]
    assert missing_files("OUT/plan.json, sets/NAME.toml, https://example.org/a/page.html") == []
    assert broken_links(
        "[a](page.md#a-heading-of-words) [b](page.md#b) [c](none.md) [d](https://e.org)", page
    ) == ["page.md#b", "none.md"]
    assert unknown_commands(
        "`tenth plan M --device pixel-8 --wrong 3`, tenth nothing, `.venv/bin/tenth polish`"
    ) == ["tenth plan --wrong", "tenth polish"]
    assert RETIRED.findall("The damage of a walk; sidewalks") == ["damage", "walk"]
