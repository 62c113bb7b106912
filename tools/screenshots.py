"""Make the pictures of the page that README and docs show.

    python -m tools.screenshots

Starts ``demo.py``, clicks the second example and writes ``docs/page.png`` (1440 pixels wide) and
``docs/page-narrow.png`` (390 pixels, dark). Needs Playwright and a Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PORT = 7871
LOOKS = {"page.png": (1440, 980, "light"), "page-narrow.png": (390, 1500, "dark")}


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.3)
    sys.exit(f"{address} does not answer.")


def main() -> None:
    server = subprocess.Popen([sys.executable, "demo.py", "--device", "cpu", "--port", str(PORT)], cwd=ROOT)
    address = f"http://127.0.0.1:{PORT}"
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    try:
        wait_for(address)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
            for name, (width, height, scheme) in LOOKS.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(f"{address}/?__theme={scheme}")
                page.locator("#examples [data-example]").nth(1).click()
                page.get_by_text("steps in").wait_for(timeout=60_000)
                page.wait_for_timeout(1500)
                page.evaluate("scrollTo(0, 0)")
                page.screenshot(path=ROOT / "docs" / name)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
