"""What a node that was built and not started says of itself."""

import pytest

from node.api.status import has_a_route
from node.app import Node
from node.local.supervision import Event, Supervision
from node.routing.values import EngineState
from node.settings import Settings


def test_engine_that_has_not_started_is_waited_for_and_shown() -> None:
    node = Node(Settings(), environ={})
    document = node.status.readiness()
    assert document["ready"] is False
    assert document["models"]["demo"]["supervision"]["state"] == "starting"
    assert node.status.stats()["supervision"]["demo"]["starts"] == 1
    text = node.metrics.text().decode()
    assert 'spillway_engine_state{model="demo",state="starting"} 1.0' in text
    assert 'spillway_engine_state{model="demo",state="ready"} 0.0' in text
    assert 'spillway_engine_given_up{model="demo"} 0.0' in text


FIRST = Supervision.begin(0.0)
READY = FIRST.after(Event.STARTED, 1.0)
AGAIN = Supervision(state=EngineState.STARTING, since_s=0.0, starts=2)
GONE = Supervision(state=EngineState.DOWN, since_s=0.0, given_up=True)


@pytest.mark.parametrize(
    ("engine", "with_cloud", "without"),
    [
        (None, True, False),
        (FIRST, False, False),
        (READY, True, True),
        (READY.after(Event.STALLED, 2.0), True, False),
        (AGAIN, True, False),
        (GONE, True, False),
    ],
)
def test_row_60_readiness_reflects_the_routes_there_are(
    engine: Supervision | None, with_cloud: bool, without: bool
) -> None:
    assert (has_a_route(engine, True), has_a_route(engine, False)) == (with_cloud, without)
