"""Who is let in: nobody while the node ends, fewer while the machine runs short, none while it has run out."""

from __future__ import annotations

import pytest

from node.api.door import Door
from node.errors import HostExhausted, HostStrained, ShuttingDown, render
from node.watch.strain import Level, Strain

SHORT = Strain(level=Level.STRAINED, most_inside=2, scarce="memory")
OUT = Strain(level=Level.EXHAUSTED, most_inside=0, scarce="file descriptors")


def door(strain: Strain = SHORT, max_bytes: int = 100) -> Door:
    return Door(strain=lambda: strain, max_bytes=lambda: max_bytes)


def test_calm_machine_lets_everybody_in() -> None:
    calm = door(Strain())
    with calm.through(), calm.through(), calm.through():
        assert calm.inside == 3
    assert calm.inside == 0


def test_strained_machine_holds_so_many_and_asks_the_next_to_come_back() -> None:
    strained = door()
    with strained.through(), strained.through(), pytest.raises(HostStrained) as refusal, strained.through():
        pass
    status, headers, _ = render(refusal.value)
    assert (status, headers["retry-after"]) == (429, "2")
    assert "memory" in refusal.value.message
    with strained.through():
        assert strained.inside == 1
    assert strained.turned_away == {"host_strained": 1}


def test_exhausted_machine_lets_nobody_in() -> None:
    with pytest.raises(HostExhausted) as refusal, door(OUT).through():
        pass
    status, headers, _ = render(refusal.value)
    assert (status, headers["retry-after"]) == (503, "5")


def test_closed_door_lets_nobody_in_and_leaves_those_inside_alone() -> None:
    calm = door(Strain())
    with calm.through():
        calm.close()
        with pytest.raises(ShuttingDown), calm.through():
            pass
        assert calm.inside == 1


def test_bodies_of_all_requests_together_are_bounded_and_given_back() -> None:
    calm = door(Strain(), max_bytes=100)
    with calm.through() as first:
        first.hold(60)
        with calm.through() as second:
            second.hold(30)
            with pytest.raises(HostExhausted):
                second.hold(30)
        assert calm.held_bytes == 60
    assert calm.held_bytes == 0
    assert calm.inside == 0
