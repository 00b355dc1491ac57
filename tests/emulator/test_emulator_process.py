"""`python -m node.emulator` as a process, and behind TLS."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from openai import OpenAI

from node.emulator import Emulator
from tests.emulator.emulator_client import KEY, fast

_DEADLINE_S = 30


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = ["--seed", "1", "--ttft-ms", "2", "--pace-ms", "0.2", "--bill", str(tmp_path / "bill.jsonl")]
    arguments += ["--exit-with-parent", "--switch", "error_500:1:1"]
    with subprocess.Popen(
        [sys.executable, "-m", "node.emulator", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as running:
        yield running
        running.kill()


def test_process_says_where_it_listens_serves_and_leaves_with_its_parent(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    where = json.loads(process.stdout.readline())
    assert where["base_url"] == f"{where['url']}/v1"
    assert where["pid"] == process.pid
    with OpenAI(base_url=where["base_url"], api_key="any", max_retries=1) as client:
        answer = client.chat.completions.create(model="gpt-4.1", messages=[{"role": "user", "content": "hello"}])
    assert answer.usage is not None
    [line] = (tmp_path / "bill.jsonl").read_text().splitlines()
    assert json.loads(line)["completion_tokens"] == answer.usage.completion_tokens
    process.stdin.close()
    assert process.wait(_DEADLINE_S) == 0


def test_process_stops_on_sigterm(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(_DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["--switch", "no_such"], 2, "no switch 'no_such'"),
        (["--prices", "/nonexistent.yaml"], 2, "No such file"),
        (["--tls-cert", "/nonexistent.pem"], 1, "No such file"),
    ],
)
def test_a_wrong_argument_is_one_line_and_an_exit_code(arguments: list[str], code: int, cause: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "node.emulator", *arguments],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert ended.returncode == code
    assert cause in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def _certificate(folder: Path, *, days: int) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, valid until `days` from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "emulator")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


@pytest.mark.parametrize(("days", "accepted"), [(1, True), (-1, False)])
async def test_tls_with_a_certificate_that_is_good_or_expired(tmp_path: Path, days: int, accepted: bool) -> None:
    cert, key = _certificate(tmp_path, days=days)
    trusting = ssl.create_default_context(cafile=str(cert))
    async with Emulator(fast(tls_cert=cert, tls_key=key)) as emulator:
        assert emulator.url.startswith("https://")
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session:
            if accepted:
                async with session.get(f"{emulator.base_url}/models", ssl=trusting) as answer:
                    assert answer.status == 200
            else:
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await session.get(f"{emulator.base_url}/models", ssl=trusting)
