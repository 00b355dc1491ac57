"""The shipped catalogue loads, and every wrong entry is refused by file, key and reason."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from textwrap import dedent

import pytest

from node.catalogue import Catalogue, Model
from node.catalogue_files import default_models_dir, load_catalogue
from node.errors import SettingsError
from node.money import Price
from node.routing.values import Capability

MODEL = dedent(
    """\
    name: small
    summary: a model
    local:
      source: weights
      context_tokens: 4096
      capabilities: [tools]
      engine_args: {max_num_seqs: 8}
    cloud:
      - provider: acme
        model: big
        context_tokens: 8192
        capabilities: [tools, json_object]
    """
)
PRICES = dedent(
    """\
    provider: acme
    as_of: 2026-11-23
    models:
      big: {input_usd_per_mtok: 0.14, output_usd_per_mtok: 0.42, list_output_usd_per_mtok: 60}
    """
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, model: str = MODEL, prices: str = PRICES) -> Path:
    (folder / "prices").mkdir(parents=True)
    (folder / "weights").mkdir()
    (folder / "small.yaml").write_text(model, encoding="utf-8")
    (folder / "prices" / "acme.yaml").write_text(prices, encoding="utf-8")
    return folder


def the_model(catalogue: Catalogue, name: str = "small") -> Model:
    model = catalogue.get(name)
    assert model is not None
    return model


def refusal(folder: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load_catalogue([folder])
    return caught.value.message


def test_shipped_catalogue_loads() -> None:
    catalogue = load_catalogue([default_models_dir()])
    assert set(catalogue.models) == {"demo", "qwen3-8b", "llama-3.1-8b", "gpt-oss-20b"}


def test_shipped_demo_points_at_the_weights_beside_it() -> None:
    local = the_model(load_catalogue([default_models_dir()]), "demo").local
    assert local is not None
    assert Path(local.source) == default_models_dir() / "demo"
    assert (Path(local.source) / "model.safetensors").is_file()
    assert local.tool_parser == "hermes"
    assert local.context_tokens == 4096


def test_shipped_hub_models_are_pinned_to_a_commit() -> None:
    for name in ("qwen3-8b", "llama-3.1-8b", "gpt-oss-20b"):
        local = the_model(load_catalogue([default_models_dir()]), name).local
        assert local is not None
        assert local.revision is not None
        assert len(local.revision) == 40


def test_every_shipped_equivalent_has_a_price_and_a_date() -> None:
    for model in load_catalogue([default_models_dir()]).models.values():
        assert model.cloud
        assert model.reference is not None
        for equivalent in model.cloud:
            assert equivalent.price is not None
            assert equivalent.priced_on == date(2026, 11, 23)


def test_shipped_holysheep_prices_are_the_published_ones() -> None:
    demo = the_model(load_catalogue([default_models_dir()]), "demo")
    assert [(each.provider, each.model) for each in demo.cloud] == [
        ("holysheep", "deepseek-v3.2"),
        ("holysheep", "gpt-4.1"),
        ("openai", "gpt-4.1"),
    ]
    assert demo.cloud[0].price == Price(Decimal("0.14"), Decimal("0.42"))
    assert demo.cloud[1].price == Price(Decimal(3), Decimal(8))
    assert demo.reference == Price(Decimal("0.14"), Decimal(60))


def test_an_entry_reads_as_written(tmp_path: Path) -> None:
    model = the_model(load_catalogue([write(tmp_path / "models")]))
    assert model.local is not None
    assert model.local.source == str(tmp_path / "models" / "weights")
    assert model.local.engine_args == {"max_num_seqs": 8}
    assert model.cloud[0].capabilities == {Capability.TOOLS, Capability.JSON_OBJECT}
    assert model.cloud[0].max_output_tokens is None
    assert model.reference == Price(Decimal("0.14"), Decimal(60))


def test_a_list_price_of_the_input_is_used_where_known(tmp_path: Path) -> None:
    prices = PRICES.replace("list_output", "list_input_usd_per_mtok: 30, list_output")
    assert the_model(load_catalogue([write(tmp_path / "m", prices=prices)])).reference == Price(
        Decimal(30), Decimal(60)
    )


@pytest.mark.parametrize("unknown", ["0.14", "0.42"])
def test_half_a_price_is_no_price(tmp_path: Path, unknown: str) -> None:
    folder = write(tmp_path / "models", prices=PRICES.replace(unknown, "null"))
    assert the_model(load_catalogue([folder])).cloud[0].price is None


def test_a_model_missing_from_its_providers_prices_has_no_price(tmp_path: Path) -> None:
    folder = write(tmp_path / "models", prices=PRICES.replace("big:", "other:"))
    equivalent = the_model(load_catalogue([folder])).cloud[0]
    assert equivalent.price is None
    assert equivalent.priced_on is None


def test_a_later_folder_replaces_models_and_prices_by_name(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    second = write(tmp_path / "second", MODEL.replace("a model", "mine"), PRICES.replace("0.42", "0.5"))
    model = the_model(load_catalogue([first, second]))
    assert model.summary == "mine"
    assert model.cloud[0].price == Price(Decimal("0.14"), Decimal("0.5"))


def test_an_operators_prices_apply_to_shipped_models(tmp_path: Path) -> None:
    (tmp_path / "prices").mkdir()
    (tmp_path / "prices" / "mine.yaml").write_text(
        "provider: holysheep\nas_of: 2027-01-01\n"
        "models: {deepseek-v3.2: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}\n",
        encoding="utf-8",
    )
    demo = the_model(load_catalogue([default_models_dir(), tmp_path]), "demo")
    assert demo.cloud[0].price == Price(Decimal(1), Decimal(2))
    assert demo.cloud[0].priced_on == date(2027, 1, 1)
    assert demo.cloud[1].price == Price(Decimal(3), Decimal(8))


def test_a_model_may_live_only_here_or_only_in_the_cloud(tmp_path: Path) -> None:
    local, cloud = MODEL.split("cloud:")
    only_here = write(tmp_path / "here", local)
    assert the_model(load_catalogue([only_here])).cloud == ()
    head = "name: small\nsummary: a model\ncloud:"
    assert the_model(load_catalogue([write(tmp_path / "cloud", head + cloud)])).local is None


def test_a_hub_id_stays_a_hub_id(tmp_path: Path) -> None:
    hub = MODEL.replace("source: weights", f"source: org/name\n  revision: {COMMIT}")
    local = the_model(load_catalogue([write(tmp_path / "models", hub)])).local
    assert local is not None
    assert (local.source, local.revision) == ("org/name", COMMIT)


@pytest.mark.parametrize(
    ("old", "new", "key", "reason"),
    [
        ("summary: a model", "summary: a model\ncolour: red", "colour", "unknown field"),
        ("summary: a model\n", "", "summary", "missing required field"),
        ("name: small", "name: ''", "name", "matching regex"),
        ("name: small", "name: 7", "name", "Expected `str`"),
        ("name: small", "name: small\nname: large", "name", "written twice"),
        ("  source: weights", "  source: weights\n  source: other", "source", "written twice"),
        ("  source: weights", "  source: nowhere", "local.source", "neither a hub id nor a folder"),
        ("  source: weights", "  source: org/name", "local.revision", "40 hexadecimal digits"),
        ("  source: weights", "  source: org/name\n  revision: main", "local.revision", "40 hexadecimal digits"),
        ("  source: weights", f"  source: weights\n  revision: {COMMIT}", "local.revision", "has no revision"),
        ("context_tokens: 4096", "context_tokens: 0", "local.context_tokens", ">= 1"),
        ("context_tokens: 4096", "context_tokens: -1", "local.context_tokens", ">= 1"),
        ("context_tokens: 4096", "context_tokens: true", "local.context_tokens", "Expected `int`"),
        ("context_tokens: 4096", "context_tokens: 40.5", "local.context_tokens", "Expected `int`"),
        ("context_tokens: 8192", "context_tokens: 0", "cloud[0].context_tokens", ">= 1"),
        ("context_tokens: 8192", "context_tokens: 8192\n    max_output_tokens: 0", "max_output_tokens", ">= 1"),
        ("capabilities: [tools]", "capabilities: [telepathy]", "local.capabilities[0]", "telepathy"),
        ("capabilities: [tools]", "capabilities: [tools, tools]", "local.capabilities", "listed twice"),
        ("capabilities: [tools]", "capabilities: tools", "local.capabilities", "Expected `array`"),
        ("provider: acme", "provider: nobody", "cloud[0].provider", "no price file"),
        ("{max_num_seqs: 8}", "[8]", "local.engine_args", "Expected `object`"),
        ("{max_num_seqs: 8}", "{trust_remote_code: true}", "engine_args.trust_remote_code", "never run"),
        ("{max_num_seqs: 8}", "{host: 0.0.0.0}", "engine_args.host", "the node listens"),
        ("{max_num_seqs: 8}", "{port: 8000}", "engine_args.port", "the node listens"),
        ("{max_num_seqs: 8}", "{api_key: k}", "engine_args.api_key", "the node checks keys"),
        ("{max_num_seqs: 8}", "{max_model_len: 10}", "engine_args.max_model_len", "local.context_tokens"),
        ("{max_num_seqs: 8}", "{Max-Seqs: 8}", "engine_args.Max-Seqs", "engine argument"),
        ("name: small", "name: [", "small.yaml", "not YAML"),
        ("name: small", "name: !!python/object/apply:os.getcwd []", "small.yaml", "could not determine"),
    ],
)
def test_a_wrong_model_is_refused_by_file_key_and_reason(
    tmp_path: Path, old: str, new: str, key: str, reason: str
) -> None:
    assert old in MODEL
    message = refusal(write(tmp_path / "models", MODEL.replace(old, new, 1)))
    assert message.startswith(str(tmp_path / "models" / "small.yaml"))
    assert key in message
    assert reason in message


@pytest.mark.parametrize(
    ("old", "new", "key", "reason"),
    [
        ("as_of: 2026-11-23\n", "", "as_of", "missing required field"),
        ("2026-11-23", "soon", "as_of", "date"),
        ("2026-11-23", "2026-11-23 10:00:00", "as_of", "without a time"),
        ("0.42", "-0.42", "models.big.output_usd_per_mtok", ">= 0"),
        ("0.42", "cheap", "output_usd_per_mtok", "Expected `float | null`"),
        ("0.42", "'0.42'", "output_usd_per_mtok", "Expected `float | null`"),
        ("0.42", "true", "output_usd_per_mtok", "Expected `float | null`"),
        ("0.42", ".nan", "models.big.output_usd_per_mtok", ">= 0"),
        ("0.42", ".inf", "output_usd_per_mtok", "<= 1000000"),
        ("0.14", "-1", "input_usd_per_mtok", ">= 0"),
        ("output_usd_per_mtok: 0.42, ", "", "output_usd_per_mtok", "missing required field"),
        ("list_output_usd_per_mtok", "list_price", "models.big.list_price", "unknown field"),
        ("provider: acme\n", "", "provider", "missing required field"),
        ("  big: {", "  big: 3 #", "models.big", "Expected `object`"),
        ("  big:", "  big: {input_usd_per_mtok: 1, output_usd_per_mtok: 1}\n  big:", "big", "written twice"),
    ],
)
def test_a_wrong_price_is_refused_by_file_key_and_reason(
    tmp_path: Path, old: str, new: str, key: str, reason: str
) -> None:
    assert old in PRICES
    message = refusal(write(tmp_path / "models", prices=PRICES.replace(old, new, 1)))
    assert message.startswith(str(tmp_path / "models" / "prices" / "acme.yaml"))
    assert key in message
    assert reason in message


def test_an_engine_argument_vllm_does_not_have_is_refused(tmp_path: Path) -> None:
    assert "engine_args.max_num_sequences: vLLM has no" in refusal(
        write(tmp_path / "models", MODEL.replace("max_num_seqs", "max_num_sequences"))
    )


@pytest.mark.parametrize("key", ["tool_parser", "reasoning_parser"])
def test_a_parser_vllm_does_not_have_is_refused(tmp_path: Path, key: str) -> None:
    model = MODEL.replace("  source: weights", f"  source: weights\n  {key}: hermess")
    assert f"local.{key}: vLLM has no parser 'hermess'" in refusal(write(tmp_path / "models", model))


def test_one_name_in_two_files_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "models")
    (folder / "twin.yaml").write_text(MODEL, encoding="utf-8")
    message = refusal(folder)
    assert "twin.yaml: name: 'small' is also in small.yaml" in message


def test_one_provider_in_two_price_files_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "models")
    (folder / "prices" / "twin.yaml").write_text(PRICES, encoding="utf-8")
    assert "twin.yaml: provider: 'acme' is also in acme.yaml" in refusal(folder)


def test_one_equivalent_listed_twice_is_refused(tmp_path: Path) -> None:
    entry = MODEL.partition("cloud:\n")[2]
    assert "cloud[1].model" in refusal(write(tmp_path / "models", MODEL + entry))


def test_a_model_that_nothing_can_serve_is_refused(tmp_path: Path) -> None:
    assert "local: a model needs" in refusal(write(tmp_path / "models", "name: small\nsummary: a model\n"))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(tmp_path / "missing")
