"""What somebody waits for who starts the demo: until it answers, until the first result, and for a run of their own.

    python benchmarks/startup.py --chromium /usr/bin/chromium --json benchmarks/results/startup-cpu.json

The browser is open before; a user who is faster than the page clicks the first example as soon as it is there.
Once the server has prepared the other examples, the user runs other labels on the same pictures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median

from measure import machine, write
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 120  # seconds
PREPARED = 15  # seconds after which the server is at rest
LABELS = ("animal", "leopard", "big cat")


def start(page: Page, port: int) -> dict[str, float]:
    """Seconds from the command to the first answer; from there to the page and the first example's last step; of a run."""
    address, began = f"http://127.0.0.1:{port}/", time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "demo.py"), "--port", str(port)], stdout=subprocess.DEVNULL
    ) as server:
        try:
            while not answers(address):
                if server.poll() is not None or time.perf_counter() - began > LONGEST:
                    raise SystemExit("The demo did not start.")
                time.sleep(0.02)
            up = time.perf_counter()
            page.goto(address)
            page.locator("#examples [data-example]").first.wait_for()
            shown = time.perf_counter()
            page.locator("#examples [data-example]").first.click()
            page.locator("#strip [data-step='3']").first.wait_for()
            first = time.perf_counter()
            time.sleep(PREPARED)
            runs = [run(page, label) for label in LABELS]
            return {"answer": up - began, "page": shown - up, "first_result": first - up, "run": median(runs)}
        finally:
            server.terminate()


def run(page: Page, label: str) -> float:
    """Seconds from the click on Run until the page says how it went."""
    page.locator("#label").get_by_role("textbox").fill(label)
    page.wait_for_timeout(500)
    began = time.perf_counter()
    page.get_by_role("button", name="Run", exact=True).click()
    page.locator("#status").get_by_text(f"“{label}”", exact=True).wait_for()
    page.locator("#status").get_by_text("steps in").wait_for()
    return time.perf_counter() - began


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:  # urllib.error.URLError is one
        return False


def import_seconds(modules: str) -> float:
    """Seconds that ``import`` takes in a new process."""
    code = f"import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", help="the browser's file; Playwright's own where none is given")
    parser.add_argument("--port", type=int, default=7999)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: list[dict[str, float]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for _ in range(1 + args.runs):  # the first fills the system's file cache
            page = browser.new_page()
            imports = {"import_torch": import_seconds("torch"), "import_both": import_seconds("torch, imrseg")}
            imports["import_gradio_too"] = import_seconds("torch, gradio")
            found.append(start(page, args.port) | imports)
            page.close()
    medians = {name: median(run[name] for run in found[1:]) for name in found[0]}
    write({**machine(), "runs": args.runs, "seconds": medians, "each": found}, args.json)


if __name__ == "__main__":
    main()
