"""Triton's own client sends files as BYTES to a model that declares pre-processing."""

import pathlib
import shutil

import numpy
import pytest
import tritonclient.http as triton
from conftest import stack
from tritonclient.utils import InferenceServerException

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(DATA / "models/channels", models / "channels")
    with stack(tmp_path_factory.mktemp("pictures"), models) as (http, _monitor):
        with triton.InferenceServerClient(http) as client:
            yield client


def ask(client, files: list[bytes], binary: bool = True) -> numpy.ndarray:
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(numpy.array(files, dtype=numpy.object_), binary_data=binary)
    return client.infer("channels", [tensor]).as_numpy("mean")


def test_files_are_decoded(client):
    names = ["baseline.jpg", "rgb.png", "lossy.webp"]
    means = ask(client, [(DATA / "pictures" / name).read_bytes() for name in names])
    for name, mean in zip(names, means, strict=True):
        pixels = numpy.frombuffer((DATA / f"pictures/{name}.rgb").read_bytes(), numpy.uint8).reshape(-1, 3)
        numpy.testing.assert_allclose(mean, pixels.mean(axis=0) / 255, atol=0.002)


def test_what_is_no_picture_is_refused(client):
    for binary in (True, False):
        with pytest.raises(InferenceServerException, match="row 0 is no JPEG, PNG or WebP image"):
            ask(client, [b"text"], binary)
