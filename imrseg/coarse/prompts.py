"""The words that CLIP is asked with: templates around a label, and what it is told apart from."""

from __future__ import annotations

import re
from collections.abc import Sequence

PAPER = ("a photo of a {}",)  # Figure 1 (c)

# In the manner of the templates that CLIP was published with (Radford et al. 2021, section 3.1.4): what
# a picture may do to its subject, in words, so that the mean of the texts keeps the subject alone.
ENSEMBLE = (
    "a photo of a {}",
    "a photo of the {}",
    "a close-up of a {}",
    "a small {} far away",
    "a large {} that fills the picture",
    "a dark, blurry picture of a {}",
    "a {} among other things",
    "a drawing of a {}",
)

# What pictures show besides a label. The first row is the backgrounds that CLIP-ES (Lin et al., CVPR
# 2023) tells its classes apart from; the others are everyday things.
VOCABULARY = tuple(
    word
    for row in (
        "ground, land, grass, tree, building, wall, sky, lake, water, river, sea, railway, railroad, keyboard, helmet, "
        "cloud, house, mountain, ocean, road, rock, street, valley, bridge, sign",
        "sand, snow, beach, forest, field, bush, path, pavement, pole, rope, stone, shadow, light, smoke, fire, flag",
        "fence, roof, window, door, room, kitchen, floor, ceiling, stairs, curtain, carpet, mirror, picture frame",
        "table, chair, couch, bed, shelf, desk, lamp, pillow, blanket, towel, sink, toilet, refrigerator, oven, pan",
        "flower, leaf, potted plant, vase, fruit, vegetable, food, plate, cup, bottle, glass, bowl, knife",
        "book, paper, box, bag, toy, ball, clock, computer, television, phone, camera, guitar, tool, umbrella",
        "person, hand, face, hair, hat, shoe, shirt, trousers, glove, backpack, suitcase",
        "dog, cat, bird, horse, cow, sheep, pig, rabbit, elephant, bear, monkey, fish, insect, snake",
        "car, bus, truck, train, bicycle, motorcycle, boat, airplane, wheel, traffic light, lamp post, bench, statue",
    )
    for word in row.split(", ")
)

# Words of one row name the same thing, or a kind of it that nobody would tell apart from it.
SAME = tuple(
    frozenset(row.split())
    for row in (
        "person people human man men woman women boy girl child children kid baby player rider crowd",
        "person face", "person hand", "person hair",
        "dog puppy", "cat kitten", "cow cattle bull calf", "sheep lamb", "pig piglet", "horse pony foal",
        "bird chicken duck goose swan", "monkey ape", "insect butterfly bee", "bicycle bike", "motorcycle motorbike",
        "airplane aeroplane plane aircraft jet", "boat ship", "car automobile taxi", "truck lorry",
        "couch sofa", "television tv monitor screen", "computer laptop keyboard", "phone smartphone cellphone telephone",
        "refrigerator fridge", "oven stove", "table desk", "cup mug", "bag handbag backpack suitcase", "trousers pants jeans",
        "road street path pavement sidewalk", "sea ocean lake river water", "railway railroad track", "rock stone", "sand beach",
        "building house roof", "land ground field soil", "tree forest", "tree bush leaf", "flower plant leaf",
    )
)  # fmt: skip


Word = frozenset[str]  # a word as it is, and what may be its singular


def contrast_with(label: str, others: Sequence[str] = (), vocabulary: Sequence[str] = VOCABULARY) -> list[str]:
    """The label, first, and what it is told apart from: a user's words, then those of a vocabulary.

    Words are the same in the singular and the plural, in capitals or not. A distractor that means the
    label would take its probability and with it the map. So a vocabulary's entry is left out where it
    is in the label or the label in it, word for word ("car" for "red car", "traffic light" for
    "light"), or where a word of its row in ``SAME`` is. "cat" stays for "cheetah": CLIP tells them
    apart. A user's word is left out only where it is the label itself. Nothing is said twice.

    Args:
        label: what is looked for.
        others: other things in the picture, by a user; empty ones are skipped.
        vocabulary: other things that pictures may show.

    Returns:
        Label, others and vocabulary, as they were written.
    """
    kept = [label]
    said = [_words(label)]
    for word in others:
        if word.strip() and not any(_equal(_words(word), known) for known in said):
            kept.append(word.strip())
            said.append(_words(word))
    sought = _kin(said[0])
    for word in vocabulary:
        words = _words(word)
        within = said[0] and (_inside(words, sought) or _inside(said[0], _kin(words)))
        if not within and not any(_equal(words, known) for known in said):
            kept.append(word)
            said.append(words)
    return kept


def _words(text: str) -> list[Word]:
    return [_forms(word) for word in re.findall(r"\w+", text.lower().replace("_", " "))]


def _forms(word: str) -> Word:
    endings = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"))
    return frozenset([word, *(word[: -len(end)] + single for end, single in endings if word.endswith(end))])


def _kin(words: list[Word]) -> list[Word]:
    """The words, each with those of its rows in ``SAME``."""
    return [word.union(*(row for row in SAME if row & word)) for word in words]


def _inside(few: list[Word], many: list[Word]) -> bool:
    return all(any(a & b for b in many) for a in few)


def _equal(one: list[Word], other: list[Word]) -> bool:
    return len(one) == len(other) and all(a & b for a, b in zip(one, other, strict=True))
