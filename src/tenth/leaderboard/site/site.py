"""The leaderboard as a folder of files that need no server: RESULTS in, SITE out, whole or not at all.

SITE/index.html                 the table and the pictures
SITE/s/<id>.html                a submission
SITE/s/<id>.json, <id>.txt      its verdict, and the judge's log of it
The same results make the same bytes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tenth import __version__
from tenth.core.errors import InputError, OutputError
from tenth.core.store import write_text
from tenth.leaderboard import ranking, submission
from tenth.leaderboard.ranking import Row
from tenth.leaderboard.records import RULES, Verdict, read_results
from tenth.leaderboard.site import entry, index
from tenth.leaderboard.site.pages import FOLDER, GENERATOR
from tenth.runtime import bundle

INDEX, PAGES = "index.html", FOLDER.rstrip("/")
LOG_AT_MOST = 16 * 1024 * 1024  # bytes of a log that the site takes
_MADE = f'content="{GENERATOR}"'.encode()


@dataclass(frozen=True)
class DrawnSite:
    """The page that was drawn, its rows, and what waits for a verdict."""

    page: Path
    rows: list[Row]
    waiting: list[str]  # submissions without a verdict
    without_log: list[str]  # ids of verdicts whose log is missing, too large, or no plain file


def write(results: Path, out: Path, submissions: Path | None = None) -> DrawnSite:
    """Draw the site; one that was drawn there before is replaced. Raises InputError, OutputError."""
    verdicts = read_results(results)
    twice = [name for name, count in Counter(verdict.id for verdict in verdicts).items() if count > 1]
    if twice:
        raise InputError(f"{results} has {twice[0]} in two files; remove one of them")
    rows = ranking.standings(verdicts, RULES)
    waiting = waiting_in(submissions, verdicts) if submissions else []
    by_id = {row.verdict.id: row for row in rows}
    without = []
    with bundle.whole(out, check, {Path(INDEX).stem, PAGES}) as partial:
        write_text(partial / INDEX, index.render(rows, waiting, RULES, __version__))
        pages = partial / PAGES
        pages.mkdir()
        for name, row in by_id.items():
            files = [("verdict, JSON", f"{name}.json")]
            write_text(pages / f"{name}.json", row.verdict.model_dump_json(indent=1) + "\n")
            if copy_log(results, row.verdict.log, pages / f"{name}.txt"):
                files.insert(0, ("log of the judge", f"{name}.txt"))
            else:
                without.append(name)
            write_text(pages / f"{name}.html", entry.render(row, by_id, files, __version__))
    return DrawnSite(out / INDEX, rows, waiting, without)


def check(out: Path) -> None:
    """OutputError unless OUT is free, empty, or a site that was drawn by this."""
    held = bundle.held_in(out)
    if held and not (held == {INDEX, PAGES} and _drawn(out / INDEX)):
        raise OutputError(f"{out} is not empty and not a leaderboard; give -o an empty or new folder")


def waiting_in(submissions: Path, verdicts: Sequence[Verdict]) -> list[str]:
    """Names of the submissions there whose files, as they are now, have no verdict. Raises InputError."""
    judged: dict[str, set[tuple[int, str, str]]] = {}
    for v in verdicts:
        judged.setdefault(v.submission, set()).add((v.conditions.budget, v.artifact, v.manifest_hash))

    def known(folder: Path) -> bool:
        budgets = {budget for budget, _, _ in judged.get(submission.printable(folder.name), ())}
        seen = [(budget, submission.open_submission(folder, budget)) for budget in budgets]
        return any((b, s.artifact, s.manifest_hash) in judged[s.name] for b, s in seen)

    folders = submission.find_submissions([submissions])
    return [submission.printable(folder.name) for folder in folders if not known(folder)]


def copy_log(results: Path, name: str, to: Path) -> bool:
    """Copy a log out of the results; False for what is no plain file in them, or too large."""
    if not name or Path(name).name != name or name in (".", ".."):
        return False
    try:
        # Neither a link nor a pipe: it could show any file, or never end.
        handle = os.open(results / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size > LOG_AT_MOST:
        os.close(handle)
        return False
    with os.fdopen(handle, "rb") as source, to.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    return True


def _drawn(page: Path) -> bool:
    """Whether a page says that this drew it."""
    if not page.is_file():
        return False
    with page.open("rb") as stream:
        return _MADE in stream.read(2000)
