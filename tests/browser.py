"""Pages in a real headless browser: shown in frames of given widths, driven by a script beside them."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from html import unescape
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

# `drive(frame)` of each frame is called when its page stands; what it returns ends up in the host's page.
HOST = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<script>
const drive = %(drive)s;
const later = (ms) => new Promise((done) => setTimeout(done, ms));
const found = [];
const show = async (page, width) => {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:%(height)spx;border:0`;
  frame.src = page;
  document.body.append(frame);
  await new Promise((done) => frame.addEventListener("load", done));
  const errors = [];
  frame.contentWindow.addEventListener("error", (event) => errors.push(event.message));
  await later(200);
  let seen = null;
  try { seen = await drive(frame.contentWindow, later); } catch (error) { errors.push(String(error)); }
  found.push({ page, width, errors, seen });
};
(async () => {
  for (const [page, width] of %(frames)s) await show(page, width);
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
})();
</script>"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *rest):
        pass


@contextmanager
def served(folder: Path):
    """The address of a server of `folder`, on this machine alone."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run(*arguments: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """The browser without a window. It says what pages complain about as CONSOLE lines on stderr."""
    flags = ["--headless=new", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    flags += ["--no-first-run", f"--user-data-dir={profile}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # which it refuses root
    command = [BROWSER, *flags, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def drive(
    folder: Path, frames: list[tuple[str, int]], script: str, *arguments: str, height: int = 900
) -> tuple[list[dict], list[str]]:
    """What `script` (a function of a frame's window and of `later(ms)`) found in each frame, a file of
    `folder` and a width; and the complaints of the pages."""
    host = HOST % {"drive": script, "frames": json.dumps(frames), "height": height}
    (folder / "host.html").write_text(host, encoding="utf-8")
    with served(folder) as address:
        done = run(
            "--dump-dom",
            "--virtual-time-budget=20000",
            "--window-size=1400,1000",
            *arguments,
            f"{address}/host.html",
            profile=folder / "profile",
        )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    result = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert result, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(unescape(result[1])), complaints
