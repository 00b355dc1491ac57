"""spillway.yaml and the environment, read once into one frozen value. A bad key is refused by its name."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, inspect

from node.errors import SettingsError
from node.privacy.detectors import Detector
from node.routing.values import Residency, Zone
from node.yaml_files import read_mapping

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0, le=1e12)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
LEAST_PRIORITY, MOST_PRIORITY = -100, 100


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every part of the settings: frozen, by keyword, unknown keys refused."""


class Listen(Section, frozen=True, kw_only=True):
    """Where the node listens. Beyond loopback it wants at least one key."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000


class AdminSettings(Section, frozen=True, kw_only=True):
    """Where the admin API listens: on loopback only. Its key is `$SPILLWAY_ADMIN_KEY`, else one made at the start and
    kept in `admin.key` in the data folder.

    `port`: null is the one after `listen.port`, and any where that is 0.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] | None = None


NonNegativeFloat = Annotated[float, Meta(ge=0, le=1e9)]


class BudgetSettings(Section, frozen=True, kw_only=True):
    """What may be spent in the cloud, in dollars per UTC hour, day and calendar month (null: no limit).

    What is reserved for calls that are still out counts. Spent: the request waits for the engine here, or is refused.
    """

    hour_usd: NonNegativeFloat | None = None
    day_usd: NonNegativeFloat | None = None
    month_usd: NonNegativeFloat | None = None


class StoreSettings(Section, frozen=True, kw_only=True):
    """Where ledger, keys and audit are kept.

    `folder`: the node's own files, and the SQLite database (null: `$SPILLWAY_DATA`, else `spillway` in the user's data
    folder). `url`: a `postgresql://` URL, best given as `$SPILLWAY_DATABASE_URL` (null: SQLite).
    """

    folder: str | None = None
    url: str | None = None


class KeySettings(Section, frozen=True, kw_only=True):
    """One caller. `sha256` is the hex digest of its key; the key itself is never written down.

    `models`: the ones it may use (null: all). `requests_per_minute`, `tokens_per_minute`: more get a 429 (null: no
    limit). `priority`: higher goes first among those who wait. `ttft_budget_ms`: the time to first token where a
    request names none (null: that of `routing`). Keys can also be made with `spillway keys`: docs/keys.md.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    residency: Residency = Residency.ANY
    models: tuple[str, ...] | None = None
    budget: BudgetSettings = BudgetSettings()
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    priority: Annotated[int, Meta(ge=LEAST_PRIORITY, le=MOST_PRIORITY)] = 0
    ttft_budget_ms: PositiveFloat | None = None


class Clocks(Section, frozen=True, kw_only=True):
    """A provider's four clocks in seconds: connect, first content, between chunks, the whole call."""

    connect_s: PositiveFloat = 5.0
    first_content_s: PositiveFloat = 30.0
    between_chunks_s: PositiveFloat = 30.0
    total_s: PositiveFloat = 600.0


class AnswerClocks(Section, frozen=True, kw_only=True):
    """The clocks of one model's answers, in seconds, instead of its provider's (null: the provider's)."""

    first_content_s: PositiveFloat | None = None
    between_chunks_s: PositiveFloat | None = None
    total_s: PositiveFloat | None = None


class ProviderSettings(Section, frozen=True, kw_only=True):
    """One OpenAI-compatible provider. Its key comes from the environment variable `api_key_env`.

    `weight`: its share of the calls, beside how fast it answers. `zone: premises` says that it stands on the premises
    (another server's Ollama or vLLM, another node): then pinned work may go there, and its address must not be public.
    `emulated: true` says that it is an emulator on this machine, and so does whatever shows it: its answers and its
    bill are made up. `isolated`: nothing is sent there. `model_clocks` replaces `clocks` for models by the provider's
    own id. A first token later than `slow_s` counts against it like a failure. `health_interval_s`: how often it is
    asked for its list of models while it is down (null: never). `trace_context`: it gets a traced request's W3C
    `traceparent`, a random number (null: only on the premises).

    `assumed_ttft_s` stands in for the high percentile of its TTFT until enough answers have been measured. For
    `holysheep` and `openai`, `base_url` and `api_key_env` are known and may be left out; with another `base_url`,
    `api_key_env` has to be written (null: no key), so that no key goes to a foreign address unasked.
    """

    base_url: Annotated[str, Meta(pattern="^https?://")]
    api_key_env: str | None = None
    weight: PositiveFloat = 1.0
    zone: Zone = Zone.CLOUD
    emulated: bool = False
    isolated: bool = False
    clocks: Clocks = Clocks()
    model_clocks: dict[str, AnswerClocks] = {}
    slow_s: PositiveFloat = 10.0
    health_interval_s: PositiveFloat | None = 5.0
    assumed_ttft_s: PositiveFloat = 1.0
    ca_file: str | None = None
    max_connections: PositiveInt = 256
    trace_context: bool | None = None


class RoutingSettings(Section, frozen=True, kw_only=True):
    """The promise to callers who do not set their own, and the limits beyond which load counts as exceeded.

    `ttft_budget_ms`: time to first token. `latency_budget_ms`: the whole answer (null: no promise).
    `max_wait_s`: how long a request that cannot leave may wait for a slot before it is refused.
    `max_queue_depth`, `max_kv_cache_usage`, `min_free_vram_bytes`: hard limits (null: off).
    `feed_ahead`: sequences given to the engine beyond what it can run, so that it never idles (null: an eighth).
    `feed_ms`: the longest that a step full of prompts may take (null: a fifth of the request's budget for its first
    token, up to 600); beyond the next such step prompts wait in the node's own queue.
    `tpot_budget_ms`: time per output token; only so many sequences decode together as keep it (null: no promise).
    `margin_ms`: taken off the last safe moment for the node's own work.
    `hedge_share`: of the requests that start in the engine, how many may have a copy sent to the cloud because their
    first token is late at the last safe moment. The first to answer wins, and both are paid (0: none).
    """

    ttft_budget_ms: PositiveFloat = 2000.0
    latency_budget_ms: PositiveFloat | None = None
    max_wait_s: PositiveFloat = 60.0
    max_queue_depth: PositiveInt | None = 1024
    max_kv_cache_usage: Fraction | None = 0.98
    min_free_vram_bytes: PositiveInt | None = None
    feed_ahead: Annotated[int, Meta(ge=0)] | None = None
    feed_ms: PositiveFloat | None = None
    tpot_budget_ms: PositiveFloat | None = None
    margin_ms: PositiveFloat = 100.0
    hedge_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.0


class CacheSettings(Section, frozen=True, kw_only=True):
    """The answer cache. Off by a `max_bytes` of 0."""

    max_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    max_entry_bytes: PositiveInt = 1024 * 1024
    ttl_s: PositiveFloat = 300.0


class ContentRulesSettings(Section, frozen=True, kw_only=True):
    """Requests that are pinned because of what they say; with nothing listed, no text is looked at.

    `detect`: `email`, `payment_card`, `iban`, `national_id`. `words`: key words and phrases, whole and in any case.
    `patterns`: regular expressions by name. `max_chars`: a request with more text than this is pinned unread. So is one
    with images, sound or token ids: nothing can be found in those (rule `unreadable`). See docs/privacy.md.
    """

    detect: tuple[Detector, ...] = ()
    words: Annotated[tuple[Annotated[str, Meta(min_length=2, max_length=100)], ...], Meta(max_length=200)] = ()
    patterns: dict[str, str] = {}
    max_chars: PositiveInt = 1024 * 1024


class PrivacySettings(Section, frozen=True, kw_only=True):
    """What is pinned to the premises whatever a request says: everything, or the models listed.

    With `residency: premises`, providers in the cloud are not even asked how they are: the node keeps no address of
    theirs.
    """

    residency: Residency = Residency.ANY
    pinned_models: tuple[str, ...] = ()
    content_rules: ContentRulesSettings = ContentRulesSettings()


class ApiSettings(Section, frozen=True, kw_only=True):
    """Limits on what clients send. `strict` refuses unknown request fields instead of ignoring them.

    `max_connections`: open at once, idle ones included; one more gets a 503 and is closed, unless it asks for `/livez`
    or `/readyz`. Fewer where the process may not open that many files. `max_bytes_in_flight`: request bodies held for
    all requests together; one more gets a 503. `reader_stall_s`: how long a client may leave its answer unread before
    its connection is cut. `open_metrics`: `/metrics` is answered to everyone who reaches the port, not only to this
    machine.
    """

    max_body_bytes: PositiveInt = 8 * 1024 * 1024
    max_bytes_in_flight: PositiveInt = 256 * 1024 * 1024
    max_connections: PositiveInt = 4096
    reader_stall_s: PositiveFloat = 30.0
    default_max_tokens: PositiveInt = 1024
    strict: bool = False
    open_metrics: bool = False


class WatchSettings(Section, frozen=True, kw_only=True):
    """How often NVML is asked."""

    interval_s: PositiveFloat = 1.0


class SupervisionSettings(Section, frozen=True, kw_only=True):
    """When an engine counts as hung, and how often it is built anew.

    `stall_s`: an engine that has work and makes no step for a sixth of this is under suspicion, and what may leave goes
    elsewhere; for all of it, it is killed and built anew. Three times that in its first five minutes, in which kernels
    still compile; and where steps are slow, at least as long as twenty of the longest take.
    `rebuild_attempts` within `rebuild_window_s`: an engine that fails once more is given up, and the cloud alone serves
    what may leave.
    """

    stall_s: PositiveFloat = 60.0
    rebuild_attempts: Annotated[int, Meta(ge=0)] = 5
    rebuild_window_s: PositiveFloat = 1800.0


class TracesSettings(Section, frozen=True, kw_only=True):
    """OpenTelemetry traces: docs/traces.md.

    `otlp_endpoint`: the collector's base URL for OTLP over HTTP, as in `http://collector:4318` (null: no traces, at no
    cost). Times, counts, models and reasons go there, of pinned requests too; never a text. `sample_share`: of the
    requests whose clients have begun no trace, how many are traced.
    """

    otlp_endpoint: Annotated[str, Meta(pattern="^https?://[^/@?#\\s]+(/[^@?#\\s]*)?$")] | None = None
    sample_share: Annotated[float, Meta(ge=0, le=1)] = 1.0


class HostSettings(Section, frozen=True, kw_only=True):
    """What the node may take of its machine. Where it runs short, it holds fewer requests at once, then none.

    `max_rss_bytes`: resident memory of the serving process, the engine's own processes not included (null: no limit but
    the container's, which is always heeded).
    """

    max_rss_bytes: PositiveInt | None = None


class Settings(Section, frozen=True, kw_only=True):
    """Everything.

    `models` are the catalogue names to serve; `catalogue` lists folders of further entries. `engine` overrides vLLM
    engine arguments per model. `cloud_only` starts no engine at all. `providers` are the clouds (and only those)
    that a catalogue entry may name. `shutdown_grace_s` is how long running requests may go on after SIGTERM.
    """

    listen: Listen = Listen()
    models: Annotated[tuple[str, ...], Meta(min_length=1)] = ("demo",)
    cloud_only: bool = False
    catalogue: tuple[str, ...] = ()
    engine: dict[str, dict[str, Any]] = {}
    providers: dict[str, ProviderSettings] = {}
    routing: RoutingSettings = RoutingSettings()
    cache: CacheSettings = CacheSettings()
    privacy: PrivacySettings = PrivacySettings()
    api: ApiSettings = ApiSettings()
    watch: WatchSettings = WatchSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    host: HostSettings = HostSettings()
    traces: TracesSettings = TracesSettings()
    store: StoreSettings = StoreSettings()
    budget: BudgetSettings = BudgetSettings()
    admin: AdminSettings = AdminSettings()
    keys: tuple[KeySettings, ...] = ()
    shutdown_grace_s: PositiveFloat = 30.0


HOLYSHEEP = "holysheep"
_HOLYSHEEP_KEY_ENV = "HOLYSHEEP_API_KEY"
BUILT_IN_PROVIDERS = {
    HOLYSHEEP: {"base_url": "https://api.holysheep.ai/v1", "api_key_env": _HOLYSHEEP_KEY_ENV},
    "openai": {"base_url": "https://api.openai.com/v1", "api_key_env": "OPENAI_API_KEY"},
}


def load_settings(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `path` (None: the defaults) with the environment laid over them.

    ``HOLYSHEEP_API_KEY`` adds HolySheep as a provider; ``SPILLWAY_HOST``, ``SPILLWAY_PORT``, ``SPILLWAY_ADMIN_PORT``
    and ``SPILLWAY_MODELS`` (comma-separated) override; ``SPILLWAY_DATABASE_URL`` is the store's; ``SPILLWAY_API_KEY``
    adds one caller key named ``default``.
    Raises `SettingsError` naming file, key and reason.
    """
    document = read_mapping(path) if path is not None else {}
    _overlay_environment(document, environ)
    try:
        settings = msgspec.convert(document, Settings, strict=True)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path or 'environment'}: {_in_words(str(error), document)}") from error
    _check(settings, path)
    return settings


def _overlay_environment(document: dict[str, Any], environ: Mapping[str, str]) -> None:
    listen = document.setdefault("listen", {})
    if isinstance(listen, dict):
        if host := environ.get("SPILLWAY_HOST"):
            listen["host"] = host
        if port := environ.get("SPILLWAY_PORT"):
            listen["port"] = _port_number("SPILLWAY_PORT", port)
    if port := environ.get("SPILLWAY_ADMIN_PORT"):
        admin = document.setdefault("admin", {})
        if isinstance(admin, dict):
            admin["port"] = _port_number("SPILLWAY_ADMIN_PORT", port)
    if url := environ.get("SPILLWAY_DATABASE_URL"):
        store = document.setdefault("store", {})
        if isinstance(store, dict):
            store["url"] = url
    if models := environ.get("SPILLWAY_MODELS"):
        document["models"] = [name.strip() for name in models.split(",") if name.strip()]
    if key := environ.get("SPILLWAY_API_KEY"):
        keys = document.setdefault("keys", [])
        if isinstance(keys, list):
            keys.append({"name": "default", "sha256": hashlib.sha256(key.encode()).hexdigest()})
    providers = document.setdefault("providers", {})
    if isinstance(providers, dict):
        if environ.get(_HOLYSHEEP_KEY_ENV):
            providers.setdefault(HOLYSHEEP, {})
        for name, known in BUILT_IN_PROVIDERS.items():
            given = providers.get(name) or {}  # `openai:` with nothing behind it is YAML for null
            if name in providers and isinstance(given, dict):
                _check_key_is_meant(name, given, known)
                providers[name] = {**known, **given}


def _port_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise SettingsError(f"{name}: expected a port number, got {text!r}")
    return int(text)


def _check_key_is_meant(name: str, given: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """A known provider's key goes to its own address only, unless the operator says so."""
    address = given.get("base_url", known["base_url"])
    if "api_key_env" not in given and str(address).rstrip("/") != known["base_url"]:
        raise SettingsError(
            f"providers.{name}.base_url: {address} is not {name}'s own address ({known['base_url']}), and its key is "
            f"not sent elsewhere unasked. Write providers.{name}.api_key_env: {known['api_key_env']}, another "
            "variable, or null for no key"
        )


_WHERE = re.compile(r"^(?P<reason>.*?)(?: - at `(?:key in )?\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"^Object (?P<what>missing required|contains unknown) field `(?P<name>.*)`$", re.DOTALL)


def _in_words(message: str, document: Mapping[str, Any]) -> str:
    """msgspec's ``... - at `$.routing.margin_ms` `` as ``routing.margin_ms: ...``, with what would be right."""
    match = _WHERE.match(message)
    assert match is not None
    reason, path = match["reason"], match["path"] or ""
    kind = _kind_at(path)
    key = _with_entry_named(path, document)
    if (field := _FIELD.match(reason)) is not None:
        key = f"{key}.{field['name']}" if key else field["name"]
        if field["what"] == "missing required":
            reason = "is required"
        elif isinstance(kind, inspect.StructType):
            reason = f"there is no such key; there are {', '.join(each.encode_name for each in kind.fields)}"
    elif isinstance(kind, inspect.EnumType):
        reason = f"{reason}; choose one of {', '.join(kind.cls)}"
    elif path.endswith(".sha256"):
        reason = f'{reason}. One is made by: printf %s "$KEY" | sha256sum'
    return f"{key or 'top level'}: {reason}"


def _kind_at(path: str) -> inspect.Type:
    """The type that the settings expect at one of msgspec's paths."""
    kind = inspect.type_info(Settings)
    for part in re.findall(r"\w+|\[.*?\]", path):
        match kind:
            case inspect.StructType():
                kind = next((field.type for field in kind.fields if field.encode_name == part), inspect.AnyType())
            case inspect.DictType():
                kind = kind.value_type
            case inspect.VarTupleType():
                kind = kind.item_type
    return kind


def _with_entry_named(path: str, document: Mapping[str, Any]) -> str:
    """The path with the name of the entry that is wrong, where msgspec says only ``providers[...]``."""
    section, separator, rest = path.partition("[...]")
    entries = document.get(section)
    if not separator or not isinstance(entries, dict):
        return path
    for name, entry in entries.items():
        try:
            msgspec.convert({section: {name: entry}}, Settings, strict=True)
        except msgspec.ValidationError:
            return f"{section}.{name}{rest}"
    return path


def _check(settings: Settings, path: Path | None) -> None:
    where = path or "environment"
    if not is_loopback(settings.admin.host):
        raise SettingsError(
            f"{where}: admin.host: {settings.admin.host} is reachable from other machines, and the admin API is for "
            "this one. Use 127.0.0.1, and reach it from elsewhere through SSH"
        )
    names: dict[str, str] = {}
    for key in settings.keys:
        if key.name in names.values():
            raise SettingsError(f"{where}: keys: the name {key.name!r} is there twice")
        if key.sha256 in names:
            raise SettingsError(f"{where}: keys: {key.name!r} has the same key as {names[key.sha256]!r}")
        names[key.sha256] = key.name
    named = [(f"privacy.pinned_models[{index}]", model) for index, model in enumerate(settings.privacy.pinned_models)]
    named += [(f"keys: {key.name!r}: models", model) for key in settings.keys for model in key.models or ()]
    for what, model in (*named, *((f"engine.{model}", model) for model in settings.engine)):
        if model not in settings.models:
            raise SettingsError(f"{where}: {what}: {model!r} is not in `models`")


def admin_port(settings: Settings) -> int:
    """The port to bind the admin API to, 0 for any."""
    if settings.admin.port is not None:
        return settings.admin.port
    return 0 if settings.listen.port in (0, 65535) else settings.listen.port + 1


def is_loopback(host: str) -> bool:
    """Whether `host` cannot be reached from another machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
