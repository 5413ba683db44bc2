"""A page in headless Chromium, as wide as a phone."""

import html
import re
import shutil
import subprocess

import pytest


def browser(tmp_path, text, width):
    """(scroll width, client width, console lines) of a page in a frame `width` pixels wide,
    everything unfolded.
    """
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not chromium:
        pytest.skip("no chromium here (apt-get install chromium)")
    path = tmp_path / "frame.html"
    path.write_text(
        f'<iframe id="f" style="width:{width}px;height:700px;border:0" '
        f'srcdoc="{html.escape(text)}">'
        '</iframe><p id="out"></p>'
        "<script>f.onload = () => { const d = f.contentDocument;"
        "d.querySelectorAll('details').forEach(x => { x.open = true });"
        "const e = d.documentElement;"
        "out.textContent = `${e.scrollWidth} ${e.clientWidth}` }</script>"
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [
        chromium,
        *flags,
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=3000",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r'<p id="out">(\d+) (\d+)</p>', done.stdout)
    assert found, done.stderr[-2000:]
    return (
        int(found[1]),
        int(found[2]),
        [line for line in done.stderr.splitlines() if "CONSOLE" in line],
    )
