"""The simulated pipelines agree with what is known of them on paper."""

import pytest

from blockjax.benchmark.stages import blockwise, one_forward_one_backward


@pytest.mark.parametrize(("stages", "batches"), [(1, 1), (4, 1), (4, 2), (4, 32), (8, 8)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_blockwise_is_busy_for_n_of_n_and_stages_less_1(stages, batches, blocks):
    found = blockwise(stages, batches, blocks)
    assert found.busy == pytest.approx(batches / (batches + stages - 1))
    assert found.held == [1 / blocks] * stages
    assert found.sent == (1 if stages > 1 else 0)
    assert [len(stage) for stage in found.timeline] == [batches * blocks] * stages


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (4, 2), (4, 4), (4, 16), (8, 8)])
@pytest.mark.parametrize("batches", [1, 3])
def test_1f1b_has_a_bubble_in_each_batch(stages, microbatches, batches):
    """Bubble and activations as in section 2.2 of arXiv:2104.04473."""
    found = one_forward_one_backward(stages, batches, microbatches)
    assert found.busy == pytest.approx(microbatches / (microbatches + stages - 1))
    in_flight = [min(stages - stage, microbatches) for stage in range(stages)]
    assert found.held == [count / microbatches for count in in_flight]
    assert found.sent == pytest.approx(2 if stages > 1 else 0)
    for stage in found.timeline:  # nothing is done twice, or forgotten
        assert len({(task.kind, task.batch, task.part) for _, task in stage}) == len(stage)
        assert len(stage) == 2 * batches * microbatches


def test_numbers_below_1_are_refused():
    with pytest.raises(ValueError, match="stages must be at least 1, not 0"):
        blockwise(0, 1)
    with pytest.raises(ValueError, match="microbatches must be at least 1, not 0"):
        one_forward_one_backward(1, 1, 0)
