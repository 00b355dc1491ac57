"""The programs the node is compared with, each started so that it proxies one chat call and calls nobody else."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _harness import environments
from _harness.process import Service, free_port, program, running

MODEL = "bench"
QUESTION = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}, separators=(",", ":")
)
TEXT = "Hello there! This answer is always the same, so that only the road to it is measured and not the work."
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
    },
    separators=(",", ":"),
)
_MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]})

# 1.106 to 1.109 ask for releases of these two that not every index carries. Neither is on the path of a request:
# one is the bundle of root certificates, the other holds database migrations.
LITELLM = environments.Package("litellm", "1.109.1", extra="proxy", loosened=("certifi", "litellm-proxy-extras"))
SMG = environments.Package("smg", "1.13.0")


@contextmanager
def static_upstream(directory: Path) -> Iterator[Service]:
    """nginx as a child of the bench, giving the same chat completion to every POST."""
    nginx = program("nginx", "install it (Debian: apt-get install nginx-light)")
    port = free_port()
    config = directory / "nginx.conf"
    scratch = "".join(
        f" {kind}_temp_path temp_{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"""daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; default_type application/json;{scratch}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location = /v1/chat/completions {{ return 200 '{ANSWER}'; }}
    location = /v1/models {{ return 200 '{_MODELS}'; }}
    location = /v1/traces {{ return 200 ''; }}
    location = /health {{ return 200 '{{}}'; }}
  }}
}}
"""
    )
    command = [nginx, "-e", "stderr", "-p", str(directory), "-c", str(config)]
    with running(
        "nginx",
        command,
        url=f"http://127.0.0.1:{port}",
        ready_path="/health",
        log=directory / "nginx.log",
        env=os.environ,
    ) as service:
        yield service


@contextmanager
def litellm(directory: Path, environments_directory: Path, upstream: Service) -> Iterator[Service]:
    """LiteLLM proxy: one worker, no database, no authentication (its fastest way), no call to the outside."""
    binaries = environments.ensure(environments_directory, LITELLM)
    port = free_port()
    config = directory / "litellm.yaml"
    config.write_text(
        json.dumps(  # JSON is YAML
            {
                "model_list": [
                    {
                        "model_name": MODEL,
                        "litellm_params": {
                            "model": f"openai/{MODEL}",
                            "api_base": f"{upstream.url}/v1",
                            "api_key": "bench",
                        },
                    }
                ],
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    env = {
        "PATH": os.defpath,
        "HOME": str(directory),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "DISABLE_ADMIN_UI": "True",
        "NO_DOCS": "True",
    }
    command = [str(binaries / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with running(
        "litellm",
        [*command, "--num_workers", "1"],
        url=f"http://127.0.0.1:{port}",
        ready_path="/health/readiness",
        log=directory / "litellm.log",
        env=env,
    ) as service:
        yield service


@contextmanager
def smg(directory: Path, environments_directory: Path, upstream: Service) -> Iterator[Service]:
    """SMG (the gateway that grew out of SGLang's router): one HTTP worker, plain proxying, no look into tokens."""
    binaries = environments.ensure(environments_directory, SMG)
    port = free_port()
    command = [str(binaries / "smg"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", upstream.url, "--backend", "openai", "--policy", "round_robin"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", "warn"]
    with running(
        "smg",
        command,
        url=f"http://127.0.0.1:{port}",
        ready_path="/readiness",
        log=directory / "smg.log",
        env={"PATH": os.defpath, "HOME": str(directory)},
    ) as service:
        yield service
