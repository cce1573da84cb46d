"""Chromium, in which two slow tests show pages. It is a package of the system, which no lock file can install."""

from __future__ import annotations

import shutil

NO_BROWSER = "there is no Chromium on this machine (apt-get install chromium)"


def browser_command() -> list[str] | None:
    """Return the beginning of a command that shows a page without a desktop, or None if there is no Chromium."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    program = next(found, None)
    return None if program is None else [program, "--headless=new", "--no-sandbox", "--disable-gpu"]
