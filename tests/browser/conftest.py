"""A JupyterLab on this machine and a headless Chromium that looks at it."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect, sync_playwright

from nbutils.core.files import read_json
from tests.conftest import ROOT, missing

SCREENSHOTS = ROOT / "runs" / ".screenshots"
LAB = ["-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
       "--LabApp.expose_app_in_browser=True"]  # fmt: skip


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A JupyterLab whose settings are nobody else's: its `folder`, and the `url`, `token` and more that it tells."""
    folder = tmp_path_factory.mktemp("lab")
    config, runtime, said = (folder / name for name in (".config", ".runtime", "lab.log"))
    quiet = config / "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = {
        "JUPYTER_CONFIG_DIR": config,
        "JUPYTER_RUNTIME_DIR": runtime,
        "IPYTHONDIR": folder / ".ipython",
        "PYTHONPATH": ROOT,
        "OMP_NUM_THREADS": 1,
    }
    environment = os.environ | {name: str(value) for name, value in own.items()}
    with said.open("w") as log:
        process = subprocess.Popen([sys.executable, *LAB], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        while not (runtime / f"jpserver-{process.pid}-open.html").exists():  # what it writes last
            assert process.poll() is None, said.read_text()
            time.sleep(0.2)
        yield SimpleNamespace(folder=folder, **read_json(runtime / f"jpserver-{process.pid}.json"))
    finally:  # its kernels end with it
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def context():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        missing("there is no Chromium (apt-get install chromium)")
    expect.set_options(timeout=20_000)
    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=program)
        context = chromium.new_context(viewport={"width": 1200, "height": 1000})
        context.set_default_timeout(60_000)
        yield context
        chromium.close()


class Notebook:
    """A notebook open in JupyterLab, driven as a person would."""

    def __init__(self, page, address: str):
        self.page = page
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-Cell")

    def cell(self, index: int):
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def run(self, index: int):
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

    def chat(self, index: int):
        """The chat below a cell, which runs first."""
        self.run(index)
        chat = self.cell(index).locator(".smallchat").last
        chat.wait_for()
        chat.scroll_into_view_if_needed()
        return chat

    def screenshot(self, name: str, what=None):
        """A picture for people, in runs/.screenshots."""
        (what or self.page).screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture(scope="module")
def open_notebook(lab, context) -> Iterator[Callable[..., Notebook]]:
    """Opens a notebook of the lab's folder, written first where cells are given; the first of them runs."""

    def open_it(name: str, cells: Sequence[str] = ()) -> Notebook:
        if cells:
            notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(notebook, lab.folder / name)
        place = f"doc/workspaces/{secrets.token_hex(4)}/tree/{name}"  # alone in the window
        opened = Notebook(context.new_page(), f"{lab.url}{place}?token={lab.token}")
        if cells:
            opened.run(0)
        return opened

    yield open_it
    for page in context.pages:
        page.close()
