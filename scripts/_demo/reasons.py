"""Why a request went where it went, in the dashboard's own words."""

import re
from functools import cache
from importlib.resources import files

_LINE = re.compile(r'^  (\w+): "(.*)",$', re.MULTILINE)


@cache
def reasons() -> dict[str, str]:
    """A sentence for each reason, from the page's own list."""
    return dict(_LINE.findall((files("node.dashboard") / "static" / "reasons.js").read_text(encoding="utf-8")))
