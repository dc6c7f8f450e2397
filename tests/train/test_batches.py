"""The batch plan: every row exactly once an epoch at any world size, budgets kept, order a function of the seed."""

from unittest.mock import Mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.train.batches import BatchPlan, StepLoader

lengths = st.lists(st.integers(2, 300), min_size=1, max_size=60).map(np.array)
plans = st.builds(
    BatchPlan,
    lengths,
    tokens_per_step=st.integers(1, 900),
    tokens_per_microbatch=st.integers(1, 500),
    seed=st.integers(0, 9),
)


@given(plan=plans, world=st.integers(1, 5), epoch=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_row_is_dealt_exactly_once_an_epoch_in_the_same_step_at_any_world_size(plan, world, epoch):
    """And within the budget of a micro-batch, or alone."""
    steps = plan.steps(epoch)
    assert len(steps) == plan.steps_per_epoch
    assert sorted(np.concatenate(steps)) == list(range(len(plan.lengths)))
    for step in steps:
        batches = [batch for rank in plan.deal(step, world) for batch in rank]
        assert sorted(np.concatenate(batches)) == sorted(step)
        assert all(plan.padded(batch) <= plan.tokens_per_microbatch or len(batch) == 1 for batch in batches)


def test_a_resumed_loader_passes_over_the_steps_of_the_epoch_that_it_resumes_in():
    plan = BatchPlan(np.arange(40) % 7 + 2, tokens_per_step=30, tokens_per_microbatch=30, seed=0)
    rows = Mock(supervised_counts=lambda: plan.lengths, width=int)
    loader = StepLoader(rows, plan, first_step=plan.steps_per_epoch + 2)
    for epoch, taken in ((1, 2), (2, 0)):
        loader.set_epoch(epoch)
        seen = [sorted(np.concatenate(step.rows)) for step in loader]
        assert seen == [sorted(step) for step in plan.steps(epoch)[taken:]]


def test_order_and_which_rows_meet_depend_on_seed_and_epoch_alone():
    """Of rows of one length, too."""
    first, again, *others = (
        [step.tolist() for step in BatchPlan(np.full(64, 10), 80, 80, seed).steps(epoch)]
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert first == again
    assert not any(set(first[0]) == set(step) for other in others for step in other)


def test_steps_hold_their_tokens_and_ranks_are_balanced():
    plan = BatchPlan(np.random.default_rng(0).integers(20, 1024, 800), 8192, 2048, 1)
    tokens = [plan.lengths[step].sum() for step in plan.steps(0)]
    assert plan.steps_per_epoch == round(plan.lengths.sum() / 8192)
    assert abs(np.mean(tokens) - 8192) < 200 and max(tokens) < 8192 + 2048
    for step in plan.steps(0):
        loads = [sum(plan.padded(batch) for batch in rank) for rank in plan.deal(step, 2)]
        assert max(loads) - min(loads) <= 2048
    assert plan.padding() < 0.1


def test_a_row_longer_than_a_step_is_one_and_the_last_step_of_a_part_of_an_epoch_is_whole():
    assert BatchPlan(np.array([2000, 2000]), 1000, 500, 0).steps_per_epoch == 2
    assert BatchPlan(np.array([10] * 7), 30, 30, 0).total_steps(1.4) == 3  # of two steps an epoch
