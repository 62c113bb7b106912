"""Words -> classes: what a label means in terms of the classes that the image tower knows.

A label is looked up among everyday words that are read by hand (``imrseg.coarse.readings``), then in a
dictionary of 60,000 visible nouns, each a mixture over the classes. What both lack is compared with the
classes' descriptions by a static embedding of its word pieces. ``tools/build_lexicon.py`` makes the file
that holds dictionary and embedding; ``docs/lite.md`` explains them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from imrseg.coarse.readings import READINGS
from imrseg.errors import InputError, WeightsError

# Classes that ImageNet lacks, with their WordNet synsets. Their class vectors are learned from
# image-level labels (imrseg/coarse/everyday.py) and follow ImageNet's thousand in this order.
EVERYDAY = {
    "person": "00007846",
    "face": "05600637",
    "flower": "11669921",
    "grass": "12102133",
    "tree": "13104059",
    "sky": "09436708",
    "water": "09225146",
    "road": "04096066",
    "building": "02913152",
}

LEXICON = "lite-text.safetensors"  # the file
PREPOSITIONS = {
    "in", "on", "with", "of", "at", "near", "by", "from", "under", "over", "behind", "wearing", "and", "for", "to", "inside",
    "beside", "next", "above", "below", "without", "against", "around", "between", "into", "onto", "through", "across",
}  # fmt: skip
ARTICLES = {"a", "an", "the", "my", "your", "his", "her", "our", "their", "some", "this", "that", "these", "those"}
SMALL = PREPOSITIONS | ARTICLES
# Before "of" they say how something is shown or how much of it there is; what it is comes after.
MEASURES = {
    "photo", "photograph", "picture", "image", "shot", "close-up", "closeup", "view", "portrait",
    "pair", "couple", "bunch", "group", "row", "set", "lot", "number", "herd", "flock", "pack", "swarm", "school",
    "kind", "type", "sort", "piece", "part", "slice", "one",
}  # fmt: skip
# In their order: "oranges" are no orangs.
SUFFIXES = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"))
NEAREST = 16
SHARPNESS = 12.0  # of the softmax over cosines of static embeddings
FAMILIAR = 0.35  # cosine with the nearest class under which a word counts as unknown


def pack_lines(lines: list[str]) -> Tensor:
    """Strings as one uint8 tensor, the only kind of text that safetensors holds."""
    return torch.from_numpy(np.frombuffer("\n".join(lines).encode(), np.uint8).copy())


def split_words(label: str) -> list[str]:
    """The words of a label, in small letters."""
    return re.findall(r"[^\W_]+(?:['’.\-][^\W_]+)*", label.lower().replace("_", " "))


def without_accents(label: str) -> str:
    """``label`` in plain letters: "piñata" as "pinata", whichever way it is coded."""
    return "".join(c for c in unicodedata.normalize("NFKD", label) if not unicodedata.combining(c))


def without_article(words: list[str]) -> list[str]:
    """What follows articles; the last word is kept."""
    first = next((i for i, word in enumerate(words) if word not in ARTICLES), len(words) - 1)
    return words[first:]


def unpack_lines(packed: np.ndarray) -> list[str]:
    return packed.tobytes().decode().split("\n")


@dataclass(frozen=True)
class Meaning:
    """What a label was taken to mean.

    Attributes:
        mixture: weight of each class, float32 (classes,), sums to 1.
        read_as: the word that was looked up, or None where the meaning was guessed.
        warnings: one sentence for each thing the user should know.
    """

    mixture: Tensor
    read_as: str | None
    warnings: tuple[str, ...] = ()


class Lexicon:
    """The dictionary and the token table, read from ``lite-text.safetensors``.

    Raises:
        WeightsError: the file is missing, cut short or not a lexicon.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise WeightsError(f"{path} is missing. It ships with imrseg: reinstall, or fetch it from the repository.")
        try:
            with safe_open(path, framework="numpy") as file:
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}
                self.classes = int((file.metadata() or {})["classes"])
            self._row = {lemma: i for i, lemma in enumerate(unpack_lines(self._tensors["lemmas"]))}
            pairs = (line.split("\t") for line in unpack_lines(self._tensors["irregular"]))
            self._irregular = {plural: singular for plural, singular in pairs}
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise WeightsError(f"{path} is not a lexicon that imrseg can read ({error!r}).") from error

    def __contains__(self, word: str) -> bool:
        return word in READINGS or word in self._row

    def meaning(self, label: str, ensemble: bool = False) -> Meaning:
        """What ``label`` means, over the image tower's classes.

        Args:
            label: one label, any English words.
            ensemble: the mean of two readings, the dictionary's and the one guessed from the label's
                parts, in place of the dictionary's alone.

        Raises:
            InputError: the label has no word in it.
        """
        shown = " ".join(split_words(label))
        if not shown:
            raise InputError(f"The label “{label}” has no word in it. Type what to look for, for example: cat")
        words = split_words(without_accents(label))  # the dictionary has none
        words = without_article(words)
        measured = self._measured(words)
        if measured is not words and self._find(measured):
            words = measured
        word = self._find(words)
        if word is None and any("-" in w for w in words):
            words = [part for w in words for part in w.split("-")]
            word = self._find(words)
        if word is not None:
            plain = " ".join(w for w in words if w not in ARTICLES)
            same = word in (plain, self._singular(plain)) or word.replace("-", " ") == " ".join(words)
            notes = () if same else (f"“{shown}” was read as “{word}”.",)
            mixture = self._mixture(word)
            if ensemble:
                mixture = (mixture + self._guess(words)[0]) / 2
            return Meaning(mixture, word, notes)
        mixture, familiarity = self._guess(words)
        if familiarity < FAMILIAR:
            note = f"“{shown}” is not a word this preset knows; the result is a guess. Try a simpler name."
        else:
            note = f"“{shown}” is not in the English dictionary; its meaning was guessed from its parts."
        return Meaning(mixture, None, (note,))

    def _measured(self, words: list[str]) -> list[str]:
        """What a photo, a pair or a bunch is of; all words where they are no such thing, or one word of the dictionary."""
        ends = [i for i in range(1, len(words) - 1) if words[i] == "of" and self._is_measure(words[:i])]
        if not ends or self._singular(" ".join(words)):
            return words
        return self._measured(without_article(words[ends[0] + 1 :]))

    def _is_measure(self, words: list[str]) -> bool:
        """Whether words before "of" say how, or how much: "a large group", but not "man behind a row" or "tv set"."""
        if set(words) & PREPOSITIONS or any(self._ends_head(words, i) for i in range(1, len(words))):
            return False
        last, two = words[-1], "-".join(words[-2:])
        if len(words) > 1 and two not in MEASURES and self._singular(" ".join(words[-2:])):
            return False
        return any(word.removesuffix(end) in MEASURES for word in (last, two) for end in ("", "s", "es"))

    def _singular(self, word: str) -> str | None:
        """The form of ``word`` that is known: itself, or its singular, or None."""
        plural = word.endswith("s") and not word.endswith("ss")
        if word in READINGS or (word in self and not (plural and word[:-1] in self)):
            return word
        if word in self._irregular and self._irregular[word] in self:
            return self._irregular[word]
        for ending, instead in SUFFIXES if plural or word.endswith("men") else ():
            if word.endswith(ending) and word[: -len(ending)] + instead in self:
                return word[: -len(ending)] + instead
        return word if word in self else None

    def _find(self, words: list[str]) -> str | None:
        """The longest dictionary word in a phrase that can be its head.

        English puts the head last ("red car"), but before a preposition ("woman in a hat") or what it does
        ("man riding a horse", "cat sleeping"). A phrase that begins the label may hold prepositions of its own
        ("bird of prey"). Compounds are tried with hyphens and as one word, too, this not with small words: a cart on
        the road is no carton.
        """
        head_end = next((i for i in range(1, len(words)) if self._ends_head(words, i)), len(words))
        spans = [(0, end) for end in range(len(words), head_end, -1)]
        spans += [(start, head_end) for start in range(head_end)]
        for start, end in spans:
            part = words[start:end]
            for glue in (" ", "-") if SMALL & set(part) else (" ", "-", ""):
                found = self._singular(glue.join(part))
                if found and found not in ARTICLES:
                    return found
        return None

    def _ends_head(self, words: list[str], i: int) -> bool:
        """Whether the head of a phrase ends before word ``i``: a preposition, or something that the head does."""
        following = words[i + 1] if i + 1 < len(words) else None
        if any(self._singular(" ".join(pair)) for pair in (words[i - 1 : i + 1], words[i : i + 2]) if len(pair) == 2):
            return False  # "air conditioning", "inside caliper"
        does = words[i].endswith("ing") and (
            following in ARTICLES or (following in PREPOSITIONS | {None} and self._singular(words[i]) is None)
        )
        return words[i] in PREPOSITIONS or does

    def _mixture(self, word: str) -> Tensor:
        mixture = np.zeros(self.classes, np.float32)
        if word in READINGS:
            if READINGS[word] in self._row and READINGS[word] not in self.class_names:
                return self._mixture(READINGS[word])
            mixture[self._named(word)] = 1
            return torch.from_numpy(mixture / mixture.sum())
        t, row = self._tensors, self._row[word]
        for entry in range(t["lemma_start"][row], t["lemma_start"][row + 1]):
            sense = t["sense"][entry]
            part = slice(t["sense_start"][sense], t["sense_start"][sense + 1])
            weights = t["class_weight"][part].astype(np.float32)
            mixture[t["class"][part]] += float(t["sense_weight"][entry]) * weights / weights.sum()
        return torch.from_numpy(mixture / mixture.sum())

    def _named(self, word: str) -> list[int]:
        """The classes that a word of ``READINGS`` names, by themselves or by another such word."""
        names = READINGS[word].split(", ")
        return [i for n in names for i in (self.class_names[n] if n in self.class_names else self._named(n))]

    @cached_property
    def class_names(self) -> dict[str, list[int]]:
        """The classes by the first word of each, as ImageNet lists them; two cranes have one name."""
        names: dict[str, list[int]] = {}
        for i, text in enumerate(self._class_texts):
            names.setdefault(re.split(", |: ", text, maxsplit=1)[0], []).append(i)
        return names

    @cached_property
    def _class_texts(self) -> list[str]:
        return unpack_lines(self._tensors["class_text"])

    # ---- words that the dictionary lacks

    @cached_property
    def _token(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(unpack_lines(self._tensors["vocabulary"]))}

    @cached_property
    def _class_embeddings(self) -> np.ndarray:
        return np.stack([self._embed(re.findall(r"\w+", text.lower())) for text in self._class_texts])

    def _pieces(self, word: str) -> list[int]:
        """WordPiece: the longest known piece first."""
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._token:
                    pieces.append(self._token[piece])
                    break
            else:
                end = start + 1
            start = end
        return pieces

    def _embed(self, words: list[str]) -> np.ndarray:
        pieces = [piece for word in words for piece in self._pieces(word)]
        total = self._tensors["tokens"][pieces].astype(np.float32).sum(0)
        return total / (np.linalg.norm(total) + 1e-6)

    def _guess(self, words: list[str]) -> tuple[Tensor, float]:
        cosine = self._class_embeddings @ self._embed(words)
        nearest = np.argsort(-cosine, kind="stable")[:NEAREST]
        weights = np.exp(SHARPNESS * (cosine[nearest] - cosine[nearest[0]]))
        mixture = np.zeros(self.classes, np.float32)
        mixture[nearest] = weights / weights.sum()
        return torch.from_numpy(mixture), float(cosine[nearest[0]])
