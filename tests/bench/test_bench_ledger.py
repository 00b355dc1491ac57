"""What the ledger bench writes to its JSON file."""

import json

from _ledger_kills import Findings


def test_every_figure_of_a_campaign_of_kills_can_be_written_as_json() -> None:
    found = Findings(sent=3, billed_without_one_row=[(16, 80)])
    found.kills["after the dispatch row"] += 2
    found.statuses[200] += 3
    document = json.loads(json.dumps(found.document()))
    assert document["kills"] == {"after the dispatch row": 2}
    assert document["statuses"] == {"200": 3}
    assert document["billed_without_one_row"] == [[16, 80]]
