"""Requests as TorchServe's documentation and examples send them, over `requests` and curl."""

import json
import subprocess

import pytest
import requests
from test_tritonclient import rows


@pytest.fixture
def server(address) -> str:
    return f"http://{address}"


@pytest.fixture
def row(tmp_path):
    """The first row that is a 7, and a file of it."""
    labels, pixels = rows(50)
    values = pixels[list(labels).index(7)].tolist()
    file = tmp_path / "seven.json"
    file.write_text(json.dumps(values))
    return values, file


def curl(*arguments) -> str:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_predictions_from_python(server, row):
    values, file = row
    url = f"{server}/predictions/digits"
    data = requests.post(url, data=json.dumps({"pixels": values}), headers={"x-cohort": "beta"})
    assert (data.status_code, data.json()["prediction"]) == (200, "7"), data.text
    assert data.headers["x-penstock-version"] == "2"
    assert data.headers["x-request-id"]
    with file.open("rb") as opened:
        form = requests.post(f"{url}/2", files={"data": opened})
    assert form.json() == data.json()
    many = requests.post(f"{url}/2.0", json=[values, values])
    assert [one["prediction"] for one in many.json()] == ["7", "7"]


def test_predictions_from_curl(server, row):
    values, file = row
    url = f"{server}/predictions/digits/2"
    uploaded = json.loads(curl("-T", file, url))
    assert uploaded["prediction"] == "7"
    assert json.loads(curl("-F", f"data=@{file}", url)) == uploaded
    assert json.loads(curl("-d", json.dumps({"body": values}), url)) == uploaded
    assert json.loads(curl("-X", "POST", url, "-H", "Content-Type: application/json", "--data-binary", f"@{file}")) == uploaded


def test_health_and_management(server):
    assert requests.get(f"{server}/ping").json() == {"status": "Healthy"}
    assert requests.get(f"{server}/models").json() == {"models": [{"modelName": "digits", "modelUrl": "digits"}]}
    (described,) = requests.get(f"{server}/models/digits/1").json()
    assert (described["modelName"], described["modelVersion"], described["batchSize"]) == ("digits", "1", 64)
    assert [version["modelVersion"] for version in requests.get(f"{server}/models/digits/all").json()] == ["1", "2"]


def test_errors_have_torchserves_form(server):
    for answer, status, exception in [
        (requests.post(f"{server}/predictions/nothing", data="[1]"), 404, "ModelNotFoundException"),
        (requests.post(f"{server}/predictions/digits", data="pixels=1"), 400, "BadRequestException"),
        (requests.post(f"{server}/predictions/digits", files={"image": b"[1]"}), 400, "BadRequestException"),
        (requests.get(f"{server}/predictions/digits"), 405, "MethodNotAllowedException"),
        (requests.post(f"{server}/models", params={"url": "digits.mar"}), 403, "ForbiddenException"),
        (requests.put(f"{server}/models/digits", params={"min_worker": 3}), 501, "NotImplementedException"),
    ]:
        assert answer.status_code == status, answer.text
        assert (answer.json()["code"], answer.json()["type"]) == (status, exception)


def test_every_request_of_the_page_works_as_it_is(server):
    page = curl(f"{server}/")
    copied = [line.strip() for line in page.splitlines() if "curl http" in line]
    assert copied, page
    for line in copied:
        answer = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True, timeout=30).stdout
        assert "prediction" in json.loads(answer), answer
    assert requests.get(server, headers={"accept": "text/html"}).text.startswith("<!doctype html>")
