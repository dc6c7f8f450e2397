"""Settings of the data stage: what a dataset may be given as, and what does not make an earlier result another."""

from tests.data.making import refusal, settings_for


def test_a_dataset_is_a_name_or_a_mapping_and_one_that_is_pinned_or_moved_draws_the_same_rows(tmp_path):
    whole = {"path": "org/set", "name": "en", "split": "test", "fraction": 0.5, "revision": "abc"}
    others = [*({"path": "org/set", "revision": digit * 40} for digit in "ab"), "elsewhere/set"]
    chitchat, one, *specs = settings_for(tmp_path, ["chitchat", whole, "org/set", *others]).datasets
    assert [chitchat.label, one.label] == ["chitchat", "org/set/en[test]@abc"]
    assert len({spec.label for spec in specs}) == 4
    assert len({spec.draw for spec in specs}) == 1


def test_what_cannot_be_meant_is_named(tmp_path):
    wrong = [{"path": "a", "fraction": 1.5}, {"path": "a", "splt": "x"}]
    given = {"eval_fraction": 0, "max_length": 3, "contamination_words": 1}
    said = refusal(settings_for, tmp_path, wrong, **given)
    assert all(name in said for name in ("datasets.0.fraction", "datasets.1.splt", *given))
    assert "'datasets'" in refusal(settings_for, tmp_path, [])
    assert "listed twice" in refusal(settings_for, tmp_path, ["a", "a"])


def test_a_folder_of_tasks_that_nobody_reads_makes_no_other_result(tmp_path):
    (tmp_path / "toy.yaml").write_text("task: toy")
    assert settings_for(tmp_path, ["chitchat"], task_path=str(tmp_path)).result_parameters()["files"] == {}
