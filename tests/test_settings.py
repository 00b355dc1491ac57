"""spillway.yaml and the environment: what is wrong is refused by its name, and nobody is let in by accident."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import SettingsError
from node.routing.values import Residency
from node.settings import Settings, is_loopback, load_settings

Write = Callable[[str], Path]
DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "spillway.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_no_file_and_no_environment_give_the_defaults() -> None:
    assert load_settings(None, {}) == Settings()
    assert is_loopback(Settings().listen.host)


def test_empty_file_gives_the_defaults(write: Write) -> None:
    assert load_settings(write("# nothing yet\n"), {}) == Settings()


def test_file_is_read(write: Write) -> None:
    text = f"""
        models: [demo, other]
        listen: {{port: 9000}}
        routing: {{ttft_budget_ms: 500, max_queue_depth: null}}
        privacy: {{pinned_models: [other]}}
        keys: [{{name: team, sha256: "{DIGEST}", residency: premises}}]
        providers:
          lab: {{base_url: "http://127.0.0.1:1/v1", clocks: {{connect_s: 1}}}}
    """
    settings = load_settings(write(text), {})
    assert settings.models == ("demo", "other")
    assert settings.listen.port == 9000
    assert (settings.routing.ttft_budget_ms, settings.routing.max_queue_depth) == (500.0, None)
    assert settings.keys[0].residency is Residency.PREMISES
    assert settings.providers["lab"].clocks.connect_s == 1.0
    assert settings.providers["lab"].clocks.total_s == 600.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("routng: {}", "routng"),
        ("routing: {margin: 1}", "margin"),
        ("routing: {margin_ms: 0}", "routing.margin_ms"),
        ("routing: {margin_ms: soon}", "routing.margin_ms"),
        ("routing: {ttft_safety: 0.7}", "ttft_safety"),
        ("routing: {feed_ms: 0}", "routing.feed_ms"),
        ("routing: {tpot_budget_ms: -5}", "routing.tpot_budget_ms"),
        ("routing: {ttft_budget_ms: .nan}", "routing.ttft_budget_ms"),
        ("routing: {feed_ahead: -1}", "routing.feed_ahead"),
        ("listen: {port: 70000}", "listen.port"),
        ("listen: {port: '80'}", "listen.port"),
        ("listen: 8000", "listen"),
        ("models: []", "models"),
        ("models: demo", "models"),
        ("cloud_only: 'no'", "cloud_only"),
        ("cache: {ttl_s: -1}", "cache.ttl_s"),
        ("privacy: {residency: anywhere}", "privacy.residency"),
        ("keys: [{name: a, sha256: secret}]", "keys[0].sha256"),
        (f"keys: [{{sha256: '{DIGEST}'}}]", "name"),
        ("providers: {lab: {base_url: 'ftp://x'}}", "base_url"),
        ("providers: {lab: {}}", "base_url"),
        ("providers: {lab: {base_url: 'http://x', api_key: sk}}", "api_key"),
        ("api: {max_body_bytes: 0}", "api.max_body_bytes"),
        ("privacy: {pinned_models: [other]}", "other"),
        ("engine: {other: {}}", "other"),
        ("routing: {margin_ms: 1, margin_ms: 2}", "margin_ms"),
        ("- a list", "not a mapping"),
        ("listen: {", "not YAML"),
    ],
)
def test_bad_key_is_refused_by_its_name_and_its_file(write: Write, text: str, named: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError) as refused:
        load_settings(path, {})
    assert named in refused.value.message
    assert str(path) in refused.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("providers: {ours: {base_url: 'http://x'}, lab: {weight: 2}}", "providers.lab.base_url: is required"),
        ("providers: {lab: {base_url: 'http://x', clocks: {total_s: 0}}}", "providers.lab.clocks.total_s: Expected"),
        ("providers: {lab: null}", "providers.lab: Expected"),
        ("engine: {demo: 3}", "engine.demo: Expected"),
        ("keys: [{name: a}]", "keys[0].sha256: is required"),
        ("keys: [{name: a, sha256: secret}]", 'One is made by: printf %s "$KEY" | sha256sum'),
        ("privacy: {residency: local}", "privacy.residency: Invalid enum value 'local'; choose one of premises, any"),
        ("routng: {}", "routng: there is no such key; there are listen, models, cloud_only"),
        ("routing: {margin: 1}", "routing.margin: there is no such key; there are ttft_budget_ms"),
        ("providers: {lab: {base_url: 'http://x', key: k}}", "providers.lab.key: there is no such key; there are base"),
        ("privacy: {pinned_models: [demo, nope]}", "privacy.pinned_models[1]: 'nope' is not in `models`"),
        ("engine: {nope: {}}", "engine.nope: 'nope' is not in `models`"),
    ],
)
def test_refusal_names_the_whole_key_and_what_would_be_right(write: Write, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(write(text), {})
    assert said in refused.value.message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: cannot be read"):
        load_settings(tmp_path / "nowhere.yaml", {})


def test_two_keys_of_one_name_are_refused(write: Write) -> None:
    path = write(f"keys: [{{name: a, sha256: '{DIGEST}'}}, {{name: a, sha256: '{DIGEST}'}}]")
    with pytest.raises(SettingsError, match="'a' is there twice"):
        load_settings(path, {})


def test_environment_overrides_the_file(write: Write) -> None:
    path = write("listen: {host: '::1', port: 1}\nmodels: [a]")
    environ = {"SPILLWAY_HOST": "127.0.0.2", "SPILLWAY_PORT": "9001", "SPILLWAY_MODELS": "demo, other,"}
    settings = load_settings(path, environ)
    assert (settings.listen.host, settings.listen.port) == ("127.0.0.2", 9001)
    assert settings.models == ("demo", "other")


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"SPILLWAY_PORT": "http"}, "SPILLWAY_PORT"),
        ({"SPILLWAY_PORT": "-1"}, "SPILLWAY_PORT"),
        ({"SPILLWAY_PORT": "99999"}, "listen.port"),
        ({"SPILLWAY_MODELS": ","}, "models"),
    ],
)
def test_bad_environment_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load_settings(None, environ)


def test_key_from_the_environment_is_kept_as_its_digest_beside_those_of_the_file(write: Write) -> None:
    path = write(f"keys: [{{name: team, sha256: '{DIGEST}'}}]")
    settings = load_settings(path, {"SPILLWAY_API_KEY": "another"})
    assert [key.name for key in settings.keys] == ["team", "default"]
    assert settings.keys[1].sha256 == hashlib.sha256(b"another").hexdigest()
    assert "another" not in repr(settings)


def test_holysheep_is_there_once_its_key_is(write: Write) -> None:
    assert load_settings(None, {}).providers == {}
    settings = load_settings(None, {"HOLYSHEEP_API_KEY": "sk-secret"})
    assert settings.providers["holysheep"].base_url.startswith("https://")
    assert settings.providers["holysheep"].api_key_env == "HOLYSHEEP_API_KEY"
    assert "sk-secret" not in repr(settings)


def test_own_entry_for_holysheep_is_not_overwritten(write: Write) -> None:
    path = write("providers: {holysheep: {base_url: 'http://127.0.0.1:1/v1', api_key_env: MINE}}")
    settings = load_settings(path, {"HOLYSHEEP_API_KEY": "k"})
    assert settings.providers["holysheep"].base_url == "http://127.0.0.1:1/v1"
    assert settings.providers["holysheep"].api_key_env == "MINE"


@pytest.mark.parametrize("name", ["holysheep", "openai"])
def test_known_key_is_neither_sent_to_another_address_nor_lost_unasked(write: Write, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"providers\.{name}\.base_url: http://lab/v1 .*_API_KEY.*null for no key"):
        load_settings(write(f"providers: {{{name}: {{base_url: 'http://lab/v1'}}}}"), {})
    path = write(f"providers: {{{name}: {{base_url: 'http://lab/v1', api_key_env: null}}}}")
    assert load_settings(path, {}).providers[name].api_key_env is None


def test_known_key_goes_to_the_known_address_written_out(write: Write) -> None:
    path = write("providers: {openai: {base_url: 'https://api.openai.com/v1/'}}")
    assert load_settings(path, {}).providers["openai"].api_key_env == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (f"[{{name: a, sha256: '{'0' * 64}'}}, {{name: b, sha256: '{'0' * 64}'}}]", "'b' has the same key as 'a'"),
        (f"[{{name: a, sha256: '{'0' * 64}', models: [other]}}]", "keys: 'a': models: 'other' is not in `models`"),
        (f"[{{name: a, sha256: '{'0' * 64}', priority: 101}}]", "priority"),
        (f"[{{name: a, sha256: '{'0' * 64}', requests_per_minute: 0}}]", "requests_per_minute"),
    ],
)
def test_key_with_rights_that_make_no_sense_is_refused(write: Write, keys: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(write(f"keys: {keys}"), {})
    assert said in refused.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert load_settings(None, {"SPILLWAY_HOST": host}).keys == ()


def test_a_port_in_other_digits_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="SPILLWAY_PORT"):
        load_settings(None, {"SPILLWAY_PORT": "²"})


def test_known_providers_need_no_address() -> None:
    settings = load_settings(None, {"HOLYSHEEP_API_KEY": "k"})
    assert settings.providers["holysheep"].base_url == "https://api.holysheep.ai/v1"
    assert "openai" not in settings.providers


def test_a_known_provider_takes_other_settings(tmp_path: Path) -> None:
    file = tmp_path / "spillway.yaml"
    file.write_text("providers: {openai: {weight: 0.5}}")
    provider = load_settings(file, {}).providers["openai"]
    assert (provider.api_key_env, provider.weight) == ("OPENAI_API_KEY", 0.5)
