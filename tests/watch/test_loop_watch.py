"""What stands in the way of every client at once shows in the statistics, with when it was."""

import asyncio
import time

from node.watch.loop_watch import LoopWatch, Pauses


def test_what_blocks_the_loop_is_counted_and_what_the_machine_kept_from_it_is_not() -> None:
    pauses = Pauses()
    pauses.take(0.001, 0.0, 10.0)
    pauses.take(0.080, 0.075, 11.0)
    pauses.take(0.080, 0.005, 12.0)
    assert (pauses.long_ones, round(pauses.longest_s, 3)) == (1, 0.075)
    assert [each.at_s for each in pauses.recent] == [12.0]
    assert pauses.cpu_wait_s is not None
    assert round(pauses.cpu_wait_s, 3) == 0.08


def test_where_the_kernel_does_not_tell_all_of_a_pause_counts() -> None:
    pauses = Pauses()
    pauses.take(0.080, None, 1.0)
    assert (pauses.long_ones, pauses.longest_s, pauses.cpu_wait_s) == (1, 0.080, None)


async def test_code_that_blocks_the_loop_is_seen_by_the_watch() -> None:
    watch = LoopWatch(time.monotonic)
    watch.start()
    await asyncio.sleep(0.02)
    before_s = time.thread_time()
    while time.thread_time() - before_s < 0.1:  # of processor time, however busy the machine is
        pass
    await asyncio.sleep(0.02)
    document = watch.document()
    await watch.stop()
    assert document["pauses_over_50_ms"] == 1
    assert document["longest_pause_s"] >= 0.08
    assert document["recent_pauses"][-1]["ran_s"] >= 0.08, "it was the loop that computed"
    assert document["tasks"] == 2
    assert watch.document()["tasks"] == 1
