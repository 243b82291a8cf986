"""Pauses grow, are spread, and start small again."""

from multus.kube.backoff import Backoff


def test_doubles_up_to_the_longest() -> None:
    pauses = Backoff(0.5, 3.0, chance=lambda: 1.0)
    assert [pauses.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_is_never_less_than_half_a_step() -> None:
    pauses = Backoff(1.0, 8.0, chance=lambda: 0.0)
    assert [pauses.next() for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]


def test_starts_small_again() -> None:
    pauses = Backoff(1.0, 8.0, chance=lambda: 1.0)
    pauses.next(), pauses.next()
    pauses.reset()
    assert pauses.next() == 1.0


def test_is_spread() -> None:
    assert len({Backoff(1.0, 8.0).next() for _ in range(20)}) > 1
