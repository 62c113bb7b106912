import json
import os
import re
import shlex
import zipfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import cv2
import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio")

from imrseg import cli  # noqa: E402
from imrseg.app import build_app, handlers, rendering, sessions, views  # noqa: E402
from imrseg.app.downloads import EVERYTHING, FORMATS  # noqa: E402
from imrseg.app.endpoints import in_order  # noqa: E402
from imrseg.app.examples import EXAMPLES_FOLDER, list_examples  # noqa: E402
from imrseg.app.layout import IS, IS_NOT, VIEWS, lay_out  # noqa: E402
from imrseg.app.models import Models  # noqa: E402

PORTRAIT, RUNNING, LION = (EXAMPLES_FOLDER / f"{name}.jpg" for name in ("cheetah-portrait", "cheetah-running", "lion"))


@pytest.fixture(scope="module")
def app(segmenter):
    with gr.Blocks():
        models = Models(segmenter)
        return handlers.Handlers(lay_out(models), models)


HOW = {
    "preset": "lite",
    "coarse": "",
    "distractors": "",
    "prompts": "single",
    "edges": "",
    "edges_on": "last",
    "consensus": "on",
    "device": "cpu",
}


def start(
    app,
    query=PORTRAIT,
    supports=(RUNNING,),
    label="cheetah",
    steps=2,
    view="Overlay",
    threshold=0.5,
    before=None,
    **how,
):
    """A run's updates as they come; ``query`` is a path or several."""
    queries = [query] if isinstance(query, Path) else query
    files = [[(str(p), None) for p in paths or ()] for paths in (queries, supports)]
    return app.run(*files, label, steps, *(HOW | how).values(), view, threshold, before)


def run_all(app, **given):
    return list(start(app, **given))


def run(app, **given):
    """Those of the steps alone: without the beginning and the end."""
    return run_all(app, **given)[1:-1]


def session_of(app, updates):
    return updates[-1][app.page.session]


def finding_of(session, scene=0, label=None):
    return session.scenes[scene].finding(label)


def choices(label="cheetah", step=0, view="Overlay", threshold=0.5, support=0, query=None):
    """What is looked at, in the order in which handlers take it behind the session."""
    return query, label, step, view, threshold, support


def test_a_run_shows_the_coarse_mask_first_and_then_every_step(app):
    updates = run(app, steps=3)
    assert len(updates) == 4
    assert [u[app.page.choices.step].value for u in updates] == [0, 1, 2, 3]
    assert updates[0][app.page.query_view].label == "Query, coarse"
    session = session_of(app, updates)
    assert [step.index for step in finding_of(session).steps] == [0, 1, 2, 3]
    assert [len(finding_of(u[app.page.session]).steps) for u in updates] == [1, 2, 3, 4]


def strip_of(app, session, view="Overlay"):
    return app.redraw(session, *choices(step=3, view=view))[app.page.strip].value


def test_each_step_is_drawn_once(app, monkeypatch):
    drawn = []
    draw = rendering.draw
    for module in (rendering, views):
        monkeypatch.setattr(module, "draw", lambda *args: drawn.append(args[2:5]) or draw(*args))
    updates = list(islice(start(app, steps=3, view="Heat map"), 5))
    seen = [(step, picture, "Heat map") for step in range(4) for picture in (0, 1)]
    assert drawn == seen
    assert updates[-1][app.page.strip].value.count("<img") == 8


@pytest.mark.parametrize("edges", ["", "guided"])
def test_remembered_thumbnails_are_those_of_the_steps(app, edges):
    def fresh(session):
        return strip_of(app, session.having(0, replace(session.scenes[0], _cells={})))

    session = session_of(app, run_all(app, steps=3, edges=edges))
    assert strip_of(app, session) == fresh(session)
    before, corrected = strip_of(app, session), app.begin_correction(session, *choices(step=1), "Query")[1]
    session = session_of(app, list(app.refine(session, *choices(step=1), corrected, painted(app, IS_NOT), 3, 0)))
    assert strip_of(app, session) == fresh(session) != before


def test_zero_shot_hides_the_support(app):
    update = run(app, supports=())[-1]
    assert update[app.page.support_column].visible is False
    assert app.page.support_view not in update


def test_several_supports_can_be_chosen(app):
    updates = run(app, query=LION, supports=(RUNNING, PORTRAIT), label="big cat")
    assert updates[-1][app.page.choices.support].visible is True
    session = session_of(app, updates)
    notes = [app.redraw(session, *choices("big cat", 2, support=k))[app.page.support_note] for k in (0, 1)]
    assert RUNNING.name in notes[0]
    assert PORTRAIT.name in notes[1]


def test_labels_are_separated_by_commas(app):
    updates = run(app, label=" cheetah, sky ,, cheetah", steps=1)
    session = session_of(app, updates)
    assert [finding.label for finding in session.scenes[0].findings] == ["cheetah", "sky"]
    assert updates[-1][app.page.choices.label].visible is True
    shown = app.redraw(session, *choices("sky", 1))
    assert "sky" in shown[app.page.status]
    assert shown[app.page.labels_panel].visible is True
    with Image.open(shown[app.page.all_labels]) as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"query": None}, "There is no query picture"),
        ({"label": ""}, "The label is empty"),
        ({"label": " , "}, "The label is empty"),
        ({"label": "x" * 201}, "201 characters"),
        ({"label": ",".join(map(str, range(21)))}, "21 labels were given. Accepted: up to 20"),
        ({"query": Path(__file__)}, "is not a picture"),
        ({"supports": (Path(__file__),)}, "is not a picture"),
        ({"supports": (RUNNING,) * 11}, "11 support pictures"),
        ({"preset": "huge"}, "There is no preset “huge”"),
        ({"edges": "crf"}, "guided, grabcut"),
        ({"device": "tpu"}, "no device “tpu” here. Accepted: cpu"),
        ({"distractors": ",".join("x" * n for n in range(1, 23))}, "up to 20 words"),
    ],
)
def test_bad_input_is_told_in_words(app, given, said):
    update = run_all(app, **given)[-1]
    assert said in update[app.page.status]
    assert update[app.page.run].interactive is True
    assert set(update) == {app.page.run, app.page.stop, app.page.status}  # the rest of the page stays as it was


def test_the_unexpected_is_told_in_short_and_logged(app, caplog):
    broken = handlers.Handlers(app.page, SimpleNamespace(begin=lambda *_: 1 / 0))
    said = run_all(broken)[-1][app.page.status]
    assert "unexpected" in said
    assert "division" not in said
    assert "ZeroDivisionError" in caplog.text


def test_looking_around_computes_nothing(app, monkeypatch):
    session = session_of(app, run(app))
    monkeypatch.setattr(app, "models", None)
    shown = app.look(session, *choices())
    assert shown[app.page.query_view].label == "Query, coarse"
    monkeypatch.setattr(handlers.bundle, "command", lambda *_: "")
    monkeypatch.setattr(app, "models", SimpleNamespace(get=lambda *_: None))
    for view in VIEWS:
        assert app.redraw(session, *choices(step=1, view=view))[app.page.strip].value.count("data-step") == 3
    clicked = app.pick_step(gr.EventData(None, {"step": 2}), session, *choices())
    assert clicked[app.page.choices.step].value == 2


def test_a_higher_threshold_never_covers_more(app):
    scene = session_of(app, run(app)).scenes[0]
    shares = [scene.inside(scene.findings[0], 0, 0, threshold).mean() for threshold in (0.1, 0.5, 0.9)]
    assert shares == sorted(shares, reverse=True)


def test_nothing_found_is_said(app):
    scene = session_of(app, run(app)).scenes[0]
    finding = scene.findings[0]
    assert finding.verdict(0.0)[-1] == "Nothing was found for “cheetah” in the query picture."
    finding = replace(finding, confidence=0.1)
    assert "probably not" in finding.verdict(0.3)[-1]
    assert "probably not" in rendering.status(scene, finding, 0.01)


def test_labels_and_names_are_escaped(app):
    scene = session_of(app, run(app, steps=0)).scenes[0]
    finding = replace(scene.findings[0], label="<b>x", warnings=["<i>y"])
    scene = replace(scene, paths=(Path("<u>z.jpg"), *scene.paths[1:]))
    page = rendering.status(scene, finding, 0.5) + rendering.note(scene, finding, 0, 0, 0.5)
    assert not re.search("<b>x|<i>y|<u>z", page)


def test_two_visitors_do_not_share_anything(app):
    one, two = start(app, supports=()), start(app, query=LION, supports=(), label="lion")
    turns = [(next(one), next(two)) for _ in range(4)]
    first, second = (turn[app.page.session] for turn in turns[-1])
    assert first is not second
    assert (first.scenes[0].name, second.scenes[0].name) == (PORTRAIT.name, LION.name)
    assert finding_of(first).label == "cheetah"
    assert finding_of(second).label == "lion"


def test_a_stopped_run_can_be_looked_at(app):
    going = start(app, supports=(), steps=5)
    session = [next(going) for _ in range(3)][-1][app.page.session]
    going.close()
    ended = app.end(session, *choices())
    assert ended[app.page.choices.step].maximum == 1
    assert ended[app.page.run].interactive is True
    assert app.look(session, *choices(step=5, support=None))[app.page.query_view].label == "Query, step 1"


def test_a_run_stopped_before_its_first_mask_leaves_the_page_as_it_was(app):
    assert set(app.end(None, *choices())) == {app.page.run, app.page.stop, app.page.status}


def test_several_queries_each_have_their_scene(app):
    updates = run(app, query=(PORTRAIT, LION), label="big cat", steps=1)
    session = session_of(app, updates)
    assert session.names() == [f"1. {PORTRAIT.name}", f"2. {LION.name}"]
    assert "(2 of 2)" in updates[-1][app.page.status]
    assert updates[-1][app.page.choices.query].visible is True
    for query, path in zip(session.names(), (PORTRAIT, LION), strict=True):
        assert path.name in app.redraw(session, *choices("big cat", query=query))[app.page.query_note]


def test_one_more_step_goes_on(app, segmenter):
    session = session_of(app, run_all(app))
    (update,) = app.one_more(session, *choices(step=2))
    expected = segmenter.segment(PORTRAIT, [RUNNING], "cheetah", steps=3).steps[-1]
    found = finding_of(update[app.page.session])
    assert [s.index for s in found.steps] == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.steps[-1].query_soft, expected.query_soft)
    assert len(finding_of(session).steps) == 3  # what another window looks at stays as it was


def painted(app, colour, size=(64, 64)):
    layer = np.zeros((*size, 4), np.uint8)
    layer[:20, :20] = [*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 255]
    return {"background": None, "layers": [layer], "composite": layer}


@pytest.mark.parametrize(("colour", "value"), [(IS, 1), (IS_NOT, 0)])
@pytest.mark.parametrize("what", ["Query", "Support"])
def test_what_is_painted_enters_the_loop(app, colour, value, what):
    session = session_of(app, run_all(app))
    background, corrected = app.begin_correction(session, *choices(step=1), what)
    h, w = session.scenes[0].pictures[what == "Support"].shape[:2]
    assert Image.open(background["background"]).size == (w, h)
    updates = list(app.refine(session, *choices(step=1), corrected, painted(app, colour), 3, 0))
    finding = finding_of(session_of(app, updates))
    assert [s.index for s in finding.steps] == [0, 1, 2, 3]
    for step in finding.steps[1:]:
        soft = step.query_soft[0] if what == "Query" else step.support_soft[0]
        assert (soft[:24, :24] == value).all()
    assert updates[-1][app.page.editor]["layers"] == []


def test_marks_may_enter_with_the_coarse_masks(app):
    session = session_of(app, run_all(app))
    what = app.begin_correction(session, *choices(step=2), "Query")[1]
    updates = list(app.refine(session, *choices(step=2), what, painted(app, IS), 3, 1))
    steps = finding_of(session_of(app, updates)).steps
    assert [s.index for s in steps] == [0, 1, 2, 3]
    assert all((step.query_soft[0][:24, :24] == 1).all() for step in steps)


def test_another_run_takes_away_what_was_painted(app, monkeypatch):
    updates = run(app)
    assert updates[0][app.page.editor] is updates[0][app.page.corrected] is None
    assert app.page.editor not in updates[1]  # what is painted while it goes on stays
    monkeypatch.setattr(handlers, "list_examples", lambda: list_examples()[:1])
    app.prepare_examples()
    example = pick(app, 0)
    assert example[app.page.editor] is example[app.page.corrected] is None
    app.ready.clear()


def test_an_empty_painting_is_told(app):
    session = session_of(app, run_all(app))
    for corrected, editor in ((None, painted(app, IS)), ((None, "cheetah", 1, 0), None)):
        update = list(app.refine(session, *choices(), corrected, editor, 3, 0))[-1]
        assert "Nothing is painted yet" in update[app.page.status]


def test_supports_can_be_switched_off(app, segmenter):
    """Without a consensus, what is left is the result without them."""
    given = {"query": LION, "supports": (RUNNING, PORTRAIT), "label": "big cat", "consensus": "off"}
    session = session_of(app, run_all(app, **given))
    update = app.count(session, *choices("big cat", 2), [1])
    scene = update[app.page.session].scenes[0]
    alone = segmenter.segment(LION, [PORTRAIT], "big cat", steps=2, consensus="off").steps[-1]
    np.testing.assert_allclose(
        scene.soft(scene.findings[0], 2, 0), alone.query_at(scene.pictures[0].shape[:2]), atol=1e-4
    )
    assert not any("switched off" in w for w in scene.found(scene.findings[0], 2, 0.5).warnings)
    assert scene.used == (False, True)
    assert len(update[app.page.used].choices) == 2
    assert "value" not in update[app.page.used]._constructor_args[0]  # another click may have come since
    none = app.count(session, *choices("big cat", 2), [])
    assert none[app.page.session].scenes[0].used == (True, True)
    assert none[app.page.used].value == ["0", "1"]


def test_a_consensus_remembers_supports_that_were_switched_off(app):
    """Their own masks no longer count, and the command, which leaves them out altogether, is said to differ."""
    session = session_of(app, run_all(app, query=LION, supports=(RUNNING, PORTRAIT), label="big cat"))
    scene = app.count(session, *choices("big cat", 2), [1])[app.page.session].scenes[0]
    finding = scene.findings[0]
    np.testing.assert_array_equal(finding.step(2, scene.used).query_soft, finding.steps[2].query_soft[1:])
    assert "Supports were switched off" in scene.found(finding, 2, 0.5).warnings[-1]


def test_a_true_mask_measures_every_step(app):
    session = session_of(app, run_all(app))
    scene = session.scenes[0]
    truth = scene.inside(scene.findings[0], 2, 0, 0.5).astype(np.uint8) * 255
    update = app.take_truth(session, *choices(step=2), truth)
    assert "true IoU 1.00" in update[app.page.query_note]
    rows = update[app.page.plot]
    assert set(rows["what"]) == {"covered", "IoU with step before", "IoU with true mask"}
    assert rows[rows["what"] == "IoU with true mask"]["share"].iloc[-1] == 1
    forgotten = app.take_truth(update[app.page.session], *choices(step=2), None)
    assert "true IoU" not in forgotten[app.page.query_note]


def test_a_true_mask_counts_as_long_as_its_picture_is_looked_at(app):
    def measured(update):
        return "true IoU" in update[app.page.query_note]

    truth = np.full((40, 60), 255, np.uint8)
    first = app.take_truth(session_of(app, run_all(app)), *choices(step=2), truth)[app.page.session]
    again = run_all(app, supports=(), before=first)[-1]
    assert measured(again)
    assert np.asarray(Image.open(again[app.page.truth])).min() > 250  # what its box shows
    other = run_all(app, query=LION, before=first)[-1]
    assert not measured(other)
    assert other[app.page.truth] is None
    both = run_all(app, query=(PORTRAIT, LION), before=first)[-1]
    session = both[app.page.session]
    assert (measured(both), both[app.page.truth]) == (False, None)
    back = app.redraw(session, *choices(query=session.names()[0], step=2))
    assert measured(back)
    assert np.asarray(Image.open(back[app.page.truth])).min() > 250
    assert app.redraw(session, *choices(query=session.names()[1], step=2))[app.page.truth] is None
    alone = run_all(app, before=session)[-1]
    assert (measured(alone), alone[app.page.truth] is not None) == (True, True)


def test_a_label_with_fewer_steps_takes_the_slider_with_it(app):
    session = session_of(app, run_all(app, label="cheetah, grass"))
    (longer,) = app.one_more(session, *choices("grass", step=2))
    session = longer[app.page.session]
    slider = app.redraw(session, *choices("cheetah", step=3))[app.page.choices.step]
    assert (slider.maximum, slider.value) == (2, 2)
    assert "value" not in app.redraw(session, *choices("grass", step=2))[app.page.choices.step].constructor_args


def test_two_blanks_within_a_label_are_one(app):
    last = run_all(app, label="grass, big  cat,big cat", steps=0)[-1]
    assert (last[app.page.choices.label].value, len(session_of(app, [last]).scenes[0].findings)) == ("big cat", 2)


def test_a_stopped_run_is_not_one_that_was_refused(app):
    session = session_of(app, run_all(app))
    stopped = app.failed(True, session, *choices())
    assert stopped[app.page.status] == app.end(session, *choices())[app.page.status]
    assert stopped[app.page.stopped] is False
    assert "could not take this run" in app.failed(False, session, *choices())[app.page.status]


def test_two_steps_side_by_side(app):
    session = session_of(app, run_all(app))
    left, right = (np.asarray(Image.open(path)) for path in app.compare(session, *choices(), 0, 2))
    assert left.shape == right.shape
    assert not np.array_equal(left, right)


def test_a_picture_that_a_browser_may_be_reading_is_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "new"))
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8), (0, 0), 9)
    path = Path(rendering.served(pixels))
    np.testing.assert_allclose(np.asarray(Image.open(path)).astype(int), pixels, atol=8)
    before = path.stat()
    os.utime(path, (0, 0))
    assert rendering.served(pixels.copy()) == str(path)
    after = path.stat()
    assert after.st_ino == before.st_ino
    assert after.st_mtime >= before.st_mtime  # and it is kept on
    assert rendering.served(255 - pixels) != str(path)
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize("wish", [*FORMATS, EVERYTHING])
def test_every_format_can_be_taken_away(app, wish):
    session = session_of(app, run_all(app, label="cheetah, sky" if wish == EVERYTHING else "cheetah", steps=1))
    path = Path(app.download(session, *choices(step=1), wish))
    assert path.stat().st_size > 100
    if path.suffix == ".zip":
        assert zipfile.ZipFile(path).testzip() is None
    elif path.suffix == ".json":
        assert json.loads(path.read_text())["annotations"][0]["bbox"]
    elif path.suffix == ".npz":
        assert np.load(path)["query_step1"].dtype == np.float32
    elif path.suffix in (".png", ".gif", ".webp"):
        assert getattr(Image.open(path), "n_frames", 1) == (2 if path.suffix in (".gif", ".webp") else 1)
    else:
        assert path.read_bytes()[:5] in (b"%PDF-", b"<?xml")


def test_the_command_repeats_the_run(app):
    session = session_of(app, run_all(app, edges="guided", distractors="grass"))
    words = shlex.split(app.redraw(session, *choices(step=2))[app.page.command])
    args = cli.parser().parse_args(words[3:])
    assert (args.label, args.steps, args.edges, args.distractors) == (["cheetah"], 2, "guided", ["grass"])


def test_a_link_restores_label_and_settings(app):
    given = ["a & b, c", 5, "lite", "lite", "grass", "ensemble", "guided", "every", "off", "cpu"]
    query = app.link(*given).value
    restored = app.restore(SimpleNamespace(query_params=dict(parse_qsl(query[1:]))))
    assert restored[:2] == given[:2]
    assert restored[3:-1] == given[3:-1]
    assert "preset" not in query  # it is the usual one
    wild = {"steps": "99", "preset": "huge", "edges": "<script>", "label": "x" * 5000}
    label, *others = app.restore(SimpleNamespace(query_params=wild))
    assert len(label) <= 800
    assert all(isinstance(o, dict) and o.get("__type__") == "update" for o in others)


def test_download_is_the_mask_at_the_pictures_own_size(app, tmp_path, segmenter):
    large = tmp_path / "large.png"
    Image.open(PORTRAIT).resize((1500, 1100)).save(large)
    session = session_of(app, run(app, query=large))
    path = app.download(session, *choices(step=2), "Mask (PNG)")
    mask = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert Path(path).name == "cheetah-step2.png"
    assert set(np.unique(mask)) <= {0, 255}
    expected = segmenter.segment(large, [RUNNING], "cheetah", steps=2).mask
    np.testing.assert_array_equal(mask > 0, expected)


def test_choices_reach_the_run(app, segmenter):
    session = session_of(app, run(app, distractors="grass, sky", prompts="ensemble", edges="guided", consensus="off"))
    given = {"distractors": ["grass", "sky"], "prompts": "ensemble", "edges": "guided", "consensus": "off"}
    expected = segmenter.segment(PORTRAIT, [RUNNING], "cheetah", steps=2, **given)
    for step, wanted in zip(finding_of(session).steps, expected.steps, strict=True):
        np.testing.assert_array_equal(step.query_soft, wanted.query_soft)


def test_pictures_are_kept_at_display_size():
    least, most = sessions.DISPLAY_SIDES
    assert sessions.fit(np.zeros((50, 100, 3), np.uint8)).shape == (least // 2, least, 3)
    assert sessions.fit(np.zeros((3000, 1500, 3), np.uint8)).shape == (most, most // 2, 3)
    assert sessions.fit(np.zeros((1, 5000, 3), np.uint8)).shape == (1, most, 3)


def test_every_example_is_there():
    examples = list_examples()
    assert len(examples) >= 6
    assert {len(example.supports) for example in examples} == {0, 1, 2, 5}
    assert any("," in example.label for example in examples)


def pick(app, number, *how):
    return app.pick_example(SimpleNamespace(example=number), *(how or app.usual_settings()), "Overlay", 0.5)


def test_an_example_of_several_labels_opens_as_its_run_ends(app, monkeypatch):
    (example,) = (example for example in list_examples() if "," in example.label)
    monkeypatch.setattr(handlers, "list_examples", lambda: [example])
    app.prepare_examples()
    ended = run_all(app, query=example.query, supports=example.supports, label=example.label, steps=3)[-1]
    assert pick(app, 0)[app.page.choices.label].value == ended[app.page.choices.label].value == "cup"
    app.ready.clear()


def test_the_first_example_may_be_prepared_before_the_others(app, monkeypatch):
    prepared = []
    example = app.example
    monkeypatch.setattr(app, "example", lambda one: prepared.append(one) or example(one))
    monkeypatch.setattr(handlers, "list_examples", lambda: list_examples()[:2])
    app.prepare_examples(1)
    assert list(app.ready) == [0]
    app.prepare_examples()
    assert prepared == list_examples()[:2]
    app.ready.clear()


def test_an_example_is_shown_as_remembered_or_asks_for_a_run(app, monkeypatch):
    asks = pick(app, 0)
    assert asks[app.page.wanted] != pick(app, 0)[app.page.wanted]
    assert asks[app.page.stop].visible is True
    monkeypatch.setattr(handlers, "list_examples", lambda: list_examples()[:1])
    app.prepare_examples()
    shown = pick(app, 0)
    assert app.page.wanted not in shown
    assert shown[app.page.query_view].label == "Query, step 3"
    assert shown[app.page.inputs.label] == "cheetah"
    mine, another = shown[app.page.session], pick(app, 0)[app.page.session]
    fourth = list(app.one_more(mine, *choices(step=3)))[-1]
    assert len(finding_of(fourth[app.page.session]).steps) == 5
    assert len(finding_of(another).run.steps) == len(finding_of(app.ready[0]).run.steps) == 4
    other = ["cpu" if value == "cpu" else value for value in app.usual_settings()]
    assert app.page.wanted in pick(app, 0, 5, *other[1:])
    app.ready.clear()


def test_file_names_are_in_order():
    names = ["query_step10.png", "support1_step0.png", "query_step9.png", "support10_step0.png", "support2_step0.png"]
    ordered = [path.name for path in sorted(map(Path, names), key=in_order)]
    assert ordered == [
        "query_step9.png",
        "query_step10.png",
        "support1_step0.png",
        "support2_step0.png",
        "support10_step0.png",
    ]


def test_only_the_endpoint_is_public(segmenter):
    config = build_app(segmenter).get_config_file()
    public = [d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"]
    assert public == ["segment", "segment_steps"]


def test_one_more_step_stays_with_the_support_that_is_looked_at(app):
    session = session_of(app, run_all(app, query=LION, supports=(RUNNING, PORTRAIT), label="big cat"))
    looked_at = [*choices("big cat", 2)[:-1], 1]
    (update,) = app.one_more(session, *looked_at)
    assert PORTRAIT.name in update[app.page.support_note]
    assert update[app.page.choices.support].value == "2"


def test_painting_begins_where_its_panel_opens_and_is_not_begun_again(app):
    session = session_of(app, run_all(app))
    picture, what = app.open_correction(session, *choices(step=1), "Query", None)
    before = os.stat(picture["background"])
    again, _ = app.begin_correction(session, *choices(step=1), "Query")
    assert again == picture  # and a browser that reads it meanwhile gets all of it
    assert (os.stat(again["background"]).st_ino, os.stat(again["background"]).st_size) == (
        before.st_ino,
        before.st_size,
    )
    assert what == (session.names()[0], "cheetah", 1, 0)
    assert app.open_correction(session, *choices(step=1), "Query", what) == gr.skip()
