"""The one thing a user of the library meets: pictures and a label in, masks step by step out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imrseg import weights
from imrseg.coarse.lexicon import LEXICON
from imrseg.coarse.maskers import ClipSettings, LiteMasker, Masker, load_clip_masker
from imrseg.encoders import Encoder, Features
from imrseg.errors import InputError, shown
from imrseg.images import ImageSource, Picture
from imrseg.models.consensus import Consensus
from imrseg.models.refiner import Prepared
from imrseg.networks import LAUNCHES, Network, lite_encoder, load_network, with_backbone_of
from imrseg.precision import check_precision, lacks_bfloat16
from imrseg.presets import Preset, get_preset
from imrseg.run import Options, Result, Run, Step, check_threshold

MAX_STEPS = 20
MAX_SEED = 2**64 - 1
REMEMBERED = 512 * 2**20  # bytes of features that are kept


class Segmenter:
    """Finds what a label names, in three stages: features, coarse masks, refinement.

    Make one with ``Segmenter.from_preset`` and keep it: it holds the models and remembers the
    features of the last pictures, so another label on the same pictures costs little. It may be
    used from several threads.

    Attributes:
        preset: the row of ``imrseg.presets`` that it was made from.
        masker: stage 1. network: stage 2.
        device: where both run.
        remember: bytes of features that are kept. Beside them, and whatever its size, what the network and the consensus
            have prepared for the last set of pictures is kept; with 0 nothing is.
        precision: that refinement computes in.
        one_by_one: no two pictures or pairs at once, which needs less memory; but a consensus is of all.
        notes: what runs of this segmenter say of it among their warnings.
    """

    _reload: Callable[[], Segmenter] | None = None  # makes the same on the CPU

    def __init__(self, preset: Preset, masker: Masker, network: Network, device: torch.device) -> None:
        self.preset, self.masker, self.network, self.device = preset, masker, network, device
        self.remember = REMEMBERED
        self.one_by_one = False
        self.precision = "float32"
        self.notes: list[str] = []
        self._remembered: OrderedDict[tuple[str, bytes], Features] = OrderedDict()
        self._prepared: tuple[tuple[bytes, ...], list[Prepared]] = ((), [])
        self._agreed: tuple[tuple[bytes, ...], Consensus | None] = ((), None)
        self._lock = threading.Lock()

    @classmethod
    def from_preset(
        cls,
        name: str = "lite",
        device: str = "auto",
        checkpoint: str | Path | None = None,
        coarse: str | None = None,
        clip: ClipSettings | None = None,
        precision: str = "float32",
        launch: str = "eager",
        side: int | None = None,
    ) -> Segmenter:
        """Load a preset.

        Args:
            name: one of ``list_presets()``; "imr-hsnet-resnet50@pascal-2" names the authors' weights.
            device: "auto" (CUDA, then Apple's MPS, then the CPU), "cpu", "cuda", "cuda:1" or "mps".
            checkpoint: network weights to use in place of the preset's own: a file's path, or a name that is looked for
                where the presets' are. IMR-HSNet's may be on ResNet101, too, which no preset has.
            coarse: what makes the coarse masks in place of the preset's own (None or ""): "lite", "clip" (OpenAI's
                RN50) or "clip:MODEL", a ResNet or ViT of open_clip such as "clip:ViT-B-16/openai".
            clip: how CLIP's coarse masks are made.
            precision: that refinement computes in: "float32", exact; "bfloat16", faster where the processor
                or GPU has it (a processor without it takes float32, and says so); "float16", for GPUs. Norms,
                soft-maxes, masks and the consensus stay float32.
            launch: "eager"; "graphs": steps as CUDA graphs, on a GPU; "compile": by ``torch.compile``, which
                needs a C++ compiler and minutes at the first step, and was slower on a processor.
            side: of the square that ``lite`` sees pictures at, in pixels, a multiple of 32 from 128 to 1024; None: the
                320 that it was trained at. Larger ones find small things better, in time that grows with their area; coarse
                masks are then those of both sides.

        Raises:
            InputError: unknown preset, device, coarse masker, CLIP, precision, launch or side.
            WeightsError: weights that are missing or do not fit.
        """
        preset, where = get_preset(name), pick_device(device)
        kind, _, model = (coarse or preset.coarse).partition(":")
        if kind not in ("lite", "clip") or (kind == "lite" and model):
            raise InputError(f"There is no coarse masker “{coarse}”. Accepted: lite, clip, clip:MODEL.")
        if kind == "lite" and clip is not None:
            raise InputError(
                "Settings of CLIP were given, but the coarse masks are lite's. Choose clip's, or leave the settings out."
            )
        if checkpoint is None:
            path = weights.find(preset.checkpoint)
        else:
            path = Path(checkpoint) if Path(checkpoint).is_file() else weights.find(checkpoint)
            preset = with_backbone_of(preset, path)
        dtype, notes = check_precision(precision, where), []
        if dtype == torch.bfloat16 and lacks_bfloat16(where):
            precision, dtype = "float32", torch.float32
            notes = ["This processor is slow in bfloat16; float32 was used, which is exact."]
        if launch not in LAUNCHES or (launch == "graphs" and where.type != "cuda"):
            raise InputError(
                f"Steps cannot be launched by “{launch}” on {where}. Accepted: eager, compile; graphs on CUDA."
            )
        network = load_network(preset, path, where, dtype, launch, side)
        masker: Masker
        if kind == "clip":
            masker = load_clip_masker(model or "RN50", clip or ClipSettings(), where)
        else:
            own = preset.network == "lite"
            encoder = network.encoder if own else lite_encoder(where)
            masker = LiteMasker(path if own else weights.find("lite.safetensors"), weights.find(LEXICON), encoder)
        segmenter = cls(preset, masker, network, where)
        segmenter.precision, segmenter.notes = precision, notes
        if where.type != "cpu":
            segmenter._reload = partial(cls.from_preset, name, "cpu", checkpoint, coarse, clip, side=side)
        return segmenter

    def segment(
        self,
        query: ImageSource,
        supports: Sequence[ImageSource],
        label: str,
        steps: int | None = None,
        threshold: float = 0.5,
        seed: int = 0,
        aggregate: str | None = None,
        distractors: Sequence[str] = (),
        prompts: str = "single",
        edges: str | None = None,
        edges_on: str = "last",
        consensus: str = "on",
    ) -> Result:
        """Segment ``label`` in ``query``, with the help of the supports.

        Args:
            query: path, PIL image or uint8 array (H, W, 3).
            supports: up to 10 of those that show the same thing; [] is zero-shot.
            label: one label, any English words.
            steps: refinement steps, 0 to 20; None takes the preset's number.
            threshold: in [0, 1], where ``Result.mask`` is cut.
            seed: 0 to 2**64 - 1, for presets that draw at random; those there are draw nothing, a result is
                a function of its inputs.
            aggregate: how K supports' masks become one, "vote" (supplement 2.1) or "mean"; None takes
                the preset's own.
            distractors: up to 20 other things in the pictures, which the label is told apart from.
            prompts: "single": the label in one wording; "ensemble": the mean of several.
            edges: fit masks to the picture's edges by "guided" filter or "grabcut"; None: not.
            edges_on: the "last" step's masks alone, or "every" step's before they enter the next.
            consensus: "on": after each step all pictures' masks move towards what they together say of the
                object; "off": the network alone.

        Raises:
            InputError: a picture, the label or a setting cannot be used.
        """
        check_threshold(threshold)
        count = self.check_steps(steps)
        check_whole(seed, "seed", MAX_SEED)
        options = Options(aggregate, distractors, prompts, edges, edges_on, consensus)
        run = self.start(query, supports, label, options)
        run.advance_by(count)
        return run.result(threshold)

    def iterate(
        self,
        query: ImageSource,
        supports: Sequence[ImageSource],
        label: str,
        steps: int | None = None,
        seed: int = 0,
        aggregate: str | None = None,
        distractors: Sequence[str] = (),
        prompts: str = "single",
        edges: str | None = None,
        edges_on: str = "last",
        consensus: str = "on",
    ) -> Iterator[Step]:
        """The same steps as ``segment``, one at a time, as they are computed.

        Raises:
            InputError: as ``segment`` does, for a setting at once, for a picture or the label with the first step.
        """
        count = self.check_steps(steps)
        check_whole(seed, "seed", MAX_SEED)
        options = Options(aggregate, distractors, prompts, edges, edges_on, consensus)

        def found() -> Iterator[Step]:
            run = self.start(query, supports, label, options)
            for index in range(count + 1):
                step = run.advance() if index else run.steps[0]
                yield run.finish() if index == count else step

        return found()

    def start(
        self, query: ImageSource, supports: Sequence[ImageSource], label: str, options: Options | None = None
    ) -> Run:
        """Begin a run whose steps are asked for one by one (``Run.advance``).

        Where the device's memory is full, pictures are taken one by one, and then on the CPU; the run says so.
        """
        segmenter = self
        while True:
            try:
                return Run(segmenter, query, supports, label, self.effective(options or Options()))
            except torch.OutOfMemoryError:
                segmenter = segmenter.spared()

    def effective(self, options: Options) -> Options:
        """``options`` as they come true: the preset's own aggregation, no consensus where the network has none."""
        consensus = options.consensus if self.network.traits else "off"
        return replace(options, aggregate=options.aggregate or self.preset.aggregate, consensus=consensus)

    def spared(self) -> Segmenter:
        """What to go on with where the device's memory is full, after letting go of what was remembered there.

        Raises:
            torch.OutOfMemoryError: there is nothing that needs less.
        """
        self.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._smaller is None:
            raise torch.OutOfMemoryError(
                f"There is too little memory for this, even one picture at a time: {self.device}."
            )
        return self._smaller

    def forget(self) -> None:
        """Let go of the features that are remembered."""
        with self._lock:
            self._remembered.clear()
            self._prepared, self._agreed = ((), []), ((), None)

    @cached_property
    def _smaller(self) -> Segmenter | None:
        if not self.one_by_one:
            smaller = Segmenter(self.preset, self.masker, replace(self.network, together=1), self.device)
            smaller.one_by_one, smaller._reload, smaller.precision = True, self._reload, self.precision
            smaller.notes = ["The device's memory was full; pictures were taken one by one."]
            return smaller
        if self._reload is None:
            return None
        smaller = self._reload()
        smaller.notes = ["The device's memory was full; the result was computed on the CPU, which takes longer."]
        return smaller

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that the models were loaded from, by file name."""
        files = dict.fromkeys((self.network.file, *self.masker.files))
        return {path.name: weights.sha256(path) for path in files}

    def check_steps(self, steps: int | None) -> int:
        """``steps``, or the preset's own number for None.

        Raises:
            InputError: not a whole number from 0 to 20.
        """
        return self.preset.steps if steps is None else check_whole(steps, "number of steps", MAX_STEPS)

    def prepare(self, pictures: Sequence[Picture]) -> list[Prepared]:
        """The network's part that is the same for every label, of the query and its supports.

        The last pictures' is remembered. Without a support, the query is its own (paper section 5.4).
        """
        keys = tuple(p.digest for p in pictures)
        with self._lock:
            if self._prepared[0] == keys:
                return self._prepared[1]
        features = self.features(self.network.encoder, pictures)
        with torch.inference_mode():
            prepared = self.network.prepare(features[0], features[1:] or features)
        with self._lock:
            if self.remember:
                self._prepared = keys, prepared
        return prepared

    def consensus(self, pictures: Sequence[Picture]) -> Consensus | None:
        """Of the query and its supports, good for every label; None where the network has none.

        The last pictures' is remembered.
        """
        keys = tuple(p.digest for p in pictures)
        with self._lock:
            if self._agreed[0] == keys:
                return self._agreed[1]
        features = self.features(self.network.encoder, pictures)
        with torch.inference_mode():
            consensus = self.network.consensus(features)
        with self._lock:
            if self.remember:
                self._agreed = keys, consensus
        return consensus

    def features(self, encoder: Encoder, pictures: Sequence[Picture]) -> list[Features]:
        """An encoder's features of each picture, batch of one each; remembered by content."""
        keys = [(encoder.name, p.digest) for p in pictures]
        with self._lock:
            found = {key: self._remembered[key] for key in keys if key in self._remembered}
        new = {key: p for key, p in zip(keys, pictures, strict=True) if key not in found}
        if new:
            waiting = list(new.items())
            size = 1 if self.one_by_one else len(waiting)
            for first in range(0, len(waiting), size):
                part = waiting[first : first + size]
                out = encoder([p for _, p in part])
                for i, (key, _) in enumerate(part):
                    found[key] = {name: t[i : i + 1] for name, t in out.items()}
        with self._lock:
            for key in keys:
                self._remembered[key] = found[key]
                self._remembered.move_to_end(key)
            kept, before = sum(map(size_of, self._remembered.values())), len(self._remembered)
            while self._remembered and kept > self.remember:
                kept -= size_of(self._remembered.popitem(last=False)[1])
            if len(self._remembered) < before:
                for key, features in self._remembered.items():
                    self._remembered[key] = {name: alone(t) for name, t in features.items()}
        return [found[key] for key in keys]


def check_whole(value: Any, name: str, most: int) -> int:
    """``value`` as an ``int``.

    Raises:
        InputError: not a whole number from 0 to ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= most:
        raise InputError(f"The {name} must be a whole number from 0 to {most}, not {shown(value)}.")
    return int(value)


def size_of(features: Features) -> int:
    """Bytes."""
    return sum(tensor.nbytes for tensor in features.values())


def alone(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: a part of a batch would keep that of all of it."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def pick_device(name: str) -> torch.device:
    """The torch device for a user's word.

    Raises:
        InputError: unknown, or not on this machine.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"There is no device “{name}”. Accepted: auto, cpu, cuda, cuda:1, mps.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"This machine has no “{name}”. Accepted here: auto, cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("This machine has no “mps”. Accepted here: auto, cpu.")
    return device
