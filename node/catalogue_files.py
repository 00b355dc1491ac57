"""The catalogue on disk: one YAML file per model, one per provider's prices, checked key by key when read.

    models/NAME.yaml            a model: what runs it here, what may stand in for it in the cloud
    models/prices/PROVIDER.yaml what a provider charges, in dollars per million tokens, and since when that is known

Every refusal is a `SettingsError` reading "FILE: KEY: reason".
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from node.catalogue import Catalogue, CloudEquivalent, LocalModel, Model
from node.errors import SettingsError
from node.money import Price
from node.routing.values import Capability
from node.yaml_files import read_mapping

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
_Text = Annotated[str, Meta(min_length=1)]
_Tokens = Annotated[int, Meta(gt=0)]
_UsdPerMtok = Annotated[float, Meta(ge=0, le=1_000_000)]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ARGUMENT = re.compile(r"[a-z][a-z0-9_]*")

# Decided by other fields, by the node's settings, or able to run foreign code, open a port or read foreign files.
_FORBIDDEN_ENGINE_ARGS = {
    "model": "set by local.source",
    "model_weights": "set by local.source",
    "revision": "set by local.revision",
    "served_model_name": "set by name",
    "max_model_len": "set by local.context_tokens",
    "tool_call_parser": "set by local.tool_parser",
    "enable_auto_tool_choice": "set by local.tool_parser",
    "reasoning_parser": "set by local.reasoning_parser",
    "trust_remote_code": "code from a model repository is never run",
    "reasoning_parser_plugin": "it would load foreign code",
    "tool_parser_plugin": "it would load foreign code",
    "io_processor_plugin": "it would load foreign code",
    "logits_processors": "it would load foreign code",
    "worker_cls": "it would load foreign code",
    "worker_extension_cls": "it would load foreign code",
    "scheduler_cls": "it would load foreign code",
    "enable_prompt_embeds": "tensors from clients are never loaded",
    "enable_mm_embeds": "tensors from clients are never loaded",
    "allowed_local_media_path": "clients could read files of this machine",
    "kv_events_config": "it would publish the tokens of prompts, past the egress gate",
    "kv_transfer_config": "it would hand what prompts became to other servers, past the egress gate",
    "ec_transfer_config": "it would hand what prompts became to other servers, past the egress gate",
    "otlp_traces_endpoint": "it would send traces of requests, past the egress gate",
    "host": "the node listens, not vLLM",
    "port": "the node listens, not vLLM",
    "uds": "the node listens, not vLLM",
    "api_key": "the node checks keys, not vLLM",
    "hf_token": "secrets stay out of catalogue files; set HF_TOKEN",
    "disable_log_stats": "the node lives on the engine's statistics",
}

_DATE_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]")


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what files may say: unknown keys are refused."""


class _Local(_Entry, frozen=True, kw_only=True):
    source: _Text
    revision: str | None = None
    context_tokens: _Tokens
    capabilities: list[Capability]
    tool_parser: _Text | None = None
    reasoning_parser: _Text | None = None
    engine_args: dict[str, Any] = {}


class _Cloud(_Entry, frozen=True, kw_only=True):
    provider: _Name
    model: _Text
    context_tokens: _Tokens
    max_output_tokens: _Tokens | None = None
    capabilities: list[Capability]


class _ModelFile(_Entry, frozen=True, kw_only=True):
    name: _Name
    summary: _Text
    local: _Local | None = None
    cloud: list[_Cloud] = []


class _PriceEntry(_Entry, frozen=True, kw_only=True):
    input_usd_per_mtok: _UsdPerMtok | None
    output_usd_per_mtok: _UsdPerMtok | None
    list_input_usd_per_mtok: _UsdPerMtok | None = None
    list_output_usd_per_mtok: _UsdPerMtok | None = None


class _PriceFile(_Entry, frozen=True, kw_only=True):
    provider: _Name
    as_of: date
    models: dict[str, Any]


class _Priced(msgspec.Struct, frozen=True):
    """What one model costs (None: not known) and the list price its use is compared with."""

    price: Price | None
    reference: Price | None
    as_of: date


_Prices = dict[str, dict[str, _Priced]]
_Form = TypeVar("_Form", bound=_Entry)


def default_models_dir() -> Path:
    """The catalogue that ships with the node: inside the installed package, or `models/` of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def load_catalogue(folders: Sequence[Path]) -> Catalogue:
    """All models in `folders`; a later folder's model or price replaces an earlier one of the same name.

    Prices of all folders count for all models. Raises `SettingsError` naming file, key and reason for whatever is
    wrong, also in files whose models nobody serves.
    """
    prices: _Prices = {}
    for folder in folders:
        if not folder.is_dir():
            raise SettingsError(f"{folder}: catalogue: there is no such folder")
        _read_prices(folder, prices)
    models: dict[str, Model] = {}
    for folder in folders:
        here: dict[str, Path] = {}
        for path in _yaml_files(folder):
            entry = _read(path, _ModelFile)
            if entry.name in here:
                raise SettingsError(f"{path}: name: {entry.name!r} is also in {here[entry.name].name}")
            here[entry.name] = path
            models[entry.name] = _model(path, entry, prices)
    return Catalogue(models)


def load_prices(folder: Path) -> dict[tuple[str, str], Price]:
    """The known prices in the catalogue `folder`, by provider and model. Raises `SettingsError` as `load_catalogue`."""
    prices: _Prices = {}
    _read_prices(folder, prices)
    return {
        (provider, model): priced.price
        for provider, models in prices.items()
        for model, priced in models.items()
        if priced.price is not None
    }


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.y*ml") if path.suffix in (".yaml", ".yml") and path.is_file())


def _read_prices(folder: Path, prices: _Prices) -> None:
    here: dict[str, Path] = {}
    for path in _yaml_files(folder / "prices"):
        file = _read(path, _PriceFile)
        if file.provider in here:
            raise SettingsError(f"{path}: provider: {file.provider!r} is also in {here[file.provider].name}")
        here[file.provider] = path
        known = prices.setdefault(file.provider, {})
        for model, said in file.models.items():
            entry = _convert(path, said, _PriceEntry, f"models.{model}")
            # An unknown list price of the input is taken to be what is paid, so that it claims no saving.
            list_input = entry.list_input_usd_per_mtok
            known[model] = _Priced(
                price=_price(entry.input_usd_per_mtok, entry.output_usd_per_mtok),
                reference=_price(
                    entry.input_usd_per_mtok if list_input is None else list_input, entry.list_output_usd_per_mtok
                ),
                as_of=file.as_of,
            )


def _price(input_usd: float | None, output_usd: float | None) -> Price | None:
    if input_usd is None or output_usd is None:
        return None
    # The shortest text of a float is what the file's author wrote.
    return Price(Decimal(str(input_usd)), Decimal(str(output_usd)))


def _model(path: Path, entry: _ModelFile, prices: _Prices) -> Model:
    if entry.local is None and not entry.cloud:
        raise SettingsError(f"{path}: local: a model needs local weights, a cloud equivalent or both")
    cloud: list[CloudEquivalent] = []
    reference: Price | None = None
    for index, equivalent in enumerate(entry.cloud):
        where = f"{path}: cloud[{index}]"
        if equivalent.provider not in prices:
            raise SettingsError(f"{where}.provider: no price file for {equivalent.provider!r}")
        if any((equivalent.provider, equivalent.model) == (other.provider, other.model) for other in cloud):
            raise SettingsError(f"{where}.model: {equivalent.model!r} at {equivalent.provider!r} is listed twice")
        priced = prices[equivalent.provider].get(equivalent.model)
        if index == 0 and priced is not None:
            reference = priced.reference
        cloud.append(
            CloudEquivalent(
                provider=equivalent.provider,
                model=equivalent.model,
                context_tokens=equivalent.context_tokens,
                max_output_tokens=equivalent.max_output_tokens,
                capabilities=_capabilities(where, equivalent.capabilities),
                price=None if priced is None else priced.price,
                priced_on=None if priced is None else priced.as_of,
            )
        )
    return Model(
        name=entry.name,
        summary=entry.summary,
        local=None if entry.local is None else _local(path, entry.local),
        cloud=tuple(cloud),
        reference=reference,
    )


def _local(path: Path, entry: _Local) -> LocalModel:
    where = f"{path}: local"
    for argument, value in entry.engine_args.items():
        _check_engine_arg(f"{where}.engine_args.{argument}", argument, value)
    for key, chosen, package in (
        ("tool_parser", entry.tool_parser, "tool_parsers"),
        ("reasoning_parser", entry.reasoning_parser, "reasoning"),
    ):
        known = _parser_names(package)
        if chosen is not None and known is not None and chosen not in known:
            raise SettingsError(f"{where}.{key}: vLLM has no parser {chosen!r}; it has {', '.join(sorted(known))}")
    return LocalModel(
        source=_source(path, entry),
        revision=entry.revision,
        context_tokens=entry.context_tokens,
        capabilities=_capabilities(where, entry.capabilities),
        tool_parser=entry.tool_parser,
        reasoning_parser=entry.reasoning_parser,
        engine_args=entry.engine_args,
    )


def _source(path: Path, entry: _Local) -> str:
    """A hub id as it is; a folder (plain name, ``./``, ``../`` or absolute) beside the file, made absolute."""
    if _HUB_ID.fullmatch(entry.source):
        if entry.revision is None or not _COMMIT.fullmatch(entry.revision):
            raise SettingsError(f"{path}: local.revision: a hub id needs its commit, 40 hexadecimal digits")
        return entry.source
    folder = (path.parent / entry.source).resolve()
    if not folder.is_dir():
        raise SettingsError(f"{path}: local.source: {entry.source!r} is neither a hub id nor a folder beside this file")
    if entry.revision is not None:
        raise SettingsError(f"{path}: local.revision: a folder has no revision")
    return str(folder)


def _capabilities(where: str, listed: list[Capability]) -> frozenset[Capability]:
    found = frozenset(listed)
    if len(found) != len(listed):
        raise SettingsError(f"{where}.capabilities: one is listed twice")
    return found


def with_engine_args(name: str, local: LocalModel, overrides: Mapping[str, Any]) -> LocalModel:
    """The settings' `overrides` for the model `name` laid over its catalogue entry's engine arguments.

    Raises `SettingsError` for one the catalogue could not hold either.
    """
    for argument, value in overrides.items():
        _check_engine_arg(f"engine.{name}.{argument}", argument, value)
    return replace(local, engine_args={**local.engine_args, **overrides})


def _check_engine_arg(where: str, argument: str, value: Any) -> None:
    if argument in _FORBIDDEN_ENGINE_ARGS:
        raise SettingsError(f"{where}: {_FORBIDDEN_ENGINE_ARGS[argument]}")
    known = _engine_arguments()
    if known is None:
        if not _ARGUMENT.fullmatch(argument):
            raise SettingsError(f"{where}: engine arguments are spelled as in Python, like max_num_seqs")
    elif argument not in known:
        raise SettingsError(f"{where}: vLLM has no such engine argument")
    # The one the node reads itself; vLLM checks the others when the engine starts.
    if argument == "max_num_seqs" and (type(value) is not int or value < 1):
        raise SettingsError(f"{where}: expected a whole number of at least 1, got {value!r}")


@cache
def _engine_arguments() -> frozenset[str] | None:
    """vLLM's engine arguments, read from its source: importing it takes most of a minute. None without vLLM."""
    names: set[str] = set()
    for node in _vllm_source("engine/arg_utils.py"):
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs"):
            fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
            names |= {target.id for target in fields if isinstance(target, ast.Name) and target.id[0] != "_"}
    return frozenset(names) or None


@cache
def _parser_names(package: str) -> frozenset[str] | None:
    """The names vLLM registers in ``vllm/tool_parsers`` or ``vllm/reasoning``. None without vLLM."""
    names: set[str] = set()
    for node in _vllm_source(f"{package}/__init__.py"):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
            names |= {key for key in keys if isinstance(key, str)}
    return frozenset(names) or None


def _vllm_source(name: str) -> Iterator[ast.stmt]:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return
    path = Path(spec.origin).parent / name
    if path.is_file():
        yield from ast.parse(path.read_text(encoding="utf-8")).body


def _read(path: Path, form: type[_Form]) -> _Form:
    document = read_mapping(path)
    as_of = document.get("as_of")
    if isinstance(as_of, str) and _DATE_AND_TIME.match(as_of):
        raise SettingsError(f"{path}: as_of: a date without a time")
    return _convert(path, document, form, "")


def _convert(path: Path, said: Any, form: type[_Form], within: str) -> _Form:
    """`said` as a `form`; msgspec's ``reason - at `$.a.b``` is turned into ``a.b: reason``."""
    try:
        return msgspec.convert(said, form)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at ")
        named = re.search(r"(?:required|unknown) field `(\w+)`", reason)
        keys = [within, where.strip("`").removeprefix("$").strip("."), named[1] if named else ""]
        key = ".".join(filter(None, keys))
        raise SettingsError(f"{path}: {key}: {reason}") from error
