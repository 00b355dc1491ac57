"""Running short of memory or descriptors: first fewer requests, then none, and back again without flapping."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from node.watch.host import HostReader
from node.watch.host_watch import HostWatch
from node.watch.strain import Level, Resource, Strain, StrainControl

GIB = 1024**3
MIB = 1024**2


def memory(free_mib: int) -> Resource:
    """Of 8 GiB; the reserve is 512 MiB."""
    return Resource(name="memory", used=8 * GIB - free_mib * MIB, limit=8 * GIB, reserve=512 * MIB)


def after(*samples: tuple[int, int]) -> Strain:
    """The strain after samples of (MiB free, requests inside)."""
    control = StrainControl()
    strain = Strain()
    for free_mib, inside in samples:
        strain = control.take([memory(free_mib)], inside)
    return strain


@pytest.mark.parametrize(
    ("free_mib", "level", "most_inside"),
    [(4000, "calm", None), (513, "calm", None), (511, "strained", 99), (384, "strained", 50), (256, "exhausted", 0)],
)
def test_row_74_the_less_is_free_the_fewer_are_held(free_mib: int, level: str, most_inside: int | None) -> None:
    strain = after((free_mib, 100))
    assert (strain.level, strain.most_inside) == (level, most_inside)


def test_small_limit_has_a_small_reserve() -> None:
    assert Resource(name="file descriptors", used=50, limit=64, reserve=256).depth < 0
    assert Resource(name="file descriptors", used=60, limit=64, reserve=256).depth >= 1


def test_level_is_left_only_well_below_where_it_was_entered() -> None:
    assert after((500, 100), (520, 50)).level is Level.STRAINED
    assert after((500, 100), (600, 50)).level is Level.CALM
    assert after((200, 100), (270, 50)).level is Level.EXHAUSTED
    assert after((200, 100), (330, 50)).level is Level.STRAINED


def test_how_many_are_held_is_counted_from_the_moment_it_became_short() -> None:
    assert after((500, 100), (384, 60)).most_inside == 50


def test_deepest_of_several_resources_counts_and_is_named() -> None:
    control = StrainControl()
    descriptors = Resource(name="file descriptors", used=990, limit=1000, reserve=256)
    assert control.take([memory(4000), descriptors], 5).scarce == "file descriptors"


def test_memory_that_never_comes_back_does_not_close_the_node_for_ever() -> None:
    assert after((100, 50), (100, 0)).most_inside == 1
    assert after((100, 50), (100, 0), (100, 1)).most_inside == 0


def test_nothing_known_is_calm() -> None:
    assert StrainControl().take([], 5) == Strain()


def test_own_limit_counts_resident_memory(tmp_path: Path) -> None:
    (tmp_path / "statm").write_text("1000 500 0 0 0 0 0\n")
    (found,) = [each for each in HostReader(GIB, proc=tmp_path, cgroup=tmp_path).read() if each.name == "memory"]
    assert (found.used, found.limit) == (500 * os.sysconf("SC_PAGE_SIZE"), GIB)


@pytest.mark.parametrize(
    ("folder", "limit", "used", "idle"),
    [
        (".", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_container_limit_is_read_and_what_can_be_dropped_left_out(
    tmp_path: Path, folder: str, limit: str, used: str, idle: str
) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / limit).write_text(f"{GIB}\n")
    (place / used).write_text(f"{700 * MIB}\n")
    (place / "memory.stat").write_text(f"anon 1\n{idle} {200 * MIB}\n")
    (found,) = [each for each in HostReader(None, cgroup=tmp_path).read() if each.name == "container memory"]
    assert (found.used, found.limit) == (500 * MIB, GIB)


def test_limit_of_a_service_is_found_below_the_mount(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/system.slice/spillway.service\n")
    place = tmp_path / "system.slice" / "spillway.service"
    place.mkdir(parents=True)
    (place / "memory.max").write_text(f"{GIB}\n")
    (place / "memory.current").write_text("5\n")
    found = [each for each in HostReader(None, proc=tmp_path, cgroup=tmp_path).read() if "container" in each.name]
    assert [(each.used, each.limit) for each in found] == [(5, GIB)]


@pytest.mark.parametrize("limit", ["max\n", f"{2**63 - 4096}\n", "", "nonsense"])
def test_no_container_limit_is_none(tmp_path: Path, limit: str) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("1")
    names = [each.name for each in HostReader(None, cgroup=tmp_path).read()]
    assert "container memory" not in names


def test_descriptors_of_this_process_are_counted() -> None:
    (found,) = [each for each in HostReader(None).read() if each.name == "file descriptors"]
    assert 3 <= found.used < found.limit


def test_watch_logs_a_change_of_level_once(caplog: pytest.LogCaptureFixture) -> None:
    class Reader:
        free_mib = 4000

        def read(self) -> tuple[Resource, ...]:
            return (memory(self.free_mib),)

    reader = Reader()
    watch = HostWatch(reader, lambda: 10)
    with caplog.at_level(logging.INFO):
        for reader.free_mib in (4000, 400, 390, 4000, 4000):
            watch.sample()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert watch.strain().level is Level.CALM
