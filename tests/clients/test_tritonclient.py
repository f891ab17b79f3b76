"""Triton's own client from PyPI, unmodified and with its defaults: binary tensors both ways."""

import csv
import pathlib

import numpy
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

HELD_OUT = pathlib.Path(__file__).resolve().parents[1] / "data" / "digits_held_out.csv"


def rows(count: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    with HELD_OUT.open() as file:
        table = numpy.array([[float(cell) for cell in row] for row in csv.reader(file)][:count])
    return table[:, 0].astype(numpy.int64), table[:, 1:].astype(numpy.float32)


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


def pixels(values: numpy.ndarray, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("pixels", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "2")
    assert not client.is_model_ready("digits", "9")
    assert client.get_server_metadata()["name"] == "penstock"
    assert client.get_model_metadata("digits")["inputs"][0] == {"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}


def test_infers_with_defaults(client):
    labels, values = rows(50)
    result = client.infer("digits", [pixels(values)], model_version="2")
    assert (result.as_numpy("digit") == labels).mean() >= 0.98
    assert result.as_numpy("probabilities").shape == (50, 10)
    assert numpy.allclose(result.as_numpy("probabilities").sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_binary_and_json_tensors_say_the_same(client, binary_in, binary_out):
    labels, values = rows(3)
    wanted = [triton.InferRequestedOutput("digit", binary_data=binary_out)]
    result = client.infer("digits", [pixels(values, binary_in)], model_version="2", outputs=wanted, request_id="r-1")
    assert result.as_numpy("digit").tolist() == labels.tolist()
    assert result.as_numpy("probabilities") is None
    assert result.get_response()["id"] == "r-1"


def test_the_policy_decides_when_no_version_is_named(client):
    _, values = rows(1)
    beta = client.infer("digits", [pixels(values)], headers={"x-cohort": "beta"})
    assert beta.get_response()["model_version"] == "2"
    answers = {client.infer("digits", [pixels(values)], headers={"x-user-id": "ana"}).get_response()["model_version"] for _ in range(20)}
    assert len(answers) == 1, "a user stays with a version"


def test_errors_are_the_clients_own_exception(client):
    _, values = rows(1)
    with pytest.raises(InferenceServerException, match=r"\[-1, 64\]"):
        client.infer("digits", [pixels(values[:, :63])])
    with pytest.raises(InferenceServerException, match="nothing"):
        client.infer("nothing", [pixels(values)])


def test_many_requests_at_once(address):
    labels, values = rows(200)
    with triton.InferenceServerClient(address, concurrency=16) as client:
        asked = [client.async_infer("digits", [pixels(values[row : row + 1])], model_version="2") for row in range(200)]
        answers = [request.get_result().as_numpy("digit")[0] for request in asked]
    assert (numpy.array(answers) == labels).mean() >= 0.98
