"""Writes the small TorchScript models under `tests/data/models/` that the engine's tests load.

Decides: one peculiarity per model, the thing an engine must notice, refuse or survive. Each file is
loaded again and shown to have that peculiarity before this script ends.
Never does: train anything, depend on chance, or stand for a useful model (those are in configs/demo).

    coupled   each row's answer depends on the other rows of the batch
    stateful  each call's answer depends on the calls before it
    buffer    gives out the very memory in which it sums up the calls before it, one row at a time
    scratch   gives out a view of memory of its own, right as long as no other call comes in between
    listed    the same, with the memory in a list
    forked    the same, in a part that runs by fork
    traced    the same, with memory that its trace has made a constant of
    noted     the same, with the memory in a list in a dict
    typed     the same, with the memory given out by an operation that does not say so
    rarely    the same, where its input is far below zero only, of which its trial knows nothing
    normed    adds up means of its batches in a list, which no operation's name or signature tells
    recurrent keeps its weights in a list, and writes to what it has computed
    attentive keeps its weights where it reads them in branches, and writes to what it was given
    picky     raises "negative input" when any value of the batch is below zero
    two       two inputs and two outputs of different datatypes and widths
    kinds     one input per datatype, given back unchanged
    bare      has no model.yaml
    slow      burns about 50 ms of one CPU core per call, whatever the number of rows
    short     gives back one row, however many it got
    leaky     keeps 8 MB more for every call with a value above 100
    stuck     does not come back from a call with a value above 100
    channels  the mean of each colour of an image, and its model.yaml has image files decoded
    broken    is not a model

    pip install -r configs/demo/train.txt && python tests/data/fixtures.py
"""

import pathlib
import sys
import time
import warnings
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn

MODELS = pathlib.Path(__file__).resolve().parent / "models"
sys.path.insert(0, str(MODELS.parents[2] / "configs/demo"))
from train import export  # noqa: E402 (the one place that knows how an exported file is written)

KINDS = {
    "b": ("BOOL", torch.bool),
    "u8": ("UINT8", torch.uint8),
    "u16": ("UINT16", torch.uint16),
    "u32": ("UINT32", torch.uint32),
    "u64": ("UINT64", torch.uint64),
    "i8": ("INT8", torch.int8),
    "i16": ("INT16", torch.int16),
    "i32": ("INT32", torch.int32),
    "i64": ("INT64", torch.int64),
    "f16": ("FP16", torch.float16),
    "bf16": ("BF16", torch.bfloat16),
    "f32": ("FP32", torch.float32),
    "f64": ("FP64", torch.float64),
}


def main() -> None:
    torch.set_num_threads(1)
    four = [-1, 4]
    write("coupled", Coupled(), [("pixels", "FP32", four)], [("out", "FP32", four)])
    write("stateful", Stateful(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("buffer", Buffer(), [("x", "FP32", four)], [("sum", "FP32", four)], max_batch=1)
    write("scratch", Scratch(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("listed", Listed(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("forked", Forked(), [("x", "FP32", four)], [("y", "FP32", four)])
    traced = torch.jit.trace(Traced(), torch.zeros(3, 4), check_trace=False)
    write("traced", traced, [("x", "FP32", four)], [("y", "FP32", four)])
    write("noted", Noted(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("typed", Typed(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("rarely", Rarely(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("normed", Normed(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("recurrent", Recurrent(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("attentive", Attentive(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("picky", Picky(), [("x", "FP32", four)], [("y", "FP32", four)])
    write(
        "two",
        Two(),
        [("a", "FP32", [-1, 3]), ("b", "INT64", [-1, 2])],
        [("sum_a", "FP32", [-1]), ("sum_b", "INT64", [-1])],
    )
    write(
        "kinds",
        Kinds(),
        [(name, datatype, [-1, 2]) for name, (datatype, _) in KINDS.items()],
        [(f"{name}_out", datatype, [-1, 2]) for name, (datatype, _) in KINDS.items()],
    )
    export(Bare(), MODELS / "bare/1/model.pt")
    write("slow", Slow(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("short", Short(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("leaky", Leaky(), [("x", "FP32", four)], [("y", "FP32", four)])
    write("stuck", Stuck(), [("x", "FP32", four)], [("y", "FP32", four)])
    image = [-1, 3, 40, 40]
    write("channels", Channels(), [("x", "FP32", image)], [("mean", "FP32", [-1, 3])])
    with (MODELS / "channels/1/model.yaml").open("a") as file:
        file.write("preprocess:\n  image: {resize: 48, mean: [0, 0, 0], std: [1, 1, 1]}\n")
    write_yaml("broken", [("x", "FP32", four)], [("y", "FP32", four)])
    (MODELS / "broken/1/model.pt").write_text("This is a text file and not a TorchScript archive.\n")
    check_all()


class Coupled(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels - pixels.mean(dim=0, keepdim=True)


class Stateful(nn.Module):
    """Adds the number of this call, counted from 1."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1.0)
        return x + self.calls


class Buffer(nn.Module):
    sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sum", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.sum.add_(x)


class Channels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3])


class Scratch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.zeros(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.scratch[: x.size(0)] = x
        return self.scratch[: x.size(0)]


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scratch: List[Tensor] = [torch.zeros(64, 4)]

    def forward(self, x: Tensor) -> Tensor:
        mine = self.scratch[0][: x.size(0)]
        mine.copy_(x)
        return mine


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Scratch()

    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(self.part, x))


CONSTANT = torch.zeros(64, 4)


class Traced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mine = CONSTANT[: x.size(0)]
        mine.copy_(x)
        return mine


class Noted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scratch: Dict[str, List[Tensor]] = {"x": [torch.zeros(64, 4)]}

    def forward(self, x: Tensor) -> Tensor:
        mine = self.scratch["x"][0][: x.size(0)]
        mine.copy_(x)
        return mine


class Typed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.zeros(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        mine = self.scratch.type_as(x)[: x.size(0)]
        mine.copy_(x)
        return mine


class Rarely(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.zeros(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        if bool((x < -100).any()):
            mine = self.scratch.type_as(x)[: x.size(0)]
            mine.copy_(x)
            return mine
        return x * 1


class Normed(nn.Module):
    """The rows are normed by their own mean and variance; the sums are written and never read."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: List[Tensor] = [torch.zeros(64), torch.ones(64)]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.size(0)
        sums = [self.sums[0][:rows], self.sums[1][:rows]]
        return nn.functional.batch_norm(x.unsqueeze(0), sums[0], sums[1], None, None, True)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(4, 4)
        self.rectified = nn.ReLU(inplace=True)
        self.steps = nn.LSTM(1, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.steps(self.rectified(self.encoder(x)).unsqueeze(2))
        return self.rectified(steps[:, -1])


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        words = x.mul_(2).unsqueeze(1) + 1
        return self.attention(words, words, words)[0].squeeze(1)


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise ValueError("negative input")
        return x * 2


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tuple[Tensor, Tensor]:
        return a.sum(dim=1), b.sum(dim=1)


class Kinds(nn.Module):
    def forward(
        self,
        b: Tensor,
        u8: Tensor,
        u16: Tensor,
        u32: Tensor,
        u64: Tensor,
        i8: Tensor,
        i16: Tensor,
        i32: Tensor,
        i64: Tensor,
        f16: Tensor,
        bf16: Tensor,
        f32: Tensor,
        f64: Tensor,
    ) -> Tuple[
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
    ]:
        return b, u8, u16, u32, u64, i8, i16, i32, i64, f16, bf16, f32, f64


class Bare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Slow(nn.Module):
    """Multiplies a unit matrix by itself.

    The matrix is made from the input and its zero corner is added to the answer, so that no pass
    over the graph may run the loop ahead of time or drop it.
    """

    def forward(self, x: Tensor) -> Tensor:
        unit = x.new_zeros((256, 256)).fill_diagonal_(1.0)
        product = unit
        for _ in range(150):
            product = product @ unit
        return x + product[0, 1]


class Short(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:1]


class Leaky(nn.Module):
    kept: List[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.kept = []

    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 100).any()):
            self.kept.append(x.new_ones([2 << 20]))  # of the input, or all would be one constant
        return x * 2


class Stuck(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while bool((x > 100).any()):
            x = x + 1
        return x * 2


def write(name: str, model: nn.Module, inputs: list, outputs: list, max_batch: int = 64) -> None:
    export(model, MODELS / name / "1/model.pt")
    write_yaml(name, inputs, outputs, max_batch)


def write_yaml(name: str, inputs: list, outputs: list, max_batch: int = 64) -> None:
    lines = ["# What this version takes and gives; -1 is the batch dimension."]
    for heading, tensors in (("inputs", inputs), ("outputs", outputs)):
        lines.append(f"{heading}:")
        # Quoted, because a bare `y` is a boolean to some YAML readers.
        lines += [f'  - {{name: "{tensor}", datatype: {datatype}, shape: {shape}}}' for tensor, datatype, shape in tensors]
    lines.append(f"max_batch: {max_batch}")
    path = MODELS / name / "1/model.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def check_all() -> None:
    """Loads each file, frozen (as an engine may) and as it is, and sees that it behaves as listed above."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        for prepare in (torch.jit.freeze, lambda model: model):
            check_answers(lambda name: prepare(torch.jit.load(str(MODELS / name / "1/model.pt"))))
    for path in sorted(MODELS.glob("*/1/model.pt")):
        print(f"{path.relative_to(MODELS)}: {path.stat().st_size} bytes")


def check_answers(load: Callable[[str], torch.jit.ScriptModule]) -> None:
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)

    coupled = load("coupled")
    assert not torch.allclose(coupled(x)[:1], coupled(x[:1])), "rows must depend on each other"

    stateful = load("stateful")
    assert [stateful(x)[0, 0].item() for _ in range(3)] == [1, 2, 3], "each call must count"

    buffer = load("buffer")
    first = buffer(x[1:2])
    assert buffer(x[1:2]).data_ptr() == first.data_ptr() and first[0, 0].item() == 8, "it gives out its own memory"

    rarely = load("rarely")
    assert rarely(x).data_ptr() != rarely(x).data_ptr()
    assert rarely(x - 200).data_ptr() == rarely(x - 200).data_ptr(), "it gives out its own memory"

    picky = load("picky")
    assert torch.equal(picky(x), x * 2)
    for _ in range(3):  # the interpreter's first calls run another plan than later ones
        assert "negative input" in refusal(picky, x - 1)

    sum_a, sum_b = load("two")(x[:, :3], x[:, :2].long())
    assert (sum_a.dtype, sum_a.tolist()) == (torch.float32, [3, 15, 27])
    assert (sum_b.dtype, sum_b.tolist()) == (torch.int64, [1, 9, 17])

    given = [x[:, :2].to(dtype) for _, dtype in KINDS.values()]
    for tensor, answer in zip(given, load("kinds")(*given), strict=True):
        assert answer.dtype == tensor.dtype and torch.equal(answer, tensor)

    image = torch.arange(3.0)[None, :, None, None].expand(2, 3, 40, 40)
    assert torch.equal(load("channels")(image), torch.arange(3.0).expand(2, 3))

    assert torch.equal(load("bare")(x), x * 2)
    assert torch.equal(load("short")(x), x[:1])
    assert torch.equal(load("leaky")(x + 100), (x + 100) * 2)
    assert torch.equal(load("stuck")(x), x * 2)
    assert refusal(load, "broken")

    slow, took_ms = load("slow"), []
    for _ in range(9):
        start = time.perf_counter()
        assert torch.equal(slow(x), x)
        took_ms.append(round((time.perf_counter() - start) * 1000))
    print(f"slow: {sorted(took_ms)} ms per call on one thread")


def refusal(call: Callable, argument: object) -> str:
    try:
        call(argument)
    except (torch.jit.Error, RuntimeError) as error:  # while running, while loading
        return str(error)
    raise AssertionError(f"{call} must refuse {argument}")


if __name__ == "__main__":
    main()
