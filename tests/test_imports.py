"""Who may import whom: the shape of the tree, held by reading its sources."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import node

ROOT = Path(node.__file__).parent
CLIENTS = {"httpx", "httpx_aiohttp", "aiohttp", "requests", "urllib3", "websockets", "openai"}
STANDARD_CLIENTS = ("urllib.request", "http.client", "ftplib", "smtplib", "telnetlib", "xmlrpc.client")


def modules(under: Path = ROOT) -> Iterator[tuple[str, Path]]:
    for path in sorted(under.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> set[str]:
    """The dotted names that the module imports anywhere, each name of a `from` import included."""
    names: set[str] = set()
    for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(each, ast.Import):
            names.update(alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, f"{path}: relative import"
            assert each.module is not None
            names.add(each.module)
            names.update(f"{each.module}.{alias.name}" for alias in each.names)
    return names


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_there_are_modules_to_look_at() -> None:
    assert {"node.routing.policy", "node.cloud.gate", "node.api.app"} <= {name for name, _ in modules()}


def test_routing_thinks_with_the_standard_library_and_money_only() -> None:
    forbidden = {"asyncio", "time", "logging", "socket", "threading", "os", "random", "io", "pathlib"}
    for module, path in modules(ROOT / "routing"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names - forbidden or under(name, "node.routing", "node.money"), (
                f"{module} imports {name}"
            )


def test_only_those_who_build_and_serve_know_the_api() -> None:
    for module, path in modules():
        if not under(module, "node.api", "node.app", "node.serve"):
            assert [name for name in imports(path) if under(name, "node.api")] == [], module


def test_only_the_cloud_package_opens_connections() -> None:
    for module, path in modules():
        if under(module, "node.cloud"):
            continue
        names = {name for name in imports(path) if name.split(".")[0] in CLIENTS or under(name, *STANDARD_CLIENTS)}
        if under(module, "node.emulator"):
            names = {name for name in names if name != "aiohttp" and not under(name, "aiohttp.web")}
            source = path.read_text(encoding="utf-8")
            assert "aiohttp.Client" not in source, module
        assert names == set(), module


def test_nobody_connects_a_raw_socket() -> None:
    calls = {"create_connection", "open_connection", "open_unix_connection", "connect", "connect_ex", "sock_connect"}
    for module, path in modules():
        if under(module, "node.cloud") or module == "node.store.database":  # the operator's own database
            continue
        called = {
            each.func.attr
            for each in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            # SQLAlchemy's: PostgreSQL is the operator's, and is told nothing of a prompt.
            and not (module == "node.store.database" and ast.unparse(each.func) == "self.engine.connect")
        }
        assert called & calls == set(), module


def test_only_the_local_package_knows_the_engine() -> None:
    for module, path in modules():
        if not under(module, "node.local"):
            engine = [name for name in imports(path) if name.split(".")[0] in {"vllm", "torch", "transformers"}]
            assert engine == [], module
