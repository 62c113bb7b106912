"""The page in a real browser, as a visitor meets it."""

import base64
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("gradio")

from imrseg.app.downloads import EVERYTHING, FORMATS  # noqa: E402
from imrseg.app.examples import EXAMPLES_FOLDER  # noqa: E402

PORTRAIT, RUNNING, LION = (EXAMPLES_FOLDER / f"{name}.jpg" for name in ("cheetah-portrait", "cheetah-running", "lion"))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]
expect = playwright.expect
expect.set_options(timeout=30_000)  # milliseconds, as for actions: a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        switches = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=switches)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server, request):
    """Opens the page for one more visitor; afterwards nothing may have gone wrong or elsewhere.

    Where a test fails, what the browser did is kept as a trace (``playwright show-trace``) in $IMRSEG_TRACES.
    """
    contexts, complaints = [], []
    traces, before = os.environ.get("IMRSEG_TRACES"), request.session.testsfailed

    def open_page(address="", **settings):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | settings)
        contexts.append(context)
        if traces:
            context.tracing.start(screenshots=True, snapshots=True)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((server, "data:", "blob:")) else complaints.append(r.url))
        page.goto(server + address)
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.pages[0].evaluate("1")  # what the page has said until now has come by the answer
    heard = list(complaints)  # closing cuts off what is on its way, such as the picture that is painted on next
    for number, context in enumerate(contexts):
        if traces:
            failed = request.session.testsfailed > before
            path = Path(traces) / f"{request.node.name}-{number}.zip"
            context.tracing.stop(**({"path": path} if failed else {}))
        context.close()
    assert heard == []


def drop(page, where, *paths):
    page.locator(f"{where} input[type=file]").set_input_files([str(path) for path in paths])
    expect(page.locator(f"{where} img").first).to_be_visible()


def run(page, label=None):
    if label is not None:
        page.locator("#label").get_by_role("textbox").fill(label)
    page.get_by_role("button", name="Run", exact=True).click()
    at_rest(page, re.compile(r"step[s]? in|coarse mask only"))


def at_rest(page, words="3 steps in", timeout=30_000):
    """A run is over: the status has ``words``, and what the run's last message sets again has been set."""
    status = page.locator("#status")
    expect(status).to_contain_text(words, timeout=timeout)
    expect(status.get_by_test_id("status-tracker")).to_have_class(re.compile(r"\bhide\b"))


def shown(page, who="query"):
    """The pixels on the screen."""
    image = page.locator(f"#{who}-view img")
    expect(image).to_be_visible()
    page.wait_for_function("who => document.querySelector(`#${who}-view img`).complete", arg=who)
    return cv2.imdecode(np.frombuffer(image.screenshot(), np.uint8), cv2.IMREAD_COLOR)


def go_to(page, step):
    page.locator("#step input[type=range]").fill(str(step))
    name = "coarse" if step == 0 else f"step {step}"
    expect(page.locator("#query-view")).to_contain_text(f"Query, {name}")


def covered(page, who="query"):
    words = page.locator(f"#{who}-view-note").inner_text()
    return float(re.search(r"covers ([\d.]+) %", words, re.IGNORECASE)[1]) / 100


def test_from_two_pictures_and_a_label_to_the_last_step(visit):
    page = visit()
    drop(page, "#queries", PORTRAIT)
    drop(page, "#supports", RUNNING)
    run(page, "cheetah")
    expect(page.locator("#strip [data-step]")).to_have_count(4)

    go_to(page, 0)
    coarse = shown(page), shown(page, "support")
    for step in (1, 2, 3):
        go_to(page, step)
    last = shown(page), shown(page, "support")
    for before, after in zip(coarse, last, strict=True):
        assert before.shape == after.shape
        assert np.abs(before.astype(int) - after).mean() > 0.5
    assert 0.03 < covered(page) < 0.7
    assert covered(page, "support") < 0.5

    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    mask = cv2.imread(str(download.value.path()), cv2.IMREAD_UNCHANGED)
    assert mask.shape == cv2.imread(str(PORTRAIT)).shape[:2]
    assert (mask > 0).mean() == pytest.approx(covered(page), abs=0.02)


def test_views_threshold_and_filmstrip_change_what_is_shown(visit):
    page = visit()
    page.locator("#examples [data-example]").first.click()
    expect(page.locator("#strip [data-step]")).to_have_count(4, timeout=30_000)
    at_rest(page)
    page.locator("#strip [data-step='1']").click()
    expect(page.locator("#query-view")).to_contain_text("Query, step 1")
    expect(page.locator("#step input[type=range]")).to_have_value("1")
    picture = page.locator("#query-view img")
    seen = {picture.get_attribute("src")}
    for view in ("Heat map", "Outline", "Cut-out", "Difference"):
        page.get_by_label(view).check()
        expect(picture).not_to_have_attribute("src", re.compile("|".join(map(re.escape, seen))))
        seen.add(picture.get_attribute("src"))
    before = covered(page)
    page.locator("#threshold input[type=range]").fill("0.9")
    expect(page.locator("#query-view-note")).not_to_contain_text(f"{before * 100:.0f} %")
    assert covered(page) < before


def test_the_large_pictures_say_what_they_show(visit):
    page = visit()
    page.locator("#examples [data-example]").first.click()
    at_rest(page)
    for who, name in (("query", PORTRAIT.name), ("support", RUNNING.name)):
        words = re.compile(rf"{who}, step 3: covers .* %.*{re.escape(name)}", re.IGNORECASE | re.DOTALL)
        expect(page.locator(f"#{who}-view img")).to_have_attribute("alt", words)
    go_to(page, 1)
    expect(page.locator("#query-view img")).to_have_attribute("alt", re.compile("step 1", re.IGNORECASE))


def test_five_supports_and_their_shares(visit):
    page = visit()
    page.locator("#examples [data-example]").filter(has_text="5 supports").click()
    at_rest(page, re.compile("“feline”.*3 steps in", re.DOTALL))
    expect(page.locator("#used input[type=checkbox]")).to_have_count(5)
    expect(page.locator("#which-support input")).to_have_count(5)
    picture = page.locator("#query-view img")
    for left, box in zip((4, 3, 2, 1), page.locator("#used input[type=checkbox]").all()[1:], strict=True):
        before = picture.get_attribute("src")
        box.uncheck()
        expect(picture).not_to_have_attribute("src", before)
        expect(page.locator("#used input:checked")).to_have_count(left)


def test_supports_that_are_clicked_one_right_after_the_other_all_count(visit):
    page = visit()
    page.locator("#examples [data-example]").filter(has_text="5 supports").click()
    at_rest(page, re.compile("“feline”.*3 steps in", re.DOTALL))
    boxes = page.locator("#used input[type=checkbox]")
    expect(boxes).to_have_count(5)
    page.evaluate("() => [...document.querySelectorAll('#used input')].slice(1, 4).forEach((box) => box.click())")
    expect(page.locator("#used input:checked")).to_have_count(2)
    picture = page.locator("#query-view img")
    page.wait_for_timeout(2000)
    expect(page.locator("#used input:checked")).to_have_count(2)
    now = picture.get_attribute("src")
    boxes.nth(1).check()  # what was counted is what was ticked: another one makes another picture
    expect(picture).not_to_have_attribute("src", now)


def test_what_a_screen_reader_is_told_and_a_plot_that_is_all_to_be_seen(visit):
    page = visit()
    page.locator("#examples [data-example]").first.click()
    at_rest(page)
    expect(page.locator("#status")).to_have_attribute("aria-live", "polite")
    for step in (1, 3):
        go_to(page, step)
        expect(page.locator("#strip [aria-current=step]")).to_have_attribute("data-step", str(step))
        expect(page.locator("#strip [aria-current]")).to_have_count(1)
    page.locator("#curve").get_by_role("button").first.click()
    legend = page.locator("#plot svg").get_by_text("IoU with step before")
    expect(legend).to_be_visible()
    box, words = page.locator("#plot").bounding_box(), legend.bounding_box()
    assert words["y"] + words["height"] <= box["y"] + box["height"]
    page.locator("#correct").get_by_role("button").first.click()
    expect(page.locator("#editor canvas").first).to_be_visible()


def test_an_example_without_supports_and_one_with_two(visit):
    page = visit()
    cards = page.locator("#examples [data-example]")
    cards.filter(has_text="words only").first.click()
    at_rest(page)
    expect(page.locator("#support-view")).to_be_hidden()
    cards.filter(has_text="2 supports").click()
    at_rest(page, re.compile("“big cat”.*3 steps in", re.DOTALL))
    expect(page.locator("#support-view-note")).to_contain_text(RUNNING.name)
    page.locator("#which-support").get_by_label("2").check()
    expect(page.locator("#support-view-note")).to_contain_text(PORTRAIT.name)


def test_two_visitors_see_their_own_pictures(visit):
    one, two = visit(), visit()
    drop(one, "#queries", PORTRAIT)
    drop(two, "#queries", LION)
    for page, label in ((one, "cheetah"), (two, "lion")):
        page.locator("#label").get_by_role("textbox").fill(label)
    for page in (one, two):
        page.get_by_role("button", name="Run", exact=True).click()
    for page, name, label in ((one, PORTRAIT.name, "cheetah"), (two, LION.name, "lion")):
        at_rest(page, "steps in")
        go_to(page, 1)
        expect(page.locator("#query-view-note")).to_contain_text(name)
        expect(page.locator("#status")).to_contain_text(f"“{label}”")


def test_what_is_missing_or_broken_is_said_and_the_page_stays(visit, tmp_path):
    page = visit()
    said = page.get_by_role("alert")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(said).to_contain_text("There is no query picture")
    expect(page.locator("#welcome")).to_be_visible()
    drop(page, "#queries", PORTRAIT)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(said).to_contain_text("The label is empty")
    run(page, "cheetah")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    page.locator("#supports input[type=file]").set_input_files(str(broken))
    expect(page.locator("#supports img").first).to_be_attached()
    page.get_by_role("button", name="Run", exact=True).click()
    expect(said).to_contain_text("“broken.jpg” is not a picture")
    expect(page.locator("#query-view")).to_contain_text("Query, step 3")


def test_files_dropped_by_the_mouse(visit):
    page = visit()
    data = base64.b64encode(PORTRAIT.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), out = new DataTransfer();
            out.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
            return out;
        }""",
        data,
    )
    target = page.locator("#queries button").first
    for event in ("dragenter", "dragover", "drop"):
        target.dispatch_event(event, {"dataTransfer": transfer})
    expect(page.locator("#queries img").first).to_be_visible()
    run(page, "cheetah")
    expect(page.locator("#query-view-note")).to_contain_text("dropped.jpg")


def test_arrow_keys_and_play_go_through_the_steps(visit):
    page = visit()
    page.locator("#examples [data-example]").first.click()
    at_rest(page, timeout=60_000)
    page.locator("#head").click()
    for key, name in (("ArrowLeft", "step 2"), ("ArrowLeft", "step 1"), ("ArrowRight", "step 2")):
        page.keyboard.press(key)
        expect(page.locator("#query-view")).to_contain_text(f"Query, {name}")
    page.get_by_role("button", name="Play").click()
    for name in ("coarse", "step 1", "step 2", "step 3"):
        expect(page.locator("#query-view")).to_contain_text(f"Query, {name}")
    page.get_by_role("button", name="One more step").click()
    expect(page.locator("#strip [data-step]")).to_have_count(5)
    expect(page.locator("#query-view")).to_contain_text("Query, step 4")


def test_a_mask_is_corrected_by_a_brush_and_refined_on(visit):
    page = visit()
    page.locator("#examples [data-example]").first.click()
    at_rest(page, timeout=60_000)
    before = covered(page)
    page.get_by_role("button", name="Correct the mask").click()
    page.get_by_role("button", name="Paint on the step shown").click()
    canvas = page.locator("#editor canvas").first
    expect(canvas).to_be_visible()
    page.wait_for_timeout(1500)  # the canvas fits its picture
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.42, box["y"] + box["height"] * 0.12)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.58, box["y"] + box["height"] * 0.12, steps=8)
    page.mouse.up()
    page.wait_for_timeout(800)
    page.get_by_role("button", name="Refine on from here").click()
    expect(page.locator("#strip [data-step]")).to_have_count(5, timeout=60_000)
    at_rest(page, "4 steps in")
    assert covered(page) != before


def test_several_queries_and_labels(visit):
    page = visit()
    drop(page, "#queries", PORTRAIT, LION)
    run(page, "big cat, sky")
    expect(page.locator("#query-view-note")).to_contain_text(LION.name)
    page.locator("#which-label").get_by_label("big cat").check()
    expect(page.locator("#status")).to_contain_text("“big cat”")
    page.locator("#which-query").get_by_label(PORTRAIT.name).check()
    expect(page.locator("#query-view-note")).to_contain_text(PORTRAIT.name)
    page.get_by_role("button", name="All labels in one picture").click()
    expect(page.locator("#all img")).to_be_visible()


def opened(path):
    """A downloaded file, opened by what its format is for."""
    if path.suffix in (".png", ".gif", ".webp"):
        image = Image.open(path)
        image.load()
        return image
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))["annotations"][0]
    if path.suffix == ".npz":
        return np.load(path)["query_step3"]
    if path.suffix == ".zip":
        return zipfile.ZipFile(path).read("README.txt")
    return path.read_bytes().index(b"%PDF-" if path.suffix == ".pdf" else b"<svg") + 1


def test_every_format_can_be_taken_away(visit, tmp_path):
    page = visit()
    page.locator("#examples [data-example]").first.click()
    at_rest(page, timeout=60_000)
    for wish in (*FORMATS, EVERYTHING):
        page.locator("#format input").click()
        page.get_by_role("option", name=wish, exact=True).click()
        with page.expect_download(timeout=60_000) as download:
            page.get_by_role("button", name="Download", exact=True).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert opened(path) is not None
    assert len(list(tmp_path.iterdir())) == len(FORMATS) + 1


def test_a_link_restores_the_settings(visit):
    page = visit()
    page.locator("#label").get_by_role("textbox").fill("red car, sky")
    page.locator("#steps input[type=range]").fill("5")
    page.get_by_role("button", name="More choices").click()
    page.get_by_label("guided filter").check()
    page.get_by_role("button", name="Link to these settings").click()
    link = page.locator("#link textarea, #link input")
    expect(link).to_have_value(re.compile("steps=5"))
    other = visit(address="/?" + link.input_value().partition("?")[2])
    expect(other.locator("#label").get_by_role("textbox")).to_have_value("red car, sky")
    expect(other.locator("#steps input[type=range]")).to_have_value("5")
    other.get_by_role("button", name="More choices").click()
    expect(other.get_by_label("guided filter")).to_be_checked()


def test_missing_weights_are_said_and_nothing_takes_their_place(visit):
    page = visit()
    page.get_by_role("button", name="More choices").click()
    page.locator("#preset input").click()
    page.get_by_role("option", name="imr-hsnet-resnet50 (weights missing)").click()
    expect(page.locator("#preset-note")).to_contain_text("weights convert")
    drop(page, "#queries", PORTRAIT)
    page.locator("#label").get_by_role("textbox").fill("cheetah")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#status").get_by_role("alert")).to_contain_text("imr-hsnet-resnet50 cannot run yet")
    expect(page.locator("#welcome")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_nothing_sticks_out(visit, width, scheme):
    page = visit(f"/?__theme={scheme}", viewport={"width": width, "height": 800})
    page.locator("#examples [data-example]").first.click()
    expect(page.locator("#strip [data-step]")).to_have_count(4, timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_html_in_a_label_is_not_interpreted(visit):
    page = visit("/?label=" + quote("<img src=x onerror='window.hit=1'>"))
    page.locator("#queries input[type=file]").set_input_files(LION)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#status")).to_contain_text("onerror='window.hit=1'>")
    expect(page.locator("#strip [data-step]")).to_have_count(4)
    assert page.evaluate("window.hit") is None
    assert page.locator("#results img[src=x]").count() == 0
