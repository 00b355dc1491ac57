"""A cloud that costs nothing: an OpenAI-compatible server on loopback in HolySheep's place.

Start it with ``python -m node.emulator --port 0`` or hold it in a test:

    async with Emulator(EmulatorConfig(seed=1)) as emulator:
        client = AsyncOpenAI(base_url=emulator.base_url, api_key="emulator")

It answers in its own seeded words and says so, keeps its own bill in its own arithmetic, and misbehaves in every way
listed in `Switch` when told to. It shares no code with the node it is there to check.

    config.py     what can be set
    switches.py   every misbehaviour by name, and which of them hits the next call
    requests.py   a request body → `Ask`
    answers.py    `Ask` → `Answer`: the words, tool calls and JSON it will say
    frames.py     `Answer` → encoded documents and events
    replies.py    what goes over the wire and when, for a call that is answered
    calls.py      one accepted call, from arrival to its line on the bill
    refusals.py   what goes over the wire for a call that is not
    prices.py     its own prices and arithmetic
    bill.py       the append-only bill and the log of what arrived
    limits.py     requests per minute, calls at once
    server.py     sockets
"""

from node.emulator.config import EmulatorConfig, ErrorShape
from node.emulator.prices import ModelPrice
from node.emulator.server import Emulator
from node.emulator.switches import Switch

__all__ = ["Emulator", "EmulatorConfig", "ErrorShape", "ModelPrice", "Switch"]
