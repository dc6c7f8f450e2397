"""`python -m nbutils page PROFILE`: makes a run's page that talks, and hands it out on this machine.

Where the profile asks for no page, the run stays as it is: notebook 06 makes the page in a run folder of its own beside
it, of links to what the run's other stages have made. Nothing is pushed there.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nbutils.core.errors import UserError
from nbutils.core.files import link, shown, writing, written
from nbutils.core.run.layout import CHECKPOINTS, Run
from nbutils.core.run.record import RUN_RECORD, SCHEMA, read_record, write_record
from nbutils.core.run.stage import check_upstream, locked
from nbutils.pipeline.choice import Options
from nbutils.pipeline.display import Display
from nbutils.pipeline.parameters import Plan, add_profile, plan, planned_by
from nbutils.pipeline.run import add_stale, go
from nbutils.publish.export import PAGE
from nbutils.publish.settings import PublishSettings

PORT = 8000
"""Where a page is looked for first; where that is taken, any port that is free."""

PAGE_OF = "page_of"
"""In the record of a page's own run: the name of the other one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `page`."""
    add_profile(parser)
    add_stale(parser)


def main(arguments: argparse.Namespace) -> int:
    """Makes the page where it is not there yet, and hands it out until Ctrl-C; the exit status."""
    planned = planned_by(arguments)
    settings = planned.maker("card").settings
    assert isinstance(settings, PublishSettings)
    if not settings.page:
        own = ["page=true", "push=false", "push_page=false", *([] if settings.gguf else ["gguf=[q8_0]"])]
        planned = beside(planned, [*arguments.overrides, *own])
    card = planned.maker("card")
    state, options = card.state(), Options(arguments.accept, arguments.force, only=card.name)
    if not state.fits and (status := go(planned, options, Display())):
        return status
    with server(state.folder / PAGE) as running:
        print(f"The page is at http://127.0.0.1:{running.server_port} until you press Ctrl-C.", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def beside(planned: Plan, overrides: list[str]) -> Plan:
    """The plan of the page's own run, which gets the run's earlier stages.

    UserError where one of them is missing, and where another run has the name of the page's.
    """
    stage, run = planned.maker("card"), Run(planned.run)
    check_upstream(stage.stage, stage.settings, allow_paused=False)
    own = Run(run.path.with_name(f"{run.path.name}-page"))
    record = read_record(own.path / RUN_RECORD) or {}
    if own.path.exists() and PAGE_OF not in record:
        raise UserError(f"{shown(own.path)} is there, and no page has been made in it: move it away, or rename it.")
    origin = {"schema": SCHEMA, "name": own.path.name, "parameters": {}, PAGE_OF: run.path.name}
    with locked(run.path), writing(own.path):
        write_record(own.path / RUN_RECORD, origin | record)
        for name in stage.stage.reads:
            with written(own.folder(name)) as folder:
                left_out = shutil.ignore_patterns(CHECKPOINTS)
                shutil.copytree(run.folder(name), folder, ignore=left_out, copy_function=link)
    return plan(planned.profile, overrides, str(own.path))


class Quiet(SimpleHTTPRequestHandler):
    """Hands out files and says nothing."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def server(folder: Path) -> ThreadingHTTPServer:
    """A server of a folder on this machine's loopback."""
    handler = partial(Quiet, directory=str(folder))
    try:
        return ThreadingHTTPServer(("127.0.0.1", PORT), handler)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)
