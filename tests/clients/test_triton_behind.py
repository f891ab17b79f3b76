"""A version that a real Triton answers, beside one that the engine here does: who asks need not know. It is the Triton of the wheel
of nvidia-pytriton, with the demo's linear model under another name (triton_digits.py)."""

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import sysconfig
import time

import numpy
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from conftest import CHECKOUT, free_address, stack
from test_tritonclient import rows
from tritonclient.utils import InferenceServerException

DEMO = CHECKOUT / "configs/demo"
SEVEN = json.loads((DEMO / "requests/digit-7.json").read_text())
WHEEL = pathlib.Path(sysconfig.get_path("purelib"))
CONFIG = """\
backend: "python"
input [{ name: "pixels" data_type: TYPE_FP32 dims: [-1, 64] }]
output [
  { name: "digit" data_type: TYPE_INT64 dims: [-1] },
  { name: "probabilities" data_type: TYPE_FP32 dims: [-1, 10] },
  { name: "told" data_type: TYPE_UINT8 dims: [-1] }
]
instance_group [{ kind: KIND_CPU }]
parameters: { key: "file" value: { string_value: "%s" } }
"""
EVENLY = "split: {weights: {1: 50, 2: 50}}, breaker: {failures: 5, open_for: 1s, max_open_for: 1s, fallback: {version: 1}}"
CANARY = "canary: {baseline: 1, candidate: 2, steps: [20, 60], dwell: 100ms, sticky: {header: x-user-id}, gates: {errors: {at_most: 30}}}"


class Triton:
    """One that can be killed, and started again at the same address."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.address = folder, free_address()
        # The interpreter in it is that of the python whose wheels it uses, which it finds by PATH.
        backend, wheels = folder / "backends/python", WHEEL / "pytriton/tritonserver"
        backend.mkdir(parents=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = wheels / "python_backend_stubs" / version / "triton_python_backend_stub"
        for file in (*(wheels / "backends/python").glob("*.*"), stub):
            (backend / file.name).symlink_to(file)
        libraries = f"{WHEEL / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        self.where = {"cwd": folder, "env": {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": path}}
        model = folder / "models/numerals"
        (model / "1").mkdir(parents=True)
        (model / "1/model.py").symlink_to(pathlib.Path(__file__).with_name("triton_digits.py"))
        (model / "config.pbtxt").write_text(CONFIG % (DEMO / "models/digits/1/model.pt"))
        host, port = self.address.split(":")
        self.shared = f"penstock-test-{port}-"
        self.command = [wheels / "bin/tritonserver", "--model-repository=models", "--backend-directory=backends"]
        self.command += [f"--http-address={host}", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"]
        self.command += ["--http-header-forward-pattern=.*", f"--backend-config=python,shm-region-prefix-name={self.shared}"]

    def lacks(self) -> str | None:
        """What a machine has to have, and this one has not."""
        stub = self.folder / "backends/python/triton_python_backend_stub"
        if not stub.exists():
            return f"the Triton of nvidia-pytriton has nothing for the python {sys.version}"
        said = subprocess.run([stub], capture_output=True, text=True, timeout=60, **self.where).stderr
        return said.strip() if "error while loading shared libraries" in said else None

    def start(self):
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, **self.where)
        deadline = time.monotonic() + 60
        while not self.is_ready():
            said = (self.folder / "log").read_text()
            assert self.process.poll() is None, f"Triton ended at its start:\n{said}"
            assert time.monotonic() < deadline, f"Triton was not ready within 60 s:\n{said}"
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return requests.get(f"http://{self.address}/v2/models/numerals/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
        # Nobody else takes away what it has shared with its python.
        for region in pathlib.Path("/dev/shm").glob(f"{self.shared}*"):
            region.unlink()


class Stack:
    """Version 1 of `digits` is here, version 2 at Triton. A test says how requests are divided."""

    def __init__(self, folder: pathlib.Path, behind: Triton):
        self.folder, self.behind, self.grpc, self.session = folder, behind, free_address(), requests.Session()

    @contextlib.contextmanager
    def running(self):
        self.write(EVENLY)
        with stack(self.folder, DEMO / "models", self.folder / "policies.yaml", grpc=self.grpc) as (self.http, self.monitor):
            yield self

    def write(self, policy: str):
        self.policy = policy
        url = f"http://{self.behind.address}/v2/models/numerals/infer"
        whole = self.folder / "whole.yaml"
        whole.write_text(f"models: {{digits: {{remote: {{2: {{url: '{url}'}}}}, {policy}}}}}\n")
        whole.rename(self.folder / "policies.yaml")

    def decide(self, policy: str):
        """Waits until this policy is in force."""
        if policy != self.policy:  # of one that says the same, there is no other generation
            before = self.ask().headers["x-penstock-generation"]
            self.write(policy)
            eventually(lambda: self.ask().headers["x-penstock-generation"] != before)

    def ask(self, path: str = "", body: dict | bytes = SEVEN, **headers: str) -> requests.Response:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.session.post(f"http://{self.http}/v2/models/digits{path}/infer", body, headers=headers, timeout=60)

    def metric(self, name: str) -> float:
        lines = self.session.get(f"http://{self.monitor}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def eventually(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "not within 60 s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    behind = Triton(tmp_path_factory.mktemp("triton"))
    if lacks := behind.lacks():
        # .ci/run installs it.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacks)
    with behind, Stack(tmp_path_factory.mktemp("split"), behind).running() as served:
        yield served


@pytest.fixture
def served(running):
    running.decide(EVENLY)
    return running


def pixels(values: numpy.ndarray, protocol=triton, **how) -> list:
    tensor = protocol.InferInput("pixels", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, **how)
    return [tensor]


def test_curl_is_answered_by_both(served):
    command = ["curl", "-sS", f"http://{served.http}/v2/models/digits/infer?n=[1-40]", "-d", f"@{DEMO / 'requests/digit-7.json'}"]
    said = subprocess.check_output([*command, "-w", "\n"], text=True, timeout=60).splitlines()
    answers = [json.loads(line) for line in said]
    assert all(answer["outputs"][0]["data"] == [7] for answer in answers)
    assert {answer["model_name"] for answer in answers} == {"digits", "numerals"}, "its answers come back as they are"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritons_client_is_answered_by_both(served, binary_in, binary_out):
    labels, values = rows(20)
    asked = pixels(values, binary_data=binary_in)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("digit", "probabilities")]
    seen = collections.Counter()
    with triton.InferenceServerClient(served.http) as client:
        for number in range(40):
            answer = client.infer("digits", asked, outputs=wanted, request_id=f"r-{number}")
            assert (answer.as_numpy("digit") == labels).mean() >= 0.9
            assert answer.as_numpy("probabilities").shape == (20, 10)
            assert answer.get_response()["id"] == f"r-{number}"
            seen[answer.get_response()["model_name"]] += 1
    assert set(seen) == {"digits", "numerals"}, seen


def test_who_asks_over_grpc_or_in_torchserves_words_is_answered_by_both(served):
    labels, values = rows(20)
    seen = collections.Counter()
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        for _ in range(40):
            answer = client.infer("digits", pixels(values, triton_grpc), request_id="g").get_response()
            digits = triton_grpc.InferResult(answer).as_numpy("digit")
            assert (digits == labels).mean() >= 0.9 and (answer.model_name, answer.id) == ("digits", "g")
            seen[answer.model_version] += 1
        assert set(seen) == {"1", "2"}, seen
        with pytest.raises(InferenceServerException, match="unexpected shape for input 'pixels' for model 'numerals'") as error:
            client.infer("digits", pixels(values[:, :63].copy(), triton_grpc), model_version="2")
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    seven = json.loads((DEMO / "requests/pixels-7.json").read_text())
    for path in ("/predictions/digits/1", "/predictions/digits/2"):
        assert served.session.post(f"http://{served.http}{path}", json=seven, timeout=60).json()["prediction"] == "7"


def test_what_it_refuses_is_shown_as_it_is(served):
    unknown = {"inputs": [{**SEVEN["inputs"][0], "name": "x"}]}
    got = served.ask("/versions/2", unknown)
    url = f"http://{served.behind.address}/v2/models/numerals/infer"
    want = requests.post(url, json=unknown, timeout=60)
    assert (want.status_code, got.status_code) == (400, 400)
    assert got.content == want.content and got.headers["content-type"] == want.headers["content-type"]
    assert got.headers["x-penstock-version"] == "2"


def test_who_sends_what_nobody_can_read_takes_the_version_from_nobody(served):
    mismatched = {"inputs": [{**SEVEN["inputs"][0], "shape": [1, 63]}]}
    for body in (mismatched, b"{", b'{"inputs"'):
        # Triton calls its caller's mistake its own.
        assert [served.ask("/versions/2", body).status_code for _ in range(6)] == [500] * 6
        assert served.ask("/versions/2").status_code == 200


def test_it_is_told_whose_request_it_is_and_in_which_trace(served):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = served.ask("/versions/2", x_tell="1", x_user_id="ana", traceparent=parent)
    told = json.loads(bytes(answer.json()["outputs"][-1]["data"]))
    told = {name.removeprefix("triton_http_header_").lower(): value for name, value in told.items()}
    assert (told["x-user-id"], told["traceparent"], told["x-penstock-hops"]) == ("ana", parent, "1"), told
    assert told["x-request-id"] == answer.headers["x-request-id"], "which was made up here"
    assert 0 < int(told["x-request-timeout-ms"]) <= 10_000


def test_twenty_megabytes_go_there_and_the_answer_comes_back(served):
    values = numpy.zeros((80_000, 64), numpy.float32)
    with triton.InferenceServerClient(served.http, network_timeout=60) as client:
        answer = client.infer("digits", pixels(values), model_version="2")
    assert answer.as_numpy("probabilities").shape == (80_000, 10)


def test_copies_that_it_answers_agree(served):
    served.decide("split: {weights: {1: 1}}, shadow: {version: 2}")
    _, values = rows(3)
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        for _ in range(3):
            assert served.ask().headers["x-penstock-version"] == "1"
            client.infer("digits", pixels(values, triton_grpc))
    copies = 'penstock_shadows_total{model="digits",version="2"'
    eventually(lambda: served.metric(copies) >= 6)
    assert served.metric(copies) == served.metric(f'{copies},outcome="agreed"}}')


def test_traffic_moves_to_it_whatever_a_tenth_of_the_callers_send(served):
    served.decide(CANARY)
    mismatched = {"inputs": [{**SEVEN["inputs"][0], "shape": [1, 63]}]}
    user = 0

    def is_over() -> bool:
        nonlocal user
        for user in range(user + 1, user + 21):
            is_good = user % 10 > 0
            answer = served.ask("", SEVEN if is_good else mismatched, x_user_id=f"user-{user}")
            assert (answer.status_code == 200) == is_good, answer.text
        return rollout()["phase"] != "running"

    def rollout() -> dict:
        return served.session.get(f"http://{served.monitor}/status", timeout=60).json()["canaries"]["digits"]

    eventually(is_over)
    assert rollout()["phase"] == "promoted", rollout()


def test_killed_it_is_stood_in_for_and_let_in_again(served):
    seen = collections.Counter()

    def ask():
        answer = served.ask()
        seen[answer.status_code, answer.headers["x-penstock-version"]] += 1
        return answer.headers["x-penstock-version"]

    while seen[200, "2"] < 10:
        ask()
    served.behind.kill()
    seen.clear()
    for _ in range(100):
        ask()
    # One that was under way may be lost with it; to those who follow, nothing was sent there.
    assert seen[200, "1"] >= 99 and set(seen) <= {(200, "1"), (502, "2")}, seen
    assert served.metric('penstock_breaker_state{model="digits",version="2"}') == 2
    assert served.session.get(f"http://{served.http}/v2/models/digits/ready", timeout=60).ok, "somebody answers"
    served.behind.start()
    eventually(lambda: ask() == "2")
    seen.clear()
    for _ in range(40):
        ask()
    assert set(seen) == {(200, "1"), (200, "2")}, seen
