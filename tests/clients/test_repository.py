"""Triton's own client, unmodified, brings models up and takes them down while they answer."""

import shutil

import numpy
import pytest
import requests
import tritonclient.http as triton
from conftest import CHECKOUT, stack
from test_tritonclient import rows
from tritonclient.utils import InferenceServerException

DEMO = CHECKOUT / "configs/demo/models/digits"


@pytest.fixture
def served(tmp_path):
    """A stack that takes orders, its models folder (with version 1 of digits only), and a client."""
    shutil.copytree(DEMO / "1", tmp_path / "models/digits/1")
    with stack(tmp_path, tmp_path / "models", control=True) as (http, _monitor):
        with triton.InferenceServerClient(http, network_timeout=60) as client:
            yield tmp_path / "models/digits", client, http


def answered_by(client) -> str:
    _, pixels = rows(1)
    tensor = triton.InferInput("pixels", [1, 64], "FP32")
    tensor.set_data_from_numpy(pixels)
    return client.infer("digits", [tensor]).get_response()["model_version"]


def index(client) -> dict[str, str]:
    return {entry["version"]: entry["state"] for entry in client.get_model_repository_index()}


def test_a_version_is_loaded_and_answers_at_once_and_is_unloaded(served):
    folder, client, _ = served
    assert (index(client), answered_by(client)) == ({"1": "READY"}, "1")
    shutil.copytree(DEMO / "2", folder / "2")
    client.load_model("digits")
    assert (index(client), answered_by(client)) == ({"1": "READY", "2": "READY"}, "2")
    client.unload_model("digits", unload_dependents=True)
    assert index(client) == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
    assert not client.is_model_ready("digits")
    with pytest.raises(InferenceServerException, match="no version of model `digits` is ready"):
        answered_by(client)
    client.load_model("digits")
    assert answered_by(client) == "2"


def test_one_version_is_meant_where_the_path_names_it(served):
    folder, client, http = served
    shutil.copytree(DEMO / "2", folder / "2")
    client.load_model("digits")
    order = requests.post(f"http://{http}/v2/repository/models/digits/versions/2/unload")
    assert (order.status_code, order.content) == (200, b"")
    assert (index(client), answered_by(client)) == ({"1": "READY", "2": "UNAVAILABLE"}, "1")
    ready = requests.post(f"http://{http}/v2/repository/index", json={"ready": True}).json()
    assert [entry["version"] for entry in ready] == ["1"]


def test_changed_files_are_swapped_in_and_a_torn_one_is_not(served):
    folder, client, _ = served
    tensor = triton.InferInput("pixels", [1, 64], "FP32")
    tensor.set_data_from_numpy(rows(1)[1])
    before = client.infer("digits", [tensor]).as_numpy("probabilities")
    (folder / "1/model.pt").write_bytes(b"not a model")
    with pytest.raises(InferenceServerException, match="version 1: model.pt: .*; what was loaded before serves on"):
        client.load_model("digits")
    assert numpy.array_equal(client.infer("digits", [tensor]).as_numpy("probabilities"), before)
    shutil.copy(DEMO / "2/model.pt", folder / "1/model.pt")
    client.load_model("digits")
    assert not numpy.array_equal(client.infer("digits", [tensor]).as_numpy("probabilities"), before)


def test_files_that_vanish_leave_the_version_serving_until_they_are_missed(served):
    folder, client, _ = served
    (folder / "1/model.pt").unlink()
    with pytest.raises(InferenceServerException, match="there is no model.pt; what was loaded before serves on"):
        client.load_model("digits")
    assert answered_by(client) == "1"
    shutil.rmtree(folder / "1")
    client.load_model("digits")
    with pytest.raises(InferenceServerException, match="no model `digits`"):
        answered_by(client)
    with pytest.raises(InferenceServerException, match="there is no model `digits` in the models folder"):
        client.load_model("digits")


def test_orders_are_refused_unless_allowed_and_never_bring_files(address, served):
    with triton.InferenceServerClient(address) as client:
        assert "model_repository" not in client.get_server_metadata()["extensions"]
        with pytest.raises(InferenceServerException, match="models are not loaded on request here") as refused:
            client.unload_model("digits")
        assert refused.value.status() == "403"
    _, client, _ = served
    assert "model_repository" in client.get_server_metadata()["extensions"]
    with pytest.raises(InferenceServerException, match="is not supported: a model is what its folder"):
        client.load_model("digits", config="{}", files={"file:1/model.pt": b"x"})
