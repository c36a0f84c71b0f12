import pytest
import torch

from trainer import schedules


@pytest.mark.parametrize(
    ("cycles", "cycle_len", "cycle_mult", "epochs"),
    [
        (3, 1, 1, 3),
        (3, 1, 2, 7),
        (2, 4, 1, 8),
        (3, 1, 3, 13),
        (8, 4, 1, 32),
        (2, 3, 2, 9),
    ],
)
def test_the_cycles_of_fast_ai_last_as_many_epochs_as_published(
    cycles: int, cycle_len: int, cycle_mult: int, epochs: int
) -> None:
    assert schedules.total_epochs(cycles, cycle_len, cycle_mult) == epochs


def test_warm_restarts_equal_torchs_scheduler_stepped_after_every_batch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2)
    for step in range(70):
        assert 0.3 * schedules.share("sgdr", step, 10, 2) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_cycle_begins_at_the_highest_rate_and_never_reaches_the_floor() -> None:
    shares = [schedules.share("sgdr", step, 10, 1) for step in range(20)]
    assert shares[0] == shares[10] == 1
    assert min(shares) == shares[9] == shares[19] == schedules.cosine(0.9) > 0


def test_cycles_start_where_the_one_before_ended() -> None:
    assert schedules.cycle_starts(3, 1, 2) == [0, 1, 3]


def test_one_rate_is_the_heads_and_spreads_down_to_the_early_layers() -> None:
    assert schedules.group_rates(0.01, 10, 3) == pytest.approx((1e-4, 1e-3, 1e-2))
    assert schedules.group_rates((1.0, 2.0), 10, 2) == (1.0, 2.0)
