import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio")

from imrseg.app import build_app, handlers, rendering, sessions  # noqa: E402
from imrseg.app.layout import EXAMPLES_FOLDER, lay_out, list_examples  # noqa: E402
from imrseg.app.models import Models  # noqa: E402

PORTRAIT, RUNNING, LION = (EXAMPLES_FOLDER / f"{name}.jpg" for name in ("cheetah-portrait", "cheetah-running", "lion"))


@pytest.fixture(scope="module")
def app(segmenter):
    with gr.Blocks():
        models = Models(segmenter)
        return handlers.Handlers(lay_out(models), models)


def run_all(app, query=PORTRAIT, supports=(RUNNING,), label="cheetah", steps=2, view="Overlay", threshold=0.5, **how):
    """All updates of a run."""
    supports = [(str(s), None) for s in supports]
    return list(app.run(query and str(query), supports, label, steps, view, threshold, **how))


def run(app, **given):
    """Those of the steps alone: without the beginning and the end."""
    return run_all(app, **given)[1:-1]


def session_of(app, updates):
    return updates[-1][app.page.session]


def test_a_run_shows_the_coarse_mask_first_and_then_every_step(app):
    updates = run(app, steps=3)
    assert len(updates) == 4
    assert [u[app.page.step].value for u in updates] == [0, 1, 2, 3]
    assert updates[0][app.page.query_view].label == "Query, coarse"
    session = session_of(app, updates)
    assert [step.index for step in session.findings[0].steps] == [0, 1, 2, 3]
    assert [len(u[app.page.session].findings[0].steps) for u in updates] == [1, 2, 3, 4]


def test_zero_shot_hides_the_support(app):
    update = run(app, supports=())[-1]
    assert update[app.page.support_column].visible is False
    assert app.page.support_view not in update


def test_several_supports_can_be_chosen(app):
    updates = run(app, query=LION, supports=(RUNNING, PORTRAIT), label="big cat")
    assert updates[-1][app.page.which_support].visible is True
    session = session_of(app, updates)
    notes = [app.redraw(session, "big cat", 2, "Overlay", 0.5, k)[app.page.support_note] for k in (0, 1)]
    assert RUNNING.name in notes[0]
    assert PORTRAIT.name in notes[1]


def test_labels_are_separated_by_commas(app):
    updates = run(app, label=" cheetah, sky ,, cheetah", steps=1)
    session = session_of(app, updates)
    assert [finding.label for finding in session.findings] == ["cheetah", "sky"]
    assert updates[-1][app.page.which_label].visible is True
    assert "sky" in app.redraw(session, "sky", 1, "Overlay", 0.5, 0)[app.page.status]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"query": None}, "There is no query picture"),
        ({"label": ""}, "The label is empty"),
        ({"label": " , "}, "The label is empty"),
        ({"label": "x" * 201}, "201 characters"),
        ({"query": Path(__file__)}, "is not a picture"),
        ({"supports": (Path(__file__),)}, "is not a picture"),
        ({"supports": (RUNNING,) * 11}, "11 support pictures"),
        ({"preset": "huge"}, "There is no preset “huge”"),
        ({"edges": "crf"}, "guided, grabcut"),
        ({"distractors": ",".join("x" * n for n in range(1, 23))}, "up to 20 words"),
    ],
)
def test_bad_input_is_told_in_words(app, given, said):
    update = run_all(app, **given)[-1]
    assert said in update[app.page.status]
    assert update[app.page.run].interactive is True
    assert set(update) == {app.page.run, app.page.stop, app.page.status}  # the rest of the page stays as it was


def test_the_unexpected_is_told_in_short_and_logged(app, caplog):
    broken = handlers.Handlers(app.page, SimpleNamespace(preset="lite", get=lambda *_: 1 / 0))
    said = run_all(broken)[-1][app.page.status]
    assert "unexpected" in said
    assert "division" not in said
    assert "ZeroDivisionError" in caplog.text


def test_looking_around_computes_nothing(app, monkeypatch):
    session = session_of(app, run(app))
    monkeypatch.setattr(app, "models", None)
    shown = app.look(session, "cheetah", 0, "Overlay", 0.5, 0)
    assert shown[app.page.query_view].label == "Query, coarse"
    for view in ("Overlay", "Heat map", "Outline", "Cut-out"):
        assert app.redraw(session, "cheetah", 1, view, 0.5, 0)[app.page.strip].value.count("data-step") == 3
    clicked = app.pick_step(session, "cheetah", 0, "Overlay", 0.5, 0, gr.EventData(None, {"step": 2}))
    assert clicked[app.page.step].value == 2


def test_a_higher_threshold_never_covers_more(app):
    session = session_of(app, run(app))
    finding = session.findings[0]
    shares = [rendering.inside(session, finding, 0, 0, threshold).mean() for threshold in (0.1, 0.5, 0.9)]
    assert shares == sorted(shares, reverse=True)


def test_nothing_found_is_said(app):
    session = session_of(app, run(app))
    finding = session.findings[0]
    assert finding.verdict(0.0)[-1] == "Nothing was found for “cheetah” in the query picture."
    finding = replace(finding, confidence=0.1)
    assert "probably not" in finding.verdict(0.3)[-1]
    assert "probably not" in rendering.status(session, finding, 0.01)


def test_labels_and_names_are_escaped(app):
    session = session_of(app, run(app, steps=0))
    finding = session.findings[0]
    finding = replace(finding, label="<b>x", warnings=["<i>y"])
    session = replace(session, names=("<u>z.jpg", *session.names[1:]))
    page = rendering.status(session, finding, 0.5) + rendering.note(session, finding, 0, 0, 0.5)
    assert not re.search("<b>x|<i>y|<u>z", page)


def test_two_visitors_do_not_share_anything(app):
    one, two = (
        app.run(str(PORTRAIT), None, "cheetah", 2, "Overlay", 0.5),
        app.run(str(LION), None, "lion", 2, "Overlay", 0.5),
    )
    turns = [(next(one), next(two)) for _ in range(4)]
    first, second = (turn[app.page.session] for turn in turns[-1])
    assert first is not second
    assert (first.names, second.names) == ((PORTRAIT.name,), (LION.name,))
    assert first.findings[0].label == "cheetah"
    assert second.findings[0].label == "lion"


def test_a_stopped_run_can_be_looked_at(app):
    going = app.run(str(PORTRAIT), None, "cheetah", 5, "Overlay", 0.5)
    session = [next(going) for _ in range(3)][-1][app.page.session]
    going.close()
    ended = app.end(session, "cheetah", "Overlay", 0.5)
    assert ended[app.page.step].maximum == 1
    assert ended[app.page.run].interactive is True
    assert app.look(session, "cheetah", 5, "Overlay", 0.5, None)[app.page.query_view].label == "Query, step 1"


def test_a_run_stopped_before_its_first_mask_leaves_the_page_as_it_was(app):
    assert set(app.end(None, None, "Overlay", 0.5)) == {app.page.run, app.page.stop, app.page.status}


def test_download_is_the_mask_at_the_pictures_own_size(app, tmp_path, segmenter):
    large = tmp_path / "large.png"
    Image.open(PORTRAIT).resize((1500, 1100)).save(large)
    session = session_of(app, run(app, query=large))
    path = app.download(session, "cheetah", 2, "Overlay", 0.5, 0)
    mask = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert Path(path).name == "cheetah-step2.png"
    assert set(np.unique(mask)) <= {0, 255}
    expected = segmenter.segment(large, [RUNNING], "cheetah", steps=2).mask
    np.testing.assert_array_equal(mask > 0, expected)


def test_choices_reach_the_run(app, segmenter):
    session = session_of(app, run(app, distractors="grass, sky", prompts="ensemble", edges="guided"))
    given = {"distractors": ["grass", "sky"], "prompts": "ensemble", "edges": "guided"}
    expected = segmenter.segment(PORTRAIT, [RUNNING], "cheetah", steps=2, **given)
    for step, wanted in zip(session.findings[0].steps, expected.steps, strict=True):
        np.testing.assert_array_equal(step.query_soft, wanted.query_soft)


def test_pictures_are_kept_at_display_size():
    least, most = sessions.DISPLAY_SIDES
    assert sessions.fit(np.zeros((50, 100, 3), np.uint8)).shape == (least // 2, least, 3)
    assert sessions.fit(np.zeros((3000, 1500, 3), np.uint8)).shape == (most, most // 2, 3)
    assert sessions.fit(np.zeros((1, 5000, 3), np.uint8)).shape == (1, most, 3)


def test_every_example_is_there():
    examples = list_examples()
    assert len(examples) >= 3
    assert any(not example.supports for example in examples)


def test_file_names_are_in_order():
    names = ["query_step10.png", "support1_step0.png", "query_step9.png", "support10_step0.png", "support2_step0.png"]
    ordered = [path.name for path in sorted(map(Path, names), key=handlers.in_order)]
    assert ordered == [
        "query_step9.png",
        "query_step10.png",
        "support1_step0.png",
        "support2_step0.png",
        "support10_step0.png",
    ]


def test_only_the_endpoint_is_public(segmenter):
    config = build_app(segmenter).get_config_file()
    assert [d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"] == ["segment"]
