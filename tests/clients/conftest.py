"""Starts the demo's stack for third-party clients: the binaries that cargo built, on free ports. Decides nothing else."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
TARGET = CHECKOUT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug"


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready") as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.fixture(scope="session")
def address(tmp_path_factory) -> str:
    """Where a stack with the demo's models and policies answers."""
    demo = CHECKOUT / "configs/demo"
    with stack(tmp_path_factory.mktemp("demo"), demo / "models", demo / "policies.yaml") as (http, _monitor):
        yield http


@contextlib.contextmanager
def stack(
    folder: pathlib.Path,
    models: pathlib.Path,
    policies: pathlib.Path | None = None,
    control: bool = False,
    grpc: str | None = None,
    more: str = "",
):
    """A running stack: where it answers, and where it is watched. `more` are lines of its configuration."""
    http, monitor, grpc = free_address(), free_address(), grpc or free_address()
    config = folder / "penstock.yaml"
    config.write_text(
        f"listen: {{http: '{http}', grpc: '{grpc}', monitor: '{monitor}'}}\n"
        + (f"policies: {policies}\n" if policies else "")
        + f"engine: {{models: '{models}', socket: '{folder}/engine.sock', control: {str(control).lower()}}}\n"
        + more
    )
    with running([TARGET / "penstock", "serve", "--config", config], http):
        yield http, monitor


@contextlib.contextmanager
def running(command: list, http: str, **where):
    """Runs penstock until the caller has done with it; begins once it answers."""
    process = subprocess.Popen(command, **where)
    try:
        deadline = time.monotonic() + 120
        while not is_ready(http):
            assert process.poll() is None, "penstock ended at its start"
            assert time.monotonic() < deadline, "penstock was not ready within 120 s"
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
