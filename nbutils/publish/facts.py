"""Everything that the model card says, read from the files of a run folder and from nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from nbutils.core.chatml import Conversation
from nbutils.core.errors import UserError
from nbutils.core.files import Json, project_root, read_json, read_jsonl, resolve, shown
from nbutils.core.run.key import upstream_hashes
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TINY
from nbutils.core.run.record import RECORD
from nbutils.core.stages import maker, spec
from nbutils.publish.repeats import repeats_of
from nbutils.publish.settings import HUB_ID, PublishSettings

CHITCHAT = "chitchat"
"""The dataset that comes with smallchat."""

DATA_FIGURES = {"lengths": "How long conversations are, in tokens"}
"""Pictures of the data stage that say more than the card's tables, and their captions."""

SPOKEN = ("sample_prompts", "scripted_messages")
"""Parameters that are texts for the model: no paths, whatever they begin with."""


Hide = Callable[[str], str]


def hides_paths(run: Path, stages: dict[str, Json]) -> Hide:
    """What hides where things lie on this machine, in a text or in JSON: what is published names no absolute path.

    A folder or file that a parameter names becomes `…/` and its name, the clone `.`, and the home folder `~`.
    """
    root = project_root()
    given = [v for record in stages.values() for name, v in record["parameters"].items() if name not in SPOKEN]
    texts = re.findall(r'"(?:[^"\\]|\\.)*"', json.dumps(given, ensure_ascii=False))
    paths = {run, *map(Path, map(json.loads, texts))}
    hidden = {str(p): f"…/{p.name}" for p in paths if p.is_absolute() and p.name and not p.is_relative_to(root)}
    hidden |= {str(path): word for path, word in ((Path.home(), "~"), (root, ".")) if path.name}
    hidden |= {json.dumps(path, ensure_ascii=False)[1:-1]: name for path, name in hidden.items()}
    known = "|".join(map(re.escape, sorted(hidden, key=len, reverse=True)))
    pattern = re.compile(rf"(?:(?<![\w.~/…])|(?<=\\[nrt]))/*({known})(?!\w)")
    return lambda text: pattern.sub(lambda found: hidden[found[1]], text)


@dataclass(frozen=True)
class Facts:
    """The contents of the files that the card is made from; `stages` are the records of the stages before this one.

    None names a place on this machine but `run`: `hide` hides them in other texts.

    `figures`: a picture's path in the run, without its ending → its caption. `sessions` are the
    training's, each with its versions. `repeats`: what the model repeats of its training data (see `repeats_of`).
    """

    run: Path
    hide: Hide
    stages: dict[str, Json]
    data: Json
    training: Json
    base: Json
    metrics: Json
    evaluation: Json
    samples: list[Json]
    transcript: Json
    figures: dict[str, str]
    sessions: list[Json]
    repeats: Json

    @property
    def model_folder(self) -> Path:
        """The trained model in the run folder."""
        return Run(self.run).model()

    @cached_property
    def held_out(self) -> list[Conversation]:
        """The conversations that were held out."""
        from datasets import load_from_disk

        return list(load_from_disk(str(Run(self.run).rows / "eval"))["messages"])

    @property
    def trained(self) -> Json:
        """The record of the training."""
        return self.stages[maker("model").name]

    @property
    def base_model(self) -> str:
        """The base as training was asked for it: `tiny`, a hub id, a folder or a file."""
        return str(self.trained["parameters"]["base_model"])

    @property
    def base_kind(self) -> str:
        """What the base is: `tiny`, of the `hub`, a local `file` or a local `folder`."""
        if self.base_model == TINY:
            return TINY
        if not self.base["local"]:
            return "hub"
        return "file" if self.base["sha256"] else "folder"

    @property
    def base_commit(self) -> str:
        """The base's commit on the Hub, or the revision that was asked for; nothing where neither is known."""
        return str(self.base["commit"] or self.parameters["base_revision"])

    def hub_base(self, settings: PublishSettings) -> str:
        """The base's name on the Hub: as `base_model_id` gives it, or `base_model` where that was loaded from there."""
        return settings.base_model_id or (self.base_model if self.base_kind == "hub" else "")

    def on_hub(self, name: str) -> bool:
        """Whether a dataset or peer was read from the Hub: what was read of this machine is in the stages' records."""
        names = name, shown(resolve(name))
        read = (record["parts"].get("parameters", {}).get("files", ()) for record in self.stages.values())
        local = any(file == own or file.startswith(f"{own}/") for file in chain(*read) for own in names)
        return name != CHITCHAT and not local and bool(HUB_ID.fullmatch(name.partition("@")[0]))

    def dataset_name(self, dataset: Json) -> str:
        """What a dataset is called on the card: of one on a disk its own name, without its path."""
        path = str(dataset["path"])
        return path if self.on_hub(path) else Path(path).name

    @property
    def local_peers(self) -> list[str]:
        """Models that were compared with and are no names of the Hub."""
        return [peer for peer in self.parameters["peers"] if not self.on_hub(peer)]

    @cached_property
    def parameters(self) -> Json:
        """The parameters of all stages; of a name that several have, training's value counts, else the last one's."""
        merged: Json = {}
        for record in (*self.stages.values(), self.trained):
            merged |= record["parameters"]
        return merged

    @property
    def pinned_parameters(self) -> Json:
        """The parameters of all stages, with the revisions of base model and datasets, and the steps, that were taken.

        Without what only that machine has and the model does not come from: runs to compare with, and local peers.
        """
        pairs = zip(self.parameters["datasets"], self.data["datasets"], strict=True)
        datasets = [given | {"revision": read["revision"]} for given, read in pairs]
        peers = list(filter(self.on_hub, self.parameters["peers"]))
        pinned: Json = {"base_revision": self.base_commit, "datasets": datasets, "compare_runs": [], "peers": peers}
        if self.parameters.get("finish_in_minutes"):  # a training of before may have been accepted
            pinned |= {"finish_in_minutes": 0.0, "max_steps": self.training["derived"]["steps"]}
        return self.parameters | pinned

    @property
    def disagreements(self) -> dict[str, str]:
        """Parameters that the notebooks were not run with one value of → the values in words."""
        found = {}
        for name, value in self.parameters.items():
            given = {s: r["parameters"][name] for s, r in self.stages.items() if name in r["parameters"]}
            if name != "run_dir" and any(other != value for other in given.values()):
                found[name] = ", ".join(f"{own!r} in {stage}" for stage, own in given.items())
        return found


def read_facts(run: Path) -> Facts:
    """The facts of a run; UserError names the first file that is missing or not as its notebook wrote it.

    UserError too where a stage was run on other files than those that are there now, unless a person accepted that: its
    numbers are of another run. Parameters, versions and commit come from each stage's own record: `run.json` holds
    those of the last notebook that was opened.
    """
    card, layout = maker("card"), Run(run)
    stages = {name: read_json(layout.folder(name) / RECORD) for name in card.reads}
    made = {
        f"{name}/{file}": entry["sha256"]
        for name, record in stages.items()
        for file, entry in record["outputs"].items()
    }
    for file, found in upstream_hashes(card, layout).items():
        if found != made[file]:
            changed = "is not what its notebook wrote (it is damaged, or was changed by hand)"
            raise UserError(
                f"{shown(run / file)} {'is missing' if found == 'missing' else changed}: run notebooks/"
                f"{spec(file.partition('/')[0]).file} again."
            )
    for name, record in stages.items():
        for file, sha256 in record["inputs"].items():
            if sha256 not in (made.get(file), "missing"):  # what was missing then was not read
                raise UserError(
                    f"{shown(layout.folder(name))} belongs to another run: {file} has changed since notebooks/"
                    f"{spec(name).file} read it; run that notebook again, or keep its work with --accept, which the "
                    "card will say."
                )
    hide = hides_paths(run, stages)

    def hidden_in(value: Any) -> Any:
        return json.loads(hide(json.dumps(value, ensure_ascii=False)))

    def read(role: str, name: str) -> Any:
        file = layout.folder(maker(role).name) / name
        return hidden_in(read_jsonl(file) if file.suffix == ".jsonl" else read_json(file))

    metrics = read("curves", "summary.json")
    return Facts(
        run=run,
        hide=hide,
        stages=hidden_in(stages),
        data=read("rows", "summary.json"),
        training=read("model", "settings.json"),
        base=read("model", "base/source.json"),
        metrics=metrics,
        evaluation=read("scores", "results.json"),
        samples=read("scores", "samples.jsonl"),
        transcript=read("transcript", "transcript.json"),
        figures={
            f"{maker(role).name}/figures/{name}": caption
            for role, captions in (("rows", DATA_FIGURES), ("curves", metrics["figures"]))
            for name, caption in captions.items()
        },
        sessions=[row for row in read("model", "metrics.jsonl") if row["kind"] == "session"],
        repeats=repeats_of(layout),
    )
