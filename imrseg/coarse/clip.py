"""Stage 1 of the paper: coarse masks from CLIP (section 4.1; supplement 1.1).

``ClipCam`` works with any CLIP of open_clip whose image tower ``imrseg.coarse.towers`` can open;
``load_clip`` makes one with published weights.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from imrseg import weights
from imrseg.coarse.prompts import PAPER
from imrseg.coarse.towers import open_tower
from imrseg.errors import InputError, WeightsError, install
from imrseg.hub import ANSWER, cache

TEMPERATURE = 100.0  # of the softmax over prompts, fixed as in the released code
SIGMA = 1e-4  # supplement equation 1
CONTRASTS = ("softmax", "cosine")
SATURATED = 1e-6  # a probability that is nearer than this to 0 or 1 is explained by its odds
REMEMBERED = 4096  # texts whose features are kept, some 16 MB
TOGETHER = 64  # texts encoded at a time

Tokenizer = Callable[..., Tensor]  # (texts, context_length=...) -> (P, context_length)


class ClipCam(nn.Module):
    """Grad-CAM of CLIP's image-text similarity, and the similarity of each position.

    The trunk runs without gradients; one vector-Jacobian product goes through what lies behind the
    explained layer alone (the attention pooling, or a ViT's last block).

    Args:
        model: an open_clip model.
        tokenizer: of its texts, as ``open_clip.get_tokenizer`` makes them; None: CLIP's own.

    Attributes:
        side: of the square pictures that CLIP was trained on, in pixels.
        stride: sides of pictures are multiples of it.
        statistics: mean and deviation of each channel, in 0..1, that pictures are normalised by.

    Raises:
        InputError: the image tower cannot be explained.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        import open_clip

        text: Any = model
        visual: Any = model.visual
        self.tower = open_tower(visual)
        self.model = model.eval().requires_grad_(False)
        self.side, self.stride = self.tower.side, self.tower.stride
        self.statistics: tuple[tuple[float, ...], tuple[float, ...]] = (
            tuple(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN),
            tuple(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD),
        )
        self._length = int(text.context_length)
        self._tokenize = tokenizer or partial(open_clip.tokenize, context_length=self._length)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._lists: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()
        self._alone = threading.Lock()  # of those who read texts: parts of the model are swapped for a moment
        sequence_first(model)

    # ---- words

    def prompt_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit text features (P, D) to the last bit as OpenAI's code makes them, remembered by the whole list.

        All prompts go together through all tokens of the context, which takes several times as long as
        ``text_features``. The two differ by rounding alone, but that can show in a map (``explain``).
        """
        key = tuple(prompts)
        device = next(self.model.parameters()).device
        with self._alone:
            if key not in self._lists:
                text: Any = self.model
                with torch.inference_mode(False), torch.no_grad():
                    tokens = self._tokenize(list(key)).to(device)
                    self._lists[key] = F.normalize(text.encode_text(tokens), dim=-1)
            features = self._lists[key].to(device)
            self._lists.move_to_end(key)
            while sum(map(len, self._lists)) > REMEMBERED:
                self._lists.popitem(last=False)
        return features

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit text features (P, D), each remembered by its prompt; the padding is left out.

        Raises:
            InputError: there is no prompt.
        """
        if not prompts:
            raise InputError("There is no text to look for.")
        device = next(self.model.parameters()).device
        with self._alone:
            missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
            missing.sort(key=len)  # texts of like length together have little padding
            for start in range(0, len(missing), TOGETHER):
                batch = missing[start : start + TOGETHER]
                self._texts.update(zip(batch, self._encode(batch), strict=True))
            features = torch.stack([self._texts[prompt] for prompt in prompts]).to(device)
            for prompt in prompts:
                self._texts.move_to_end(prompt)
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        return features

    def _encode(self, prompts: list[str]) -> list[Tensor]:
        text: Any = self.model
        with torch.inference_mode(False), torch.no_grad():
            tokens = self._tokenize(prompts).to(next(self.model.parameters()).device)
            if getattr(text, "attn_mask", None) is None or text.text_pool_type != "argmax":
                return [row.clone() for row in F.normalize(text.encode_text(tokens), dim=-1)]
            # The end token sees what comes before it alone: the padding behind it, most of the 77
            # tokens, is not computed.
            length = int(tokens.argmax(1).max()) + 1
            cut = {
                "positional_embedding": text.positional_embedding[:length],
                "attn_mask": text.attn_mask[:length, :length],
            }
            encoded = functional_call(text, cut, kwargs={"text": tokens[:, :length]})
            encoded = encoded["text_features"] if isinstance(encoded, dict) else encoded[1]
            return [row.clone() for row in encoded]

    def label_features(self, labels: Sequence[str], templates: Sequence[str] = PAPER) -> Tensor:
        """Unit features of labels (P, D): the mean over templates with "{}" in the label's place.

        Raises:
            InputError: no label, no template, or a template without "{}".
        """
        if not labels or not templates or any("{}" not in template for template in templates):
            raise InputError("CLIP needs a label, and templates with {} in its place, such as: a photo of a {}")
        texts = self.text_features([template.replace("{}", label) for label in labels for template in templates])
        return F.normalize(texts.view(len(labels), len(templates), -1).mean(1), dim=-1)

    def too_long(self, label: str, templates: Sequence[str] = PAPER) -> bool:
        """Whether the label in its longest template is cut off, having more tokens than CLIP reads (77)."""
        texts = [template.replace("{}", label) for template in templates]
        *tokens, padding = self._tokenize([*texts, ""], context_length=self._length + 1)[:, -1].tolist()
        return any(token != padding for token in tokens)

    # ---- pictures

    def features(self, images: Tensor) -> Tensor:
        """What a picture is to every label, computed once.

        Args:
            images: (B, 3, H, W), normalised by ``statistics``, sides divisible by ``stride``.

        Returns:
            Batch first; the rest is the tower's own affair.

        Raises:
            InputError: sides that do not fit.
        """
        if any(side % self.stride or not side for side in images.shape[-2:]):
            h, w = images.shape[-2:]
            raise InputError(f"This CLIP sees pictures with sides divisible by {self.stride}, not {h} x {w}.")
        with torch.no_grad():
            return self.tower.features(images)

    def pool(self, features: Tensor) -> Tensor:
        """CLIP's image vectors (B, D), of unit length, of features of any size."""
        return self.tower.pool(features)

    def explain(
        self, features: Tensor, text: Tensor, targets: Sequence[int] | Tensor, contrast: str = "softmax"
    ) -> tuple[Tensor, Tensor]:
        """Grad-CAM of one text per picture (section 4.1).

        With contrast, what is explained is the target's softmax probability among the texts. Where that
        rounds to 0 or 1 its gradient vanishes, and the logarithm of its odds is explained: its gradient
        is the probability's but for a factor, which the scaling takes off.

        In float32, rounding shows where the attention behind the layer is extreme. To give what OpenAI's
        code and autograd give even then, scores are computed in their order: logits at the temperature,
        one picture at a time (so that a batch equals single pictures, but for rounding), and their softmax.

        Args:
            features: of B pictures, from ``features``.
            text: unit features (P, D); with ``contrast="softmax"`` all but the target distract.
            targets: one index into ``text`` per picture.
            contrast: explain the target's softmax probability ("softmax", at a temperature of 100, as
                the released code does) or its cosine similarity ("cosine"). A single text has no
                contrast, its probability is always 1: its cosine is taken.

        Returns:
            Maps (B, h, w) at the layer's own size, ReLU, min-max scaled to [0, 1]; and scores (B,):
            the probability in [0, 1] where there is contrast, else the cosine in [-1, 1].

        Raises:
            InputError: no text, unknown contrast, or targets that do not fit.
        """
        if contrast not in CONTRASTS:
            raise InputError(f"contrast must be one of {', '.join(CONTRASTS)}, not {contrast!r}.")
        # Features may come from inference mode, whose tensors take no part in gradients: copies do.
        with torch.inference_mode(False), torch.enable_grad():
            index = chosen(targets, len(features), len(text)).to(text.device).unsqueeze(1)
            explained = features.detach().clone().requires_grad_()
            words, units = text.detach().clone().T, TEMPERATURE * self.tower.pool(explained)
            logits = torch.cat([unit @ words for unit in units.split(1)])
            score = logits.gather(1, index).squeeze(1)
            against = contrast == "softmax" and len(text) > 1
            if against:
                p = logits.softmax(1).gather(1, index).squeeze(1)
                odds = score - logits.scatter(1, index, -torch.inf).logsumexp(1)
                score = torch.where((p > SATURATED) & (p < 1 - SATURATED), p, odds)
            (gradient,) = torch.autograd.grad(score.sum(), explained)
        with torch.no_grad():
            maps = scale(self.tower.weigh(explained, gradient).relu())
            return maps, p.detach() if against else score.detach() / TEMPERATURE

    def similar(self, features: Tensor, text: Tensor, targets: Sequence[int] | Tensor) -> Tensor:
        """Cosine similarity of each position with one text per picture (supplement 1.1).

        Arguments as for ``explain``; returns (B, h, w), min-max scaled by supplement equation 1.
        """
        index = chosen(targets, len(features), len(text)).to(text.device)
        with torch.no_grad():
            s = torch.einsum("bhwd,bd->bhw", self.tower.dense(features), text[index])
            low, high = s.amin((1, 2), keepdim=True), s.amax((1, 2), keepdim=True)
            return (s - low) / (high - low + SIGMA)

    def maps(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[int] | Tensor, contrast: str = "softmax"
    ) -> Tensor:
        """Grad-CAM (B, h, w) of CLIP-normalised pictures (B, 3, H, W) and whole prompts; see ``explain``."""
        chosen(targets, len(images), len(prompts))
        return self.explain(self.features(images), self.prompt_features(prompts), targets, contrast)[0]

    def similarity(self, images: Tensor, prompts: Sequence[str], targets: Sequence[int] | Tensor) -> Tensor:
        """Similarity (B, h, w) of each position of pictures (B, 3, H, W) with whole prompts; see ``similar``."""
        chosen(targets, len(images), len(prompts))
        return self.similar(self.features(images), self.prompt_features(prompts), targets)


def sequence_first(model: nn.Module) -> None:
    """Let an open_clip model's text transformer compute in OpenAI's order of axes: token, text, channel.

    It takes and gives what it did before. Only rounding changes, to that of OpenAI's code.
    """
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    transformer = getattr(model, "transformer", None)
    if isinstance(transformer, Transformer) and all(
        isinstance(block, ResidualAttentionBlock) for block in transformer.resblocks
    ):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False


def chosen(targets: Sequence[int] | Tensor, pictures: int, texts: int) -> Tensor:
    """``targets`` as int64 (B,), checked: one per picture, each the index of a text.

    Raises:
        InputError: they are not.
    """
    if not texts:
        raise InputError("There is no text to look for.")
    index = torch.as_tensor(targets).clone()
    whole = not index.is_floating_point() and index.dtype != torch.bool
    if not whole or index.shape != (pictures,) or not ((index >= 0) & (index < texts)).all():
        raise InputError(f"Each of the {pictures} pictures needs one target, 0 to {texts - 1}.")
    return index.long()


def scale(x: Tensor) -> Tensor:
    """Each map of (B, h, w) stretched to [0, 1]; a flat one becomes 0."""
    x = x - x.amin((1, 2), keepdim=True)
    return x / x.amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def load_clip(name: str = "RN50", device: str | torch.device = "cpu") -> tuple[ClipCam, Path]:
    """A CLIP with published weights, in float32, and the file that they came from.

    Args:
        name: ARCHITECTURE or ARCHITECTURE/WEIGHTS as open_clip calls them, such as "RN50",
            "RN101/yfcc15m" or "ViT-B-16/laion2b_s34b_b88k". The architecture alone means OpenAI's
            weights. QuickGELU is taken where the weights were trained with it.
        device: where it shall run.

    Raises:
        InputError: there is none of that name that can be explained; the message lists those there are.
        WeightsError: open_clip is not installed, or the weights cannot be had or do not fit.
    """
    try:
        import open_clip
        from open_clip.model import set_model_preprocess_cfg
    except ImportError as error:
        raise WeightsError(f"CLIP needs open_clip: {install('clip')} ({error}).") from None

    architecture, tag = pick(name)
    file = fetch(architecture, tag)
    settings = open_clip.get_pretrained_cfg(architecture, tag)
    config = open_clip.get_model_config(architecture) | {"quick_gelu": bool(settings.get("quick_gelu"))}
    model = open_clip.CLIP(**config)
    weights.fill(model, weights.read_state_dict(file), file)
    set_model_preprocess_cfg(model, settings)
    return ClipCam(model.to(device)), file


def available() -> dict[str, list[str]]:
    """Architectures of open_clip that can be explained, each with the tags of its weights.

    Left out are image towers of timm, poolings other than those of ``towers``, and CLIPs that read
    with the tokenizer of another language model, which would need more packages and files.
    """
    import open_clip

    found: dict[str, list[str]] = {}
    for architecture, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(architecture)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if not (
            "timm_model_name" in vision
            or vision.get("attentional_pool")
            or vision.get("pool_type", "tok") != "tok"
            or "hf_model_name" in text
            or "hf_tokenizer_name" in text
            or architecture.endswith("-quickgelu")  # the same once more: each tag says what it needs
        ):
            found.setdefault(architecture, []).append(tag)
    return found


def pick(name: str) -> tuple[str, str]:
    """Architecture and tag of ``name``, whose parts may be joined by "/", "-" or ":", in capitals or not.

    Raises:
        InputError: as for ``load_clip``.
    """
    known = available()
    wanted = _plain(name)
    for architecture, tags in known.items():
        if wanted == _plain(architecture) and ("openai" in tags or len(tags) == 1):
            return architecture, "openai" if "openai" in tags else tags[0]
        for tag in tags:
            if wanted == _plain(f"{architecture}/{tag}"):
                return architecture, tag
    near = [architecture for architecture in known if f"{wanted}-".startswith(f"{_plain(architecture)}-")] or known
    listed = "; ".join(f"{architecture}/{'|'.join(known[architecture])}" for architecture in near)
    raise InputError(f"There is no CLIP “{name}” that can be explained. There are: {listed}.")


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("/:_", "---")).replace("-quickgelu", "")


def fetch(architecture: str, tag: str) -> Path:
    """The file of open_clip's weights called ``tag``: a local one, else a cached or a downloaded one.

    A local file is called ARCHITECTURE with OpenAI's weights and ARCHITECTURE-WEIGHTS with others, ends in
    .safetensors or .bin, and lies where ``weights.find`` looks. OpenAI's own RN50.pt will do as well.

    Raises:
        WeightsError: they cannot be had; the message says what to put where.
    """
    stem = architecture if tag == "openai" else f"{architecture}-{tag}"
    for suffix in (".safetensors", ".bin"):
        if weights.have(stem + suffix):
            return weights.find(stem + suffix)
    if stem == "RN50":
        return weights.obtain("RN50.pt")

    import open_clip
    from huggingface_hub import constants, try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    source = open_clip.get_pretrained_cfg(architecture, tag)
    repository = source["hf_hub"].strip("/")
    for filename in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        if isinstance(cached := try_to_load_from_cache(repository, filename), str):
            return Path(cached)
    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    if not constants.HF_HUB_OFFLINE and online(constants.ENDPOINT):
        try:
            return Path(open_clip.download_pretrained(source))
        except (OSError, RuntimeError) as error:
            problem = str(error)
    raise WeightsError(
        f"The weights of CLIP {architecture}/{tag} are not on this machine and could not be downloaded ({problem})."
        f" Fetch {HF_SAFE_WEIGHTS_NAME} or {HF_WEIGHTS_NAME} from {constants.ENDPOINT}/{repository} and save it as"
        f" {cache() / stem}.safetensors or .bin"
    )


def online(address: str, seconds: float = ANSWER) -> bool:
    """Whether a server answers, whatever it answers, within so many seconds.

    The hub's own client tries each file six times before it gives up: three quarters of a minute.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name knows no time limit of its own
    thread.start()
    thread.join(seconds)
    return answered.is_set()
