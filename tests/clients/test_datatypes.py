"""Every datatype of the protocol that is a number, through Triton's own clients and a model that gives back what it takes."""

import os
import subprocess

import ml_dtypes
import numpy
import pytest
import tritonclient.grpc
import tritonclient.http
from conftest import CHECKOUT, free_address, stack

VALUES = {
    "b": ("BOOL", [True, False], numpy.bool_),
    "u8": ("UINT8", [0, 2**8 - 1], numpy.uint8),
    "u16": ("UINT16", [0, 2**16 - 1], numpy.uint16),
    "u32": ("UINT32", [0, 2**32 - 1], numpy.uint32),
    "u64": ("UINT64", [0, 2**64 - 1], numpy.uint64),
    "i8": ("INT8", [-(2**7), 2**7 - 1], numpy.int8),
    "i16": ("INT16", [-(2**15), 2**15 - 1], numpy.int16),
    "i32": ("INT32", [-(2**31), 2**31 - 1], numpy.int32),
    "i64": ("INT64", [-(2**63), 2**63 - 1], numpy.int64),
    "f16": ("FP16", [-1.5, 65504], numpy.float16),
    "bf16": ("BF16", [-1.5, 2.0**127], ml_dtypes.bfloat16),
    "f32": ("FP32", [-1.5, 3.4e38], numpy.float32),
    "f64": ("FP64", [0.1, 1.7e308], numpy.float64),
}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory) -> tuple[str, str]:
    """Where the stack answers HTTP, and where gRPC."""
    folder, grpc = tmp_path_factory.mktemp("datatypes"), free_address()
    models = folder / "models"
    models.mkdir()
    os.symlink(CHECKOUT / "tests/data/models/kinds", models / "kinds")
    with stack(folder, models, grpc=grpc) as (http, _monitor):
        yield http, grpc


def check(client, library, **form) -> None:
    inputs = []
    for name, (datatype, values, kind) in VALUES.items():
        tensor = library.InferInput(name, [1, 2], datatype)
        # FP16 and BF16 have no JSON form.
        tensor.set_data_from_numpy(numpy.array([values], dtype=kind), **({} if name.endswith("f16") else form))
        inputs.append(tensor)
    outputs = [
        library.InferRequestedOutput(f"{name}_out", **({} if name.endswith("f16") else form)) for name in VALUES
    ]
    result = client.infer("kinds", inputs, outputs=outputs)
    for name, (_, values, kind) in VALUES.items():
        answer = result.as_numpy(f"{name}_out")
        assert answer.dtype == kind and numpy.array_equal(answer, numpy.array([values], dtype=kind)), name


@pytest.mark.parametrize("binary", [True, False])
def test_over_http(addresses, binary):
    with tritonclient.http.InferenceServerClient(addresses[0]) as client:
        check(client, tritonclient.http, binary_data=binary)
        told = client.get_model_config("kinds")["input"]
        assert [one["data_type"] for one in told] == [f"TYPE_{datatype}" for datatype, _, _ in VALUES.values()]


def test_over_grpc(addresses):
    with tritonclient.grpc.InferenceServerClient(addresses[1]) as client:
        check(client, tritonclient.grpc)
        told = client.get_model_config("kinds", as_json=True)["config"]["input"]
        assert [one["data_type"] for one in told] == [f"TYPE_{datatype}" for datatype, _, _ in VALUES.values()]


def test_the_curl_of_the_page_as_it_is(addresses, tmp_path):
    page = subprocess.check_output(["curl", "-sS", f"http://{addresses[0]}/"], text=True)
    (line,) = [line.strip() for line in page.splitlines() if "| curl http" in line]
    subprocess.run(["sh", "-c", f"{line} -sS -D head"], cwd=tmp_path, check=True, timeout=30)
    head = (tmp_path / "head").read_text()
    assert head.startswith("HTTP/1.1 200"), head
    (length,) = [line.split()[1] for line in head.splitlines() if line.lower().startswith("inference-header-content-length")]
    answer = tritonclient.http.InferenceServerClient.parse_response_body(
        (tmp_path / "answer.bin").read_bytes(), header_length=int(length)
    )
    for name, (datatype, _, kind) in VALUES.items():
        values = answer.as_numpy(f"{name}_out")
        if datatype in ("FP16", "BF16"):
            assert values.dtype == kind and (abs(values.astype(numpy.float32) - 1) < 0.3).all(), values
        else:
            assert numpy.array_equal(values, numpy.full([1, 2], 1, dtype=kind)), name
