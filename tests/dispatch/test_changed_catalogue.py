"""The catalogue is exchanged while a request waits: it is placed by what is declared when its turn comes."""

import asyncio
from dataclasses import replace

import pytest

from node.catalogue import CloudEquivalent
from node.dispatch.dispatcher import ServedModel
from tests.dispatch.doubles import PRICE, WHOLE, House, ScriptedBackend, ScriptedEngine, named, read
from tests.dispatch.test_hedging import hedging
from tests.dispatch.virtual_time import in_virtual_time, settle


def redeclare(home: House, model: str) -> None:
    """From now on the cloud's equivalent is called `model`."""
    (declared,) = home.model.cloud
    declare(home, replace(declared, model=model))


def declare(home: House, *equivalents: CloudEquivalent) -> None:
    """From now on these are the cloud's equivalents."""
    home.model = replace(home.model, cloud=equivalents)
    home.dispatcher.served = {"demo": ServedModel(home.model, home.lane)}


@in_virtual_time
async def test_row_76_request_that_waits_goes_to_the_equivalent_declared_meanwhile() -> None:
    home = House(ScriptedEngine(slots=1), [ScriptedBackend("cloud")])
    running = await home.answer(named("a"))
    waiting = asyncio.create_task(home.answer(named("b")))
    await settle()
    redeclare(home, "newer")
    assert await read(await waiting)
    assert [permit.model for permit in home.clouds["cloud"].permits] == ["newer"]
    await running.aclose()


@in_virtual_time
async def test_row_76_answer_under_way_ends_as_it_began() -> None:
    home = House(None, [ScriptedBackend("cloud")])
    answer = await home.answer(named("a"))
    redeclare(home, "newer")
    assert await read(answer) == b"role;hello;end;"
    assert [permit.model for permit in home.clouds["cloud"].permits] == ["cloud-model"]
    assert home.outcome.cost_nano_usd > 0


@in_virtual_time
async def test_row_76_request_that_waits_pays_the_price_declared_meanwhile() -> None:
    home = House(ScriptedEngine(slots=1), [ScriptedBackend("cloud")])
    (declared,) = home.model.cloud
    declare(home, replace(declared, price=None))
    running = await home.answer(named("a"))
    waiting = asyncio.create_task(home.answer(named("b")))
    await settle()
    declare(home, replace(declared, price=PRICE))
    assert await read(await waiting)
    assert home.outcome.cost_nano_usd > 0
    await running.aclose()


@in_virtual_time
async def test_row_76_late_stream_is_not_cut_for_a_provider_that_has_gone() -> None:
    home = House(None, [ScriptedBackend("late", (20.0, *WHOLE)), ScriptedBackend("other")])
    waiting = asyncio.create_task(home.answer(named("a")))
    await asyncio.sleep(0.5)
    declare(home, home.model.cloud[0])
    assert await read(await waiting)
    assert home.outcome.attempts == 1
    assert home.clouds["other"].serves.opened == 0


@pytest.mark.parametrize("gone", [True, False])
@in_virtual_time
async def test_row_76_no_copy_is_sent_to_a_provider_that_has_gone_or_once_there_are_to_be_none(gone: bool) -> None:
    home = House(
        ScriptedEngine(ScriptedBackend("local", (10.0, *WHOLE))), [ScriptedBackend("cloud")], hedging=hedging()
    )
    waiting = asyncio.create_task(home.answer(named("a")))
    await asyncio.sleep(0.5)
    if gone:
        declare(home)
    else:
        home.dispatcher.hedger.hedging = None
    assert await read(await waiting)
    assert (home.outcome.backend, home.clouds["cloud"].serves.opened) == ("local", 0)
