"""Sessions without internet: what has to be attached instead, found out in the first cell and listed all at once.

Nothing is imported here that an image might lack.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.fetched import local_copy
from nbutils.kaggle.packages import Package

Need = tuple[str, str, str, str]
"""Kind (`model` or `dataset`), name on the hub, revision ('' for any), and what it is for."""


def check_attached(
    needs: Sequence[Need], packages: Sequence[Package], recipe: str, wheels: Sequence[Path] = ()
) -> None:
    """UserError that lists everything that nobody has attached, with how to add it: packages, models, datasets.

    `recipe` is the profile with its values, as `bundle` and `fetch` take them.
    Packages count as attached where there are any wheels: whether they do is for pip to say.
    """
    lacking = [] if wheels else [str(package.requirement) for package in packages if not package.fits]
    absent = [f"{what} {name}" for kind, name, revision, what in needs if local_copy(kind, name, revision) is None]
    if not lacking and not absent:
        return
    commands, found = [], list[str]()
    if lacking:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        commands.append(f"`python -m nbutils kaggle wheels --out wheels --python {python}` for the packages")
        found.append(f"the packages {', '.join(lacking)}")
    if absent:
        commands.append(f"`python -m nbutils fetch {recipe} --out fetched` for models and data")
    raise UserError(
        f"There is no internet here, and not attached are: {', '.join(found + absent)}. Switch Internet on in the "
        f"session's options; or run {' and '.join(commands)} where there is a network, upload each folder as a Kaggle "
        "dataset, and attach it (Add Input, or bundle with --attach OWNER/DATASET)."
    )
