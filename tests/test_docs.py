"""What the documentation says must be what the code does."""

import re
import subprocess
import sys
from pathlib import Path

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


def test_every_header_of_our_own_is_described() -> None:
    sent = set()
    for path in (*(_REPO / "node" / "api").glob("*.py"), _REPO / "node" / "errors.py"):
        sent |= set(re.findall(r"""b?"(x-[a-z-]+[a-z])"[,\]]""", path.read_text()))
    foreign = {"x-spillway-", "x-spillway", "x-content-type-options", "x-forwarded-for", "x-real-ip"}
    missing = {header for header in sent - foreign if header not in ANSWER_HEADERS}
    assert "x-spillway-queue-ms" in sent
    assert missing == set()


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
