"""Take the README's pictures of the page without code and of the course site.

    python tools/screenshots.py    # after `make site`; about a minute

The page is opened as `make app` serves it, on the default model, and run once.
"""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "notebooks" / "figures"
SITE = ROOT / "build" / "site"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
VIEW = {"width": 1000, "height": 1250}
SHOWN = ("index.html", "notebooks/03_pca_layers.html")  # of the site, side by side
COLORS = 64


@contextlib.contextmanager
def served(notebook: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serve a notebook by Voilà with the template of the checkout; give its address and the
    server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "site" / "voila", Path(folder, "voila", "templates", "fairlab"))
        paths = {
            "JUPYTER_PATH": [folder, os.environ.get("JUPYTER_PATH", "")],
            "PYTHONPATH": [str(ROOT), os.environ.get("PYTHONPATH", "")],
        }
        environment = dict(os.environ)
        for name, values in paths.items():
            environment[name] = os.pathsep.join(filter(None, values))
        command = [sys.executable, "-m", "voila", str(notebook), "--no-browser"]
        command += [f"--port={port}", "--Voila.ip=127.0.0.1"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, env=environment, **quiet)
        try:
            address = f"http://127.0.0.1:{port}/"
            wait_for(f"{address}voila/static/require.min.js", server)
            yield address, server
        finally:
            server.terminate()
            server.wait(20)


def wait_for(address: str, server: subprocess.Popen) -> None:
    """Return as soon as the server answers anything."""
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError("Voilà stopped")
        try:
            with urllib.request.urlopen(address, timeout=5):  # nosec B310
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(address)


def save(png: bytes, name: str) -> None:
    """Write a picture with few colours, so that it is light."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLORS)
    picture.save(FIGURES / name, optimize=True)
    print(f"{name}: {(FIGURES / name).stat().st_size // 1000} kB")


def main() -> None:
    """Open both, and take a picture of each."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with served(ROOT / "notebooks" / "app.ipynb") as (address, _):
            page = browser.new_page(viewport=VIEW)
            start = time.perf_counter()
            page.goto(address, timeout=120_000)
            page.wait_for_selector(".tokens li", timeout=120_000)
            print(f"usable after {time.perf_counter() - start:.1f} s")
            start = time.perf_counter()
            page.get_by_role("button", name="Run").click()
            for number in range(1, 5):
                page.wait_for_selector(
                    f".fairlab-app section section:nth-of-type({number})", timeout=600_000
                )
                print(f"step {number} after {time.perf_counter() - start:.1f} s")
            page.wait_for_selector(".status:has-text('Done')")
            page.get_by_text("Where to look").scroll_into_view_if_needed()
            page.evaluate("document.querySelector('fieldset').scrollIntoView()")
            save(page.screenshot(), "page.png")
        page = browser.new_page(viewport={**VIEW, "height": 800})
        halves = []
        for name in SHOWN:
            page.goto((SITE / name).as_uri(), wait_until="networkidle")
            for explorer in page.locator("iframe.explorer").all()[:1]:
                explorer.scroll_into_view_if_needed()
                page.wait_for_timeout(1000)
            halves.append(Image.open(io.BytesIO(page.screenshot())))
        both = Image.new("RGB", (VIEW["width"], 1600))
        for number, half in enumerate(halves):
            both.paste(half, (0, 800 * number))
        buffer = io.BytesIO()
        both.save(buffer, "PNG")
        save(buffer.getvalue(), "site.png")
        browser.close()


if __name__ == "__main__":
    main()
