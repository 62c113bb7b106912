import re

import pytest

from imrseg.coarse.prompts import ENSEMBLE, PAPER, VOCABULARY, contrast_with


def test_templates_have_one_place_for_the_label():
    assert PAPER == ("a photo of a {}",)
    assert 7 <= len(set(ENSEMBLE)) <= 10
    assert all(template.count("{}") == 1 for template in ENSEMBLE)


def test_the_vocabulary_is_plain_words_said_once():
    assert 100 <= len(VOCABULARY) <= 150
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)?", word) for word in VOCABULARY)
    assert {"person", "cat", "dog", "car", "sky", "grass", "water", "road", "wall"} <= set(VOCABULARY)


def test_label_then_the_users_words_then_the_vocabulary():
    assert contrast_with("cheetah", ["safari jeep", " zebra "], ["cat", "sky"]) == [
        "cheetah", "safari jeep", "zebra", "cat", "sky",
    ]  # fmt: skip
    assert contrast_with("cheetah") == ["cheetah", *VOCABULARY]


@pytest.mark.parametrize(
    ("label", "left_out"),
    [
        ("Car", "car"),
        ("cars", "car"),
        ("red car", "car"),
        ("red_car", "car"),
        ("buses", "bus"),
        ("horses", "horse"),
        ("puppies", "dog"),
        ("knives", "knife"),
        ("women", "person"),
        ("a man on a horse", "person"),
        ("light", "traffic light"),
        ("plant", "potted plant"),
        ("aeroplane", "airplane"),
        ("sofa", "couch"),
    ],
)
def test_what_means_the_label_does_not_distract_from_it(label, left_out):
    assert left_out in VOCABULARY
    words = contrast_with(label)
    assert left_out not in words[1:]
    assert words[0] == label
    assert {"sky", "grass"} < set(words)


def test_parts_of_words_are_other_words():
    kept = contrast_with("carpet", (), ["car", "pet", "cat"])
    assert kept == ["carpet", "car", "pet", "cat"]


def test_nothing_is_said_twice():
    assert contrast_with("cat", ["Cats", "dog", "DOGS", "", "  "], ["dog", "sky", "skies"]) == ["cat", "dog", "sky"]


def test_a_users_words_stay_however_near():
    assert contrast_with("car", ["police car", "taxi"], ["truck"]) == ["car", "police car", "taxi", "truck"]


def test_a_label_without_letters_keeps_the_vocabulary():
    assert contrast_with("?!", (), ["cat"]) == ["?!", "cat"]
