"""Sticky particles: the equation of motion holds between events, and time 1 is the prox."""

import pytest
import torch
from hypothesis import given
from strategies import STRENGTHS, weights

import wsr


@given(w=weights(), lambd=STRENGTHS)
def test_time_one_is_the_prox(w: list[float], lambd: float) -> None:
    x = torch.tensor(w, dtype=torch.float64)
    motion = wsr.simulate(x, lambd)
    scale = max(map(abs, w)) + lambd
    torch.testing.assert_close(motion.positions[-1], wsr.prox(x, lambd), rtol=0, atol=1e-13 * scale)


@given(w=weights(), lambd=STRENGTHS)
def test_the_equation_of_motion(w: list[float], lambd: float) -> None:
    x = torch.tensor(w, dtype=torch.float64)
    motion = wsr.simulate(x, lambd)
    m, d = motion.positions.shape
    assert motion.times.shape == (m,)
    assert motion.velocities.shape == motion.labels.shape == (m, d)
    assert motion.times[0] == 0
    assert motion.times[-1] == 1
    assert (motion.times.diff() > 0).all()
    assert torch.equal(motion.positions[0], x)
    scale = max(map(abs, w)) + lambd
    for n in range(m):
        labels = motion.labels[n]
        assert sorted(set(labels.tolist())) == list(range(int(labels.max()) + 1))
        # Clusters are numbered from the left, and their members stand at the same place.
        before = (labels[:, None] < labels).double()
        gap = motion.positions[n] - motion.positions[n][:, None]
        assert (gap * before >= -1e-13 * scale).all()
        assert (gap[labels[:, None] == labels].abs() <= 1e-13 * scale).all()
        pull = (before - before.T).sum(1) * lambd / max(d - 1, 1)
        torch.testing.assert_close(motion.velocities[n], pull)
        if n + 1 < m:
            step = motion.times[n + 1] - motion.times[n]
            arrival = motion.positions[n] + step * motion.velocities[n]
            torch.testing.assert_close(motion.positions[n + 1], arrival, rtol=0, atol=1e-13 * scale)
            # Ties are only gained.
            tied = labels[:, None] == labels
            later = motion.labels[n + 1][:, None] == motion.labels[n + 1]
            assert (later | ~tied).all()


@given(w=weights(), lambd=STRENGTHS)
def test_interpolates(w: list[float], lambd: float) -> None:
    x = torch.tensor(w, dtype=torch.float64)
    motion = wsr.simulate(x, lambd)
    scale = max(map(abs, w)) + lambd
    assert torch.equal(motion.at(0.0), x)
    assert torch.equal(motion.at(1.0), motion.positions[-1])
    middle = (motion.times[0] + motion.times[1]).item() / 2
    half_way = (motion.positions[0] + motion.positions[1]) / 2
    torch.testing.assert_close(motion.at(middle), half_way, rtol=0, atol=1e-13 * scale)
    for t in (0.25, 0.5):
        torch.testing.assert_close(motion.at(t), wsr.prox(x, t * lambd), rtol=0, atol=1e-13 * scale)


def test_who_sticks_to_whom_and_when() -> None:
    motion = wsr.simulate(torch.tensor([9.0, 0.0, 1.0, 0.0]), 3.0)
    assert motion.labels.tolist() == [[2, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    # Velocities: the tied pair 2, the third -1, the last -3; they meet at 1/3.
    torch.testing.assert_close(motion.times, torch.tensor([0.0, 1 / 3, 1.0], dtype=torch.float64))
    assert motion.velocities[0].tolist() == [-3.0, 2.0, -1.0, 2.0]


def test_a_meeting_at_the_last_moment_counts() -> None:
    motion = wsr.simulate(torch.tensor([0.0, 2.0]), 1.0)
    assert motion.times.tolist() == [0, 1]
    assert motion.labels.tolist() == [[0, 1], [0, 0]]
    assert motion.positions[-1].tolist() == [1, 1]


def test_meetings_at_one_moment_are_one_event() -> None:
    motion = wsr.simulate(torch.tensor([-1.0, 0.0, 1.0]), 2.0)
    assert motion.times.tolist() == [0, 0.5, 1]
    assert motion.labels[1].tolist() == [0, 0, 0]
    assert wsr.simulate(torch.tensor([0.0, 1.0, 10.0, 11.0]), 3.0).times.shape == (3,)


def test_equal_weights_are_tied_from_the_start_even_at_rest() -> None:
    motion = wsr.simulate(torch.tensor([0.0, 1.0, 0.0]), 0.0)
    assert motion.times.tolist() == [0, 1]
    assert motion.labels.tolist() == [[0, 1, 0]] * 2


@pytest.mark.parametrize("d", [0, 1])
def test_nothing_to_meet(d: int) -> None:
    motion = wsr.simulate(torch.ones(d), 1.0)
    assert motion.positions.tolist() == [[1.0] * d] * 2


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_times_outside_are_refused(t: float) -> None:
    with pytest.raises(ValueError, match=rf"t must lie in \[0, 1\]; got {t}"):
        wsr.simulate(torch.ones(2), 1.0).at(t)
