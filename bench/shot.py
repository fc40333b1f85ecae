"""A picture of a page of ours in a headless Chromium: docs/leaderboard.png, and for looking at changes.

    python bench/shot.py SITE/index.html PICTURE.png [--width 1180] [--dark] [--until section.long]

--width 375 is a phone. --until ends the picture below the first element of that CSS selector. Prints one JSON
line: bytes, width, and whether the page is wider than its window.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

from playwright.sync_api import FloatRect, sync_playwright


def main() -> None:
    """One picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--until")
    given = parser.parse_args()
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("no chromium here (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=found, args=options)
        page = browser.new_page(
            viewport={"width": given.width, "height": 900}, color_scheme="dark" if given.dark else "light"
        )
        page.goto(given.page.resolve().as_uri())
        wide, height = page.evaluate(
            "() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        box = page.locator(given.until).first.bounding_box() if given.until else None
        end = min(height, box["y"] + box["height"] + 16) if box else height
        clip: FloatRect = {"x": 0.0, "y": 0.0, "width": float(given.width), "height": float(end)}
        page.screenshot(path=given.picture, full_page=True, clip=clip)
        browser.close()
    size = given.picture.stat().st_size
    print(json.dumps({"bytes": size, "width": given.width, "wider": wide > given.width}))


if __name__ == "__main__":
    main()
