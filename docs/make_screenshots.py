"""Make docs/images/tensorboard_*.png: the page of TensorBoard, as a browser shows it.

Run by hand, where Debian's chromium is installed, over a folder of finished runs:

    python docs/make_screenshots.py runs
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"
# The tabs that are shown, and the size of the window.
TABS = {
    "scalars": ("timeseries", "1500,1350"),
    "images": ("images", "1500,1350"),
    "hparams": ("hparams", "2300,520"),
    "custom_scalars": ("custom_scalars", "1500,1000"),
    "histograms": ("histograms", "1500,900"),
    "graphs": ("graphs", "1500,1000"),
}
_PATIENCE = 60_000


@contextmanager
def server(runs: Path) -> Iterator[str]:
    """Serve a folder of runs by the real tensorboard; yield its address."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs.name]
    options = ["--port", str(port), "--load_fast", "false", "--reload_interval", "0"]
    process = subprocess.Popen(
        # The page shows the folder as it is named here.
        [*command, *options],
        cwd=runs.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}/"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}data/runs", timeout=10).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def browser(address: str, *options: str) -> str:
    """Open a page in headless Chromium until it has settled; return what that prints."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed"
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={profile}", f"--virtual-time-budget={_PATIENCE}"),
                *(*options, address),
            ],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
    return done.stdout


def main() -> None:
    """Open each tab and save what it shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("tabs", nargs="*", choices=[*TABS, []])
    given = parser.parse_args()
    with server(given.runs) as address:
        for name in given.tabs or TABS:
            tab, size = TABS[name]
            file = IMAGES / f"tensorboard_{name}.png"
            browser(f"{address}#{tab}", f"--screenshot={file}", f"--window-size={size}")
            print(file, file.stat().st_size)


if __name__ == "__main__":
    main()
