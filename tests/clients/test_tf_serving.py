"""Bodies as TensorFlow Serving's REST documentation and KServe's V1 clients send them, over `requests`."""

import json

import numpy
import pytest
import requests
from test_tritonclient import rows


@pytest.fixture
def models(address) -> str:
    return f"http://{address}/v1/models"


def test_predictions_of_rows_as_the_documentation_sends_them(models):
    labels, pixels = rows(20)
    data = json.dumps({"signature_name": "serving_default", "instances": pixels.tolist()})
    answer = requests.post(f"{models}/digits/versions/2:predict", data=data, headers={"content-type": "application/json"})
    predictions = json.loads(answer.text)["predictions"]
    assert numpy.mean([row["digit"] == label for row, label in zip(predictions, labels, strict=True)]) >= 0.95
    assert numpy.array([row["probabilities"] for row in predictions]).shape == (20, 10)
    assert answer.headers["x-penstock-version"] == "2"


def test_rows_and_columns_say_the_same(models):
    _, pixels = rows(3)
    url = f"{models}/digits/labels/stable:predict"
    by_row = requests.post(url, json={"instances": [{"pixels": row} for row in pixels.tolist()]}).json()["predictions"]
    by_column = requests.post(url, json={"inputs": {"pixels": pixels.tolist()}}).json()["outputs"]
    assert by_column["digit"] == [row["digit"] for row in by_row]
    assert numpy.allclose(by_column["probabilities"], [row["probabilities"] for row in by_row])


def test_status_and_metadata(models):
    status = requests.get(f"{models}/digits").json()
    assert [version["state"] for version in status["model_version_status"]] == ["AVAILABLE", "AVAILABLE"]
    assert (status["name"], status["ready"]) == ("digits", True)
    assert requests.get(models).json() == {"models": ["digits"]}
    metadata = requests.get(f"{models}/digits/metadata").json()
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    shape = [int(dim["size"]) for dim in signature["inputs"]["pixels"]["tensor_shape"]["dim"]]
    assert (signature["inputs"]["pixels"]["dtype"], shape) == ("DT_FLOAT", [-1, 64])


def test_errors(models):
    for url, body, status in [
        (f"{models}/digits:predict", {"instances": [[1, 2]]}, 400),
        (f"{models}/digits:predict", {"instances": [1], "inputs": [1]}, 400),
        (f"{models}/nothing:predict", {"instances": [1]}, 404),
        (f"{models}/digits/labels/old:predict", {"instances": [1]}, 404),
        (f"{models}/digits:explain", {"instances": [1]}, 501),
    ]:
        answer = requests.post(url, json=body)
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]
