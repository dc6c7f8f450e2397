"""The batch plan: every row exactly once an epoch at any world size, budgets kept, order a function of the seed."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from nbutils.train.batches import BatchPlan, StepLoader, blocks_of, even_cuts
from nbutils.train.dataset import TokenRows

lengths = st.lists(st.integers(2, 300), min_size=1, max_size=60).map(lambda xs: np.array(xs, dtype=np.int64))
plans = st.builds(
    BatchPlan,
    lengths,
    tokens_per_step=st.integers(1, 900),
    tokens_per_microbatch=st.integers(1, 500),
    seed=st.integers(0, 9),
)
many = settings(max_examples=100, deadline=None)


@given(plan=plans, world=st.integers(1, 5), epoch=st.integers(0, 3))
@many
def test_every_row_is_dealt_exactly_once_an_epoch_within_the_budget_or_alone(plan, world, epoch):
    steps = plan.steps(epoch)
    assert len(steps) == plan.steps_per_epoch
    batches = [batch for step in steps for rank in plan.deal(step, world) for batch in rank]
    assert sorted(np.concatenate(batches)) == list(range(len(plan.lengths)))
    assert all(plan.padded(batch) <= plan.tokens_per_microbatch or len(batch) == 1 for batch in batches)


@given(plan=plans)
@many
def test_a_resume_at_another_world_size_goes_on_with_the_same_rows(plan):
    for step, again in zip(plan.steps(1), plan.steps(1), strict=True):
        for world in (1, 2, 4):
            dealt = [row for rank in plan.deal(again, world) for batch in rank for row in batch]
            assert sorted(dealt) == sorted(step)


def test_a_resumed_loader_passes_over_the_steps_of_the_epoch_that_it_resumes_in():
    rows = [{"input_ids": [5] * (2 + n % 7), "supervised": [True] * (2 + n % 7)} for n in range(40)]
    token_rows = TokenRows(Dataset.from_list(rows).with_format("numpy"), "assistant", None)
    plan = BatchPlan(token_rows.lengths(), tokens_per_step=30, tokens_per_microbatch=30, seed=0)
    loader = StepLoader(token_rows, plan, first_step=plan.steps_per_epoch + 2)
    for epoch, taken in ((1, 2), (2, 0)):
        loader.set_epoch(epoch)
        seen = [sorted(np.concatenate(step.rows)) for step in loader]
        assert seen == [sorted(step) for step in plan.steps(epoch)[taken:]]


def real_plan(**changes) -> BatchPlan:
    rng = np.random.default_rng(0)
    values = {"lengths": rng.integers(20, 1024, 800), "tokens_per_step": 8192, "tokens_per_microbatch": 2048, "seed": 1}
    return BatchPlan(**(values | changes))


def test_order_depends_on_seed_and_epoch_alone():
    def flat(plan, epoch):
        return np.concatenate(plan.steps(epoch)).tolist()

    assert flat(real_plan(), 0) == flat(real_plan(), 0)
    assert flat(real_plan(), 0) != flat(real_plan(), 1)
    assert flat(real_plan(), 0) != flat(real_plan(seed=2), 0)


def test_steps_hold_their_tokens_and_ranks_are_balanced():
    plan = real_plan()
    tokens = [int(plan.lengths[step].sum()) for step in plan.steps(0)]
    assert plan.steps_per_epoch == round(plan.lengths.sum() / 8192)
    assert abs(np.mean(tokens) - 8192) < 200 and max(tokens) < 8192 + 2048
    for step in plan.steps(0):
        loads = [sum(plan.padded(batch) for batch in rank) for rank in plan.deal(step, 2)]
        assert max(loads) - min(loads) <= 2048
    assert plan.padding() < 0.1


def test_edges():
    assert blocks_of([], 10) == [0]
    assert blocks_of([5, 5, 50], 10) == [0, 2, 3]
    assert even_cuts(np.array([100, 1, 1]), 3) == [0, 1, 2, 3]
    assert even_cuts(np.array([1, 1, 100]), 3) == [0, 1, 2, 3]
    assert BatchPlan(np.array([2000, 2000]), 1000, 500, 0).steps_per_epoch == 2
    assert BatchPlan(np.array([10]), 1000, 500, 0).deal(np.array([0]), 2)[1] == []
    assert BatchPlan(np.array([10] * 7), 30, 30, 0).total_steps(1.5) == 3
