"""The leaderboard: who stands where, pages that are safe with anyone's words, and the site in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from boards import HOSTILE, board, conditions, manifest, save, task, verdict
from commands import Shell
from hypothesis import given
from hypothesis import strategies as st

from tenth.core.errors import InputError, OutputError
from tenth.core.records import Reading
from tenth.leaderboard import ranking
from tenth.leaderboard.records import RULES, Probe
from tenth.leaderboard.site import chart, site
from tenth.report.html import clean

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

STYLES = ("light", "dark")


# ---- who stands where


def names(rows: list[ranking.Row], state: str) -> list[str]:
    return [row.name for row in rows if row.state == state]


def test_places_are_of_a_division_and_a_setting() -> None:
    rows = ranking.standings(board(), RULES)
    found = {(row.setting.device, row.division): row.name for row in rows if row.place and row.place[0] == 1}
    assert found == {
        ("pixel-8", "bits"): "Q8_0",
        ("pixel-8", "structure"): "narrow",
        ("pixel-8", "open"): "distilled",
        ("pixel-8", "scratch"): "own-words",
        ("a-server", "bits"): "Q8_0",
    }
    assert names(rows, "disqualified") == ["constant", "too-large", "corrupt"]
    assert names(rows, "again") == ["old-rules"]
    assert names(rows, "earlier") == ["tenth-25MB"]


def test_the_last_attempt_counts_and_not_the_best() -> None:
    best = verdict("a", 1.5, date="2026-11-24T00:00:00+00:00", artifact="01" * 32)
    last = verdict("a", 1.9, date="2026-11-25T00:00:00+00:00", artifact="02" * 32)
    out = verdict("a", status="disqualified", date="2026-11-26T00:00:00+00:00", artifact="03" * 32)
    other = verdict("b", 1.7)
    rows = {row.verdict.id: row for row in ranking.standings([best, last, other], RULES)}
    assert rows[best.id].state == "earlier"
    assert rows[last.id].place == (2, 2)
    assert (rows[last.id].attempt, rows[last.id].attempts) == (2, 2)
    rows = {row.verdict.id: row for row in ranking.standings([out, best, last, other], RULES)}
    assert rows[out.id].state == "disqualified"
    assert {rows[best.id].place, rows[last.id].place} == {None}
    assert rows[other.id].place == (1, 1)


def test_a_tie_is_what_the_same_passages_do_not_tell_apart() -> None:
    a, b = verdict("a", 1.70), verdict("b", 1.71)
    steady = b.model_copy(update={"text_chunks": [value + 0.01 for value in a.text_chunks]})
    noisy = b.model_copy(
        update={"text_chunks": [v + 0.01 + 0.2 * (-1) ** i for i, v in enumerate(a.text_chunks)]}
    )
    unpaired = b.model_copy(update={"text_chunks": []})
    assert not ranking.tied(a, steady), "every passage is worse by as much"
    assert ranking.tied(a, noisy)
    assert ranking.tied(a, unpaired), "intervals of 0.04 overlap"
    assert not ranking.tied(a, verdict("c", 1.79, text_chunks=[]))


@given(st.lists(st.tuples(st.floats(1, 3), st.floats(0, 0.3)), min_size=1, max_size=12))
def test_places_hold_every_order_that_the_text_allows(figures: list[tuple[float, float]]) -> None:
    verdicts = [
        verdict(
            f"m{i}",
            text_chunks=[],
            readings=[Reading(name="bits_per_byte", value=value, unit="", spread=spread)],
        )
        for i, (value, spread) in enumerate(figures)
    ]
    rows = {row.verdict.id: row for row in ranking.standings(verdicts, RULES)}
    order = sorted(verdicts, key=lambda v: v.readings[0].value)
    for place, each in enumerate(order, 1):
        row = rows[each.id]
        assert row.place is not None
        low, high = row.place
        assert 1 <= low <= place <= high <= len(verdicts)
        assert high - low == len(row.ties)
        assert all(each.id in rows[other].ties for other in row.ties)


def test_whiskers_leave_out_what_a_passage_does_to_all_alike() -> None:
    a = verdict("a", 1.7)
    b = a.model_copy(update={"submission": "b", "text_chunks": [value + 0.01 for value in a.text_chunks]})
    noisy = [value + 0.01 * (-1) ** i for i, value in enumerate(a.text_chunks)]
    c = a.model_copy(update={"submission": "c", "text_chunks": noisy})
    rows = ranking.standings([a, b], RULES)
    assert max(ranking.whiskers(rows).values()) < 1e-9
    found = ranking.whiskers(ranking.standings([a, c], RULES))
    error = 1.96 * 0.01 / len(noisy) ** 0.5
    # The difference of the two has the error of one of them: each has its share.
    assert sum(half**2 for half in found.values()) == pytest.approx(error**2, rel=0.05)
    (alone,) = ranking.whiskers(ranking.standings([a], RULES)).values()
    assert alone == pytest.approx(1.96 * 0.02, rel=1e-3)


def test_a_verdict_without_a_number_has_no_place() -> None:
    nothing = verdict("a", readings=[])
    infinite = verdict("b", readings=[Reading(name="bits_per_byte", value=float("inf"), unit="")])
    rows = ranking.standings([nothing, infinite], RULES)
    assert [row.state for row in rows] == ["disqualified"] * 2
    assert all("no bits per byte" in row.reason for row in rows)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=14), st.sampled_from([-1, 1]))
def test_the_front_is_what_none_beats_in_both(places: list[tuple[int, int]], better: int) -> None:
    found = {places[i] for i in chart.front([(float(x), float(y)) for x, y in places], better)}
    naive = {
        (x, y)
        for x, y in places
        if not any((a, b) != (x, y) and better * a >= better * x and b <= y for a, b in places)
    }
    assert found == naive


# ---- the files


class Reader(HTMLParser):
    """Tags, attributes and links of a page; checks that tags close in order."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, page
        self.links = [value for name, value in self.attributes if name == "href"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_page(page: Path, root: Path) -> Reader:
    """Nothing runs but the one script, nothing is asked for, links lead to files of the site."""
    found = Reader(page)
    index = page.name == "index.html"
    assert found.tags.count("script") == int(index)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "style")]
    for link in found.links:
        target = (page.parent / link).resolve()
        assert target.is_file(), link
        assert target.is_relative_to(root.resolve()), link
    source = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "unsafe" not in policy[1]
    return found


def test_every_verdict_has_a_row_a_page_and_its_files(tmp_path: Path) -> None:
    verdicts = board()
    site.write(save(tmp_path / "results", verdicts), tmp_path / "site")
    found = files(tmp_path / "site")
    ids = {each.id for each in verdicts}
    assert set(found) == {"index.html"} | {f"s/{i}.{end}" for i in ids for end in ("html", "json", "txt")}
    index = check_page(tmp_path / "site/index.html", tmp_path / "site")
    assert {f"s/{i}.html" for i in ids} == set(index.links)
    for each in verdicts:
        page = check_page(tmp_path / f"site/s/{each.id}.html", tmp_path / "site")
        assert {f"{each.id}.json", f"{each.id}.txt", "../index.html"} <= set(page.links)
        assert each.command in page.text
        assert each.reason in page.text
        assert found[f"s/{each.id}.txt"] == b"what the judge saw\n"
        assert type(each).model_validate_json(found[f"s/{each.id}.json"]) == each
    assert "1–2" in index.text, "a tie is shown as one"


def test_a_page_says_all_that_travels_with_a_figure(tmp_path: Path) -> None:
    each = next(v for v in board() if v.submission == "narrow")
    site.write(save(tmp_path / "results", [each]), tmp_path / "site")
    said = " ".join(Reader(tmp_path / f"site/s/{each.id}.html").text.split())
    for expected in (
        "Place 1 of 1 in structure",
        "1.94",
        "± 0.02",
        "32 passages of 2048 bytes",
        "29.1",
        "of 30 MB allowed",
        "estimated",
        "Arc Easy",
        "40.0 %",
        "30.9 to 49.8",
        "worse",
        "tie",
        "not informative",
        "hidden items",
        "how narrow was made",
        "namespace without interfaces",
        "cgroup v2",
        "a machine",
        "in 12.5 s",
        "causal",
        "fewer weights in 16 or 32 bits",
        "KV cache f16 and f16",
        "llama.cpp b1",
    ):
        assert expected in said, expected


def test_who_knows_public_items_better_than_hidden_ones_is_marked(tmp_path: Path) -> None:
    rows = {row.name: row for row in ranking.standings(board(), RULES)}
    assert {name: row.suspect for name, row in rows.items() if row.suspect} == {"distilled": ["Piqa"]}
    site.write(save(tmp_path / "results", board()), tmp_path / "site")
    assert "better on public items than on hidden: Piqa" in Reader(tmp_path / "site/index.html").text
    assert "seen before?" in Reader(next(tmp_path.glob("site/s/distilled-*.html"))).text


def test_the_same_results_make_the_same_bytes(tmp_path: Path) -> None:
    save(tmp_path / "one", board())
    save(tmp_path / "two", board()[::-1])
    site.write(tmp_path / "one", tmp_path / "site")
    before = files(tmp_path / "site")
    site.write(tmp_path / "two", tmp_path / "site")
    assert files(tmp_path / "site") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "site", "two"]


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    long = HOSTILE * 20
    bad = verdict(
        HOSTILE,
        manifest=manifest(
            HOSTILE, base=HOSTILE, method=long, data=long, licence=HOSTILE, url="https://example.org/x"
        ),
        reason=long,
        log_line=HOSTILE,
        command=HOSTILE,
        machine=HOSTILE,
        runtime=HOSTILE,
        tenth=HOSTILE,
        date=HOSTILE,
        isolation=[HOSTILE],
        artifact=HOSTILE,
        log="x.log",
        manifest_hash=HOSTILE,
        conditions=conditions(device=HOSTILE, original=HOSTILE, text=HOSTILE, tasks=(HOSTILE,)),
        probes=[Probe(name=HOSTILE, passed=False, value=float("nan"), allowed=1e300, detail=HOSTILE)],
        tasks=[task("t", 9, 8).model_copy(update={"title": HOSTILE, "metric": HOSTILE})],
        readings=[
            *verdict("x").readings,
            Reading(name=HOSTILE, value=1e300, unit=HOSTILE, conditions=HOSTILE),
        ],
    )
    for status in ("ranked", "disqualified"):
        results = tmp_path / status
        save(results, [bad.model_copy(update={"status": status}), *board()])
        site.write(results, tmp_path / "site")
        for page in (tmp_path / "site").rglob("*.html"):
            said = check_page(page, tmp_path / "site").text
            assert "\u202e" not in page.read_text(encoding="utf-8")
            assert "https://" not in "".join(Reader(page).links)
        assert "<script>alert('x')</script>\"&" in said or page.name != f"{bad.id}.html"
    assert "<script>alert" in Reader(tmp_path / f"site/s/{bad.id}.html").text


@pytest.mark.parametrize("value", [0.0, -1.0, 1e300, 1e-300, float("inf"), float("nan")])
def test_a_figure_that_cannot_be_drawn_breaks_nothing(tmp_path: Path, value: float) -> None:
    odd = [
        Reading(name=name, value=value, unit="B" if name == "peak" else "", spread=value)
        for name in ("bits_per_byte", "peak", "device_decode", "device_joules", "kl")
    ]
    rows = ranking.standings([verdict("odd", readings=odd), verdict("even")], RULES)
    from tenth.leaderboard.site import entry, index

    page = index.render(rows, [], RULES, "0")
    assert "odd" in page
    ranked = {row.name for row in rows if row.state == "ranked"}
    drawn = set(re.findall(r'data-id="(\w+)-\w+"><title>', page))
    assert drawn == {"even"}
    assert page.count("without such a figure: <bdi>odd</bdi>") == (3 if "odd" in ranked else 0)
    by_id = {row.verdict.id: row for row in rows}
    for row in rows:
        assert row.name in entry.render(row, by_id, [], "0")


@given(st.text(max_size=80))
def test_cleaned_text_is_one_short_line(text: str) -> None:
    for each in (text, HOSTILE + text, "a" + "\u0301" * 60 + text):
        found = clean(each, 40)
        assert len(found) <= 40
        assert found == clean(found, 40)
        assert not re.search("[\x00-\x1f\u202a-\u202e\u2066-\u2069\u200e\u200f\u2028]", found)
        assert "\u0301" * 5 not in found


def test_a_log_comes_from_the_results_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    results = tmp_path / "results"
    cases = {
        "up": "../secret",
        "link": "link.log",
        "pipe": "pipe.log",
        "none": "none.log",
        "large": "large.log",
        "folder": "folder.log",
        "whole": str(secret),
        "empty": "",
    }
    for name, log in cases.items():
        each = verdict(name, log=log)
        results.mkdir(exist_ok=True)
        (results / f"{each.id}.json").write_text(each.model_dump_json())
    (results / "link.log").symlink_to(secret)
    os.mkfifo(results / "pipe.log")
    (results / "folder.log").mkdir()
    with (results / "large.log").open("wb") as file:
        file.truncate(site.LOG_AT_MOST + 1)
    drawn = site.write(results, tmp_path / "site")
    assert len(drawn.without_log) == len(cases)
    assert not list((tmp_path / "site").rglob("*.txt"))


def test_what_is_no_verdict_leaves_nothing_behind(tmp_path: Path) -> None:
    results = save(tmp_path / "results", board()[:2])
    (results / "other.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match=r"other\.json is not a verdict"):
        site.write(results, tmp_path / "deep/site")
    (results / "other.json").write_text(board()[0].model_dump_json())
    with pytest.raises(InputError, match="in two files"):
        site.write(results, tmp_path / "deep/site")
    with pytest.raises(InputError, match="no folder of results"):
        site.write(tmp_path / "nowhere", tmp_path / "deep/site")
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_only_an_earlier_site_is_replaced(tmp_path: Path) -> None:
    results = save(tmp_path / "results", board()[:2])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my own page")
    (mine / "s").mkdir()
    with pytest.raises(OutputError, match="not a leaderboard"):
        site.write(results, mine)
    with pytest.raises(OutputError, match="is a file"):
        site.write(results, mine / "index.html")
    assert (mine / "index.html").read_text() == "my own page"
    site.write(results, tmp_path / "site")
    (tmp_path / "site/note.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a leaderboard"):
        site.write(results, tmp_path / "site")


def test_submissions_without_a_verdict_are_listed(tmp_path: Path) -> None:
    from forged import submission

    from tenth.leaderboard.submission import open_submission

    submissions = tmp_path / "submissions"
    for name in ("judged", "changed", "new"):
        submission(submissions, name, name.encode())
    budget = conditions().budget
    seen = [open_submission(submissions / name, budget) for name in ("judged", "changed")]
    verdicts = [verdict(s.name, artifact=s.artifact, manifest_hash=s.manifest_hash) for s in seen]
    (submissions / "changed/model.gguf").write_bytes(b"another one")
    drawn = site.write(save(tmp_path / "results", verdicts), tmp_path / "site", submissions)
    assert drawn.waiting == ["changed", "new"]
    assert "Not judged yet" in Reader(tmp_path / "site/index.html").text


def test_the_command(tmp_path: Path) -> None:
    save(tmp_path / "results", board())
    shell = Shell(tmp_path)
    done = shell.run("leaderboard", "results", "-o", "site", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "site": "site/index.html",
        "rows": 16,
        "waiting": [],
        "without_log": [],
        "states": {"ranked": 11, "earlier": 1, "again": 1, "disqualified": 3},
    }
    failed = shell.run("leaderboard", "nowhere", "-o", "site")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "tenth judge" in failed.stderr


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    sync = pytest.importorskip("playwright.sync_api", reason="no playwright here (pip install tenth[dev])")
    with sync.sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = driver.chromium.launch(executable_path=found, args=options)
        yield running
        running.close()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    site.write(save(folder / "results", board()), folder / "site")
    return folder / "site"


class Visit:
    """A page in a window of its own; whatever it complains of or asks for is kept."""

    def __init__(self, browser: Browser, site: Path, **options: Any) -> None:
        size = {"width": 1280, "height": 900}
        self.context: BrowserContext = browser.new_context(**{"viewport": size, **options})
        self.page: Page = self.context.new_page()
        self.site, self.trouble = site, list[str]()
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.context.on("request", self._asked)
        self.page.goto((site / "index.html").as_uri())

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self.site.as_uri()):
            self.trouble.append(request.url)

    def shown(self) -> list[str]:
        """Names of the rows that can be seen, from above."""
        rows = self.page.locator("tr[data-id]:visible .name > a")
        return [text.strip() for text in rows.all_inner_texts()]

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
        assert not self.trouble


def column(visit: Visit, name: str, group: int = 1) -> list[float]:
    """Numbers of a column in one group, as they stand."""
    cells = visit.page.locator(f'tbody:nth-of-type({group}) td[data-label^="{name}"]')
    values = cells.evaluate_all("all => all.map(cell => cell.dataset.value)")
    return [float(value) for value in values if value]


def test_any_column_sorts_both_ways(browser: Browser, drawn: Path) -> None:
    with Visit(browser, drawn) as visit:
        heads = visit.page.locator("table.attempts thead th")
        assert heads.first.get_attribute("aria-sort") == "ascending", "by place to begin with"
        before = visit.shown()
        for i in range(heads.count()):
            head = heads.nth(i)
            head.get_by_role("button").click()
            first = head.get_attribute("aria-sort")
            orders = [visit.shown()]
            head.get_by_role("button").click()
            orders.append(visit.shown())
            assert {first, head.get_attribute("aria-sort")} == {"ascending", "descending"}
            assert visit.page.locator("[aria-sort]").count() == 1
            assert all(sorted(order) == sorted(before) for order in orders), "nothing is lost"
        for name, best in (("memory", 1), ("speed", -1), ("bits", 1), ("energy", 1), ("KL", 1), ("files", 1)):
            visit.page.locator("thead th", has_text=re.compile(f"^{name}")).get_by_role("button").click()
            values = column(visit, name, 2)
            assert len(values) > 6
            assert values == sorted(values, key=lambda value, best=best: best * value), name
        heads.nth(0).get_by_role("button").click()
        if heads.nth(0).get_attribute("aria-sort") != "ascending":
            heads.nth(0).get_by_role("button").click()
        assert visit.shown() == before


def test_filters_leave_what_was_asked_for(browser: Browser, drawn: Path) -> None:
    with Visit(browser, drawn) as visit:
        page, every = visit.page, visit.shown()
        count = page.locator(".count")
        assert count.inner_text() == "16 shown"
        page.get_by_label("Division").select_option("structure")
        assert visit.shown() == ["narrow", "shallow"]
        assert count.inner_text() == "2 of 16 shown"
        assert page.locator("tr.group:visible").count() == 1, "no heading without rows"
        lit = page.locator(".panel:visible .wide a.point:not(.off)")
        assert lit.count() == 2, "the picture shows the same ones"
        page.get_by_label("Division").select_option("")
        page.get_by_label("Status").select_option("disqualified")
        assert set(visit.shown()) == {"constant", "too-large", "corrupt"}
        page.get_by_label("Status").select_option("")
        page.get_by_label("Device").select_option(label="a-server, 60 MB, 2,048 tokens")
        assert visit.shown() == ["Q8_0", "Q6_K"]
        assert page.locator("section.pictures:visible").count() == 1
        page.get_by_label("Device").select_option("")
        page.get_by_label("Text").fill("PROBE Varied")
        assert visit.shown() == ["constant"]
        page.get_by_label("Text").fill("<script>")
        assert visit.shown() == []
        page.get_by_label("Text").fill("")
        assert visit.shown() == every


def test_rows_and_points_lead_to_their_pages_and_back(browser: Browser, drawn: Path) -> None:
    with Visit(browser, drawn) as visit:
        page = visit.page
        page.locator("tr[data-id] a", has_text="narrow").click()
        assert page.locator("h1").inner_text() == "narrow"
        page.get_by_role("link", name="leaderboard").click()
        points = page.locator("section.pictures").nth(1).locator(".panel:visible .wide a.point")
        assert points.count() == 9
        point = points.filter(has_text="distilled")
        name = point.get_attribute("data-id")
        point.locator(".dot").click()
        assert page.url == (drawn / f"s/{name}.html").as_uri()
        assert page.locator("h1").inner_text() == "distilled"
        page.go_back()
        page.locator("tr[data-id] a", has_text="tenth-29MB").click()
        page.get_by_role("link", name="Q8_0").click()
        assert page.locator("h1").inner_text() == "Q8_0", "a tie names the other"
        page.get_by_role("link", name="log of the judge").wait_for()


def test_the_picture_changes_its_axis(browser: Browser, drawn: Path) -> None:
    with Visit(browser, drawn) as visit:
        part = visit.page.locator("section.pictures").nth(1)
        assert "peak memory" in part.locator(".panel:visible").inner_text()
        for name, words in (("speed", "tokens/s"), ("energy", "J per token"), ("memory", "peak memory")):
            part.get_by_text(name, exact=True).click()
            assert part.locator(".panel:visible").count() == 1
            assert words in part.locator(".panel:visible .wide").inner_text()


def test_the_keyboard_is_enough(browser: Browser, drawn: Path) -> None:
    with Visit(browser, drawn) as visit:
        page = visit.page
        focused = """() => {
          const a = document.activeElement;
          return [a.tagName.toLowerCase(), a.textContent, getComputedStyle(a).outlineStyle];
        }"""
        seen: list[tuple[str, str, str]] = []
        for _ in range(80):
            page.keyboard.press("Tab")
            tag, text, outline = page.evaluate(focused)
            if tag == "body":
                break
            seen.append((tag, text, outline))
        tags = [tag for tag, *_ in seen]
        for tag, least in (("a", 20), ("input", 3), ("select", 3), ("button", 10)):
            assert tags.count(tag) >= least, tag
        parts = [tags.index("input"), tags.index("select"), tags.index("button")]
        assert parts == sorted(parts), "in the order of the page"
        plain = [text for tag, text, outline in seen if tag in ("select", "button") and outline == "none"]
        assert not plain, "what has the focus shows it"

        page.locator("thead button").nth(4).focus()
        page.keyboard.press("Enter")
        assert page.locator("thead th").nth(4).get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Space")
        assert page.locator("thead th").nth(4).get_attribute("aria-sort") == "descending"
        radios = page.locator("section.pictures").nth(0).locator("input")
        radios.first.focus()
        page.keyboard.press("ArrowRight")
        assert radios.nth(1).is_checked()
        page.locator("a.point:visible").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/s/*.html")


CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const f = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const worst = [];
  for (const e of document.querySelectorAll("main *")) {
    if (e.closest("svg") || !e.checkVisibility() || !e.firstChild || ![...e.childNodes].some(
      (n) => n.nodeType === 3 && n.data.trim())) continue;
    let back = e;
    while (back && parse(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
    const [a, b] = [getComputedStyle(e).color, getComputedStyle(back || document.body).backgroundColor];
    const [x, y] = [light(parse(a)), light(parse(b))];
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    if (ratio < 4.5) worst.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
  }
  return worst;
}"""


@pytest.mark.parametrize("style", STYLES)
def test_everything_can_be_read_by_day_and_by_night(browser: Browser, drawn: Path, style: Any) -> None:
    with Visit(browser, drawn, color_scheme=style) as visit:
        page = visit.page
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (max(shade) < 60) == (style == "dark")
        assert page.evaluate(CONTRAST) == []
        for each in ("narrow", "constant"):
            page.goto(next(drawn.glob(f"s/{each}-*.html")).as_uri())
            assert page.evaluate(CONTRAST) == []


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, drawn: Path) -> None:
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
    with Visit(browser, drawn, **phone) as visit:
        page = visit.page
        wide = """() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
          && !e.closest("svg, .scroll") && e.getBoundingClientRect().right > innerWidth + 1)
          .map((e) => e.outerHTML)"""
        for each in (None, "narrow", "constant", "corrupt"):
            if each:
                page.goto(next(drawn.glob(f"s/{each}-*.html")).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == 375
            assert page.evaluate(wide) == []
        page.goto((drawn / "index.html").as_uri())
        table = page.locator("table.attempts").bounding_box()
        assert table is not None
        assert table["width"] <= 375, "the table becomes cards"
        page.get_by_label("Sort by").select_option(label="speed ↓")
        values = column(visit, "speed", 2)
        assert values == sorted(values, reverse=True)
        page.locator(".narrow a.point:visible .dot").first.tap()
        page.wait_for_url("**/s/*.html")


def test_without_a_script_the_table_and_the_pictures_are_there(browser: Browser, drawn: Path) -> None:
    with Visit(browser, drawn, java_script_enabled=False) as visit:
        page = visit.page
        assert len(visit.shown()) == 16
        assert not page.locator(".filters").is_visible(), "nothing that would not work"
        assert page.locator("thead button").count() == 0
        part = page.locator("section.pictures").nth(1)
        part.get_by_text("energy", exact=True).click()
        assert "J per token" in part.locator(".panel:visible .wide").inner_text()
        part.locator(".panel:visible .wide a.point .dot").first.click()
        assert page.locator("h1").count() == 1


def test_hostile_words_run_nothing(browser: Browser, tmp_path: Path) -> None:
    attempts = [
        "<img src=x onerror=console.log(1)>",
        '"><svg onload=console.log(2)>',
        "javascript:console.log(3)",
        "</script><script>console.log(4)</script>",
        "' autofocus onfocus=console.log(5) '",
    ]
    bad = [
        verdict(f"x{i}", manifest=manifest(words), reason=words, conditions=conditions(device=words))
        for i, words in enumerate(attempts)
    ]
    site.write(save(tmp_path / "results", bad), tmp_path / "site")
    with Visit(browser, tmp_path / "site") as visit:
        assert len(visit.shown()) == 5
        for each in bad:
            visit.page.goto((tmp_path / f"site/s/{each.id}.html").as_uri())
            assert each.manifest is not None
            assert visit.page.locator("h1").inner_text() == each.manifest.name
