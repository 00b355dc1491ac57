"""What the documentation says must be what the code does."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from node.api.openapi import ANSWER_HEADERS
from node.routing.breaker import drawing
from node.routing.values import Reason

_REPO = Path(__file__).resolve().parents[1]


def test_settings_page_is_what_the_settings_types_say() -> None:
    script = _REPO / "scripts" / "write_settings_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], cwd=_REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_api_page_is_what_routes_request_types_and_errors_say() -> None:
    script = _REPO / "scripts" / "write_api_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], cwd=_REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("found", "instead"), [("<!-- errors -->", ""), ("<!-- errors -->", "<!-- limits -->"), ("<!-- end -->", "")]
)
def test_api_page_without_a_place_for_each_table_is_not_taken(found: str, instead: str) -> None:
    write = runpy.run_path(str(_REPO / "scripts" / "write_api_docs.py"))
    text = (_REPO / "docs" / "api.md").read_text()
    with pytest.raises(SystemExit, match="exactly one"):
        write["page"](text.replace(found, instead, 1))


def test_every_header_of_our_own_is_described() -> None:
    """And none that is not sent. A name that ends in a hyphen is completed where it is sent: `x-ratelimit-limit-`."""
    sent = set()
    for path in (*(_REPO / "node" / "api").glob("*.py"), _REPO / "node" / "errors.py"):
        if path.name not in ("openapi.py", "wishes.py"):  # the description itself, and headers of requests
            sent |= set(re.findall(r'"(x-[a-z-]+|retry-after)"', path.read_text()))
    sent -= {"x-content-type-options", "x-forwarded-for", "x-real-ip"}  # not our own
    begun = tuple(header for header in sent if header.endswith("-"))
    assert {header for header in sent if not header.endswith("-")} == {
        header for header in ANSWER_HEADERS if not header.startswith(begun)
    }
    assert [header for header in begun if not any(each.startswith(header) for each in ANSWER_HEADERS)] == []
    assert "x-ratelimit-limit-" in begun


def test_metrics_page_lists_what_a_node_offers() -> None:
    script = _REPO / "scripts" / "write_metrics_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], cwd=_REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_reason_is_explained() -> None:
    page = (_REPO / "docs" / "route.md").read_text()
    missing = [reason for reason in Reason if f"`{reason}`" not in page and reason is not Reason.NO_SLOT]
    assert not missing


def test_breaker_is_drawn_as_its_table_says() -> None:
    assert f"```mermaid\n{drawing()}\n```" in (_REPO / "docs" / "cloud.md").read_text()


def test_picture_of_a_requests_life_names_modules_that_are_there() -> None:
    picture = (_REPO / "docs" / "architecture.md").read_text().partition("```mermaid\n")[2].partition("```")[0]
    named = re.findall(r"\b([a-z]+/[a-z_]+)\b", picture)
    assert len(named) > 20
    assert [name for name in named if not (_REPO / "node" / f"{name}.py").is_file()] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in (_REPO / "README.md", *sorted((_REPO / "docs").glob("*.md"))):
        for link in re.findall(r"[^!]\[[^]]*\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            target = page if not link[0] else page.parent / link[0]
            assert target.is_file(), f"{page.name}: {link[0]}"
            if link[1]:
                assert link[1] in _anchors(target.read_text()), f"{page.name}: {link[0]}#{link[1]}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pictures_of_the_docs_are_there_and_small() -> None:
    for page in (_REPO / "README.md", *sorted((_REPO / "docs").glob("*.md"))):
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            picture = page.parent / link
            assert picture.is_file(), f"{page.name}: {link}"
            assert picture.stat().st_size < 150_000, f"{page.name}: {link}"
