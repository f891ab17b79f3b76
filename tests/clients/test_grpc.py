"""Triton's own gRPC client from PyPI, unmodified and with its defaults, sync and asyncio; and grpcio's clients for health and reflection."""

import asyncio
import queue
import shutil

import grpc
import numpy
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from conftest import CHECKOUT, free_address, stack
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from test_tritonclient import rows
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Where a stack with the demo's models and policies answers gRPC; it takes orders."""
    demo, here = CHECKOUT / "configs/demo", free_address()
    folder = tmp_path_factory.mktemp("grpc")
    with stack(folder, demo / "models", demo / "policies.yaml", control=True, grpc=here):
        yield here


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


def pixels(values: numpy.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("pixels", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return tensor


def test_health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "2")
    assert not client.is_model_ready("digits", "9") and not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    extensions = ["classification", "model_configuration", "schedule_policy", "statistics", "trace", "logging"]
    extensions += ["model_repository", "model_repository(unload_dependents)"]
    assert (server.name, list(server.extensions)) == ("penstock", extensions)
    model = client.get_model_metadata("digits", as_json=True)
    assert model["versions"] == ["1", "2"]
    assert model["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": ["-1", "64"]}]


def test_infers_with_defaults(client):
    labels, values = rows(50)
    result = client.infer("digits", [pixels(values)], model_version="2", request_id="r-1")
    assert (result.as_numpy("digit") == labels).mean() >= 0.98
    assert numpy.allclose(result.as_numpy("probabilities").sum(axis=1), 1, atol=1e-5)
    assert (result.get_response().id, result.get_response().model_version) == ("r-1", "2")
    only = client.infer("digits", [pixels(values)], outputs=[triton.InferRequestedOutput("digit")], priority=1, timeout=10_000_000)
    assert only.as_numpy("digit").shape == (50,) and only.as_numpy("probabilities") is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read_and_answered_alike(client, algorithm):
    labels, values = rows(50)
    result = client.infer("digits", [pixels(values)], model_version="2", compression_algorithm=algorithm)
    assert (result.as_numpy("digit") == labels).mean() >= 0.98


def test_a_large_tensor_goes_both_ways(client):
    _, values = rows(1)
    many = numpy.repeat(values, 16_384, axis=0)  # just above 4 MiB, gRPC's usual limit
    probabilities = client.infer("digits", [pixels(many)], model_version="1").as_numpy("probabilities")
    assert probabilities.shape == (16_384, 10) and numpy.allclose(probabilities, probabilities[0], atol=1e-5)


def test_the_policy_decides_when_no_version_is_named(client):
    _, values = rows(1)
    version = lambda **headers: client.infer("digits", [pixels(values)], headers=headers).get_response().model_version
    assert version(**{"x-cohort": "beta"}) == "2"
    assert len({version(**{"x-user-id": "ana"}) for _ in range(20)}) == 1, "a user stays with a version"


def test_errors_have_their_status(client):
    _, values = rows(1)

    def refused(*arguments, **more):
        with pytest.raises(InferenceServerException) as error:
            client.infer(*arguments, **more)
        return error.value.status(), error.value.message()

    status, message = refused("digits", [pixels(values[:, :63])])
    assert status == "StatusCode.INVALID_ARGUMENT" and "[-1, 64]" in message
    assert refused("nothing", [pixels(values)])[0] == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException) as error:
        client.get_system_shared_memory_status()
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"
    assert client.infer("digits", [pixels(values)]).as_numpy("digit").shape == (1,)


def test_who_waits_no_longer_is_told_so_by_his_client_and_disturbs_nobody(tmp_path):
    here = free_address()
    shutil.copytree(CHECKOUT / "tests/data/models/slow", tmp_path / "models/slow")
    with stack(tmp_path, tmp_path / "models", grpc=here), triton.InferenceServerClient(here) as client:
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(numpy.ones((1, 4), numpy.float32))
        with pytest.raises(InferenceServerException) as error:
            client.infer("slow", [tensor], client_timeout=0.01)  # it takes about 50 ms
        assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        answers = queue.SimpleQueue()
        client.async_infer("slow", [tensor], lambda result, error: answers.put(error)).cancel()
        assert answers.get(timeout=60).status() == "StatusCode.CANCELLED"
        assert client.infer("slow", [tensor], client_timeout=60).as_numpy("y").tolist() == [[1, 1, 1, 1]]


def test_many_at_once_and_some_that_are_cancelled(client):
    labels, values = rows(200)
    answers = queue.SimpleQueue()
    for row in range(200):
        answered = lambda result, error, row=row: answers.put((row, result, error))
        context = client.async_infer("digits", [pixels(values[row : row + 1])], answered, model_version="2")
        if row % 4 == 3:
            context.cancel()
    told = [answers.get(timeout=60) for _ in range(200)]
    assert {row for row, _, _ in told} == set(range(200))
    kept = [(row, result, error) for row, result, error in told if row % 4 != 3]
    assert all(error is None for _, _, error in kept)
    assert numpy.mean([result.as_numpy("digit")[0] == labels[row] for row, result, _ in kept]) >= 0.98


def test_a_stream_answers_in_order_and_goes_on_after_an_error(client):
    labels, values = rows(60)
    answers = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for row in range(60):
        model = "nothing" if row == 30 else "digits"
        client.async_stream_infer(
            model, [pixels(values[row : row + 1])], request_id=str(row), model_version="2", enable_empty_final_response=True
        )
    told = [answers.get(timeout=60) for _ in range(60)]
    client.stop_stream()
    assert "no model `nothing`" in told[30][1].message()
    right = [(row, result.get_response()) for row, (result, error) in enumerate(told) if error is None]
    assert len(right) == 59 and all(answer.id == str(row) for row, answer in right)
    assert all(answer.parameters["triton_final_response"].bool_param for _, answer in right)
    said = [result.as_numpy("digit")[0] == labels[row] for row, (result, error) in enumerate(told) if error is None]
    assert numpy.mean(said) >= 0.98


def test_asyncio(address):
    labels, values = rows(40)

    async def ask():
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready() and await client.is_model_ready("digits")
            asked = [client.infer("digits", [pixels(values[row : row + 1])], model_version="2") for row in range(40)]
            alone = [result.as_numpy("digit")[0] for result in await asyncio.gather(*asked)]

            async def requests():
                for row in range(40):
                    yield {"model_name": "digits", "inputs": [pixels(values[row : row + 1])], "model_version": "2"}

            streamed = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                streamed.append(result.as_numpy("digit")[0])
            return alone, streamed

    alone, streamed = asyncio.run(ask())
    assert alone == streamed and (numpy.array(alone) == labels).mean() >= 0.98


def test_models_are_unloaded_and_loaded(client):
    states = lambda: [model.state for model in client.get_model_repository_index().models]
    assert states() == ["READY", "READY"]
    client.unload_model("digits")
    assert states() == ["UNAVAILABLE", "UNAVAILABLE"] and not client.is_model_ready("digits")
    with pytest.raises(InferenceServerException, match="is not supported: a model is what its folder"):
        client.load_model("digits", config="{}", files={"file:1/model.pt": b"x"})
    client.load_model("digits")
    assert states() == ["READY", "READY"]


def test_health_is_checked_and_watched(address):
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ["", SERVICE]:
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        triton.InferenceServerClient(address).unload_model("digits")
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        triton.InferenceServerClient(address).load_model("digits")
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()


def test_reflection_describes_the_service_with_tritons_names_and_numbers(address):
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in database.get_services() and "grpc.health.v1.Health" in database.get_services()
        ours = DescriptorPool(database).FindServiceByName(SERVICE)
        theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        assert len(ours.methods) == 14
        for method in ours.methods:
            other = theirs.methods_by_name[method.name]
            streaming = lambda one: (one.client_streaming, one.server_streaming)
            assert (method.input_type.full_name, method.output_type.full_name, streaming(method)) == (
                other.input_type.full_name,
                other.output_type.full_name,
                streaming(other),
            )
            assert_alike(method.input_type, other.input_type)
            assert_alike(method.output_type, other.output_type)


def assert_alike(ours, theirs):
    """Field by field; of a model's configuration only what is filled in is described."""
    described = lambda field: (field.name, field.number, field.type, field.is_repeated, field.containing_oneof and field.containing_oneof.name)
    is_whole = ours.file.name != "model_config.proto"
    wanted = [field for field in theirs.fields if is_whole or field.name in ours.fields_by_name]
    assert [described(field) for field in ours.fields] == [described(field) for field in wanted], ours.full_name
    for field, other in zip(ours.fields, wanted):
        if field.message_type:
            assert field.message_type.full_name == other.message_type.full_name
            assert_alike(field.message_type, other.message_type)
        if field.enum_type:
            numbers = {value.name: value.number for value in other.enum_type.values}
            assert field.enum_type.full_name == other.enum_type.full_name
            assert all(numbers[value.name] == value.number for value in field.enum_type.values)
