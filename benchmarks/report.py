"""Tables and the plot of docs/performance.md, from what the benchmarks wrote.

python benchmarks/report.py benchmarks/results --plot docs/performance.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

AXES = {
    "steps": "refinement steps",
    "shots": "support pictures",
    "labels": "labels on the same pictures",
    "queries": "query pictures",
    "megapixels": "megapixels of each picture",
}


def milliseconds(spread: dict[str, float]) -> str:
    return f"{1000 * spread['p50']:.0f} ({1000 * spread['p95']:.0f})"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def stage_table(presets: dict[str, Any]) -> list[str]:
    """Stages in rows, presets in columns; milliseconds, p50 (p95)."""
    stages = list(dict.fromkeys(stage for found in presets.values() for stage in found["seconds"] if stage != "total"))
    lines = [row(["", *presets]), row(["---"] * (1 + len(presets)))]
    for stage in stages:
        cells = [milliseconds(f["seconds"][stage]) if stage in f["seconds"] else "" for f in presets.values()]
        lines.append(row([stage, *cells]))
    lines.append(row(["**files to mask**", *(milliseconds(f["seconds"]["total"]) for f in presets.values())]))
    lines.append(row(["another label", *(milliseconds(f["new_label_seconds"]) for f in presets.values())]))
    rates = [f["growth"]["queries"] for f in presets.values()]
    lines.append(
        row(["queries a second", *(f"{int(most) / r[most]:.2f}" for r in rates for most in [max(r, key=int)])])
    )
    lines.append(row(["memory, MB", *(f"{f['memory_bytes'] / 1e6:.0f}" for f in presets.values())]))
    if any("gpu_bytes" in f for f in presets.values()):
        lines.append(row(["GPU memory, MB", *(f"{f['gpu_bytes'] / 1e6:.0f}" for f in presets.values())]))
    return lines


def growth_table(presets: dict[str, Any]) -> list[str]:
    """Seconds of a call, as one of its sizes grows."""
    lines = []
    for axis, words in AXES.items():
        sizes = list(next(iter(presets.values()))["growth"][axis])
        lines += ["", row([words, *sizes]), row(["---"] * (1 + len(sizes)))]
        for name, found in presets.items():
            lines.append(row([name, *(f"{found['growth'][axis][size]:.2f}" for size in sizes)]))
    return lines


def plot(presets: dict[str, Any], path: Path) -> None:
    """Small multiples, one for each of ``AXES``; a line for each preset."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(15, 3), constrained_layout=True)
    for panel, (axis, words) in zip(panels, AXES.items(), strict=True):
        for name, found in presets.items():
            points = {float(size): seconds for size, seconds in found["growth"][axis].items()}
            panel.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
        panel.set_xlabel(words)
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of presets-*.json")
    parser.add_argument("--plot", type=Path, help="of the first of them")
    args = parser.parse_args()
    files = sorted(args.results.glob("presets-*.json"))
    if not files:
        parser.error(f"There is no presets-*.json in {args.results}. Make one: python benchmarks/presets.py --help")
    for i, path in enumerate(files):
        result = json.loads(path.read_text())
        where = result["gpu"] or f"{result['threads']} of {result['cores']} cores"
        print(f"## {path.stem}: {where}, torch {result['torch']}, {result['precision']}\n")
        print("\n".join(stage_table(result["presets"]) + growth_table(result["presets"])), "\n")
        if i == 0 and args.plot:
            plot(result["presets"], args.plot)


if __name__ == "__main__":
    main()
