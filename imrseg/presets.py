"""The presets: which coarse masker, network and weights go together."""

from __future__ import annotations

from dataclasses import dataclass

from imrseg.errors import InputError


@dataclass(frozen=True)
class Preset:
    """One row of the table.

    Attributes:
        name: what the user types.
        title: one line for a menu.
        checkpoint: file name of the network's weights, looked for by ``imrseg.weights.find``.
        text: file name of the lexicon.
        image_size: side of the square that the network sees, in pixels.
        steps: refinement steps by default.
        aggregate: how K query masks become one, "vote" (supplement 2.1) or "mean".
        licence: of the weights.
    """

    name: str
    title: str
    checkpoint: str
    text: str
    image_size: int
    steps: int
    aggregate: str
    licence: str


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="lite",
            title="lite: small and embedded, nothing to download",
            checkpoint="lite.safetensors",
            text="lite-text.safetensors",
            image_size=320,
            steps=3,
            aggregate="mean",
            licence="Apache-2.0; trained on PASCAL VOC 2012 and MSRC v2, see checkpoints/README.md",
        ),
    )
}


def list_presets() -> list[str]:
    """Names that ``Segmenter.from_preset`` takes."""
    return list(PRESETS)


def get_preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        InputError: there is none of that name; the message lists those there are.
    """
    if name not in PRESETS:
        raise InputError(f"There is no preset “{name}”. Presets: {', '.join(PRESETS)}.")
    return PRESETS[name]
