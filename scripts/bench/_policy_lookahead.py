"""How far ahead the schedule that knows the future has to look to spend as little as it does."""

from collections.abc import Sequence

from node.routing.profile import EngineProfile
from node.simulate.lookahead import foresee
from node.simulate.providers import Provider
from node.simulate.replay import Promise
from node.simulate.values import TraceRequest

LOOKAHEADS_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
HEADER = ["trace", "load", "overflow", *(f"{each:g} s" for each in LOOKAHEADS_S), "most late"]


def lookahead_row(
    name: str,
    load: float,
    trace: Sequence[TraceRequest],
    profile: EngineProfile,
    provider: Provider,
    promise: Promise,
    *,
    spend_nano_usd: int,
    clairvoyant_nano_usd: int,
) -> list[str]:
    """The spends over the clairvoyant's: the policy's, and the search's by how many seconds it sees.

    The last column is the largest share of spillable requests that any of those searches had late.
    """
    spends, late = [spend_nano_usd], []
    for lookahead_s in LOOKAHEADS_S:
        found = foresee(trace, profile, provider, promise, lookahead_s=lookahead_s)
        spends.append(found.spend_nano_usd)
        late.append(found.late / max(1, len(trace) - len(promise.pinned)))
    ratios = [f"{each / clairvoyant_nano_usd:.2f}" if clairvoyant_nano_usd else "-" for each in spends]
    return [name, f"{load:g}", *ratios, f"{max(late):.2%}"]
