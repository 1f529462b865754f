"""A report as a person sees it: opened in a real browser, without a network."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

# What makes Chromium call home by itself, which would hide what a page asks for.
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--enable-logging=stderr", "--v=0"),
]
SCRIPT = """<script>addEventListener('load', () => document.title = JSON.stringify(
[...document.images].map(image => image.complete && image.naturalWidth > 100)))</script>"""


@dataclass(frozen=True)
class Page:
    """What a browser says of a page: whether each image was drawn, and what it complained of and asked for."""

    images: list[bool]
    console: list[str]
    requests: list[str]


def open_page(path: Path, folder: Path) -> Page:
    """Open an HTML file; `folder` takes the browser's own files. Skips where there is no browser, but fails in CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium is installed: apt-get install chromium")
    watched, log = folder / "watched.html", folder / "net.json"
    watched.write_text(path.read_text().replace("</body>", f"{SCRIPT}</body>"))
    command = [browser, *QUIET, f"--user-data-dir={folder / 'user'}", f"--log-net-log={log}"]
    ran = subprocess.run([*command, "--dump-dom", watched.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>\[(.*?)\]</title>", ran.stdout)
    assert title, ran.stderr
    requests = re.findall(r'"url":"(https?:[^"]+)"', log.read_text())
    own = re.compile(r"https?://[^/]*(google|gvt1)")  # of the browser, not of the page
    return Page(
        images=[word == "true" for word in title[1].split(",") if word],
        console=[line for line in ran.stderr.splitlines() if "CONSOLE" in line],
        requests=[url for url in requests if not own.match(url)],
    )
