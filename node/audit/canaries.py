"""Canary prompts: text that nobody has ever written, sent along every path that is said to keep it here."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

from node.privacy.detectors import Detector
from node.settings import ContentRulesSettings

MODEL: Final = "demo"
FREE: Final = "free"
PINNED_KEY: Final = "pinned"
# More than the demo model's whole context: only the cloud could answer it, and without a pin it always leaves.
_BEYOND_CONTEXT: Final = 5000
# Well-known examples, nobody's: each is what its detector looks for.
_SAMPLES: Final = {
    Detector.EMAIL: "write to someone@example.org",
    Detector.PAYMENT_CARD: "card 4111 1111 1111 1111",
    Detector.IBAN: "account GB82 WEST 1234 5698 7654 32",
    Detector.NATIONAL_ID: "DNI 12345678Z",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One way to pin a request: by `key`, by `wishes` in the body, by `headers`, by `text`, or by the settings alone.

    `may_leave` marks the control, whose canaries have to arrive: else that nothing arrived would prove nothing.
    """

    name: str
    key: str = FREE
    wishes: tuple[tuple[str, Any], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    text: str = ""
    may_leave: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One request: `token` is in its prompt, and nowhere else in the world."""

    path: Path
    token: str
    body: dict[str, Any]


CONTROL: Final = Path(name="may leave", may_leave=True)
BY_MODEL: Final = Path(name="model")
BY_SETTINGS: Final = Path(name="settings")


def paths(rules: ContentRulesSettings, word: str) -> tuple[Path, ...]:
    """The ways to pin one request among others that may leave; `word` is a key word of the content rules.

    A pattern of the operator's is not among them: no text can be made up for a regular expression.
    """
    return (
        Path(name="key", key=PINNED_KEY),
        Path(name="field", wishes=(("require_local", True),)),
        Path(name="header", headers=(("x-spillway-require-local", "true"),)),
        Path(name="content: words", text=word),
        *(Path(name=f"content: {each.value}", text=_SAMPLES[each]) for each in dict.fromkeys(rules.detect)),
    )


def canaries(path: Path, count: int, **more: Any) -> list[Canary]:
    """`count` requests along `path`, which could leave but for the pin: whole, streamed, and for the cloud only.

    `more` is added to the body's `spillway`, or to the body where it is not a wish.
    """
    made = []
    for number in range(count):
        token = f"canary{secrets.token_hex(10)}"
        wishes = dict(path.wishes) | {name: more[name] for name in more if name.endswith("_ms") or name == "cache"}
        body = {name: value for name, value in more.items() if name not in wishes}
        body |= {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"Please explain Spillway. {token} {path.text}".strip()}],
            "max_tokens": (96, 96, _BEYOND_CONTEXT)[number % 3],
            "stream": number % 3 == 1,
        }
        if wishes:
            body["spillway"] = wishes
        made.append(Canary(path=path, token=token, body=body))
    return made
