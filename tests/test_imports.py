"""Who may import whom: the shape of the tree, held by reading its sources."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import node

ROOT = Path(node.__file__).parent
CLIENTS = {
    *("httpx", "httpx_aiohttp", "aiohttp", "requests", "urllib3", "websockets", "openai", "pycurl", "huggingface_hub"),
    *("grpc", "zmq", "ray", "redis", "boto3", "paramiko", "dns", "psycopg", "psycopg2", "asyncpg"),
}
STANDARD_CLIENTS = (
    *("urllib.request", "http.client", "ftplib", "smtplib", "telnetlib", "xmlrpc.client", "poplib", "imaplib"),
    *(
        "opentelemetry.exporter",
        "nntplib",
        "socketserver",
        "multiprocessing.connection",
        "multiprocessing.managers",
        "logging.handlers",
    ),
)
GATE = "node.cloud.gate"
OTLP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
KNOWN = {
    "node.doctor": {"huggingface_hub.try_to_load_from_cache"},  # looks on the disk
    "node.local.starting": {"huggingface_hub.constants"},  # where on the disk a model is put
    # an error, by its name
    "node.local.arguments": {"huggingface_hub.errors.StrictDataclassError", "huggingface_hub.errors"},
    "node.store.copying": {"psycopg", "psycopg.sql"},  # the operator's own database
    "node.audit.proving_ground": {"httpx"},
    "node.top.client": {"httpx"},  # `spillway top`, which asks the node that the operator names
    # Traces, to the operator's own collector: the guard lets its thread connect there, and to nobody else.
    "node.traces.export": {"requests", f"{OTLP}.OTLPSpanExporter", OTLP},
}
# `spillway audit prove`: a process of its own, which asks a node on loopback. Never part of a node that serves.
PROOF = ("node.audit.proving_ground", "node.audit.isolation")
# Whoever starts a process could start one that connects.
STARTERS = {
    "node.embedded",  # the emulator
    "node.local.lifeline",  # the engine's own processes
    *PROOF,
}


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


def calls(path: Path) -> set[str]:
    """What the module calls, as it is written: `loop.create_connection`, `partial`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(each.func) for each in ast.walk(tree) if isinstance(each, ast.Call)}


def test_only_the_cloud_package_knows_a_client_library() -> None:
    for module, path in modules():
        if under(module, "node.cloud"):
            continue
        names = {name for name in imports(path) if name.split(".")[0] in CLIENTS or under(name, *STANDARD_CLIENTS)}
        if under(module, "node.emulator"):
            names = {name for name in names if name != "aiohttp" and not under(name, "aiohttp.web")}
            source = path.read_text(encoding="utf-8")
            assert "aiohttp.Client" not in source, module
        known = KNOWN.get(module, set())
        assert names <= known | {name.split(".")[0] for name in known}, module


def test_only_the_gate_makes_a_client() -> None:
    """The rest of the cloud package reads what the gate hands it, and names a client library's types and errors."""
    for module, path in modules(ROOT / "cloud"):
        made = {
            name
            for name in calls(path)
            if name.split(".")[-1].endswith(("Client", "Session", "Transport", "Connector"))
            or name.split(".")[0] in {"requests", "urllib", "socket", "asyncio.open_connection"}
        }
        assert not made or module == GATE, f"{module} calls {made}"


def test_only_the_gate_has_sockets_that_lead_away() -> None:
    for module, path in modules():
        if module not in (GATE, "node.guard"):
            assert "GateSocket" not in path.read_text(encoding="utf-8"), module


def test_nobody_connects_a_raw_socket() -> None:
    connecting = {
        *("create_connection", "open_connection", "open_unix_connection", "connect", "connect_ex", "sock_connect"),
        *("create_datagram_endpoint", "sendto", "sendmsg", "sock_sendto"),
    }
    known = {
        # SQLAlchemy's and SQLite's: the database is the operator's, and is told nothing of a prompt.
        "node.store.database": {"self.engine.connect", "sqlite3.connect"},
        "node.audit.isolation": {"opened.sendto"},
        "node.guard": {"super().create_connection", "super().create_datagram_endpoint"},
    }
    for module, path in modules():
        called = {name for name in calls(path) if name.split(".")[-1] in connecting}
        assert called <= known.get(module, set()), module


def test_nobody_starts_a_process_that_could_connect_in_its_place() -> None:
    starting = {"subprocess", "pty", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"}
    spawning = {"os.system", "os.popen", "os.posix_spawn", "os.execv", "os.execvp", "os.execve", "os.fork"}
    for module, path in modules():
        if module not in STARTERS:
            assert imports(path) & starting == set(), module
            assert calls(path) & (spawning | starting) == set(), module


def test_node_that_serves_has_nothing_of_the_proof_or_of_top_in_it() -> None:
    """Not through others either: what `node.serve` imports, and all that those import."""
    sources = dict(modules())
    reached: set[str] = set()
    ahead = {"node.serve"}
    while ahead:
        reached |= ahead
        ahead = {name for each in ahead for name in imports(sources[each]) if name in sources} - reached
    assert {"node.app", "node.local.engine", "node.audit.refusals"} <= reached
    assert not reached & set(PROOF)
    assert not any(under(name, "node.top") for name in reached)


def test_only_top_knows_the_library_that_it_draws_with_and_the_command_line_not_even_that() -> None:
    for module, path in modules():
        if not under(module, "node.top"):
            drawing = [name for name in imports(path) if under(name, "textual", "rich", "node.top")]
            assert not drawing or (module, set(drawing)) == ("node.cli", {"node.top", "node.top.command"}), module
    at_the_top = ast.parse((ROOT / "top" / "command.py").read_text(encoding="utf-8")).body
    names = {each.module or "" for each in at_the_top if isinstance(each, ast.ImportFrom)}
    assert not any(under(name, "textual", "rich", "httpx", "node.top") for name in names)


def test_no_module_is_imported_under_a_name_that_cannot_be_read_here() -> None:
    for module, path in modules():
        for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(each, ast.Call) and ast.unparse(each.func).split(".")[-1] in {"import_module", "__import__"}:
                assert [ast.unparse(argument) for argument in each.args] == ["'torchvision'"], module


def test_only_the_traces_package_knows_opentelemetry_and_nobody_needs_it_to_start() -> None:
    for module, path in modules():
        if under(module, "node.traces"):
            continue
        assert [name for name in imports(path) if under(name, "opentelemetry")] == [], module
        at_the_top = {
            each.module or ""
            for each in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(each, ast.ImportFrom)
        }
        assert not any(under(name, "node.traces") for name in at_the_top), module


def test_only_the_local_package_knows_the_engine() -> None:
    for module, path in modules():
        if not under(module, "node.local"):
            engine = [name for name in imports(path) if name.split(".")[0] in {"vllm", "torch", "transformers"}]
            assert engine == [], module
