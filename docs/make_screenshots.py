"""Make docs/images/tensorboard_*.png: the page of TensorBoard, as a browser shows it.

Run by hand over a folder of finished runs, where Debian's chromium and chromium-driver are:

    python docs/make_screenshots.py runs
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

IMAGES = Path(__file__).resolve().parent / "images"
# The tabs that are shown, the size of the window, and a text that is there once the tab is.
TABS = {
    "scalars": ("timeseries", (1500, 1350), "gradient_flow"),
    "images": ("images", (1500, 1350), "overview/density"),
    "hparams": ("hparams", (2300, 700), "LeNet300100"),
    "custom_scalars": ("custom_scalars", (1500, 1000), "direct and effective"),
    "histograms": ("histograms", (1500, 1000), "live_weights/fc1"),
}
_PATIENCE = 120  # seconds
# Much of the page lies in shadow trees, which the text of the body leaves out.
_ALL_TEXT = """
const skipped = new Set(["STYLE", "SCRIPT", "TEMPLATE"]);
function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent;
  if (skipped.has(node.nodeName)) return "";
  const children = [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes];
  return children.map(text).join(" ");
}
return text(document.body).replace(/\\s+/g, " ");
"""


@contextmanager
def server(runs: Path) -> Iterator[str]:
    """Serve a folder of runs by the real tensorboard; yield its address."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs.name]
    process = subprocess.Popen(
        # The page shows the folder as it is named here.
        [*command, "--port", str(port), "--load_fast", "false", "--reload_interval", "0"],
        cwd=runs.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}/"
    try:
        for _ in range(2 * _PATIENCE):
            try:
                urllib.request.urlopen(f"{address}data/runs", timeout=10).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Lend a headless Chromium that draws WebGL by itself."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--use-angle=swiftshader"):
        options.add_argument(argument)
    options.add_argument("--enable-unsafe-swiftshader")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def shown(
    driver: webdriver.Chrome, address: str, size: tuple[int, int], until: Callable[[str], bool]
) -> str:
    """Open a page and return its text once ``until`` holds of it, or patience has ended."""
    driver.get("about:blank")  # or another tab of the same page would not be a new one
    driver.set_window_size(*size)
    driver.get(address)
    end = time.monotonic() + _PATIENCE
    text = ""
    while time.monotonic() < end:
        text = WebDriverWait(driver, _PATIENCE).until(lambda d: d.execute_script(_ALL_TEXT))
        if until(text):
            break
        time.sleep(0.5)
    return text


def main() -> None:
    """Open each tab and save what it shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("tabs", nargs="*", choices=[*TABS, []])
    given = parser.parse_args()
    with server(given.runs.resolve()) as address, browser() as driver:
        for name in given.tabs or TABS:
            tab, size, sign = TABS[name]
            file = IMAGES / f"tensorboard_{name}.png"
            shown(driver, f"{address}#{tab}", size, lambda text, sign=sign: sign in text)
            time.sleep(5)  # charts draw themselves after their titles
            driver.save_screenshot(str(file))
            print(file, file.stat().st_size)


if __name__ == "__main__":
    main()
