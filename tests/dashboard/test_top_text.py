"""What `spillway top` makes of figures: nothing reads wrongly, and it fits where it is to be read."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import pytest

from node.dashboard.feed import (
    BudgetWindow,
    Change,
    DecisionRow,
    Decisions,
    EngineNow,
    GpuNow,
    Hello,
    ModelNow,
    ModelPoint,
    Now,
    Point,
    ProviderNow,
    Tick,
    Totals,
)
from node.errors import SettingsError
from node.settings import AdminSettings, Listen, Settings, StoreSettings
from node.store.admin_key import admin_key
from node.top import charts
from node.top.app import Top
from node.top.board import View, board
from node.top.client import Client
from node.top.figures import count, dollars, duration, number, seconds, share, size
from node.top.filter import Filter, FilterError, parse_filter
from node.top.glyphs import ASCII, UNICODE, Glyphs
from node.top.listing import Listing
from node.top.once import on_paper
from node.top.seen import KEPT_ROWS, Seen
from node.top.target import Place, Target, here, named

STARTED_S = 1_800_000_000.0
_SUMS = dict.fromkeys(Totals.__struct_fields__, 0)
_ENGINE = EngineNow(
    state="ready",
    since_s=7380.0,
    starts=2,
    deaths=1,
    hangs=0,
    running=37,
    waiting=2,
    max_sequences=64,
    kv_cache_usage=0.62,
    tpot_s=0.0123,
    changes=(
        Change(at_s=STARTED_S, state="starting"),
        Change(at_s=STARTED_S + 60, state="down", why="EngineCore was killed by signal 9"),
        Change(at_s=STARTED_S + 90, state="ready"),
    ),
)
_PROVIDER = ProviderNow(
    name="a-provider-with-a-long-name",
    zone="cloud",
    available=False,
    breaker="open",
    opened_by="upstream_fault",
    isolated_by=None,
    paused_s=0.0,
    in_flight=0,
    weight=0.5,
    ttft_p50_s=None,
    ttft_p95_s=None,
    ttft_p99_s=None,
    counted_on_s=2.0,
    requests=0,
    prompt_tokens=0,
    completion_tokens=0,
    spent_nano_usd=0,
    not_closed_for_s=65.0,
    tried_in_s=3.2,
    changes=(
        Change(at_s=STARTED_S, state="closed"),
        Change(at_s=STARTED_S + 334, state="open", why="upstream_fault"),
    ),
)
_ROW = DecisionRow(at_s=STARTED_S, request_id=f"01a22c4d{'0' * 18}c0ffee", model="big", tenant="app", ending="done")


def point(at_s: float) -> Point:
    wave = 1 + math.sin(at_s / 30)
    models = {"big": ModelPoint(queued=3, running=round(20 * wave), kv_cache_usage=wave / 2)}
    return Point(at_s=at_s, local_per_s=3 * wave, cloud_per_s=5 * wave, ttft_p95_s=0.4 * wave, models=models)


def hello(**more: object) -> Hello:
    now = Now(
        uptime_s=400.0,
        ready=True,
        draining=False,
        inside=44,
        totals=Totals(**{**_SUMS, "requests": 9, "local": 8, "cloud": 1, "spent_nano_usd": 1_234_567_000}),
        models=(ModelNow(name="big", queued=7, engine=_ENGINE), ModelNow(name="small", queued=0)),
        providers=(_PROVIDER, msgspec.structs.replace(_PROVIDER, name="pausing", breaker="closed", paused_s=3.0)),
        budget=(BudgetWindow(window="day", limit_nano_usd=2 * 10**9, spent_nano_usd=15 * 10**8, ends_in_s=30000.0),),
        gpus=(
            GpuNow(
                index=0,
                name="NVIDIA H200",
                vram_total_bytes=150 * 2**30,
                vram_used_bytes=131 * 2**30,
                utilisation=0.97,
                temperature_c=61,
                power_w=523.4,
            ),
            GpuNow(index=1, problem="fallen off the bus"),
        ),
    )
    rows = (
        msgspec.structs.replace(_ROW, backend="local", reason="slot_opened", ttft_s=2.5, ttft_budget_s=2.0),
        msgspec.structs.replace(_ROW, request_id="0badf00d", ending="failed", error_code="engine_died"),
    )
    return Hello(
        feed=1,
        node="0.1.0",
        interval_s=1.0,
        started_s=STARTED_S,
        emulated=False,
        may_change=False,
        history=tuple(point(STARTED_S + second) for second in range(400)),
        now=msgspec.structs.replace(now, **more),
        decisions=rows,
    )


def paper(document: Hello, width: int = 120, glyphs: Glyphs = UNICODE) -> str:
    return on_paper(document, "http://127.0.0.1:8000", width, glyphs)


def test_what_is_not_known_is_a_dash_and_never_a_nought() -> None:
    forms = (number, count, seconds, duration, share, dollars, size)
    assert {form(None) for form in forms} == {"-"}
    assert "-" not in "".join(form(0) for form in forms)


@pytest.mark.parametrize(
    ("nano", "said"),
    [
        (1, "$0.000000001"),
        (12_345, "$0.000012"),
        (15 * 10**8, "$1.50"),
        (-2_400_000, "-$0.0024"),
        (10**12, "$1,000.00"),
    ],
)
def test_money_keeps_two_digits_that_mean_something(nano: int, said: str) -> None:
    assert dollars(nano) == said


def test_a_share_is_all_or_nothing_only_if_it_is() -> None:
    assert [share(each) for each in (0.0, 1e-6, 0.994, 0.99999, 1.0)] == ["0 %", "0.1 %", "99 %", "99.9 %", "100 %"]


def test_times_are_told_in_units_that_fit() -> None:
    assert [seconds(each) for each in (0.0002, 0.0042, 0.42, 0.9996, 42.0, 3720.0)] == [
        *("200 us", "4.2 ms", "420 ms", "1.00 s", "42.0 s", "1 h 2 min"),
    ]


def test_engines_gpus_and_providers_are_told_with_their_troubles() -> None:
    text = paper(hello())
    for said in (
        "big  ready for 2 h 3 min  running 37 of 64  waiting 2  queue 7  KV ██████░░░░ 62 %",
        "failures 1",
        "down for 30 s: EngineCore was killed by signal 9",
        "small  no engine here  queue 0",
        "GPU 0 NVIDIA H200  VRAM █████████░ 131.0 of 150.0 GiB  97 % busy  61 C  523 W",
        "GPU 1   fallen off the bus",
        "open 1 min 5 s, try in 3.20 s",
        "away for 1 min 5 s: it kept failing",
        "paused for 3.00 s",
        "today, UTC ████████░░ $0.50 left of $2.00  ends in 8 h 20 min",
        "…c0ffee",
        "2500!/2000",
        "failed: engine died",
    ):
        assert said in text, f"{said!r} is not in\n{text}"


def test_provider_that_pretends_is_told_from_one_that_charges() -> None:
    pretending = msgspec.structs.replace(_PROVIDER, name="pretending", emulated=True)
    both = paper(hello(providers=(_PROVIDER, pretending)))
    assert "Emulated is pretending, on this machine: its answers and its bill are made up." in both
    assert re.search(r"^a-provider-wi… cloud ", both, re.MULTILINE)
    assert re.search(r"^pretending +emulator ", both, re.MULTILINE)
    assert "The cloud is an emulator on this machine" in paper(hello(providers=(pretending,)))
    assert "mulat" not in paper(hello())


def test_small_terminal_has_room_for_the_providers_as_it_leaves_out_that_there_is_no_gpu() -> None:
    seen = Seen(url="http://127.0.0.1:8000")
    document = hello(gpus=(), no_gpu_because="no NVIDIA driver")
    seen.begin(document)

    def drawn(height: int) -> str:
        return "\n".join(line.plain for line in board(seen, document.now, View.OVERVIEW, 80, height, UNICODE))

    assert "no GPU" not in drawn(24)
    assert "pausing " in drawn(24)
    assert "no GPU  no NVIDIA driver" in drawn(40)


def test_first_token_that_is_late_a_hundredfold_leaves_the_others_apart() -> None:
    most = 60.0
    drawn = charts.log_line([0.1, 0.4, 2.0, 60.0, None, 0.0003], most, UNICODE, "").plain
    assert drawn == "▁▃▅█ ▁"
    assert charts.line([0.1, 0.4, 2.0, 60.0], most, UNICODE, "").plain == "▁▁▁█"


def test_reasons_of_the_last_minutes_are_counted_by_who_answered() -> None:
    early = msgspec.structs.replace(point(STARTED_S), reasons={"cloud": {"predicted_late": 3}})
    late = msgspec.structs.replace(
        point(STARTED_S + 1), reasons={"cloud": {"predicted_late": 2}, "nobody": {"budget_spent": 1}}
    )
    text = paper(msgspec.structs.replace(hello(), history=(early, late)))
    assert "cloud predicted late 5  nobody budget spent 1" in text


def test_ledger_and_gpu_that_cannot_be_read_are_not_told_as_nought() -> None:
    text = paper(hello(budget=None, gpus=None, no_gpu_because="NVML hangs", ledger_down_because="disk full"))
    assert "Budget not known" in text
    assert "GPU not known  NVML hangs" in text
    assert "Nothing that costs leaves: disk full" in text


@pytest.mark.parametrize(
    ("total", "used", "said"),
    [(None, 500 * 2**20, "500 MiB of -"), (80 * 2**30, None, "- of 80.0 GiB"), (None, None, "- of -")],
)
def test_gpu_that_tells_half_of_its_memory_keeps_the_unit(total: int | None, used: int | None, said: str) -> None:
    gpu = GpuNow(index=0, vram_total_bytes=total, vram_used_bytes=used)
    assert f" {said}\n" in paper(hello(gpus=(gpu,)))


def test_list_says_how_many_decisions_it_was_not_told_of() -> None:
    document, listing = hello(), Listing()
    seen = Seen(url="http://127.0.0.1:8000")
    seen.begin(document)

    def second(number: int, skipped: int, rows: int = 2) -> Tick:
        at_s = STARTED_S + 400 + number
        told = [
            msgspec.structs.replace(_ROW, at_s=at_s, request_id=f"{number}-{each}", backend="local")
            for each in range(rows)
        ]
        return Tick(number=number, point=point(at_s), now=document.now, decisions=tuple(told), skipped=skipped)

    def note(held: Seen | None = None) -> str:
        return listing.note(listing.rows(seen, held), seen, held)

    def go_on(tick: Tick) -> None:
        seen.go_on(tick)
        listing.add(tick)

    assert note() == "newest first"
    go_on(second(1, skipped=25))
    go_on(second(2, skipped=0))
    go_on(second(3, skipped=1200))
    assert note() == "newest first, 1,225 left out"
    listing.look_for(parse_filter("who=local"), seen)
    listing.answer(Decisions(searched=5000, decisions=tuple(seen.rows[:2])))
    assert note() == "who=local: 2 of the last 5,000, esc: all"
    held = seen.held()
    go_on(second(4, skipped=60))
    assert note() == "who=local: 4 of the last 5,000, 60 since unseen, esc: all"
    assert re.fullmatch(r"who=local: 7 as of \d\d:\d\d:\d\d, 1,225 left out, esc: all", note(held))
    listing.look_for(Filter(), seen)
    go_on(second(5, skipped=0, rows=KEPT_ROWS))
    assert note() == "newest first", "none are missing among those that are listed"


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_width_is_kept_to(glyphs: Glyphs) -> None:
    document = hello()
    seen = Seen(url="http://127.0.0.1:8000")
    seen.begin(document)
    for width in range(60, 260, 7):
        text = paper(document, width, glyphs)
        assert max(map(len, text.splitlines())) <= width
        assert glyphs is UNICODE or text.isascii()
        for view in View:
            for height in (24, 50):
                assert (
                    max((line.cell_len for line in board(seen, document.now, view, width, height, glyphs)), default=0)
                    <= width
                )


def test_name_with_an_escape_sequence_in_it_does_not_reach_the_terminal() -> None:
    model = ModelNow(name="\x1b[2J\x1b]0;owned\x07", queued=0)
    text = paper(hello(models=(model,)))
    assert text.replace("\n", "").isprintable()
    assert "?[2J?]0;owned" in text


def test_second_stays_in_its_column_while_time_goes_on() -> None:
    first = charts.columns([point(1000.0)], 60, 1004.0, 1.0)
    later = charts.columns([point(1000.0)], 60, 1009.0, 1.0)
    assert [bool(each) for each in first][1:] == [bool(each) for each in later][:-1]


def test_stack_is_as_high_as_its_parts_together() -> None:
    lines = charts.stack([([1.0, 0.0], "green"), ([1.0, 2.0], "blue")], 2.0, 2, UNICODE)
    assert [line.plain for line in lines] == ["██", "██"]
    assert [str(span.style) for line in lines for span in line.spans] == ["blue", "blue", "green", "blue"]


def test_filter_is_read_as_it_is_written() -> None:
    wanted = Filter(backend="none", reason="last_moment", ending="failed", text="a b")
    assert parse_filter("who=nobody why=last a ended=fa b") == wanted
    assert parse_filter(str(wanted)) == wanted
    for wrong in ("when=now", "ended=well", "why=no_such", "x" * 101):
        with pytest.raises(FilterError):
            parse_filter(wrong)


def test_node_here_is_found_by_its_settings_and_the_key_goes_to_loopback_only(tmp_path: Path) -> None:
    settings = Settings(listen=Listen(host="0.0.0.0", port=9000), store=StoreSettings(folder=str(tmp_path)))
    without = here(settings, {})
    assert [place.url for place in without.places] == ["http://127.0.0.1:9000"]
    assert "admin.key: No such file" in without.no_key[0]
    assert not any(tmp_path.iterdir()), "looking for a key makes none"
    public, admin = here(settings, {"SPILLWAY_ADMIN_KEY": "sa-something-secret"}).places
    assert public.key is None
    assert (admin.url, admin.key) == ("http://127.0.0.1:9001", "sa-something-secret")
    assert "sa-something-secret" not in repr(admin)
    kept = tmp_path / "admin.key"
    kept.write_text("sa-the-key-that-is-kept\n")
    kept.chmod(0o600)
    moved = msgspec.structs.replace(settings, admin=AdminSettings(host="::1", port=7))
    (place,) = here(moved, {}, admin_only=True).places
    assert (place.url, place.key, place.key_from) == ("http://[::1]:7", "sa-the-key-that-is-kept", str(kept))
    with pytest.raises(SettingsError, match="--url"):
        here(msgspec.structs.replace(settings, listen=Listen(port=0)), {})


def test_place_that_is_named_gets_only_the_key_that_is_named_and_not_in_the_clear(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "host.key"
    kept.write_text("sa-of-another-host\n")
    assert named("http://10.0.0.5:8000/", None).places[0].key is None
    assert named("http://127.0.0.1:8001", kept).places[0].key == "sa-of-another-host"
    assert named("https://node.example/spillway/", kept).places[0].url == "https://node.example/spillway"
    with pytest.raises(SettingsError, match="unencrypted"):
        named("http://10.0.0.5:8000", kept)


@pytest.mark.parametrize(
    "wrong",
    [
        *("127.0.0.1:8000", "ftp://127.0.0.1", "http://user:secret@127.0.0.1", "http://127.0.0.1:x", "http://[zz]"),
        *("http://xn--☃:8000", "http://☃☃", "http://xn--a", "http://127.0.0.1/\x01", "http://[::1"),
    ],
)
def test_what_is_no_address_is_told_in_one_line(wrong: str) -> None:
    with pytest.raises(SettingsError, match="--url") as refused:
        named(wrong, None)
    assert "\n" not in refused.value.message


def test_key_that_no_node_would_take_is_refused_without_being_shown(tmp_path: Path) -> None:
    settings, kept = Settings(store=StoreSettings(folder=str(tmp_path))), tmp_path / "host.key"
    for wrong in ("sa-größer-als-sechzehn", "sa-two-words and-a-third", "sa-with-a-bell\x07-in-it", "sa-short"):
        kept.write_text(wrong)
        for refuse in (
            lambda: named("http://127.0.0.1:8001", kept),
            lambda key=wrong: here(settings, {"SPILLWAY_ADMIN_KEY": key}),
            lambda key=wrong: admin_key(tmp_path, {"SPILLWAY_ADMIN_KEY": key}),
        ):
            with pytest.raises(SettingsError, match="at least 16 characters") as refused:
                refuse()
            assert wrong not in refused.value.message
            assert "\n" not in refused.value.message
    with pytest.raises(SettingsError, match=r"SPILLWAY_ADMIN_KEY: .* line ends"):
        here(settings, {"SPILLWAY_ADMIN_KEY": "sa-something-secret\n"})


def test_crash_tells_where_and_not_what_the_key_is(capsys: pytest.CaptureFixture[str]) -> None:
    looked = 0

    def find() -> Target:
        nonlocal looked
        looked += 1
        key = "sa-something-" + "secret"
        if looked > 1:
            raise RuntimeError("something unforeseen")
        return Target(places=(Place(url="http://127.0.0.1:9", key=key),))

    app = Top(Client(find), UNICODE)
    app.run(headless=True)
    complaint = capsys.readouterr().err
    assert app.return_code == 1
    assert "something unforeseen" in complaint
    assert "sa-something-secret" not in complaint
