"""ServeGen: a folder that describes each tenant instead of listing requests, so that arrivals are drawn from it.

`chunk-<tenant>-trace.csv`, no header, a line for every ten minutes: `start_s, rate, cv, pattern, shape, scale`, where
the pattern of the gaps is `Gamma`, `Weibull`, or nothing at all. `chunk-<tenant>-dataset.json`: for every six hours,
keyed by their start, the histograms `input_tokens` and `output_tokens` as text, `{tokens: share, ...}`, empty ones
included. Source: github.com/alibaba/ServeGen, README.md ("Data Structure"), servegen/clientpool.py and
servegen/construct.py; paper arXiv:2505.09999.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from node.simulate.formats.source import MAX_TOKENS, number_of, refusal, shown, text_lines
from node.simulate.values import TraceRequest

WINDOW_S = 600
SEED = 0
MAX_RATE = 100_000

_TRACE_NAME = re.compile(r"chunk-(\d+)-trace\.csv")
_LENGTHS = ("input_tokens", "output_tokens")
_LEAST_SHAPE = {"Gamma": 1e-6, "Weibull": 0.01}  # a gap is a power of 1/shape, which must fit a float


def is_servegen(folder: Path) -> bool:
    """Whether `folder` holds at least one tenant."""
    return bool(_trace_files(folder))


def read_servegen(
    folder: Path,
    *,
    seed: int = SEED,
    start_s: float = 0.0,
    seconds: float = math.inf,
    max_tenant_rate: float = math.inf,
) -> Iterator[TraceRequest | None]:
    """Requests drawn for the `seconds` after `start_s`, sorted, time counted from there; `client` is the tenant.

    Tenants whose mean rate over everything published is above `max_tenant_rate` requests/s are left out. For each
    tenant and ten minutes with rate r: 600 r requests, rounded up or down by chance; one gap more than that from the
    fitted distribution, scaled to fill the ten minutes, the last one dropped; prompt and output drawn independently
    from the histograms of the latest six hours, or the nearest that have any. A request of a tenant without histograms
    is None. Every tenant has a generator of its own, made from `seed` and its number, so leaving one out changes no
    other. Ten minutes are held in memory, and the text of all histograms. Raises `SettingsError` naming file, line,
    column and reason.
    """
    tenants = [tenant for tenant in _tenants(folder, seed) if tenant.mean_rate <= max_tenant_rate]
    starts = sorted({start for tenant in tenants for start in tenant.windows})
    for window_start_s in starts:
        offset_s = window_start_s - start_s
        if offset_s <= -WINDOW_S or offset_s >= seconds:
            continue
        drawn = [request for tenant in tenants for request in tenant.drawn(window_start_s, offset_s)]
        drawn.sort(key=lambda request: request.arrival_s)
        for request in drawn:
            if 0 <= request.arrival_s < seconds:
                yield request if request.prompt_tokens else None


class _Window(NamedTuple):
    rate: float
    pattern: str
    shape: float
    scale: float


class _Histogram(NamedTuple):
    tokens: list[int]
    cumulative: list[float]

    def draw(self, rng: random.Random) -> int:
        place = bisect.bisect(self.cumulative, rng.random() * self.cumulative[-1])
        return max(1, self.tokens[min(place, len(self.tokens) - 1)])


@dataclass(slots=True)
class _Tenant:
    number: int
    dataset_path: Path
    windows: dict[int, _Window]
    mean_rate: float
    rng: random.Random
    lengths: dict[int, tuple[str, str]] = field(default_factory=dict)
    current: tuple[int, _Histogram, _Histogram] | None = None

    def drawn(self, window_start_s: int, offset_s: float) -> Iterator[TraceRequest]:
        """One window's requests, arrivals moved to begin at `offset_s`; zero tokens where there are no histograms."""
        window = self.windows.get(window_start_s)
        if window is None:
            return
        expected = WINDOW_S * window.rate
        requests = int(expected) + (self.rng.random() < expected % 1)
        gaps_s = [self._gap_s(window) for _ in range(requests + 1)]
        total_s = sum(gaps_s)
        stretch = WINDOW_S / total_s if total_s > 0 else 0.0
        histograms = self._histograms(window_start_s)
        at_s = 0.0
        for gap_s in itertools.islice(gaps_s, requests):
            at_s += gap_s * stretch
            prompt_tokens, output_tokens = (each.draw(self.rng) for each in histograms) if histograms else (0, 0)
            yield TraceRequest(round(offset_s + at_s, 3), prompt_tokens, output_tokens, client=str(self.number))

    def _gap_s(self, window: _Window) -> float:
        if window.pattern == "Gamma":
            return self.rng.gammavariate(window.shape, window.scale)
        return self.rng.weibullvariate(window.scale, window.shape)

    def _histograms(self, window_start_s: int) -> tuple[_Histogram, _Histogram] | None:
        """Those of the latest six hours that have any, else the next ones; parsed once while they are in use."""
        if not self.lengths:
            return None
        begun = [start_s for start_s in self.lengths if start_s <= window_start_s]
        block_s = max(begun) if begun else min(self.lengths)
        if self.current is None or self.current[0] != block_s:
            prompt, output = self.lengths[block_s]
            self.current = (
                block_s,
                _histogram(self.dataset_path, f"{block_s}, {_LENGTHS[0]}", prompt),
                _histogram(self.dataset_path, f"{block_s}, {_LENGTHS[1]}", output),
            )
        return self.current[1:]


def _trace_files(folder: Path) -> list[tuple[int, Path]]:
    """The tenants' numbers and files, by number."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise refusal(folder, f"cannot be read: {error.strerror}") from error
    return sorted((int(match[1]), path) for path in paths if (match := _TRACE_NAME.fullmatch(path.name)) is not None)


def _tenants(folder: Path, seed: int) -> list[_Tenant]:
    tenants = []
    for number, path in _trace_files(folder):
        windows, mean_rate = _windows(path)
        dataset = path.with_name(f"chunk-{number}-dataset.json")
        lengths = _lengths(dataset) if windows and dataset.exists() else {}
        tenants.append(_Tenant(number, dataset, windows, mean_rate, random.Random(f"{seed}/{number}"), lengths))
    return tenants


def _windows(path: Path) -> tuple[dict[int, _Window], float]:
    """The windows in which anything comes, by their start; and the mean rate over all of them."""
    windows: dict[int, _Window] = {}
    total_rate = 0.0
    count = 0
    reader = csv.reader(text_lines(path), strict=True)
    try:
        for row in reader:
            if not row:
                continue
            line = reader.line_num
            if len(row) != 6:
                raise refusal(path, f"{len(row)} columns where 6 are expected", line=line)
            start_s = number_of(path, line, "start", row[0])
            rate = number_of(path, line, "rate", row[1])
            count += 1
            total_rate += rate
            if row[3] == "" or rate == 0:
                continue
            if row[3] not in _LEAST_SHAPE:
                raise refusal(path, f"neither Gamma nor Weibull: {shown(row[3])}", line=line, column="pattern")
            shape = number_of(path, line, "shape", row[4])
            scale = number_of(path, line, "scale", row[5])
            for name, value, least in (("shape", shape, _LEAST_SHAPE[row[3]]), ("scale", scale, 0.0)):
                if value <= least:
                    raise refusal(path, f"{value}; more than {least} is needed", line=line, column=name)
            if rate > MAX_RATE:
                raise refusal(path, f"more than {MAX_RATE:,} requests/s: {rate}", line=line, column="rate")
            windows[int(start_s)] = _Window(rate, row[3], shape, scale)
    except csv.Error as error:
        raise refusal(path, f"not CSV: {error}", line=reader.line_num) from error
    return windows, total_rate / max(1, count)


def _lengths(path: Path) -> dict[int, tuple[str, str]]:
    """The text of both histograms by the start of their six hours, empty ones left out."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise refusal(path, "not an object of six-hour blocks")
    lengths = {}
    for key, block in document.items():
        if not key.isdecimal() or not isinstance(block, dict):
            raise refusal(path, f"not a block of histograms: {shown(key)}")
        for name in _LENGTHS:
            if not isinstance(block.get(name), str):
                raise refusal(path, "missing, or not text", column=f"{key}, {name}")
        prompt, output = (block[name] for name in _LENGTHS)
        if prompt.strip("{} ") and output.strip("{} "):
            lengths[int(key)] = (prompt, output)
    return lengths


def _histogram(path: Path, where: str, text: str) -> _Histogram:
    """`{9: 0.25, 163: 0.75}` as tokens and cumulative shares; by hand: `ast.literal_eval` takes five times as long."""
    tokens: list[int] = []
    shares: list[float] = []
    for entry in text.strip().removeprefix("{").removesuffix("}").split(","):
        key, _, share = entry.partition(":")
        try:
            tokens.append(int(key))
            shares.append(float(share))
        except ValueError:
            raise refusal(path, f"not `tokens: share`: {shown(entry.strip())}", column=where) from None
        if not (0 <= tokens[-1] <= MAX_TOKENS and 0 <= shares[-1] <= 1):
            raise refusal(path, f"not a share of a length: {shown(entry.strip())}", column=where)
    cumulative = list(itertools.accumulate(shares))
    if cumulative[-1] <= 0:
        raise refusal(path, "all shares are zero", column=where)
    return _Histogram(tokens, cumulative)
