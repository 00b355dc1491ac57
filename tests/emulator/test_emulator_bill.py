"""The bill adds up, is charged for what was sent, and outlives the process."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import pytest

from node.catalogue_files import default_models_dir
from node.emulator import Emulator, ModelPrice, Switch
from node.emulator.bill import Journal
from node.emulator.prices import HOLYSHEEP, read_prices
from tests.emulator.emulator_client import Wire, ask, chat, fast, streaming, until


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(fast(log_prompts=True)) as running:
        yield running


async def test_bill_adds_up_to_tokens_times_prices(emulator: Emulator) -> None:
    for model in HOLYSHEEP:
        for body in (chat(model=model), streaming(model=model)):
            assert (await ask(emulator, body)).status == 200
    lines = emulator.bill.records
    assert len(lines) == 10
    for line in lines:
        price = HOLYSHEEP[line["model"]]
        exact = 1000 * (
            price.input_usd_per_mtok * line["prompt_tokens"] + price.output_usd_per_mtok * line["completion_tokens"]
        )
        assert line["cost_nano_usd"] == exact
        assert line["state"] == "completed"
    assert emulator.billed_nano_usd == sum(line["cost_nano_usd"] for line in lines)


async def test_usage_told_is_usage_billed(emulator: Emulator) -> None:
    whole = (await ask(emulator, chat())).json()
    told = (await ask(emulator, streaming())).events()[-1]
    for said, line in zip((whole, told), emulator.bill.records, strict=True):
        assert said["id"] == line["id"]
        assert said["usage"]["prompt_tokens"] == line["prompt_tokens"]
        assert said["usage"]["completion_tokens"] == line["completion_tokens"]
        assert round(said["usage"]["cost_usd"] * 10**9) == line["cost_nano_usd"]


def test_a_broken_nano_dollar_is_charged_whole() -> None:
    price = ModelPrice(Fraction("0.00014"), Fraction("0.42"))
    assert price.cost_nano_usd(1, 0) == 1
    assert price.cost_nano_usd(0, 1) == 420
    assert price.cost_nano_usd(0, 0) == 0


def test_prices_are_those_of_the_shipped_price_file() -> None:
    assert read_prices(default_models_dir() / "prices" / "holysheep.yaml") == dict(HOLYSHEEP)


def test_a_file_that_is_no_price_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models: [1]", encoding="utf-8")
    with pytest.raises(ValueError, match="not a price file"):
        read_prices(tmp_path / "prices.yaml")


async def test_a_client_that_leaves_a_stream_pays_for_what_was_sent() -> None:
    async with Emulator(fast(pace_s=0.02, answer_tokens_median=400.0)) as emulator:
        wire = await Wire.open(emulator)
        heard = await wire.ask(streaming(), enough=lambda body: body.count(b'"content":" ') >= 3)
        await wire.close()
        await until(lambda: len(emulator.bill.records) == 1)
        [line] = emulator.bill.records
        received = heard.body.count(b'"content":"') - 1  # the role event has empty content
        assert line["state"] == "client_closed"
        assert received <= line["completion_tokens"] <= received + 5
        assert line["cost_nano_usd"] == HOLYSHEEP["gpt-4.1"].cost_nano_usd(4 + 1, line["completion_tokens"])


async def test_a_client_that_leaves_before_the_first_token_pays_for_its_prompt() -> None:
    for body in (chat(), streaming()):
        async with Emulator(fast(ttft_median_s=60.0)) as emulator:
            wire = await Wire.open(emulator)
            await wire.ask(body, patience_s=0.05)
            await wire.close()
            await until(lambda: len(emulator.bill.records) == 1)
            assert emulator.bill.records[0]["state"] == "client_closed"
            assert emulator.bill.records[0]["completion_tokens"] == 0
            assert emulator.bill.records[0]["cost_nano_usd"] == 5 * 3000


async def test_a_stream_the_provider_breaks_is_billed_as_an_error_for_what_was_sent(emulator: Emulator) -> None:
    emulator.switches.arm(Switch.RESET_MID_STREAM)
    heard = await ask(emulator, streaming())
    [line] = emulator.bill.records
    assert heard.end == "reset"
    assert line["state"] == "error"
    assert line["completion_tokens"] >= heard.body.count(b'"content":" ')


async def test_a_refused_call_is_logged_and_not_billed(emulator: Emulator) -> None:
    emulator.switches.arm(Switch.ERROR_503)
    await ask(emulator, chat())
    assert emulator.bill.records == []
    assert emulator.log.records[0]["status"] == 503


async def test_bill_file_has_one_line_per_call_and_is_carried_on(tmp_path: Path) -> None:
    path = tmp_path / "bill.jsonl"
    ids = []
    for fsync in (False, True):
        async with Emulator(fast(bill_path=path, fsync=fsync)) as emulator:
            await ask(emulator, chat())
            assert [json.loads(line) for line in path.read_text().splitlines()] == emulator.bill.records
            ids = [line["id"] for line in emulator.bill.records]
    assert len(set(ids)) == 2


def test_a_line_torn_by_a_kill_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "bill.jsonl"
    path.write_bytes(b'{"cost_nano_usd":1}\n{"cost_na')
    journal = Journal(path)
    journal.append({"cost_nano_usd": 2})
    journal.close()
    assert path.read_bytes() == b'{"cost_nano_usd":1}\n{"cost_nano_usd": 2}\n'


def test_a_file_that_is_no_bill_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bill.jsonl"
    path.write_text("dear diary\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a file of JSON lines"):
        Journal(path)
    assert path.read_text(encoding="utf-8") == "dear diary\n"


async def test_log_shows_what_arrived_even_when_it_was_refused(emulator: Emulator) -> None:
    secret = chat(messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "pinned words"}])
    await ask(emulator, secret, key="wrong")
    await ask(emulator, secret | {"model": "gpt-9"})
    await ask(emulator, b'{"broken": "pinned words"')
    assert [line["status"] for line in emulator.log.records] == [401, 404, 400]
    assert all("pinned words" in "".join(line["prompts"]) for line in emulator.log.records)
    digest = hashlib.sha256(b"pinned words").hexdigest()
    assert digest in emulator.log.records[0]["prompt_sha256"]
    assert emulator.log.records[0]["fields"] == ["messages", "model"]
    assert "authorization" in emulator.log.records[0]["headers"]


async def test_log_keeps_no_prompt_text_by_default(tmp_path: Path) -> None:
    async with Emulator(fast(log_path=tmp_path / "log.jsonl")) as emulator:
        await ask(emulator, chat(messages=[{"role": "user", "content": "pinned words"}]))
    assert "pinned words" not in (tmp_path / "log.jsonl").read_text()
    assert hashlib.sha256(b"pinned words").hexdigest() in (tmp_path / "log.jsonl").read_text()


async def test_sixty_four_streams_at_once_are_all_answered_and_billed(emulator: Emulator) -> None:
    heard = await asyncio.gather(*(ask(emulator, streaming()) for _ in range(64)))
    assert all(each.body.endswith(b"data: [DONE]\n\n") for each in heard)
    told = sum(each.events()[-1]["usage"]["completion_tokens"] for each in heard)
    assert told == sum(line["completion_tokens"] for line in emulator.bill.records)


async def test_bill_holds_what_was_to_be_said_in_full_if_asked_to() -> None:
    async with Emulator(fast(bill_answers=True)) as emulator:
        whole = (await ask(emulator, chat())).json()["choices"][0]["message"]["content"]
        emulator.switches.arm(Switch.EOF_WITHOUT_DONE)
        cut = await ask(emulator, streaming())
        said = "".join(event["choices"][0]["delta"].get("content", "") for event in cut.events())
        first, second = (record["answers"] for record in emulator.bill.records)
    assert first == [whole]
    (full,) = second
    assert full.startswith(said)
    assert len(said) < len(full)
