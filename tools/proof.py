"""`make proof`: trains, is killed three times before your eyes, and prints both sha256. About two minutes."""

import shutil
import sys
from pathlib import Path

import psutil

from nbutils.cli import main as nbutils
from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_file
from nbutils.pipeline.parameters import plan
from nbutils.train.run import events_of, line_of
from nbutils.train.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
KILLED_AT = (12, 24, 36)
CHANGES = ["max_steps=48", "checkpoint_steps=8", "eval_steps=16", "log_steps=4", "processes=0"]


def main() -> int:
    """Trains twice on the demo's data: once undisturbed, once with three kills."""
    status = nbutils(["run", "params/demo.yaml", "--only", "data"])
    if status:
        return status
    undisturbed, killed = train("undisturbed", ()), train("killed", KILLED_AT)
    print("\nsha256 of final/model.safetensors")
    print(f"  undisturbed  {undisturbed}\n  killed       {killed}")
    same = undisturbed == killed
    print("The weights are bit-identical." if same else "The weights DIFFER: please report this.")
    return 0 if same else 1


def train(name: str, kills: tuple[int, ...]) -> str:
    """One run in runs/proof/NAME, killed with SIGKILL once at each of the steps; the hash of its final weights."""
    run = ROOT / "runs" / "proof" / name
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(ROOT / "runs" / "demo" / "data", run / "data")
    settings = plan(ROOT / "params" / "demo.yaml", CHANGES, str(run)).stages[1].settings
    (run / "train").mkdir()
    left = list(kills)
    print(f"\n== {name} ==")
    while True:
        before = len(left)
        try:
            follow(settings, run, left)
        except UserError:
            if len(left) == before:  # it failed by itself, and would again
                raise
            print("  the processes are gone; starting again")
        else:
            return sha256_of_file(run / "train" / "final" / "model.safetensors")


def follow(settings: TrainSettings, run: Path, kills: list[int]) -> None:
    """Shows a session's progress, and kills every training process at the next step of `kills`."""
    steps = 0
    for event in events_of(settings, run / "train"):
        steps = event.get("steps", steps)
        line = line_of(event, steps)
        if line:
            print("  " + line)
        if kills and event.get("kind") == "train" and event["step"] >= kills[0]:
            kills.pop(0)
            print(f"  SIGKILL to every training process after step {event['step']}")
            for process in psutil.Process().children(recursive=True):
                process.kill()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
