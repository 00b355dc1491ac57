"""`spillway doctor` names what is wrong, and what to do about it."""

from node.doctor import examine
from node.settings import ProviderSettings, Settings


def report(settings: Settings, environ: dict[str, str] | None = None) -> tuple[int, str]:
    lines: list[str] = []
    code = examine(settings, lines.append, environ or {})
    return code, "\n".join(lines)


def test_default_settings_can_serve_and_say_that_the_cloud_is_emulated() -> None:
    code, text = report(Settings())
    assert code == 0
    assert "model demo" in text
    assert "emulator" in text
    assert "sqlite" in text


def test_unknown_model_is_bad_and_the_known_ones_are_listed() -> None:
    code, text = report(Settings(models=("gpt-9",)))
    assert code == 1
    assert "bad   model gpt-9: not in the catalogue" in text
    assert "demo" in text


def test_provider_without_its_key_is_bad() -> None:
    provider = ProviderSettings(base_url="https://api.example.invalid/v1", api_key_env="NO_SUCH_KEY")
    code, text = report(Settings(providers={"acme": provider}))
    assert code == 1
    assert "NO_SUCH_KEY is not set" in text


def test_provider_that_cannot_be_reached_is_bad() -> None:
    provider = ProviderSettings(base_url="http://127.0.0.1:9/v1")
    code, text = report(Settings(providers={"acme": provider}))
    assert code == 1
    assert "bad   provider acme" in text
