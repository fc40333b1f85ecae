"""Lines of the product code: python scripts/lines.py. Over 400 deserves a second look, not a failure."""

from __future__ import annotations

from pathlib import Path

LIMIT = 400


def main() -> None:
    """Print the total and the files above the limit."""
    source = Path(__file__).parent.parent / "src"
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source.rglob("*.py")}
    print(f"{sum(sizes.values())} lines in {len(sizes)} files of src")
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size > LIMIT:
            print(f"  {size} {path.relative_to(source)}")


if __name__ == "__main__":
    main()
