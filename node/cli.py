"""The ``spillway`` command."""

from __future__ import annotations

import argparse
import atexit
import os
import socket
import sys
from pathlib import Path

import msgspec

from node import __version__, calibrate, keys_command, ledger_command, usage_command
from node.audit import command as auditor
from node.config_option import add_config
from node.errors import SettingsError, SpillwayError
from node.settings import Settings, load_settings
from node.simulate import command as simulator
from node.store_place import place_for
from node.top import command as top

_DEFAULT_CONFIG = Path("spillway.yaml")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 good, 1 something is wrong and was said in one line.

    Of a command that says something by 1, it is 2.
    """
    options = _parser().parse_args(arguments)
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except SpillwayError as error:
        print(f"spillway: {error.message}", file=sys.stderr)
        return int(options.trouble)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`). What is still buffered must not be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(options.trouble)


def _run(options: argparse.Namespace) -> int:
    if options.command in simulator.COMMANDS and not (options.command == "simulate" and options.from_ledger):
        return simulator.run(options)
    path = _config_path(options.config)
    settings = load_settings(path)
    if options.command == "simulate":
        return simulator.run(options, place_for(settings, emulated=path is None and not settings.providers))
    if options.command == "doctor":
        from node.doctor import examine

        return examine(settings, configured=path is not None)
    if options.command == "keys":
        return keys_command.run(options, settings, emulated=path is None and not settings.providers)
    if options.command == "calibrate":
        return calibrate.run(options, settings)
    if options.command == "usage":
        return usage_command.run(options, settings, configured=path is not None)
    if options.command == "ledger":
        return ledger_command.run(options, settings, configured=path is not None)
    if options.command == "audit":
        return auditor.run(options, settings, emulated=path is None and not settings.providers)
    if options.command == "top":
        return top.run(options, settings)
    settings = _overridden(settings, options)
    # Importing the server takes a second; a mistake in the settings is told before that.
    from node.serve import serve

    serve(
        settings,
        load=lambda: _overridden(load_settings(path), options),
        where=None if path is None else str(path),
    )
    _leave()
    return 0


def _leave() -> None:
    """End this process, in which nothing runs any more, with 0.

    With vLLM loaded the interpreter would spend two seconds of CPU on taking apart, object by object, what the kernel
    frees at once; on a busy machine that was seen to be most of a stop. Exit functions are run all the same.
    """
    atexit._run_exitfuncs()
    os._exit(0)


def _config_path(given: Path | None) -> Path | None:
    if given is None and (named := os.environ.get("SPILLWAY_CONFIG")):
        given = Path(named)
    if given is None and _DEFAULT_CONFIG.is_file():
        given = _DEFAULT_CONFIG
    return given


def _overridden(settings: Settings, options: argparse.Namespace) -> Settings:
    listen = settings.listen
    if options.host is not None:
        _check_resolves(options.host)
        listen = msgspec.structs.replace(listen, host=options.host)
    if options.port is not None:
        listen = msgspec.structs.replace(listen, port=options.port)
    if options.model:
        settings = msgspec.structs.replace(settings, models=tuple(options.model))
    return msgspec.structs.replace(settings, listen=listen)


def _check_resolves(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise SettingsError(f"--host {host}: cannot be resolved: {why}") from error


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port number from 0 to 65535, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spillway",
        description="An inference node for one GPU server: vLLM in this process, overflow to a pay-per-token cloud "
        "only when load or the latency budget says so.",
        epilog="Settings come from --config, else $SPILLWAY_CONFIG, else ./spillway.yaml, else defaults; "
        "SPILLWAY_HOST, SPILLWAY_PORT, SPILLWAY_ADMIN_PORT, SPILLWAY_MODELS, SPILLWAY_DATABASE_URL, SPILLWAY_API_KEY "
        "and HOLYSHEEP_API_KEY are laid over them. See docs/configure.md.",
    )
    parser.set_defaults(trouble=1)
    parser.add_argument("--version", action="version", version=f"spillway {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="load the models and serve them",
        description="Load the models and serve them behind one OpenAI-style endpoint, until SIGINT or SIGTERM. "
        "SIGHUP reads settings, keys and catalogue again. The options override the settings. The admin API takes the "
        "port after --port, unless the settings say which.",
    )
    serve.add_argument("--host", help="address to listen on (default: the settings', else 127.0.0.1)")
    serve.add_argument("--port", type=_port, help="port to listen on, 0 for any (default: the settings', else 8000)")
    serve.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="catalogue model to serve, repeatable (default: the settings', else demo)",
    )
    doctor = commands.add_parser(
        "doctor",
        help="say what was found here, and what to do about it",
        description="Look at GPU, vLLM, models, providers and storage; one line each, with the remedy where "
        "something is wrong. Exit code 1 if the node could not serve.",
    )

    keys_command.add_command(commands, add_config)
    for command in (
        serve,
        doctor,
        calibrate.add_command(commands),
        usage_command.add_command(commands),
        ledger_command.add_command(commands),
        top.add_command(commands),
        *auditor.add_command(commands),
    ):
        add_config(command)
    simulator.add_commands(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
