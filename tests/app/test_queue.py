"""The line before the models, as those who wait in it see it."""

import re
import shutil

import pytest

from tests.app.pages import serving

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]
expect = playwright.expect


def test_who_waits_sees_the_place_in_line(slow_server):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        pages = [browser.new_page(viewport={"width": 1440, "height": 1200}) for _ in range(3)]
        for page in pages:
            page.goto(slow_server)
            expect(page.locator("#examples [data-example]").first).to_be_visible()
        for page in pages:
            page.locator("#examples [data-example]").first.click()
            expect(page.locator("#status")).to_contain_text(re.compile("cheetah|queue"))
        _, second, third = pages
        for page, place in ((second, "1/"), (third, "2/")):
            line = page.locator("#status .progress-text")
            expect(line).to_contain_text(f"queue: {place}")
            # to_be_visible() does not see what a parent cuts off
            seen = line.evaluate("""async (element) => new Promise((done) => new IntersectionObserver(
                ([entry]) => done(entry.intersectionRatio)).observe(element))""")
            assert seen == 1
        expect(third.locator("#status")).to_contain_text("queue: 1/", timeout=60_000)
        third.get_by_role("button", name="Stop").click()  # a wait can be given up
        expect(third.get_by_role("button", name="Stop")).to_be_hidden()
        expect(third.get_by_role("button", name="Run", exact=True)).to_be_enabled()
        third.wait_for_timeout(2000)  # for what may come late
        expect(third.locator("#status")).not_to_contain_text("could not")
        expect(second.locator("#strip [data-step]")).to_have_count(4, timeout=60_000)
        expect(third.locator("#strip [data-step]")).to_have_count(0)
        browser.close()


def test_what_was_stopped_stays_and_is_no_error(slow_server):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 1200})
        page.goto(slow_server)
        page.locator("#steps input[type=number]").fill("10")
        page.locator("#steps input[type=number]").press("Enter")
        cards = page.locator("#examples [data-example]")
        cards.first.click()
        expect(page.locator("#strip [data-step]")).to_have_count(2, timeout=60_000)
        expect(page.locator("#step input[type=range]")).to_have_attribute("max", "10")
        cards.nth(1).click()  # not taken while a run goes on
        page.get_by_role("button", name="Stop").click()
        for _ in range(2):
            expect(page.locator("#status")).to_contain_text(re.compile("cheetah.*in the query picture|step[s]? in"))
            expect(page.locator("#label").get_by_role("textbox")).to_have_value("cheetah")
            expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
            page.wait_for_timeout(3000)  # for what may come late
        assert 2 <= page.locator("#strip [data-step]").count() < 11
        cards.nth(1).click()
        expect(page.locator("#label").get_by_role("textbox")).not_to_have_value("cheetah")
        browser.close()


FULL = """
import sys
from imrseg import cli
from imrseg.app import handlers
handlers.QUEUE = 0
handlers.Handlers.prepare_examples = lambda *_: None
sys.exit(cli.main(sys.argv[1:]))
"""


def test_who_comes_to_a_full_line_is_told_so_and_may_try_again():
    with serving("-c", FULL, "demo") as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 1200})
        page.goto(address)
        page.locator("#label").get_by_role("textbox").fill("cat")
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator("#status")).to_contain_text("could not take this run. Please try again in a minute.")
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        browser.close()
