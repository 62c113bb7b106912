"""Results of ``evaluate`` as a table of text."""

from __future__ import annotations

from typing import Any


def by_class(result: dict[str, Any]) -> str:
    """One row per class, then mIoU and FB-IoU; one column per step, in percent."""
    rows = {**result["per_class"], "mIoU": result["miou"], "FB-IoU": result["fb_iou"]}
    wide = max(len(name) for name in rows)
    heads = ["coarse", *(f"step {i}" for i in range(1, len(result["miou"])))]
    lines = [" " * wide + "".join(f"{head:>9}" for head in heads)]
    lines += [f"{name:<{wide}}" + "".join(f"{100 * value:9.1f}" for value in row) for name, row in rows.items()]
    return "\n".join(lines)
