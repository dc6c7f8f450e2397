"""Whether what an earlier session left fits this bundle's settings and code, and what happens where it does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nbutils.core.cachekey import UPSTREAM
from nbutils.core.errors import UserError
from nbutils.core.notebooks import notebook_path, parameters, spec, stages
from nbutils.core.verdict import Verdict, accept, duration, in_short, judge, not_continued
from nbutils.kaggle.earlier import Earlier

if TYPE_CHECKING:
    from nbutils.core.settings import Settings

ACCEPT, FORCE = "accept", "force"
"""What a bundle can say about work that no longer fits: keep it, or start anew."""


def settings_of(name: str, names: Mapping[str, Any]) -> Settings:
    """A stage's settings out of a notebook's names; what the notebook does not name has the stage's own default."""
    from nbutils.pipeline.parameters import settings_class

    defaults = {n: p.default for n, p in parameters(notebook_path(spec(name))).items()}
    kind = settings_class(spec(name))
    return kind.checked({n: names.get(n, value) for n, value in defaults.items() if n in kind.model_fields})


def given_parameters(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names among a notebook's that are parameters of some stage."""
    known = {name for stage in stages() for name in parameters(notebook_path(stage))}
    for name in sorted(known):
        if name in names:
            yield name, names[name]


def is_done(name: str, names: Mapping[str, Any]) -> bool:
    """Whether a stage is finished, with these settings, this code and what it reads as it lies here."""
    return judge(spec(name), settings_of(name, names)).state == "done"


def changed_versions(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each library that the image brings in another version than the session before had."""
    from nbutils.core.provenance import versions

    now = versions()
    for name, before in record.get("versions", {}).items():
        if now.get(name) != before and name != "smallchat":
            yield f"Since then {name} has changed from {before} to {now.get(name)}; that is recorded, the run goes on."


def stays(earlier: Earlier, name: str, settings: Settings, stale: str, in_pipeline: bool) -> bool:
    """Whether the copy of a stage in the run folder is gone on from; one that is not is removed again.

    `stale` is ACCEPT, FORCE or '' for work that no longer fits. In a pipeline an earlier stage that runs anew may make
    it fit again. UserError for long or unfinished work about which the bundle says nothing: nobody can be asked here.
    """
    verdict = judge(spec(name), settings)
    lasting = [words for words in verdict.changed if not words.startswith(UPSTREAM)]
    if verdict.state != "stale" or (in_pipeline and not lasting):
        return True
    if stale == ACCEPT:
        accept(spec(name), settings, verdict)
        print(f"{name}: kept as it is, as --accept asks, though changed: {in_short(verdict.changed)}.")
        return True
    if verdict.protected and stale != FORCE:
        raise _ask(earlier, name, verdict)
    shutil.rmtree(settings.run_path / name)
    print(f"{name}: starts anew, for what {earlier.folder} holds no longer fits ({in_short(verdict.changed)}).")
    return False


def _ask(earlier: Earlier, name: str, verdict: Verdict) -> UserError:
    where = f"step {earlier.step}" if earlier.step else duration(verdict.work_seconds)
    keep = "" if not_continued(verdict) else "with --accept to keep it, "
    return UserError(
        f"The {name} stage that is attached ({earlier.folder}, {where}) no longer fits ({in_short(verdict.changed)}), "
        f"and nothing has been run: bundle again {keep}with --force to start anew (what is attached stays as it is), "
        "or with another run_dir, and push that."
    )
