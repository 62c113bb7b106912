"""Ready-made examples: which there are, and how they look in the page's margin."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imrseg.app.rendering import data_uri
from imrseg.images import open_picture

EXAMPLES_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "examples"


@dataclass(frozen=True)
class Example:
    """Ready pictures; ``supports`` may be empty (zero-shot)."""

    label: str
    query: Path
    supports: tuple[Path, ...]
    says: str


def list_examples() -> list[Example]:
    """The examples whose pictures are there (an installed package may come without them)."""

    def pictures(label: str, says: str, query: str, *supports: str) -> Example:
        return Example(label, EXAMPLES_FOLDER / query, tuple(EXAMPLES_FOLDER / s for s in supports), says)

    examples = [
        pictures("cheetah", "1 support", "cheetah-portrait.jpg", "cheetah-running.jpg"),
        pictures("big cat", "2 supports", "lion.jpg", "cheetah-running.jpg", "cheetah-portrait.jpg"),
        pictures("cat", "words only", "chelsea.jpg"),
        pictures("table, cup", "2 labels", "coffee.jpg"),
        pictures("cheetah", "mask repaired", "cheetah-running.jpg", "cheetah-portrait.jpg"),
        pictures("tower", "uncommon", "tower.jpg"),
        pictures(
            "feline", "5 supports", "chelsea.jpg",
            "cheetah-portrait.jpg", "lion.jpg", "cheetah-cub.jpg", "lioness.jpg", "cheetah-running.jpg",
        ),
    ]  # fmt: skip
    return [e for e in examples if all(path.is_file() for path in (e.query, *e.supports))]


def example_cards(examples: Sequence[Example]) -> str:
    """HTML: one button for each example."""
    cards = []
    for number, example in enumerate(examples):
        thumbs = "".join(
            f'<img src="{data_uri(open_picture(path).pixels, 120)}" alt="">'
            for path in (example.query, *example.supports)
        )
        cards.append(
            f'<button type="button" data-example="{number}"><span class="thumbs">{thumbs}</span>'
            f"<b>{html.escape(example.label)}</b> <i>{example.says}</i></button>"
        )
    return f'<h2>Examples</h2><div class="cards">{"".join(cards)}</div>' if cards else ""
