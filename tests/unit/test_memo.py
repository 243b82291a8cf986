"""Answers that are kept by the object that they are about."""

import gc
import sys
import threading
import weakref

import msgspec
import pytest

from multus.memo import _ROOM, ByIdentity


class Thing:
    """Something of its own, however equal."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


class Numbers:
    """A function that notes what it is asked; it fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.asked: list[int] = []
        self._failures = failures

    def __call__(self, thing: Thing) -> list[int]:
        self.asked.append(thing.number)
        if self._failures:
            self._failures -= 1
            raise ValueError(thing.number)
        return [thing.number]


def test_an_object_is_asked_about_once() -> None:
    numbers = Numbers()
    memo, thing = ByIdentity(numbers), Thing(7)
    answer = memo(thing)
    assert answer == [7] and memo(thing) is answer
    assert numbers.asked == [7]


def test_equal_objects_are_others() -> None:
    class Conf(msgspec.Struct, frozen=True):
        name: str

    one, other = Conf("n"), Conf("n")
    assert one == other and hash(one) == hash(other)
    memo = ByIdentity(id)
    assert (memo(one), memo(other)) == (id(one), id(other))


def test_objects_that_come_and_go_are_not_taken_for_one_another() -> None:
    """Whose memory is free is soon another's: an answer by a mere number would be about somebody else."""
    memo = ByIdentity(Numbers())
    assert [memo(Thing(number)) for number in range(5000)] == [[number] for number in range(5000)]


def test_no_more_is_kept_than_there_is_room_for() -> None:
    numbers = Numbers()
    memo = ByIdentity(numbers)
    things = [Thing(number) for number in range(_ROOM * 3 + 1)]
    seen = [weakref.ref(thing) for thing in things]
    for thing in things:
        memo(thing)
    last = things[-1]
    del thing
    things.clear()
    gc.collect()
    assert 1 <= sum(1 for each in seen if each() is not None) <= _ROOM
    numbers.asked.clear()
    assert memo(last) == [last.number] and numbers.asked == []


def test_what_was_let_go_is_asked_again() -> None:
    numbers = Numbers()
    memo, first = ByIdentity(numbers), Thing(-1)
    memo(first)
    for number in range(_ROOM):
        memo(Thing(number))
    assert memo(first) == [-1] and numbers.asked.count(-1) == 2


def test_a_failure_is_not_kept() -> None:
    numbers = Numbers(failures=2)
    memo, thing = ByIdentity(numbers), Thing(3)
    for _ in range(2):
        with pytest.raises(ValueError, match="3"):
            memo(thing)
    assert memo(thing) == memo(thing) == [3]
    assert numbers.asked == [3, 3, 3]


def test_none_is_an_answer() -> None:
    asked: list[Thing] = []
    memo, thing = ByIdentity(asked.append), Thing(0)
    memo(thing)
    memo(thing)
    assert asked == [thing]


def test_threads_get_the_answer_about_their_own_object() -> None:
    """More objects than there is room for, so that each thread throws away what the others have just kept."""
    memo, wrong = ByIdentity(Numbers()), []
    shared = [Thing(number) for number in range(_ROOM // 2)]
    start = threading.Barrier(6)

    def ask(worker: int) -> None:
        start.wait(10)
        try:
            for turn in range(4):
                for thing in [*shared, *(Thing(1000 * worker + number) for number in range(_ROOM))]:
                    if memo(thing) != [thing.number]:
                        wrong.append(f"{worker}, {turn}: {thing.number}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: they take turns all the time
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
