"""Triton's extensions as its own gRPC clients ask for them, sync and asyncio. What is told is what Triton's HTTP client is told."""

import asyncio
import contextlib
import time

import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as over_http
from conftest import CHECKOUT, free_address, stack
from google.protobuf.json_format import ParseDict
from test_grpc import pixels
from test_tritonclient import rows
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

TRACES = "traces: {endpoint: 'http://127.0.0.1:9', sample: 0.01}\n"


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """A stack that nobody else asks, takes orders, and traces: where it answers, over HTTP and over gRPC."""
    here = free_address()
    with stack(tmp_path_factory.mktemp("own"), CHECKOUT / "configs/demo/models", control=True, grpc=here, more=TRACES) as (http, _monitor):
        yield http, here


@pytest.fixture
def client(addresses):
    with triton.InferenceServerClient(addresses[1]) as client:
        yield client


@pytest.fixture
def rest(addresses):
    with over_http.InferenceServerClient(addresses[0]) as client:
        yield client


@contextlib.contextmanager
def refused(status, match):
    with pytest.raises(InferenceServerException, match=match) as error:
        yield
    assert error.value.status() == f"StatusCode.{status}"


def test_what_is_advertised_is_what_works(client, rest):
    extensions = rest.get_server_metadata()["extensions"]
    assert list(client.get_server_metadata().extensions) == [name for name in extensions if name != "binary_tensor_data"]


def test_statistics_say_what_has_run(client, rest):
    _, values = rows(12)
    for row in range(10):
        client.infer("digits", [pixels(values[row : row + 1])], model_version="1")
    client.infer("digits", [pixels(values[10:])], model_version="1")
    with pytest.raises(InferenceServerException):
        client.infer("digits", [pixels(values[:, :63])], model_version="1")
    deadline = time.monotonic() + 10
    while True:  # it is counted after the answer has gone
        (told,) = client.get_inference_statistics("digits", "1").model_stats
        if (told.inference_stats.success.count, told.inference_stats.fail.count) == (11, 1):
            break
        assert time.monotonic() < deadline, told
    assert (told.name, told.version, told.inference_count, told.execution_count) == ("digits", "1", 12, 11)
    assert {batch.batch_size: batch.compute_infer.count for batch in told.batch_stats} == {1: 10, 2: 1}
    assert 0 < told.inference_stats.compute_infer.ns < told.inference_stats.success.ns
    assert abs(told.last_inference - time.time() * 1000) < 60_000
    # Their JSON is that of the message, read strictly: no field has another name.
    for asked in [(), ("digits",), ("digits", "1")]:
        over_rest = ParseDict(rest.get_inference_statistics(*asked), service_pb2.ModelStatisticsResponse())
        assert client.get_inference_statistics(*asked) == over_rest
    as_json = client.get_inference_statistics("digits", "1", as_json=True)["model_stats"][0]
    assert (as_json["inference_count"], as_json["inference_stats"]["success"]["count"]) == ("12", "11")
    with refused("NOT_FOUND", "no model `nothing`"):
        client.get_inference_statistics("nothing")
    with refused("NOT_FOUND", "no version 9"):
        client.get_inference_statistics("digits", "9")


def test_the_configuration_is_decoded_whole(client, rest):
    for version in ["", "1", "2"]:
        config = client.get_model_config("digits", version).config
        assert config == ParseDict(rest.get_model_config("digits", version), model_config_pb2.ModelConfig())
    (taken,) = config.input
    assert (taken.name, taken.data_type, list(taken.dims)) == ("pixels", model_config_pb2.TYPE_FP32, [64])
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching" and config.max_batch_size > 1
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert client.get_model_config("digits", as_json=True)["config"]["backend"] == "pytorch"
    with refused("NOT_FOUND", "no version 9"):
        client.get_model_config("digits", "9")


def test_settings_are_told_and_only_the_rate_of_traces_changes(client, rest):
    plain = lambda response: {name: list(setting.value) for name, setting in response.settings.items()}
    told = client.get_trace_settings()
    assert plain(told) == {"trace_level": ["TIMESTAMPS"], "trace_rate": ["100"], "trace_count": ["-1"], "trace_mode": ["opentelemetry"]}
    assert client.update_trace_settings(settings=plain(told)) == told
    assert client.update_trace_settings(settings={"trace_rate": "5"}, as_json=True)["settings"]["trace_rate"] == {"value": ["5"]}
    assert plain(client.get_trace_settings("digits"))["trace_rate"] == ["5"] and rest.get_trace_settings()["trace_rate"] == "5"
    assert client.update_trace_settings(settings={"trace_rate": None}) == told
    with refused("INVALID_ARGUMENT", "those of all models"):
        client.update_trace_settings("digits", {"trace_rate": "5"})
    with refused("INVALID_ARGUMENT", "trace_level cannot be changed"):
        client.update_trace_settings(settings={"trace_level": ["OFF"]})
    with refused("NOT_FOUND", "no model `nothing`"):
        client.get_trace_settings("nothing")
    log = client.get_log_settings()
    values = {name: getattr(setting, setting.WhichOneof("parameter_choice")) for name, setting in log.settings.items()}
    assert values == rest.get_log_settings() and client.update_log_settings(values) == log
    assert client.get_log_settings(as_json=True)["settings"]["log_error"] == {"bool_param": True}
    with refused("INVALID_ARGUMENT", "PENSTOCK_LOG"):
        client.update_log_settings({"log_verbose_level": 1})


def test_the_asyncio_client_is_told_the_same(client, addresses):
    async def ask():
        async with triton_aio.InferenceServerClient(addresses[1]) as asking:
            assert await asking.get_inference_statistics() == client.get_inference_statistics()
            assert await asking.get_inference_statistics("digits", as_json=True) == client.get_inference_statistics("digits", as_json=True)
            assert await asking.get_model_config("digits") == client.get_model_config("digits")
            told = await asking.get_trace_settings()
            changed = await asking.update_trace_settings(settings={"trace_rate": "7"})
            assert list(changed.settings["trace_rate"].value) == ["7"] and client.get_trace_settings() == changed
            assert await asking.update_trace_settings(settings={"trace_rate": None}) == told
            assert await asking.get_log_settings() == client.get_log_settings()
            with refused("INVALID_ARGUMENT", "log_error cannot be changed"):
                await asking.update_log_settings({"log_error": False})

    asyncio.run(ask())


def test_without_control_nothing_is_set(tmp_path):
    here = free_address()
    with stack(tmp_path, CHECKOUT / "configs/demo/models", grpc=here), triton.InferenceServerClient(here) as client:
        assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
        with refused("PERMISSION_DENIED", "settings are not changed on request here"):
            client.update_trace_settings(settings={"trace_rate": "5"})
