"""The catalogue is exchanged while a request waits: it is placed by what is declared when its turn comes."""

import asyncio
from dataclasses import replace

from node.dispatch.dispatcher import ServedModel
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, named, read
from tests.dispatch.virtual_time import in_virtual_time, settle


def redeclare(home: House, model: str) -> None:
    """From now on the cloud's equivalent is called `model`."""
    (declared,) = home.model.cloud
    home.model = replace(home.model, cloud=(replace(declared, model=model),))
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
