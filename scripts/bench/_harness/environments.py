"""Virtual environments for the programs a bench compares with: they never share packages with the node."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _harness.process import CannotRun

# Runs inside the new environment: what a distribution asks for, its extra included, less the bounds we loosen.
_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
name, extra, *loosened = sys.argv[1:]
for line in requires(name) or []:
    wanted = Requirement(line)
    if wanted.marker and not any(wanted.marker.evaluate({"extra": given}) for given in ("", extra)):
        continue
    wanted.marker = None
    print(wanted.name if wanted.name in loosened else wanted)
"""


@dataclass(frozen=True)
class Package:
    """One program to install: its distribution, exact version, extra, and dependencies taken at any version."""

    name: str
    version: str
    extra: str = ""
    loosened: Sequence[str] = ()


def ensure(directory: Path, package: Package) -> Path:
    """The bin directory of an environment that holds `package`, made with pip (and the user's pip settings) if need be.

    Raises CannotRun when pip cannot install it. A half-made environment is made anew.
    """
    home = directory / f"{package.name}-{package.version}"
    binaries, complete = home / "bin", home / "complete.json"
    recipe = json.dumps([package.name, package.version, package.extra, list(package.loosened)])
    if complete.exists() and complete.read_text() == recipe:
        return binaries
    print(f"installing {package.name} {package.version} into {home} (once; a minute or two)", flush=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet"]
    _call(sys.executable, "-m", "venv", "--clear", str(home))
    _call(*pip, "--no-deps", f"{package.name}=={package.version}")
    arguments = [package.name, package.extra, *package.loosened]
    requirements = home / "requirements.txt"
    requirements.write_text(_call(str(binaries / "python"), "-c", _REQUIREMENTS, *arguments))
    _call(*pip, "--requirement", str(requirements))
    complete.write_text(recipe)
    return binaries


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotRun(f"{' '.join(command[:6])} …: {done.stderr.strip()[-1500:]}")
    return done.stdout
