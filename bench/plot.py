"""Draw KL against file bytes from the lines of bench/quality.py: python bench/plot.py OUT.svg LINES.jsonl ...

Needs matplotlib. Lines without "recipe" are single points: {"method": name, "bytes": B, "kl": nats}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

STYLE = {
    "stock": ("#8a94a0", "o", "stock recipes, importance matrix"),
    "nearest": ("#56b4e9", "s", "our plan, rounded to nearest"),
    "normal": ("#0072b2", "D", "tenth --effort normal"),
    "best": ("#d55e00", "*", "tenth --effort best"),
}


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "tenth"  # the same bytes for the same lines
    points: dict[str, set[tuple[float, float]]] = {}
    recipes: set[tuple[float, float, str]] = set()
    for path in sys.argv[2:]:
        for line in Path(path).read_text().splitlines():
            row = json.loads(line)
            if "recipe" in row:
                recipes.add((row["stock_bytes"] / 1e6, row["stock_kl"], row["recipe"]))
            if "kl" in row:
                points.setdefault(row["method"], set()).add((row["bytes"] / 1e6, row["kl"]))
    points["stock"] = {recipe[:2] for recipe in recipes}
    figure, axes = plt.subplots(figsize=(8.4, 5.2))
    for method in (*STYLE, *sorted(points.keys() - STYLE.keys())):
        if method in points:
            colour, mark, label = STYLE.get(method, ("#cc79a7", "X", method))
            line = "-" if method in STYLE and method != "stock" else "none"
            x, y = zip(*sorted(points[method]), strict=True)
            axes.plot(x, y, ls=line, color=colour, marker=mark, label=label, markersize=6)
    for size, kl, name in recipes:
        axes.annotate(name, (size, kl), (4, 4), textcoords="offset points", fontsize=7, color="#566374")
    axes.set(yscale="log", xlabel="file, MB", ylabel="held-out KL to the original, nats per token")
    axes.grid(visible=True, which="both", color="#e8ecf0")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.savefig(sys.argv[1], metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()
