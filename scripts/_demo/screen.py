"""The terminal: lines that stay, and one below them that changes; without a terminal, a plain line now and then."""

import shutil
import sys
import time

from node.dashboard.feed import EngineNow, Now, Point

_PLAIN_EVERY_S = 10.0


class Screen:
    """Standard output. `status` may be called as often as one likes."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = False
        self._said_s = -_PLAIN_EVERY_S

    def say(self, text: str = "") -> None:
        """A line, or several, that stay."""
        self._wipe()
        print(text, flush=True)

    def head(self, text: str) -> None:
        """The same, to be seen from afar."""
        self.say(f"\n\x1b[1m{text}\x1b[0m" if self._live else f"\n{text}")

    def status(self, text: str) -> None:
        """What is true at this moment, in the place of the last such line."""
        if self._live:
            self._wipe()
            print(text[: shutil.get_terminal_size().columns - 1], end="", flush=True)
            self._shown = True
        elif time.monotonic() - self._said_s >= _PLAIN_EVERY_S:
            self._said_s = time.monotonic()
            print(text, flush=True)

    def _wipe(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", flush=True)
            self._shown = False


def moment(seconds: float) -> str:
    """A moment of the day, as 1:23."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def dollars(nano_usd: int) -> str:
    """Of one width below a dollar, where every call is seen: it is drawn again and again in the same place."""
    usd = nano_usd / 1e9
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.5f}"


def second(at_s: float, point: Point, now: Now) -> str:
    """One second of the node's life, from its own feed."""
    model = now.models[0]
    engine = model.engine
    parts = [
        moment(at_s),
        f"local {point.local_per_s:.0f}/s",
        f"cloud {point.cloud_per_s:.0f}/s",
        f"cache {point.cache_per_s:.0f}/s",
        f"refused {point.unserved_per_s:.0f}/s" if round(point.unserved_per_s) else "",
        f"queue {model.queued}",
        _engine(engine) if engine else "",
        f"spent {dollars(now.totals.spent_nano_usd)}",
        *(f"{each.name} {each.breaker}" for each in now.providers if each.breaker != "closed"),
    ]
    return "  ".join(part for part in parts if part)


def _engine(engine: EngineNow) -> str:
    return f"engine {engine.running}/{engine.max_sequences}" if engine.state == "ready" else f"engine {engine.state}"
