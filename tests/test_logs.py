"""Whatever becomes of the log, whoever logs goes on."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.logs import BoundedHandler, for_the_engine


def record(text: str = "%s", *values: object) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, text, values, None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_lines_are_written_in_order(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        handler = BoundedHandler(log.fileno())
        for number in range(1000):
            handler.emit(record("line %d", number))
        handler.close()
    assert (tmp_path / "log").read_text().splitlines() == [f"line {number}" for number in range(1000)]
    assert handler.dropped == 0


def test_row_75_pipe_that_nobody_reads_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    handler = BoundedHandler(writing, most_lines=100)
    for number in range(3000):
        handler.emit(record("%s", f"{number} " + "x" * 1000))  # a pipe holds 64 KiB
    assert handler.dropped > 2000
    received = b""
    while b"log lines were lost" not in received:
        received += os.read(reading, 65536)
        handler.emit(record("%s", "again"))
    handler.close()


def test_row_75_full_disk_costs_lines_and_nothing_else() -> None:
    with Path("/dev/full").open("wb") as log:
        handler = BoundedHandler(log.fileno())
        for number in range(100):
            handler.emit(record("%d", number))
        handler.close()
    assert handler.dropped == 100


def test_end_waits_for_a_blocked_log_no_longer_than_a_moment(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.logs._FLUSH_WITHIN_S", 0.01)
    handler = BoundedHandler(pipe[1], most_lines=10)
    for _ in range(200):
        handler.emit(record("%s", "x" * 1000))
    began_s = time.monotonic()
    handler.close()
    assert time.monotonic() - began_s < 5


def test_line_whose_arguments_do_not_fit_is_reported_and_not_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "log").open("wb") as log:
        handler = BoundedHandler(log.fileno())
        handler.emit(record("%d", "not a number"))
        handler.close()
    assert "not a number" in capsys.readouterr().err


def test_engine_logs_through_the_same_handler_at_the_level_asked_for(tmp_path: Path) -> None:
    added = for_the_engine(tmp_path, {"VLLM_LOGGING_LEVEL": "INFO"})
    config = json.loads(Path(added["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    logging.config.dictConfig({**config, "loggers": {"test.vllm": config["loggers"]["vllm"]}})
    logger = logging.getLogger("test.vllm")
    (handler,) = logger.handlers
    assert isinstance(handler, BoundedHandler)
    assert logger.level == logging.INFO
    handler.close()
    logger.handlers.clear()


def test_logging_goes_on_when_the_engine_configures_its_own(tmp_path: Path) -> None:
    """`logging.config` closes every handler there is, those it leaves in place too."""
    with (tmp_path / "log").open("wb") as log:
        handler = BoundedHandler(log.fileno())
        handler.emit(record("%s", "before"))
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        handler.emit(record("%s", "after"))
        handler.close()
    assert (tmp_path / "log").read_text().splitlines() == ["before", "after"]


@pytest.mark.parametrize("own", ["VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING"])
def test_operators_own_engine_logging_is_left_alone(tmp_path: Path, own: str) -> None:
    assert for_the_engine(tmp_path, {own: "0"}) == {}


def test_forked_process_goes_on_logging(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        handler = BoundedHandler(log.fileno())
        child = os.fork()
        if child == 0:
            handler.emit(record("%s", "from the child"))
            handler.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        handler.close()
    assert (tmp_path / "log").read_text() == "from the child\n"
