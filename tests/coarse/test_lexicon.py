import pytest
import torch

from imrseg import InputError, weights
from imrseg.coarse.lexicon import Lexicon, pack_lines, unpack_lines
from imrseg.coarse.readings import READINGS


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon(weights.find("lite-text.safetensors"))


@pytest.mark.parametrize(
    "label",
    [
        "cat",
        "a red car",
        "bird of prey",
        "person",
        "mouse",
        "zxqvw",
        "猫",
        "the",
        "purple blorgon",
        "t-shirt",
        "R2-D2",
        "of",
    ],
)
def test_a_meaning_is_a_mixture(lexicon, label):
    mixture = lexicon.meaning(label).mixture
    assert mixture.shape == (lexicon.classes,)
    assert mixture.dtype == torch.float32
    assert (mixture >= 0).all()
    assert mixture.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("label", "word"),
    [("cats", "cat"), ("Dogs", "dog"), ("mice", "mouse"), ("women", "woman"), ("geese", "goose"), ("knives", "knife"),
     ("sheep", "sheep"), ("the CAT!", "cat"), ("my dog", "dog"), ("fire truck", "fire truck"), ("buses", "bus"),
     ("bird of prey", "bird of prey"), ("dining_table", "dining table"), ("oranges", "orange"), ("cookies", "cookie"),
     ("cherries", "cherry"), ("tomatoes", "tomato"), ("gloves", "glove"), ("glasses", "glasses"), ("firemen", "fireman"),
     ("boss", "boss"), ("cutlass", "cutlass"), ("teddy-bear", "teddy bear"), ("hot-dogs", "hot dog"), ("piñata", "pinata"),
     ("cafe\u0301", "cafe"), ("caf\u00e9", "cafe"), ("\ufb01sh", "fish"), ("a gate", "gate"), ("a battery", "battery"),
     ("her ring", "ring"), ("a bird of prey", "bird of prey"), ("man on a horse", "man on a horse"), ("jack in the box", "jack-in-the-box"), ("merry-go-round", "merry-go-round")],
)  # fmt: skip
def test_the_same_thing_said_otherwise_needs_no_warning(lexicon, label, word):
    meaning = lexicon.meaning(label)
    assert meaning.read_as == word
    assert meaning.warnings == ()
    assert torch.equal(meaning.mixture, lexicon.meaning(word).mixture)


@pytest.mark.parametrize(
    ("phrase", "head"),
    [("a big red car", "car"), ("woman in a hat", "woman"), ("dog and cat", "dog"), ("cart on the road", "cart"),
     ("white air conditioning", "air conditioning"), ("bag of rice on a table", "bag"), ("man riding a horse", "man"), ("dog sitting on a chair", "dog"),
     ("cat sleeping", "cat"), ("horse riding helmet", "helmet"), ("oil painting of a dog", "oil painting"),
     ("photo of a man riding a horse", "man"), ("portrait of a woman in a hat", "woman"), ("picture of the week", "picture"),
     ("bus with a row of seats", "bus"), ("man behind a row of cars", "man"), ("dog chasing a flock of sheep", "dog"),
     ("boy holding a bunch of flowers", "boy"), ("girl in a photo of a car", "girl"), ("tv set of my mother", "tv set"),
     ("bowl for dogs", "bowl"), ("lamp next to the bed", "lamp"), ("brown teddy-bear", "teddy bear")],
)  # fmt: skip
def test_of_a_phrase_the_head_is_taken_and_told(lexicon, phrase, head):
    meaning = lexicon.meaning(phrase)
    assert meaning.read_as == head
    assert f"was read as “{head}”" in meaning.warnings[0]


@pytest.mark.parametrize(
    ("phrase", "word"),
    [("a photo of a dog", "dog"), ("Photos of my dogs", "dog"), ("close-up of a flower", "flower"), ("close up of a cat", "cat"),
     ("an old photograph of the house", "house"), ("a large group of people", "people"), ("bunches of grapes", "grape"),
     ("pair of shoes", "shoe"), ("pair of scissors", "pair of scissors"), ("a lot of cats", "cat"),
     ("picture of a group of dogs", "dog"), ("lily of the valley", "lily of the valley")],
)  # fmt: skip
def test_what_a_photo_or_a_bunch_is_of_counts(lexicon, phrase, word):
    meaning = lexicon.meaning(phrase)
    assert (meaning.read_as, meaning.warnings) == (word, ())
    assert torch.equal(meaning.mixture, lexicon.meaning(word).mixture)


@pytest.mark.parametrize("label", ["zxqvw", "猫", "purple blorgon"])
def test_unknown_words_are_guessed_and_told(lexicon, label):
    meaning = lexicon.meaning(label)
    assert meaning.read_as is None
    assert label in meaning.warnings[0]
    assert "guess" in meaning.warnings[0]


def test_a_word_of_many_senses_holds_several_classes(lexicon):
    mixture = lexicon.meaning("crane").mixture
    bird, machine = 134, 517  # of ImageNet's thousand
    assert mixture[bird] > 0.1
    assert mixture[machine] > 0.1


@pytest.mark.parametrize("word", READINGS)
def test_an_everyday_word_means_the_classes_that_are_named(lexicon, word):
    names = READINGS[word].split(", ")
    if names[0] in READINGS and names[0] not in lexicon.class_names:
        names = READINGS[names[0]].split(", ")  # "shears" are read as "scissors"
    meaning = lexicon.meaning(word)
    assert (meaning.read_as, meaning.warnings) == (word, ())
    if names[0] not in lexicon.class_names:  # a word of the dictionary: "puppy" is read as "dog"
        assert torch.equal(meaning.mixture, lexicon.meaning(READINGS[word]).mixture)
        return
    named = [i for name in names for i in lexicon.class_names[name]]
    assert meaning.mixture[named].tolist() == pytest.approx([1 / len(named)] * len(named))
    assert len(set(named)) == len(named)


def test_classes_go_by_the_first_word_of_each(lexicon):
    assert lexicon.class_names["hen"] == [8]
    assert lexicon.class_names["crane"] == [134, 517]
    assert sum(map(len, lexicon.class_names.values())) == lexicon.classes


@pytest.mark.parametrize("label", ["", "  ", "!?", "_", "…"])
def test_a_label_without_words_is_refused(lexicon, label):
    with pytest.raises(InputError, match="has no word in it"):
        lexicon.meaning(label)


def test_lines_survive_packing():
    lines = ["cat", "T-shirt", "jalapeño", ""]
    assert unpack_lines(pack_lines(lines).numpy()) == lines
