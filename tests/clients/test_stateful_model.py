"""A published model that remembers: Silero VAD's TorchScript, as its authors ship it. It must never share a batch or run twice at once."""

import importlib.metadata
import shutil
from concurrent.futures import ThreadPoolExecutor

import requests
from conftest import stack

MODEL_YAML = """\
inputs:
  - {name: x, datatype: FP32, shape: [-1, 512]}
  - {name: sr, datatype: INT64, shape: [1], min: 16000, max: 16000}
outputs:
  - {name: speech, datatype: FP32, shape: [-1, 1]}
"""


def test_a_model_that_remembers_is_found_out_and_served_one_request_at_a_time(tmp_path):
    version = tmp_path / "models/silero_vad/1"
    version.mkdir(parents=True)
    # Importing the package would import torch; only its file is wanted.
    jit = next(file for file in importlib.metadata.files("silero-vad") if file.name == "silero_vad.jit")
    shutil.copy(jit.locate(), version / "model.pt")
    (version / "model.yaml").write_text(MODEL_YAML)
    with stack(tmp_path, tmp_path / "models") as (http, monitor):
        (found,) = requests.get(f"http://{monitor}/status").json()["versions"]
        assert (found["state"], found["max_batch"], found["at_once"]) == ("ready", 0, 1)
        assert "gives another answer the next time" in found["reason"]
        silence = {"name": "x", "shape": [1, 512], "datatype": "FP32", "data": [0.0] * 512}
        rate = {"name": "sr", "shape": [1], "datatype": "INT64", "data": [16000]}
        url = f"http://{http}/v2/models/silero_vad/infer"
        answer = requests.post(url, json={"inputs": [silence, rate]})
        assert answer.status_code == 200, answer.text
        assert 0 <= answer.json()["outputs"][0]["data"][0] < 0.5
        asked = {"inputs": [silence, rate]}
        with ThreadPoolExecutor(8) as callers:
            answers = list(callers.map(lambda _: requests.post(url, json=asked), range(32)))
        assert [answer.status_code for answer in answers] == [200] * 32
        assert all(0 <= answer.json()["outputs"][0]["data"][0] < 0.5 for answer in answers)
        metrics = requests.get(f"http://{monitor}/metrics").text.splitlines()
        runs = [int(line.split()[1]) for line in metrics if line.startswith("penstock_batches_total{")]
        assert sum(runs) == 33, "each request has a run of its own"
        rate["data"] = [1]
        refused = requests.post(url, json={"inputs": [silence, rate]})
        assert (refused.status_code, refused.json()["error"]) == (400, "input `sr`: 1 is not within 16000 to 16000")
