"""A JupyterLab on this machine and a headless Chromium that looks at it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT, missing

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
SCREENSHOTS = ROOT / "runs" / ".screenshots"


class Lab:
    """A running JupyterLab: where it listens, and the folder that it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.token = secrets.token_hex(16)
        home = folder / ".home"
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
            f"--port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=",
            "--ServerApp.open_browser=False", "--FileContentsManager.delete_to_trash=False",
        ]  # fmt: skip
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(home / "config"), "OMP_NUM_THREADS": "1",
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
        }  # fmt: skip
        quiet = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        quiet.parent.mkdir(parents=True)
        quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        self.log = (folder / "lab.log").open("w")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log, cwd=folder)

    def wait(self, seconds: float = 60) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token={self.token}", timeout=2)
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "lab.log").read_text()
                time.sleep(0.2)
        raise TimeoutError((self.folder / "lab.log").read_text()[-2000:])

    def url(self, notebook: str) -> str:
        """Where a notebook opens, alone in the window."""
        return f"http://127.0.0.1:{self.port}/lab/workspaces/{secrets.token_hex(4)}/tree/{notebook}?token={self.token}"

    def write(self, name: str, cells: list[str]) -> str:
        """Writes a notebook with these code cells."""
        notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / name)
        return name

    def close(self) -> None:
        """Ends the server and its kernels."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        server.wait()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        missing("there is no Chromium (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


class Notebook:
    """A notebook open in JupyterLab, driven as a person would."""

    def __init__(self, page, lab: Lab, name: str) -> None:
        self.page = page
        page.goto(lab.url(name))
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.evaluate(
            "document.querySelector('.jp-Notebook') && jupyterapp.commands.execute('application:toggle-mode')"
        )
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)

    def output(self, index: int):
        """What a cell shows."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index).locator(".jp-OutputArea-output")

    def run(self, index: int) -> None:
        """Runs one cell, and waits until it is done."""
        self.page.evaluate(
            """async index => {
              const panel = jupyterapp.shell.currentWidget;
              await panel.sessionContext.ready;
              panel.content.activeCellIndex = index;
              await jupyterapp.commands.execute('notebook:run-cell');
            }""",
            index,
        )

    def restart(self) -> None:
        """Restarts the kernel, as a person who has pressed ⟳ and agreed."""
        self.page.evaluate(
            """async () => {
              const { sessionContext } = jupyterapp.shell.currentWidget;
              await sessionContext.session.kernel.restart();
            }"""
        )

    def chat(self, index: int, run: bool = True):
        """The chat below a cell, which runs first."""
        if run:
            self.run(index)
        chat = self.page.locator(".jp-Notebook .jp-CodeCell").nth(index).locator(".smallchat").last
        chat.wait_for(timeout=60_000)
        chat.scroll_into_view_if_needed()
        return chat

    def screenshot(self, name: str, chat=None) -> None:
        """A picture for people, in runs/.screenshots."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        (chat or self.page).screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture(scope="session")
def context(browser):
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    yield context
    context.close()


@pytest.fixture(scope="module")
def open_notebook(lab, context) -> Iterator[Callable[..., Notebook]]:
    """Opens a notebook of the lab's folder, written first where cells are given; the first of them runs."""
    pages = []

    def open_it(name: str, cells: Sequence[str] = ()) -> Notebook:
        pages.append(context.new_page())
        opened = Notebook(pages[-1], lab, lab.write(name, list(cells)) if cells else name)
        if cells:
            opened.run(0)
        return opened

    yield open_it
    for page in pages:
        page.close()
