"""Triton's extensions as its own clients ask for them, sync and asyncio: compressed bodies, raw requests, classes, statistics, configuration, settings."""

import asyncio
import gzip
import json
import subprocess
import time

import numpy
import pytest
import requests
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from conftest import CHECKOUT, stack
from test_tritonclient import pixels, rows
from tritonclient.utils import InferenceServerException

DEMO = CHECKOUT / "configs/demo/models"


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A stack that nobody else asks, takes orders, and traces: where it answers, and where it is watched."""
    traces = "traces: {endpoint: 'http://127.0.0.1:9', sample: 0.01}\n"
    with stack(tmp_path_factory.mktemp("own"), DEMO, control=True, more=traces) as addresses:
        yield addresses


def test_what_is_advertised_is_what_works(client, own):
    always = ["binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics", "trace", "logging"]
    assert client.get_server_metadata()["extensions"] == always
    with triton.InferenceServerClient(own[0]) as controlled:
        extensions = controlled.get_server_metadata()["extensions"]
    assert extensions == [*always, "model_repository", "model_repository(unload_dependents)"]


@pytest.mark.parametrize("coming", ["gzip", "deflate", None])
@pytest.mark.parametrize("going", ["gzip", "deflate", None])
@pytest.mark.parametrize("binary", [True, False])
def test_bodies_are_compressed_both_ways(client, coming, going, binary):
    labels, values = rows(300)
    wanted = [triton.InferRequestedOutput("digit", binary_data=binary), triton.InferRequestedOutput("probabilities", binary_data=binary)]
    answer = client.infer(
        "digits",
        [pixels(values, binary)],
        model_version="2",
        outputs=wanted,
        request_compression_algorithm=coming,
        response_compression_algorithm=going,
    )
    assert (answer.as_numpy("digit") == labels).mean() >= 0.98
    assert answer.as_numpy("probabilities").shape == (300, 10)


def test_the_asyncio_client_is_answered_compressed_and_reads_everything_else_plain(address):
    """It accepts compressed answers unasked, and inflates none but those to inference."""

    async def ask():
        labels, values = rows(300)
        async with triton_aio.InferenceServerClient(address) as client:
            for algorithm in ["gzip", "deflate", None]:
                answer = await client.infer(
                    "digits",
                    [pixels(values)],
                    model_version="2",
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
                assert (answer.as_numpy("digit") == labels).mean() >= 0.98
            assert await client.is_server_ready() and await client.is_model_ready("digits", "1")
            assert (await client.get_model_config("digits"))["max_batch_size"] > 1
            assert (await client.get_inference_statistics("digits", "2"))["model_stats"][0]["inference_count"] >= 600
            assert (await client.get_trace_settings())["trace_level"] == ["OFF"]
            assert (await client.get_log_settings())["log_file"] == ""
            assert {entry["version"] for entry in await client.get_model_repository_index()} == {"1", "2"}
            with pytest.raises(InferenceServerException, match="unknown output"):
                await client.infer("digits", [pixels(values)], outputs=[triton.InferRequestedOutput("nothing")])

    asyncio.run(ask())


def test_curl_inflates_what_it_asks_for(address, tmp_path):
    labels, values = rows(100)
    body = {"inputs": [{"name": "pixels", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}]}
    (tmp_path / "body.json").write_text(json.dumps(body))
    (tmp_path / "body.gz").write_bytes(gzip.compress(json.dumps(body).encode()))
    url = f"http://{address}/v2/models/digits/versions/2/infer"
    curl = ["curl", "-sS", "--fail-with-body", "--compressed", "-D", tmp_path / "head", url]
    plain = subprocess.run([*curl, "-d", f"@{tmp_path}/body.json"], check=True, capture_output=True).stdout
    assert "content-encoding: gzip" in (tmp_path / "head").read_text().lower()
    packed = subprocess.run(
        [*curl, "-H", "content-encoding: gzip", "--data-binary", f"@{tmp_path}/body.gz"], check=True, capture_output=True
    ).stdout
    for answer in (plain, packed):
        digits = json.loads(answer)["outputs"][0]["data"]
        assert (numpy.array(digits) == labels).mean() >= 0.97


def test_a_raw_body_is_the_one_input(address):
    labels, values = rows(1)
    url = f"http://{address}/v2/models/digits/versions/2/infer"
    raw = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    answer = requests.post(url, data=values.tobytes(), headers=raw)
    assert answer.status_code == 200, answer.text
    result = triton.InferenceServerClient.parse_response_body(
        answer.content, header_length=int(answer.headers["Inference-Header-Content-Length"])
    )
    assert result.as_numpy("digit").tolist() == labels.tolist()
    assert result.as_numpy("probabilities").shape == (1, 10)
    packed = requests.post(url, data=gzip.compress(values.tobytes()), headers={**raw, "Content-Encoding": "gzip"})
    assert packed.content == answer.content
    short = requests.post(url, data=values.tobytes()[:-4], headers=raw)
    assert (short.status_code, short.json()["error"]) == (
        400,
        "a request without a JSON header: 252 bytes are no FP32 of shape [1, 64], input `pixels`",
    )


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_come_first(client, binary):
    labels, values = rows(3)
    wanted = [
        triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2),
        triton.InferRequestedOutput("digit", binary_data=binary),
    ]
    answer = client.infer("digits", [pixels(values)], model_version="2", outputs=wanted)
    whole = client.infer("digits", [pixels(values)], model_version="2").as_numpy("probabilities")
    classes = answer.as_numpy("probabilities")
    assert classes.shape == (3, 2) and answer.as_numpy("digit").tolist() == labels.tolist()
    for row, probabilities in zip(classes, whole):
        row = [one.decode() if isinstance(one, bytes) else one for one in row]
        values_of = [float(one.split(":")[0]) for one in row]
        places = [int(one.split(":")[1]) for one in row]
        assert [one.split(":")[2] for one in row] == [str(place) for place in places], "the labels are the digits"
        assert places == numpy.argsort(-probabilities, kind="stable")[:2].tolist()
        assert numpy.allclose(values_of, probabilities[places], atol=1e-6)


def test_statistics_say_what_has_run(own):
    http, monitor = own
    with triton.InferenceServerClient(http, concurrency=8) as client:
        before = client.get_inference_statistics("digits", "1")["model_stats"][0]
        assert before["inference_stats"]["success"] == {"count": 0, "ns": 0} and before["last_inference"] == 0
        _, values = rows(60)
        started = time.time_ns()
        asked = [client.async_infer("digits", [pixels(values[row : row + 1])], model_version="1") for row in range(50)]
        for request in asked:
            request.get_result()
        client.infer("digits", [pixels(values[50:])], model_version="1")
        took = time.time_ns() - started
        deadline = time.monotonic() + 10
        while True:  # it is counted after the answer has gone
            (told,) = client.get_inference_statistics("digits", "1")["model_stats"]
            if told["inference_stats"]["success"]["count"] == 51:
                break
            assert time.monotonic() < deadline, told
        sums = told["inference_stats"]
        assert (told["name"], told["version"], told["inference_count"]) == ("digits", "1", 60)
        assert 1 <= told["execution_count"] <= 51
        assert told["execution_count"] == sum(batch["compute_infer"]["count"] for batch in told["batch_stats"])
        assert 60 == sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in told["batch_stats"])
        for phase in ["queue", "compute_input", "compute_infer", "compute_output"]:
            assert sums[phase]["count"] == 51 and sums[phase]["ns"] > 0
            assert sums[phase]["ns"] < sums["success"]["ns"]
        assert sums["fail"]["count"] == 0
        assert sum(batch["compute_infer"]["ns"] for batch in told["batch_stats"]) <= 2 * took, "two lanes"
        assert abs(told["last_inference"] - time.time() * 1000) < 60_000
        everything = client.get_inference_statistics()["model_stats"]
        assert [(one["name"], one["version"]) for one in everything] == [("digits", "1"), ("digits", "2")]
        with pytest.raises(InferenceServerException, match="no model `nothing`"):
            client.get_inference_statistics("nothing")
        with pytest.raises(InferenceServerException, match="no version 9"):
            client.get_inference_statistics("digits", "9")
        with pytest.raises(InferenceServerException):
            client.infer("digits", [pixels(values[:, :63])], model_version="1")
        lines = {}
        while lines.get('nv_inference_request_failure{model="digits",reason="OTHER",version="1"}') != "1":
            assert time.monotonic() < deadline, lines
            lines = dict(line.rsplit(" ", 1) for line in requests.get(f"http://{monitor}/metrics").text.splitlines())
        version = '{model="digits",version="1"}'
        assert lines[f"nv_inference_request_success{version}"] == "51"
        assert lines[f"nv_inference_count{version}"] == "60"
        assert lines[f"nv_inference_exec_count{version}"] == str(told["execution_count"])
        assert lines[f"nv_inference_pending_request_count{version}"] == "0"
        assert int(lines[f"nv_inference_request_duration_us{version}"]) == sums["success"]["ns"] // 1000


def test_the_configuration_fits_the_metadata(client, address):
    config = client.get_model_config("digits")
    metadata = client.get_model_metadata("digits")
    assert (config["name"], config["platform"]) == ("digits", metadata["platform"])
    for configured, told in zip(config["input"] + config["output"], metadata["inputs"] + metadata["outputs"]):
        assert configured == {"name": told["name"], "data_type": f"TYPE_{told['datatype']}", "dims": told["shape"][1:]}
    assert config["max_batch_size"] > 1 and "dynamic_batching" in config
    assert config["instance_group"][0]["count"] >= 1
    assert client.get_model_config("digits", "1")["max_batch_size"] >= 1
    with pytest.raises(InferenceServerException, match="no version 9"):
        client.get_model_config("digits", "9")
    assert requests.get(f"http://{address}/v2/models").json() == {"models": ["digits"]}


def test_settings_are_told_and_only_the_rate_of_traces_changes(client, own):
    with pytest.raises(InferenceServerException, match="settings are not changed on request here") as refused:
        client.update_trace_settings(settings={"trace_rate": "5"})
    assert refused.value.status() == "403"
    with triton.InferenceServerClient(own[0]) as controlled:
        told = controlled.get_trace_settings()
        assert told == {"trace_level": ["TIMESTAMPS"], "trace_rate": "100", "trace_count": "-1", "trace_mode": "opentelemetry"}
        assert controlled.update_trace_settings(settings=told) == told
        assert controlled.update_trace_settings(settings={"trace_rate": "5"})["trace_rate"] == "5"
        assert controlled.get_trace_settings("digits")["trace_rate"] == "5"
        assert controlled.update_trace_settings(settings={"trace_rate": None}) == told
        with pytest.raises(InferenceServerException, match="those of all models") as refused:
            controlled.update_trace_settings("digits", {"trace_rate": "5"})
        assert refused.value.status() == "400"
        with pytest.raises(InferenceServerException, match="trace_level cannot be changed"):
            controlled.update_trace_settings(settings={"trace_level": ["OFF"]})
        log = controlled.get_log_settings()
        assert (log["log_error"], log["log_verbose_level"]) == (True, 0)
        assert controlled.update_log_settings(log) == log
        with pytest.raises(InferenceServerException, match="PENSTOCK_LOG"):
            controlled.update_log_settings({"log_verbose_level": 1})
