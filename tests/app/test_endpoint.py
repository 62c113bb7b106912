import cv2
import numpy as np
import pytest

pytest.importorskip("gradio")
client = pytest.importorskip("gradio_client")

from imrseg.app.examples import EXAMPLES_FOLDER  # noqa: E402

PORTRAIT, RUNNING = (EXAMPLES_FOLDER / f"{name}.jpg" for name in ("cheetah-portrait", "cheetah-running"))


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    return client.Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("masks")))


def test_segment_returns_the_result_and_the_masks(page, segmenter):
    result, files = page.predict(
        client.handle_file(str(PORTRAIT)), [client.handle_file(str(RUNNING))], "cheetah", 2, 0.5, api_name="/segment"
    )
    assert result["label"] == "cheetah"
    assert [step["step"] for step in result["steps"]] == [0, 1, 2]
    names = [f"{who}_step{step}.png" for who in ("query", "support1") for step in (0, 1, 2)]
    assert [file.rsplit("/")[-1] for file in files] == names
    mask = cv2.imread(files[2], cv2.IMREAD_UNCHANGED)
    expected = segmenter.segment(PORTRAIT, [RUNNING], "cheetah", steps=2).mask
    np.testing.assert_array_equal(mask, expected * np.uint8(255))


def test_the_defaults_are_those_of_the_library(page, segmenter):
    result, _ = page.predict(query=client.handle_file(str(PORTRAIT)), label="cheetah", api_name="/segment")
    assert len(result["steps"]) == segmenter.preset.steps + 1
    assert result["supports"] == []
    assert result["threshold"] == 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": " "}, "The label is empty"),
        ({"steps": 2.5}, "whole number from 0 to 20"),
        ({"threshold": 3}, "from 0 to 1"),
        ({"query": __file__}, "not a picture"),
    ],
)
def test_bad_input_is_told_in_words(page, given, said):
    given = {"query": PORTRAIT, "label": "cheetah"} | given
    given["query"] = client.handle_file(str(given["query"]))
    with pytest.raises(Exception, match=said):
        page.predict(**given, api_name="/segment")
