"""Each published format is recognised and read; what was left out is counted, what is wrong is refused in one line."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from node.errors import SettingsError
from node.simulate.formats.convert import TraceFormat, Window, convert, detect
from node.simulate.formats.ordered import Row, in_order
from node.simulate.formats.servegen import read_servegen
from node.simulate.trace import read_trace, write_trace
from node.simulate.values import TraceRequest

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def file(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mooncake(*rows: tuple[object, object, object, object]) -> str:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


def servegen(folder: Path, tenants: Mapping[int, tuple[str, Mapping[str, tuple[str, str]] | None]]) -> Path:
    """A folder of tenants: the text of the trace, and per block the two histograms (None: no dataset)."""
    for number, (windows, blocks) in tenants.items():
        file(folder, windows, f"chunk-{number}-trace.csv")
        if blocks is not None:
            lengths = {at: {"input_tokens": prompt, "output_tokens": output} for at, (prompt, output) in blocks.items()}
            file(folder, json.dumps(lengths), f"chunk-{number}-dataset.json")
    return folder


def refused(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        list(convert(path))
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(path))
    return caught.value.message.removeprefix(str(path)).lstrip(",:/ ")


def test_azure_2023_counts_time_from_its_first_row(tmp_path: Path) -> None:
    path = file(tmp_path, AZURE + "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8")
    trace = convert(path)
    assert trace.format is TraceFormat.AZURE
    assert list(trace) == [TraceRequest(0.0, 4808, 10), TraceRequest(0.052, 3180, 8)]


def test_azure_2024_has_time_zones(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
    assert list(convert(file(tmp_path, AZURE + rows))) == [TraceRequest(0.0, 2162, 5), TraceRequest(0.99, 2399, 6)]


def test_azure_is_sorted_and_rows_without_output_are_counted(tmp_path: Path) -> None:
    rows = "2023-11-16 18:00:02,3,1\n2023-11-16 18:00:01,2,1\n2023-11-16 18:00:00,1,0\n2023-11-16 18:00:01,4,1\n"
    trace = convert(file(tmp_path, AZURE + rows))
    assert list(trace) == [TraceRequest(0.0, 2, 1), TraceRequest(0.0, 4, 1), TraceRequest(1.0, 3, 1)]
    assert trace.skipped == 1


def test_burstgpt_skips_and_counts_the_calls_that_failed(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n118,ChatGPT,417,276,693,API log\n"
    trace = convert(file(tmp_path, BURSTGPT + rows))
    assert trace.format is TraceFormat.BURSTGPT
    assert list(trace) == [TraceRequest(0.0, 472, 18), TraceRequest(113.0, 417, 276)]
    assert trace.skipped == 1


def test_later_burstgpt_has_more_columns(tmp_path: Path) -> None:
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    path = file(tmp_path, header + "0.5,a1,2.5,GPT-4,10,20,30,Conversation log\n")
    assert list(convert(path)) == [TraceRequest(0.0, 10, 20)]


def test_mooncake_prefix_hits_are_the_leading_blocks_seen_before(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        mooncake(
            (0, 1200, 5, [0, 1, 2]),
            (1500, 1100, 6, [0, 1, 3]),
            (2000, 900, 7, [0, 1]),
            (3000, 2000, 8, [4, 1, 2, 3]),
            (4000, 10, 0, [9]),
        ),
    )
    trace = convert(path)
    assert trace.format is TraceFormat.MOONCAKE
    assert list(trace) == [
        TraceRequest(0.0, 1200, 5),
        TraceRequest(1.5, 1100, 6, 1024),
        TraceRequest(2.0, 900, 7, 900),
        TraceRequest(3.0, 2000, 8),
    ]
    assert trace.skipped == 1


def test_mooncake_ticks_are_spread_over_three_seconds_by_the_seed(tmp_path: Path) -> None:
    ticks = (0, 0, 0, 3000, 3000, 3000, 6000)
    path = file(tmp_path, mooncake(*((at_ms, 512, 10 + place, [0]) for place, at_ms in enumerate(ticks))))
    rng = random.Random(20260)
    moved = {10 + place: round(at_ms / 1000 + rng.random() * 3, 3) for place, at_ms in enumerate(ticks)}
    requests = list(convert(path))
    assert {request.output_tokens: request.arrival_s for request in requests} == moved
    assert [request.arrival_s for request in requests] == sorted(moved.values())
    assert [request.prefix_hit_tokens for request in requests] == [0] + [512] * 6, (
        "a later arrival hits, not a later row"
    )
    assert list(convert(path, seed=1)) != requests


def test_servegen_draws_each_tenants_requests_from_its_fits(tmp_path: Path) -> None:
    folder = servegen(
        tmp_path,
        {
            2: ("0,0.1,1,Gamma,0.5,20\n600,0,0,,0,0\n", {"0": ("{7: 1.0}", "{3: 1.0}")}),
            10: (
                "0,0,0,,0,0\n600,0.05,2,Weibull,0.6,9\n",
                {"0": ("{}", "{}"), "600": ("{20: 0.5, 30: 0.5}", "{0: 1}")},
            ),
        },
    )
    trace = convert(folder)
    requests = list(trace)
    assert trace.format is TraceFormat.SERVEGEN
    assert [request.arrival_s for request in requests] == sorted(request.arrival_s for request in requests)
    first, second = requests[:60], requests[60:]
    assert {(each.client, each.prompt_tokens, each.output_tokens) for each in first} == {("2", 7, 3)}
    assert {(each.client, each.prompt_tokens, each.output_tokens) for each in second} == {("10", 20, 1), ("10", 30, 1)}
    assert all(0 <= each.arrival_s < 600 for each in first)
    assert len(second) == 30
    assert all(600 <= each.arrival_s < 1200 for each in second)


def test_servegen_is_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    folder = servegen(tmp_path, {0: ("0,0.1,1,Gamma,0.5,20\n", {"0": ("{7: 1.0}", "{3: 1.0}")})})
    assert list(convert(folder, seed=4)) == list(convert(folder, seed=4)) != list(convert(folder, seed=5))


def test_servegen_tenant_without_lengths_is_skipped_and_counted(tmp_path: Path) -> None:
    folder = servegen(
        tmp_path,
        {
            0: ("0,0.1,1,Gamma,0.5,20\n", None),
            1: ("0,0.1,1,Gamma,0.5,20\n", {"0": ("{}", "{}")}),
            2: ("0,0.01,1,Gamma,0.5,20\n", {"21600": ("{7: 1.0}", "{3: 1.0}")}),
        },
    )
    trace = convert(folder)
    assert [request.client for request in trace] == ["2"] * 6
    assert trace.skipped == 120


def test_servegen_leaves_out_tenants_above_a_rate_without_changing_the_others(tmp_path: Path) -> None:
    one = {"0": ("{7: 1.0}", "{3: 1.0}")}
    folder = servegen(tmp_path, {0: ("0,0.1,1,Gamma,0.5,20\n", one), 1: ("0,0.5,1,Gamma,0.5,20\n", one)})
    slow = list(read_servegen(folder, max_tenant_rate=0.2))
    assert slow == [request for request in read_servegen(folder) if request is not None and request.client == "0"]


def test_window_takes_a_part_and_counts_time_from_its_start(tmp_path: Path) -> None:
    path = file(tmp_path, BURSTGPT + "".join(f"{at},GPT-4,{at},1,0,API log\n" for at in range(10, 20)))
    assert list(convert(path, window=Window(2, 3))) == [TraceRequest(float(at), 12 + at, 1) for at in range(3)]


def test_window_of_servegen_may_begin_in_the_middle(tmp_path: Path) -> None:
    windows = "".join(f"{at},0.1,1,Gamma,0.5,20\n" for at in range(0, 3000, 600))
    folder = servegen(tmp_path, {0: (windows, {"0": ("{7: 1.0}", "{3: 1.0}")})})
    part = list(convert(folder, window=Window(900, 600)))
    assert 0 < len(part) < 120
    assert all(0 <= request.arrival_s < 600 for request in part)


@pytest.mark.parametrize("window", [(-1.0, 1.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_window_outside_any_trace_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(SettingsError, match="window"):
        Window(*window)


def test_own_format_passes_unchanged(tmp_path: Path) -> None:
    requests = [TraceRequest(0.25, 10, 2, 4, "a"), TraceRequest(0.5, 7, 1)]
    write_trace(tmp_path / "trace.csv.gz", requests)
    trace = convert(tmp_path / "trace.csv.gz")
    assert trace.format is TraceFormat.SPILLWAY
    assert list(trace) == requests


def test_converted_trace_is_one_that_is_read(tmp_path: Path) -> None:
    source = file(tmp_path, AZURE + "2023-11-16 18:00:01,3,1\n2023-11-16 18:00:00,2,1\n")
    assert write_trace(tmp_path / "trace.csv", convert(source)) == 2
    assert list(read_trace(tmp_path / "trace.csv")) == list(convert(source))


@pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"prompt": "hello"}\n', "", "\n\n", 'x"\n'])
def test_unknown_format_is_refused_naming_the_known_ones(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        detect(file(tmp_path, text))
    assert all(name in caught.value.message for name in ("Spillway", "Azure", "BurstGPT", "Mooncake", "ServeGen"))


def test_folder_without_tenants_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith("a folder without chunk-*-trace.csv; known are")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AZURE + "yesterday,1,2\n", "line 2, TIMESTAMP: not a time: 'yesterday'"),
        (AZURE + "2023-11-16 18:00:00,1,x\n", "line 2, GeneratedTokens: not a whole number: 'x'"),
        (AZURE + "2023-11-16 18:00:00,-1,2\n", "line 2, ContextTokens: negative: -1"),
        (BURSTGPT + "nan,GPT-4,1,2,3,API log\n", "line 2, Timestamp: not a number: nan"),
        (BURSTGPT + "1,GPT-4,1.5,2,3,API log\n", "line 2, Request tokens: not a whole number: '1.5'"),
        (mooncake((0, 1, 2, [])) + "{\n", "line 2: not JSON: '{'"),
        (mooncake((0, 1, 2, [])) + "[]\n", "line 2: not a JSON object: '[]'"),
        (mooncake((0, 1, 2, [])) + "{}\n", "line 2, timestamp: missing"),
        (mooncake((True, 1, 2, [])), "line 1, timestamp: not a number: 'true'"),
        (mooncake((-5, 1, 2, [])), "line 1, timestamp: negative: -0.005"),
        (mooncake((10**400, 1, 2, [])), "line 1, timestamp: more than 10,000,000,000: inf"),
        (mooncake((5, 1, 2, []), (4, 1, 2, [])), "line 2, timestamp: not sorted: 4 ms comes after 5 ms"),
        (mooncake((0, 1.5, 2, [])), "line 1, input_length: not a whole number: '1.5'"),
        (mooncake((0, 1, -2, [])), "line 1, output_length: negative: -2"),
        (mooncake((0, 1, 2, ["a"])), """line 1, hash_ids: not a list of whole numbers: '["a"]'"""),
    ],
)
def test_bad_row_is_refused_with_line_column_and_reason(tmp_path: Path, text: str, message: str) -> None:
    assert refused(file(tmp_path, text)) == message


@pytest.mark.parametrize(
    ("windows", "blocks", "message"),
    [
        ("0,1,1,Gamma,1\n", "{}", "chunk-3-trace.csv, line 1: 5 columns where 6 are expected"),
        ("0,1,1,Pareto,1,1\n", "{}", "chunk-3-trace.csv, line 1, pattern: neither Gamma nor Weibull: 'Pareto'"),
        ("0,1,1,Gamma,x,1\n", "{}", "chunk-3-trace.csv, line 1, shape: not a number: 'x'"),
        ("0,1,1,Weibull,0,1\n", "{}", "chunk-3-trace.csv, line 1, shape: 0.0; more than 0.01 is needed"),
        ("0,1e9,1,Gamma,1,1\n", "{}", "chunk-3-trace.csv, line 1, rate: more than 100,000 requests/s: 1000000000.0"),
        ("0,1,1,Gamma,1,1\n", "[]", "chunk-3-dataset.json: not an object of six-hour blocks"),
        ("0,1,1,Gamma,1,1\n", '{"a": {}}', "chunk-3-dataset.json: not a block of histograms: 'a'"),
        ("0,1,1,Gamma,1,1\n", '{"0": {}}', "chunk-3-dataset.json, 0, input_tokens: missing, or not text"),
        (
            "0,1,1,Gamma,1,1\n",
            '{"0": {"input_tokens": "{5}", "output_tokens": "{1: 1}"}}',
            "chunk-3-dataset.json, 0, input_tokens: not `tokens: share`: '5'",
        ),
        (
            "0,1,1,Gamma,1,1\n",
            '{"0": {"input_tokens": "{5: 1}", "output_tokens": "{1: 0.0}"}}',
            "chunk-3-dataset.json, 0, output_tokens: all shares are zero",
        ),
    ],
)
def test_bad_tenant_is_refused_with_file_and_reason(tmp_path: Path, windows: str, blocks: str, message: str) -> None:
    file(tmp_path, windows, "chunk-3-trace.csv")
    file(tmp_path, blocks, "chunk-3-dataset.json")
    assert refused(tmp_path) == message


def test_row_that_comes_too_late_to_be_sorted_is_refused() -> None:
    rows: Iterator[Row] = (Row(line, at_s, 1, 1) for line, at_s in enumerate([5.0, 6.0, 7.0, 1.0], start=2))
    with pytest.raises(SettingsError, match=r"^t\.csv, line 5, at: more than 2 rows later than it should be$"):
        list(in_order(Path("t.csv"), "at", rows, reach_rows=2))
