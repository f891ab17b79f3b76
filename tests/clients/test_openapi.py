"""Schemathesis from PyPI asks everything that /openapi.json describes, rightly and wrongly: no answer is a server's error, and none is
anything but what the document says."""

import subprocess
import sys

import requests

# It is to find something else than unknown models most of the time. A server may be overloaded, or late, and say so; 501 is what
# TorchServe can do and this server cannot.
CONFIG = """\
[dictionaries]
models.values = ["digits"]
versions.values = [1, 2]
labels.values = ["stable", "canary"]
[parameters]
"path.model" = {dictionary = "models", probability = 0.9}
"path.version" = {dictionary = "versions", probability = 0.8}
"path.label" = {dictionary = "labels", probability = 0.8}
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501, 503, 504]
"""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_every_answer_is_what_the_document_says(address, tmp_path):
    document = requests.get(f"http://{address}/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", f"http://{address}/openapi.json"]
    limits = ["--seed", "7", "--max-examples", "15", "--phases", "coverage,fuzzing", "--generation-database", "none", "--request-timeout", "10"]
    asked = subprocess.run([*command, *limits, "--checks", CHECKS], cwd=tmp_path, capture_output=True, text=True, timeout=85)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert requests.get(f"http://{address}/v2/health/ready").status_code == 200
