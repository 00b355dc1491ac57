"""A trace is read a row at a time and refused in one line; what is written is whole or not there."""

import gzip
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import SettingsError
from node.simulate.trace import CapCount, capped, read_trace, sped_up, write_trace
from node.simulate.values import TraceRequest

HEADER = "arrival_s,prompt_tokens,output_tokens"

requests = st.lists(
    st.builds(
        TraceRequest,
        arrival_s=st.floats(0, 1e9),
        prompt_tokens=st.integers(1, 10**9),
        output_tokens=st.integers(1, 10**9),
        client=st.text(st.characters(codec="utf-8"), max_size=8),
    ),
    min_size=1,
    max_size=20,
).map(lambda drawn: sorted(drawn, key=lambda request: request.arrival_s))


def trace(folder: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path) -> str:
    """The message, without the path, of the refusal that reading `path` ends in."""
    with pytest.raises(SettingsError) as caught:
        list(read_trace(path))
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(path))
    return caught.value.message.removeprefix(str(path)).lstrip(",: ")


def test_rows_become_requests(tmp_path: Path) -> None:
    path = trace(tmp_path, f"{HEADER},prefix_hit_tokens,client\n0.5,10,2,4,a\n0.5,7,1,,\n")
    assert list(read_trace(path)) == [TraceRequest(0.5, 10, 2, 4, "a"), TraceRequest(0.5, 7, 1)]


def test_columns_are_found_by_name_and_unknown_ones_ignored(tmp_path: Path) -> None:
    path = trace(tmp_path, "output_tokens, client ,colour,arrival_s,prompt_tokens\n2,a,red,1,10\n")
    assert list(read_trace(path)) == [TraceRequest(1.0, 10, 2, client="a")]


def test_spreadsheet_habits_are_read(tmp_path: Path) -> None:
    path = trace(tmp_path, b'\xef\xbb\xbf"arrival_s","prompt_tokens","output_tokens"\r\n1e-1, 3 ,4\r\n\r\n"2","5","6"')
    assert list(read_trace(path)) == [TraceRequest(0.1, 3, 4), TraceRequest(2.0, 5, 6)]


def test_packed_trace_is_unpacked(tmp_path: Path) -> None:
    path = trace(tmp_path, gzip.compress(f"{HEADER}\n0,1,2\n".encode()), "trace.csv.gz")
    assert list(read_trace(path)) == [TraceRequest(0.0, 1, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: empty: a header row was expected"),
        (f"{HEADER}\n", "no requests after the header"),
        ("arrival_s,prompt_tokens\n0,1\n", "line 1: no column output_tokens among 'arrival_s, prompt_tokens'"),
        ("a;b\n0;1\n", "line 1: no columns arrival_s, prompt_tokens, output_tokens among 'a;b'"),
        (f"{HEADER},arrival_s\n0,1,2,0\n", "line 1, arrival_s: this column is there twice"),
        (f"{HEADER}\n0,1,2\nx,1,2\n", "line 3, arrival_s: not a number: 'x'"),
        (f"{HEADER}\n1_0,1,2\n", "line 2, arrival_s: not a number: '1_0'"),
        (f"{HEADER}\nnan,1,2\n", "line 2, arrival_s: not a number: nan"),
        (f"{HEADER}\ninf,1,2\n", "line 2, arrival_s: more than 10,000,000,000: inf"),
        (f"{HEADER}\n-1,1,2\n", "line 2, arrival_s: negative: -1.0"),
        (f"{HEADER}\n\n2,1,2\n1,1,2\n", "line 4, arrival_s: not sorted: 1.0 comes after 2.0"),
        (f"{HEADER}\n0,0,2\n", "line 2, prompt_tokens: zero tokens; at least 1 is needed"),
        (f"{HEADER}\n0,1,0\n", "line 2, output_tokens: zero tokens; at least 1 is needed"),
        (f"{HEADER}\n0,1,-2\n", "line 2, output_tokens: negative: -2"),
        (f"{HEADER}\n0,1.5,2\n", "line 2, prompt_tokens: not a whole number: '1.5'"),
        (f"{HEADER}\n0,1,{'9' * 5000}\n", f"line 2, output_tokens: not a whole number: '{'9' * 37}...'"),
        (f"{HEADER}\n0,1,9999999999\n", "line 2, output_tokens: more than 1,000,000,000: 9999999999"),
        (f"{HEADER},prefix_hit_tokens\n0,4,2,5\n", "line 2, prefix_hit_tokens: 5 hits in a prompt of 4 tokens"),
        (f"{HEADER},prefix_hit_tokens\n0,4,2,-5\n", "line 2, prefix_hit_tokens: negative: -5"),
        (f"{HEADER}\n0,1,2\n0,1\n", "line 3: 2 columns where the header has 3"),
        (f"{HEADER}\n0,1,2,3\n", "line 2: 4 columns where the header has 3"),
        (f'{HEADER}\n0,1,"2\n', "line 2: not CSV: unexpected end of data"),
        (f"{HEADER}\n0,1,2".encode() + b"\n0,1,\xff\n", "line 3: not UTF-8"),
        (f"{HEADER}\n".encode("utf-16"), "line 1: not UTF-8"),
        (f"{HEADER}\n" + "0" * (1 << 20), "line 2: longer than 1,048,576 bytes"),
    ],
)
def test_bad_trace_is_refused_with_line_column_and_reason(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refused(trace(tmp_path, text)) == message


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere.csv") == "cannot be read: No such file or directory"
    assert refused(tmp_path) == "cannot be read: Is a directory"
    assert refused(trace(tmp_path, HEADER, "plain.csv.gz")).startswith("cannot be read: Not a gzipped file")
    half = gzip.compress(f"{HEADER}\n0,1,2\n".encode() * 100)[:-12]
    assert refused(trace(tmp_path, half, "half.csv.gz")) == "ends in the middle: not all of the gzip file is there"


def test_reading_begins_without_the_rest_of_the_file(tmp_path: Path) -> None:
    path = trace(tmp_path, f"{HEADER}\n" + "0,1,2\n" * 50_000 + "bad\n")
    assert len(list(islice(read_trace(path), 3))) == 3


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_written_trace_reads_back_the_same(tmp_path: Path, name: str) -> None:
    @settings(max_examples=50)
    @given(requests)
    def same(drawn: list[TraceRequest]) -> None:
        assert write_trace(tmp_path / name, drawn) == len(drawn)
        assert list(read_trace(tmp_path / name)) == drawn

    same()


def test_same_requests_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.csv.gz"):
        write_trace(tmp_path / name, [TraceRequest(0.0, 1, 2)])
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_failure_on_the_way_leaves_the_old_file_and_no_remains(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_trace(path, [TraceRequest(0.0, 1, 2)])

    def broken() -> Iterator[TraceRequest]:
        yield TraceRequest(0.0, 3, 4)
        raise SettingsError("source is broken")

    with pytest.raises(SettingsError, match="source is broken"):
        write_trace(path, broken())
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert list(read_trace(path)) == [TraceRequest(0.0, 1, 2)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "cannot be written: not a file"),
        ("nowhere/trace.csv", "cannot be written: No such file or directory"),
        ("file/trace.csv", "cannot be written: Not a directory"),
        ("empty.csv", "not written: there are no requests"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    some = [] if name == "empty.csv" else [TraceRequest(0.0, 1, 2)]
    with pytest.raises(SettingsError) as caught:
        write_trace(tmp_path / name, some)
    assert caught.value.message == f"{tmp_path / name}: {reason}"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_requests_that_fit_pass_and_the_others_are_cut_and_counted() -> None:
    fits = TraceRequest(0.0, 60, 40, 10, "a")
    cut = capped([fits, TraceRequest(1.0, 80, 40, 70), TraceRequest(2.0, 5, 400, 5)], 100)
    assert list(cut) == [fits, TraceRequest(1.0, 60, 40, 60), TraceRequest(2.0, 1, 99, 1)]
    assert cut.count == CapCount(requests=3, capped=2, prompts_capped=2, outputs_capped=1)


@given(requests, st.integers(2, 10**9))
def test_capped_requests_fit_the_context_and_keep_at_least_a_token(drawn: list[TraceRequest], context: int) -> None:
    for request, before in zip(capped(drawn, context), drawn, strict=True):
        assert request.prompt_tokens >= 1
        assert request.output_tokens >= 1
        assert request.prefix_hit_tokens <= request.prompt_tokens
        assert request.prompt_tokens + request.output_tokens <= context
        assert request.output_tokens == min(before.output_tokens, context - 1)


def test_context_without_room_for_prompt_and_answer_is_refused() -> None:
    with pytest.raises(SettingsError, match="2 are the least"):
        capped([], 1)


def test_speed_divides_the_arrivals_only() -> None:
    assert list(sped_up([TraceRequest(3.0, 1, 2, 1, "a")], 2)) == [TraceRequest(1.5, 1, 2, 1, "a")]


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf])
def test_speed_that_is_none_is_refused(factor: float) -> None:
    with pytest.raises(SettingsError, match="speed"):
        sped_up([], factor)
