"""Follows the feed of a node: for ever, over restarts, and with a reason whenever there is nothing to see."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import httpx
import msgspec

from node import __version__
from node.dashboard.feed import FEED_VERSION, Decisions, Hello, Tick
from node.top.filter import Filter
from node.top.seen import Kind, Trouble
from node.top.target import Place, Target

_CONNECT_S: Final = 5.0
_SILENT_S: Final = 5.0  # a tick comes every second; the node is gone, or the way to it
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
_UNAUTHENTICATED: Final = (401, 403)


class CannotRead(Exception):
    """There are no figures to be had at the moment."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.said)
        self.trouble = trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """The feed does not come, and is asked for again after `pause_s`."""

    trouble: Trouble
    pause_s: float


Event = Hello | Tick | Away

T = TypeVar("T")


class _Version(msgspec.Struct, frozen=True):
    """What every version of the feed's first document says of itself."""

    feed: int
    node: str = "of another version"


class _ErrorPart(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorPart = _ErrorPart()


class Client:
    """One viewer. `find` says anew before each try where to look, so that a key that is made meanwhile is found.

    `place` is where the last try ended up.
    """

    def __init__(self, find: Callable[[], Target]) -> None:
        self._find = find
        self._hurry = asyncio.Event()
        self.place: Place = find().places[0]

    def hurry(self) -> None:
        """Try again at once, if it is waiting to."""
        self._hurry.set()

    async def events(self) -> AsyncIterator[Event]:
        """The feed; where it breaks off an `Away`, and then, after pauses that grow, the feed again."""
        pause_s = _FIRST_PAUSE_S
        while True:
            self._hurry.clear()
            try:
                async for each in self._feed():
                    pause_s = _FIRST_PAUSE_S
                    yield each
                trouble = Trouble(kind=Kind.LOST, said="The connection to the node was lost.")
            except CannotRead as error:
                trouble = error.trouble
            yield Away(trouble=trouble, pause_s=pause_s)
            try:
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
                pause_s = _FIRST_PAUSE_S
            except TimeoutError:
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def hello(self) -> tuple[Hello, str]:
        """The first document, and as it came. Raises `CannotRead`."""
        async with self._opened() as answer:
            async for name, data in _events(answer):
                if name == "hello":
                    return _hello(data), data
        raise CannotRead(Trouble(kind=Kind.LOST, said=f"{self.place.url} ended the feed before it had begun."))

    async def search(self, wanted: Filter) -> Decisions:
        """What the node finds among its last 5,000 decisions. Raises `CannotRead`."""
        async with _client(self.place) as client:
            try:
                answer = await client.get("/dashboard/decisions", params=wanted.parameters())
            except httpx.HTTPError as error:
                raise CannotRead(_unreached(self.place, error)) from error
            if answer.status_code != 200:
                raise CannotRead(_refused(self.place, answer, ()))
            return _decoded(answer.text, Decisions)

    async def _feed(self) -> AsyncIterator[Hello | Tick]:
        async with self._opened() as answer:
            async for name, data in _events(answer):
                if name == "hello":
                    yield _hello(data)
                elif name == "tick":
                    yield _decoded(data, Tick)
                elif name == "bye":
                    raise CannotRead(Trouble(kind=Kind.BYE, said="The node is shutting down."))

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[httpx.Response]:
        """The answer of the first place that lets us in; where none does, the last one's refusal is raised."""
        target = self._find()
        for place in target.places:
            self.place = place
            last = place is target.places[-1]
            async with _client(place) as client:
                try:
                    async with client.stream("GET", "/dashboard/feed") as answer:
                        if answer.status_code in _UNAUTHENTICATED and not last:
                            continue
                        if answer.status_code != 200:
                            await answer.aread()
                            raise CannotRead(_refused(place, answer, target.no_key))
                        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                            raise CannotRead(_foreign(place, "no feed"))
                        yield answer
                        return
                except httpx.HTTPError as error:
                    raise CannotRead(_unreached(place, error)) from error


def _client(place: Place) -> httpx.AsyncClient:
    """A client for this one place: past no proxy and along no redirect, so that the key gets nowhere else."""
    return httpx.AsyncClient(
        base_url=place.url,
        headers={"authorization": f"Bearer {place.key}"} if place.key is not None else {},
        timeout=httpx.Timeout(_SILENT_S, connect=_CONNECT_S),
        trust_env=False,
        follow_redirects=False,
        # The system's certificates, and those of SSL_CERT_FILE. Loading them takes long, and plain HTTP needs none.
        verify=ssl.create_default_context() if place.url.startswith("https:") else False,
    )


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """Name and data of each server-sent event."""
    name = ""
    async for line in answer.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, value


def _hello(data: str) -> Hello:
    try:
        version = msgspec.json.decode(data, type=_Version)
    except msgspec.DecodeError as error:
        raise CannotRead(Trouble(kind=Kind.FOREIGN, said=f"What comes is no feed of a node: {error}.")) from error
    if version.feed != FEED_VERSION:
        said = f"The node ({version.node}) speaks version {version.feed} of the feed, and this program {FEED_VERSION}."
        raise CannotRead(Trouble(kind=Kind.VERSION, said=said, advice=("Use the spillway that the node runs.",)))
    return _decoded(data, Hello)


def _decoded(data: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        said = f"The feed is not what this program ({__version__}) reads: {error}."
        raise CannotRead(
            Trouble(kind=Kind.VERSION, said=said, advice=("Use the spillway that the node runs.",))
        ) from error


def _unreached(place: Place, error: httpx.HTTPError) -> Trouble:
    """A connection that did not come about or broke off, in words."""
    if isinstance(error, httpx.ReadTimeout):
        return Trouble(kind=Kind.LOST, said=f"The node has been silent for {_SILENT_S:.0f} s.")
    if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError | httpx.WriteError):
        return Trouble(kind=Kind.LOST, said="The connection to the node was lost.")
    why = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    if "Connect" in type(error).__name__ and "attempts failed" in why:
        why = "nobody listens there"
    return Trouble(
        kind=Kind.ABSENT,
        said=f"No node answers at {place.url}: {why}.",
        advice=("Start one here: spillway serve.", "It is elsewhere? spillway top --url http://HOST:PORT"),
    )


def _refused(place: Place, answer: httpx.Response, no_key: tuple[str, ...]) -> Trouble:
    """An answer that is no feed, in words."""
    try:
        told = msgspec.json.decode(answer.content, type=_ErrorBody).error
    except msgspec.DecodeError:
        told = _ErrorPart()
    if answer.status_code in _UNAUTHENTICATED:
        if place.key is not None:
            said = f"{place.url} does not take the key from {place.key_from}: it is not this node's admin key."
        else:
            said = f"{place.url} shows its figures to the operator only: they want the node's admin key."
        which = (
            "The admin key is the node's $SPILLWAY_ADMIN_KEY; else it is in admin.key in the node's data folder.",
            "Set SPILLWAY_ADMIN_KEY for the node on this machine, or name a file with --url URL --key-file FILE.",
        )
        refusal = (told.message,) if answer.status_code == 403 and told.message else ()
        return Trouble(kind=Kind.LOCKED, said=said, advice=(*refusal, *which, *no_key))
    if answer.status_code in (429, 503) and told.message:
        return Trouble(kind=Kind.BUSY, said=f"{place.url} shows nothing at the moment: {told.message}")
    return _foreign(place, f"status {answer.status_code}")


def _foreign(place: Place, what: str) -> Trouble:
    return Trouble(
        kind=Kind.FOREIGN,
        said=f"{place.url} answers, but not as a Spillway node ({what}).",
        advice=("Is it another program's port? spillway top --url http://HOST:PORT",),
    )
