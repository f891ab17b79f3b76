"""What the README has people type that needs Python: a model of their own in an empty folder, served and asked, and the lines for
Triton's client. Its commands for a shell are run by tests/scenarios/readme.rs. Torch is that of benches/models/make.py."""

import os
import shlex
import subprocess
import sys

import numpy
import pytest
import tritonclient.http as triton
from conftest import CHECKOUT, TARGET, free_address, running, stack

README = (CHECKOUT / "README.md").read_text()


def lines(language: str, having: str) -> list[str]:
    """Those of the one block in this language that holds this."""
    blocks = [rest.partition("```")[0] for rest in README.split(f"```{language}\n")[1:]]
    (found,) = [block for block in blocks if having in block]
    return found.splitlines()


def test_a_model_of_ones_own_is_made_declared_served_and_answers(tmp_path):
    *make, serve = lines("sh", "penstock serve")
    tools, folder = tmp_path / "tools", tmp_path / "empty"
    tools.mkdir()
    folder.mkdir()
    asked = [sys.executable, CHECKOUT / "benches/models/make.py", "--python"]
    python = subprocess.check_output(asked, text=True).strip()
    (tools / "python3").write_text(f"#!/bin/sh\nexec '{python}' \"$@\"\n")
    (tools / "python3").chmod(0o700)
    # Of what its torch is linked against, not all is there.
    (tools / "sitecustomize.py").write_text("import os, sys\nsys.setdlopenflags(os.RTLD_LAZY)\n")
    path = f"{tools}:{TARGET.resolve()}:{os.environ['PATH']}"
    where = {"cwd": folder, "env": {**os.environ, "PATH": path, "PYTHONPATH": str(tools)}}
    subprocess.run(["sh", "-ec", "\n".join(make)], check=True, timeout=120, **where)
    http, grpc, monitor = free_address(), free_address(), free_address()
    with (folder / "penstock.yaml").open("a") as config:
        config.write(f"listen: {{http: '{http}', grpc: '{grpc}', monitor: '{monitor}'}}\n")
    with running(shlex.split(serve), http, **where), triton.InferenceServerClient(http) as client:
        rows = triton.InferInput("input", [5, 4], "FP32")
        rows.set_data_from_numpy(numpy.ones((5, 4), numpy.float32))
        scores = client.infer("iris", [rows]).as_numpy("scores")
    assert scores.shape == (5, 3) and numpy.isfinite(scores).all()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_lines_for_tritons_client_print_a_digit(tmp_path, protocol):
    text = "\n".join(lines("python", "tritonclient"))
    grpc = free_address()
    demo = CHECKOUT / "configs/demo"
    with stack(tmp_path, demo / "models", demo / "policies.yaml", grpc=grpc) as (http, _monitor):
        assert "tritonclient.http" in text and "localhost:8000" in text and "localhost:8001" in text
        if protocol == "grpc":
            text = text.replace("tritonclient.http", "tritonclient.grpc").replace("localhost:8000", grpc)
        here = text.replace("localhost:8000", http)
        printed = subprocess.check_output([sys.executable, "-c", here], text=True, timeout=60)
    assert printed.strip() in [f"[{digit}]" for digit in range(10)]
