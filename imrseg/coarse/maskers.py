"""Stage 1 ready to run: what a label was read as, and coarse masks of it from an encoder's features.

Two maskers, ``LiteMasker`` and ``ClipMasker``, alike for their users. They have a ``name``, the ``encoder``
whose features they read, the ``threshold`` at which their masks are cut, the ``files`` that they were
loaded from and the ``settings`` of CLIP. ``read`` turns words into what to look for; ``masks`` looks for
it in pictures and gives coarse masks (B, 1, h, w) in [0, 1], with how sure the label is in each picture,
in [0, 1] or None.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imrseg import weights
from imrseg.coarse.clip import CONTRASTS, ClipCam, load_clip
from imrseg.coarse.lexicon import Lexicon
from imrseg.coarse.lite import LiteCam, to_one
from imrseg.coarse.prompts import ENSEMBLE, PAPER, VOCABULARY, contrast_with
from imrseg.encoders import Encoder, Features, normalise
from imrseg.errors import InputError, WeightsError, shown
from imrseg.models.efficientnet import OVERVIEW, Closer, EfficientNetLite

METHODS = ("gradcam", "similarity")


@dataclass(frozen=True)
class Reading:
    """What a masker takes a label for.

    Attributes:
        words: the masker's own representation.
        warnings: one sentence for each thing that the user should know.
    """

    words: Any
    warnings: tuple[str, ...] = ()


class LiteMasker:
    """Stage 1 of ``lite``: class vectors and a lexicon (``docs/lite.md``).

    Args:
        checkpoint: a lite checkpoint: everyday class vectors, level and calibration.
        lexicon: the dictionary's file.
        encoder: EfficientNet-Lite's; shared with the network where that is lite's too.

    Raises:
        WeightsError: a file does not hold what it should.
    """

    name = "lite"
    settings = None

    def __init__(self, checkpoint: Path, lexicon: Path, encoder: Encoder) -> None:
        self.encoder, self.files = encoder, (checkpoint, lexicon)
        self.lexicon = Lexicon(lexicon)
        tensors, metadata = weights.load(checkpoint)
        try:
            self.threshold = float(metadata["coarse_threshold"])
            self._slope, self._offset = (float(metadata["confidence"][name]) for name in ("slope", "offset"))
            assert isinstance(encoder.encode, EfficientNetLite | Closer)
            classifier = encoder.encode.classifier
            everyday = [tensors[weights.EVERYDAY + name].float().to(encoder.device) for name in ("weight", "bias")]
            classes = torch.cat([classifier.weight, everyday[0]])
            biases = torch.cat([classifier.bias, everyday[1]])
            if not (0 < self.threshold <= 1 and isfinite(self._slope) and isfinite(self._offset)):
                raise ValueError(f"its level {self.threshold} or its confidence's scale is none")
            if len(everyday[0]) != len(everyday[1]):
                raise ValueError(f"{len(everyday[0])} weights, {len(everyday[1])} biases")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{checkpoint} does not hold lite's class vectors ({error!r}).") from error
        if len(classes) != self.lexicon.classes:
            raise WeightsError(f"{checkpoint} knows {len(classes)} classes; {lexicon} needs {self.lexicon.classes}.")
        self.cam = LiteCam(classes, biases).to(encoder.device)

    def read(self, label: str, distractors: Sequence[str], ensemble: bool) -> Reading:
        meaning = self.lexicon.meaning(label, ensemble)
        others = [self.lexicon.meaning(d, ensemble) for d in distractors]
        mixtures = torch.stack([m.mixture for m in (meaning, *others)]).to(self.encoder.device)
        return Reading(mixtures, tuple(dict.fromkeys(w for m in (meaning, *others) for w in m.warnings)))

    def masks(self, features: Sequence[Features], reading: Reading) -> tuple[Tensor, list[float | None]]:
        def seen(name: str) -> tuple[Tensor, Tensor]:
            heads, mixtures = torch.cat([f[name] for f in features]), reading.words
            return self.cam(heads, mixtures[:1].expand(len(heads), -1), mixtures[1:])

        cams, evidence = seen("head")
        if OVERVIEW in features[0]:  # what fills a picture is known by that, small things by the larger one
            whole, evidence = seen(OVERVIEW)
            cams = to_one((cams * F.interpolate(whole, cams.shape[-2:], mode="bilinear")).sqrt())
        return cams, (self._slope * evidence + self._offset).sigmoid().tolist()


@dataclass(frozen=True)
class ClipSettings:
    """How CLIP's coarse masks are made.

    Attributes:
        method: "gradcam" (section 4.1) or "similarity" of positions (supplement 1.1).
        contrast: what Grad-CAM explains: the label's "softmax" probability among distractors, or its
            "cosine" alone.
        vocabulary: distractors beside those that a user names.
        side: of the square that CLIP sees, in pixels; None: the size that it was trained at.
        centre: show it the middle square of the picture alone and stretch the map over the whole, as the
            released code does. Only to reproduce published figures: masks of long pictures are shifted.

    Raises:
        InputError: an unknown method or contrast, or another vocabulary or side than these.
    """

    method: str = "gradcam"
    contrast: str = "softmax"
    vocabulary: tuple[str, ...] = VOCABULARY
    side: int | None = None
    centre: bool = False

    def __post_init__(self) -> None:
        for name, accepted in (("method", METHODS), ("contrast", CONTRASTS)):
            if getattr(self, name) not in accepted:
                raise InputError(f"{name} must be one of {', '.join(accepted)}, not {getattr(self, name)!r}.")
        if not isinstance(self.vocabulary, (list, tuple)) or not all(isinstance(w, str) for w in self.vocabulary):
            raise InputError("The vocabulary must be a list of words.")
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        if self.side is not None and (
            isinstance(self.side, bool) or not isinstance(self.side, Integral) or self.side < 1
        ):
            raise InputError(f"CLIP's side must be a whole number of pixels, not {shown(self.side)}.")


@dataclass(frozen=True, eq=False)
class ClipMasker:
    """Stage 1 of the paper: CLIP's Grad-CAM or pixel-level similarity (section 4.1)."""

    cam: ClipCam
    name: str
    encoder: Encoder
    settings: ClipSettings
    files: tuple[Path, ...]
    threshold: float = field(default=0.5, init=False)  # supplement 1.1
    _alone: threading.Lock = field(default_factory=threading.Lock, init=False)

    def read(self, label: str, distractors: Sequence[str], ensemble: bool) -> Reading:
        settings = self.settings
        uses = settings.method == "gradcam" and settings.contrast == "softmax"
        labels = contrast_with(label, distractors, settings.vocabulary) if uses else [label]
        templates = ENSEMBLE if ensemble else PAPER
        cut = [word for word in (label, *distractors) if self.cam.too_long(word, templates)]
        notes = [f"“{word[:40]}…” is longer than CLIP reads; its end was cut off." for word in cut]
        if distractors and not uses:
            notes.append("Distractors count only where CLIP's Grad-CAM explains a softmax; they were left out.")
        return Reading(self.cam.label_features(labels, templates), tuple(notes))

    def masks(self, features: Sequence[Features], reading: Reading) -> tuple[Tensor, list[float | None]]:
        seen, targets = torch.cat([f["clip"] for f in features]), [0] * len(features)
        if self.settings.method == "similarity":
            maps = self.cam.similar(seen, reading.words, targets)
        else:
            with self._alone:  # the pooling's positional embedding is swapped for a moment
                maps, _ = self.cam.explain(seen, reading.words, targets, self.settings.contrast)
        return maps.unsqueeze(1), [None] * len(features)  # a probability among words is not one of being there


Masker = LiteMasker | ClipMasker


def load_clip_masker(model: str, settings: ClipSettings, device: torch.device) -> ClipMasker:
    """CLIP called ``model`` ("RN50", or one of open_clip's as ARCHITECTURE/WEIGHTS).

    Raises:
        InputError: there is none of that name, or it cannot see pictures of ``settings.side``.
        WeightsError: its weights cannot be had.
    """
    cam, file = load_clip(model, device)
    side = cam.side if settings.side is None else settings.side
    if side % cam.stride or not cam.stride <= side <= 1024:
        raise InputError(f"CLIP {model} takes sides divisible by {cam.stride}, up to 1024 pixels, not {side}.")

    def encode(images: Tensor) -> Features:
        return {"clip": cam.features(normalise(images, cam.statistics))}

    encoder = Encoder(f"clip:{model}:{side}:{settings.centre}", encode, side, device, settings.centre)
    return ClipMasker(cam, f"clip:{model}", encoder, settings, (file,))
