"""What a sweep runs, keeps, says and refuses; its trials are made up, all else is real."""

import errno
import os
import signal
import time

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, write_json
from nbutils.core.run.record import outputs_of
from nbutils.core.run.stage import locked
from nbutils.pipeline.parameters import plan, read_profile
from nbutils.sweep import run
from nbutils.sweep.guard import in_words, losses
from nbutils.sweep.run import Sweeper
from nbutils.sweep.settings import SweepSettings
from tests.evaluate.runs import SUMS, write_task
from tests.train.runs import P100, T4

RATES = "-plearning_rate=4e-5,0.004,0.4"
SIX = [(rate, seed) for rate in (4e-5, 0.004, 0.4) for seed in (0, 1)]


def test_each_trial_is_an_ordinary_run_on_rows_that_are_made_once(sweeps):
    found = sweeps.go(RATES, "--seeds=2")
    assert sweeps.trained == SIX and len(sweeps.started) == 7
    assert found.verdict.best == {"learning_rate": 0.004}
    assert [row.word for row in found.verdict.rows] == ["best", "worse", "worse"]
    shared = sweeps.out / "data" / "data" / "summary.json"
    for rate, seed in SIX:
        folder = sweeps.out / f"learning_rate-{rate}_seed-{seed}"
        assert read_json(folder / "train" / "stage.json")["inputs"] == {"data/summary.json": sha256_of_file(shared)}
        assert (folder / "data" / "summary.json").samefile(shared)
    assert sweeps.go(RATES, "--seeds=2").verdict == found.verdict and not sweeps.started
    report = (sweeps.out / "sweep.md").read_text()
    assert found.verdict.sentence in report and read_json(sweeps.out / "verdict.json")["left"] == 0


def test_more_values_and_seeds_join_a_sweep(sweeps):
    sweeps.go(RATES)
    sweeps.go("-plearning_rate=0.004,0.001", "--seeds=2")
    assert sweeps.trained == [(0.004, 1), (0.001, 0), (0.001, 1)]


def test_where_the_rows_have_changed_all_trials_are_trained_on_the_new_ones(sweeps):
    sweeps.go(RATES)
    sweeps.talk.write_text(sweeps.talk.read_text() * 2)
    sweeps.sweeper(RATES).explain()
    assert "seed 0: run again (changed: file outside the run" in sweeps.said[-2]
    assert not sweeps.go(RATES).left and sweeps.trained == SIX[::2]


@pytest.mark.parametrize(
    "options,word,rows,aside",
    [([], "ask", 2, 0), (["--accept"], "keep", 3, 0), (["--force"], "set aside and run", 3, 1)],
)
def test_long_work_that_is_stale_is_kept_or_set_aside_as_a_person_says(sweeps, options, word, rows, aside):
    sweeps.go(RATES)
    record = sweeps.out / "learning_rate-0.004_seed-0" / "train" / "stage.json"
    made = read_json(record)
    write_json(record, made | {"parts": made["parts"] | {"code": "another"}, "work_seconds": 700})
    sweeps.sweeper(RATES, *options).explain()
    assert f"seed 0: {word} (changed" in sweeps.said[-3]
    found = sweeps.go(RATES, *options)
    assert sweeps.trained == [(0.004, 0)] and len(found.verdict.rows) == rows
    assert len([*record.parents[1].glob("train-*")]) == aside
    assert ("--accept to keep it, with --force to set it aside" in str(found.failed)) != bool(options)


@pytest.mark.parametrize("step", ["core.files.link", "sweep.settings.write_record", "sweep.settings.write_text"])
def test_a_disk_that_fills_is_one_sentence(sweeps, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"written \(.*No space left.*\): make room"):
        patch.setattr(f"nbutils.{step}", full)
        sweeps.go(RATES)
    assert not [*sweeps.out.glob("*_seed-*/*")]
    assert sweeps.go(RATES).left == 0


def test_a_parameter_of_the_rows_makes_them_once_for_each_of_its_values(sweeps):
    found = sweeps.go("-pmax_length=512,1024", RATES, "-psplit_seed=3", "-pseed=5")
    assert len(sweeps.started) == 2 + 6 and len(found.verdict.rows) == 6
    assert [sum(f"rows of max_length {n}: never run" in line for line in sweeps.said) for n in (512, 1024)] == [1, 1]
    assert {process.given.get("seed") for process in sweeps.started} == {None, 5}  # what makes rows has the profile's


def test_what_fails_is_said_and_the_others_run(sweeps):
    sweeps.conduct = lambda process: "fails"
    assert len(sweeps.go(RATES, "--seeds=2").failed) == 6 and not sweeps.trained  # without rows
    sweeps.conduct = lambda process: "fails" if process.given.get("learning_rate") == 0.4 else "done"
    found = sweeps.go(RATES, "--seeds=2")
    assert sweeps.trained == SIX and len(found.verdict.rows) == 2 and found.left == 0
    assert found.sentences[-1] == "Failed: learning_rate 0.4, seed 1. It cannot be done."
    sweeps.conduct = lambda process: "done"
    sweeps.go(RATES, "--seeds=2")
    assert sweeps.trained == SIX[4:]


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def stopped(after, event):
    """So many processes come to their end; while the next one is at work this happens, and it pauses when asked."""
    ended = []

    def conduct(process):
        if len(ended) < after:
            ended.append(process)
            return "done"
        if not process.asked:
            event()
        return "paused" if process.asked else ""

    return conduct


@pytest.mark.parametrize("how", ["minutes", "a signal"])
def test_it_pauses_says_what_is_left_and_goes_on(sweeps, monkeypatch, how):
    def late(now=time.time):
        monkeypatch.setattr(run.time, "time", lambda: now() + 3600)

    sweeps.conduct = stopped(5, terminate if how == "a signal" else late)
    found = sweeps.go(RATES, "--seeds=2", *["--minutes=30"] * (how == "minutes"))
    assert sweeps.trained == SIX[:5] and found.left == 2 and len(found.verdict.rows) == 2
    assert "learning_rate 0.4, seed 0: paused at 50 % (step 3)" in sweeps.said
    assert found.sentences[-1] == "2 of 6 trials left: run the same again to go on."
    sweeps.sweeper(RATES, "--seeds=2", gpus=["0", "1"]).explain()
    assert "2 of 6 trials left, about" in sweeps.said[-1] and sweeps.said[-1].endswith("each, 2 at a time.")
    sweeps.conduct = lambda process: "done"
    assert sweeps.go(RATES, "--seeds=2").left == 0
    assert sweeps.trained == SIX[4:]


def test_a_notebooks_cell_goes_on_after_it_was_interrupted(sweeps):
    sweeps.conduct, sweeper = stopped(2, terminate), sweeps.sweeper(RATES)
    assert sweeper.go().left == 2
    sweeps.conduct = lambda process: "done"
    assert not sweeper.go().left


def test_explaining_starts_nothing(sweeps):
    sweeps.sweeper(RATES, "--seeds=2").explain()
    assert not sweeps.out.exists() and "learning_rate 0.4, seed 1: run (never run)" in sweeps.said
    assert sweeps.said[-1] == "6 of 6 trials left; how long they take is known after the first."


def test_two_gpus_train_two_trials_side_by_side(sweeps):
    def conduct(process):
        at_work = sum(other.status is None for other in sweeps.started)
        assert at_work <= 2
        return "done" if at_work == 2 or len(sweeps.started) in (1, 7) else ""

    sweeps.conduct = conduct
    assert sweeps.go(RATES, "--seeds=2", gpus=["3", "1"]).left == 0
    trained = sweeps.started[1:]
    assert {p.given["processes"] for p in trained} == {1}
    assert {p.environment["CUDA_VISIBLE_DEVICES"] for p in trained} == {"3", "1"}


@pytest.mark.parametrize("visible,found", [("", ["0", "2"]), ("4, 5,6", ["4", "6"])])
def test_only_usable_gpus_count_by_the_names_that_they_have_here(monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(run, "visible_gpus", lambda: (T4, P100, T4))
    assert run.devices() == found


def test_the_winner_becomes_a_profile(sweeps, tmp_path):
    won = tmp_path / "won.yaml"
    sweeps.go(RATES, "-pschedule=linear", f"--take={won}")
    values = {name: given.value for name, given in read_profile(won).items()}
    del values["datasets"]
    assert values == {"epochs": 2, "schedule": "linear", "learning_rate": 0.004}
    assert plan(won, []) and won.read_text().startswith("# The recipe that a sweep has taken. Take learning_rate 0.004")
    sweeps.go(RATES, "-pschedule=linear", f"--take={won}")  # over its own
    won.write_text(edited := won.read_text().replace("epochs: 2", "epochs: 3"))
    with pytest.raises(UserError, match="move it away"):
        sweeps.go(RATES, "-pschedule=linear", f"--take={won}")
    assert won.read_text() == edited


def test_a_notebooks_parameters_plan_the_same(sweeps):
    asked = sweeps.sweeper("-plearning_rate=1e-3,2e-3", "-pdatasets=[chitchat],[chitchat, x.jsonl]", "-pkeep=last",
                           "--seeds=2").sweep  # fmt: skip
    names = {"run_dir": str(sweeps.out), "profile": str(sweeps.profile), "values": {"keep": "last"},
             "sweep": {"learning_rate": ["1e-3", 0.002], "datasets": [["chitchat"], ["chitchat", "x.jsonl"]]},
             "seeds": 2, "minutes": 0, "guard": "", "take": ""}  # fmt: skip
    planned = SweepSettings.checked(names).plan()
    assert planned.identity == asked.identity
    assert [trial.label for trial in planned.trials] == [trial.label for trial in asked.trials]


WRONG = {
    "-plearning_rat=1,2": "no notebook has a parameter 'learning_rat'. Did you mean 'learning_rate'?",
    "-plearning_rate=0.1,70": "The parameter 'learning_rate' is 70",
    "-plearning_rate=0.1,1e-1": "learning_rate 0.1, seed 0 is planned twice",
    "-plearning_rate=0.1,0.2 -plearning_rate=0.3": "learning_rate is given twice",
    "-plearning_rate=0.1": "Nothing is swept",
    f"{RATES} --seeds=0": "The parameter 'seeds' is 0",
    f"{RATES} --seeds=70": "210 trials, more than 200: say --yes",
    "-pseed=1,2": "seed cannot be swept; every trial is repeated with as many seeds as --seeds says",
    "-psplit_seed=1,2": "split_seed cannot be swept; it is the same for all trials",
    "-psupervise=all,assistant": "supervise cannot be swept; each of its values counts the loss on other tokens",
    "-plog_steps=1,2": "log_steps cannot be swept; it changes nothing of what a training makes",
    "-pinternet=true,false": "internet cannot be swept; it changes nothing",
    f"{RATES} -prun_dir=runs/x": "A sweep sets run_dir for each of its trials",
    f"{RATES} -ppause_after_steps=3": "A sweep sets pause_after_steps for each of its trials",
    f"{RATES} -pplain_loop_steps=3": "A sweep sets plain_loop_steps for each of its trials",
    f"{RATES} --guard=hellaswag:x": "The guard has 'hellaswag:x'",
    f"{RATES} --guard=helloswag:5": "helloswag",
    f"{RATES} -pdatasets=[no_such.jsonl]": "no_such.jsonl",
    f"{RATES} --take=OTHER": "is there, and not as `sweep` has written it",
    f"{RATES} --take=OTHER/won.yaml": "won.yaml cannot be written",
    f"{RATES} --out=OTHER": "a file is there; name a folder",
    f"{RATES} --out=FOLDER": "is there, and no sweep: name a new folder",
    "-pweight_decay=0.1,0.2": "holds another sweep (of learning_rate)",
    f"{RATES} -pepochs=3": "holds another sweep (parameter epochs (2.0 → 3.0))",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_one_sentence_before_the_first_trial(sweeps, refused, tmp_path, monkeypatch, words):
    monkeypatch.setattr(Sweeper, "_begin", lambda *_: pytest.fail("a process is started"))
    other = tmp_path / "mine.txt"
    other.write_text("mine")
    (tmp_path / "sweep.json").write_text("{}")  # of another program
    if "another sweep" in WRONG[words]:
        sweeps.sweeper(RATES).sweep.write()
    before = outputs_of(tmp_path)
    options = words.replace("OTHER", str(other)).replace("FOLDER", str(tmp_path)).split()
    line = ["sweep", sweeps.profile, "--out", sweeps.out, "--seeds=1", *options]
    assert WRONG[words] in refused(*line)
    assert outputs_of(tmp_path) == before


def test_two_sweeps_in_one_folder(sweeps):
    with locked(sweeps.out), pytest.raises(Exception, match="is at work in"):
        sweeps.go(RATES)


def test_the_guard_tells_of_another_metric_in_its_own_unit():
    row = {"task": "prose", "metric": "word_perplexity", "difference": 2.5, "low": 1, "high": 4, "word": "worse"}
    assert in_words(row) == "prose +2.500 word_perplexity [+1.000, +4.000]: worse"


@pytest.fixture
def sums(sweeps, tmp_path):
    """A task of six questions that the profile knows."""
    asked = write_task(tmp_path / "tasks", "sums", SUMS)
    with sweeps.profile.open("a") as file:
        file.writelines(f"{name}: '{asked[name]}'\n" for name in ("task_path", "cache_dir"))
    return "sums"


@pytest.mark.parametrize(
    "rates,leading", [("0.4,0.04,0.004,0.001", (0.004, 0.001, 0.04)), ("9,0.04,0.004", (0.004, 0.04))]
)
def test_the_guard_looks_at_the_three_leading_recipes(sweeps, sums, monkeypatch, rates, leading):
    """As far as they have not diverged."""
    row = {"task": sums, "metric": "acc", "difference": -0.5, "low": -0.9, "high": -0.1, "word": "worse"}
    monkeypatch.setattr("nbutils.sweep.answer.losses", lambda plan, guard, say: [row] * len(guard))
    found = sweeps.go(f"-plearning_rate={rates}", f"--guard={sums}:4")
    assert [*found.lost] == [f"learning_rate {rate}, seed 0" for rate in leading]
    last = "Against its base, learning_rate 0.04, seed 0: sums −50.0 points [−90.0, −10.0]: worse."
    assert last in found.sentences and last in (sweeps.out / "sweep.md").read_text()


def test_an_interrupt_ends_the_guard_and_nothing_else(sweeps, sums, monkeypatch, tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    monkeypatch.setattr("nbutils.sweep.answer.losses", lambda *_: signal.raise_signal(signal.SIGINT))
    won = tmp_path / "won.yaml"
    found = sweeps.go(RATES, f"--guard={sums}:4", f"--take={won}")
    assert sweeps.said[-1] == "The guard has ended: KeyboardInterrupt." and not found.lost and won.is_file()


def test_what_a_training_cost_is_paired_on_as_many_items_as_were_asked_for(sweeps, sums, untrained):
    """Here another untrained model in its place, and the evaluation's own functions."""
    planned = plan(sweeps.profile, ["max_length=256", "processes=1", "resamples=100"], str(untrained))
    (three,), (six,) = (losses(planned, {sums: items}, print) for items in (3, 0))
    assert (three["task"], three["metric"], three["groups"], six["groups"]) == (sums, "acc_norm", 3, 6)
    assert "too few items" in in_words(three)
