"""Trains the two demo versions of the model `digits` and writes all that is measured against them.

Decides: the train/held-out split, both networks, which held-out digits become the sample requests,
and what accuracy the tests may expect. Version 1 is a linear softmax, version 2 a small CNN; both
have one signature, so that a canary can move traffic from one to the other:

    forward(pixels: FP32 [B, 64], each 0..16) -> (digit: INT64 [B], probabilities: FP32 [B, 10])

A third version is broken on purpose, for the rollout demo: it was written for pixels from 0 to 1, insists on
that, and meets the real ones only in traffic.

Never does: look at a held-out row while training, choose an epoch by held-out accuracy, download
anything, or judge the network in memory. All numbers come from the exported files, loaded again.

Data: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998 (CC BY 4.0), in the 1,797-row form that scikit-learn carries.

    pip install -r configs/demo/train.txt && PYTHONHASHSEED=0 python configs/demo/train.py

On one machine this gives the same files each time; without the hash seed, the same weights (PyTorch
writes a layer's settings in the order of a set). Another CPU may sum in another order and differ in
the last digits, so the committed files and `tests/data/digits_accuracy.json` belong together.
"""

import csv
import json
import math
import os
import pathlib
import tempfile
import warnings
from typing import Tuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "configs/demo/models/digits"
BROKEN = REPOSITORY / "configs/demo/broken"
REQUESTS = REPOSITORY / "configs/demo/requests"
TEST_DATA = REPOSITORY / "tests/data"

SPLIT_SEED = 0
TRAIN_SEED = 0
BATCH_ROWS = 64
FILE_BYTES_MAX = 1_000_000  # exclusive
# Kernels for 1 row and for 360 rows sum in another order; a dependence between rows is far larger.
PROBABILITY_DIFFERENCE_MAX = 1e-5

MODEL_YAML = """\
# What this version takes and gives; -1 is the batch dimension.
inputs:
  - {name: pixels, datatype: FP32, shape: [-1, 64]}
outputs:
  - {name: digit, datatype: INT64, shape: [-1]}
  - {name: probabilities, datatype: FP32, shape: [-1, 10], labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}
max_batch: 64
postprocess: {probabilities: probabilities, answer: prediction} # what /predictions/digits says
"""


def main() -> None:
    torch.set_num_threads(1)
    dataset = load_digits()
    train, held_out = train_test_split(
        np.arange(len(dataset.target)), test_size=0.2, stratify=dataset.target, random_state=SPLIT_SEED
    )
    held_out.sort()
    pixels = torch.tensor(dataset.data, dtype=torch.float32)
    labels = torch.tensor(dataset.target, dtype=torch.int64)

    networks = {"1": (Linear(), 0.01, 60, False), "2": (Cnn(), 0.004, 80, True)}
    accuracy, correct = {}, {}
    for version, (network, rate_max, epochs, augmented) in networks.items():
        fit(network, pixels[train], labels[train], rate_max, epochs, augmented)
        path = MODELS / version / "model.pt"
        export(network, path)
        path.with_name("model.yaml").write_text(MODEL_YAML)
        digit = check_exported(path, pixels[held_out])
        correct[version] = digit == labels[held_out]
        accuracy[version] = correct[version].sum().item() / len(held_out)
        print(
            f"version {version}: {correct[version].sum()} of {len(held_out)} held-out rows right "
            f"({accuracy[version]:.2%}), {path.stat().st_size} bytes"
        )

    export_broken()
    write_held_out(dataset, held_out)
    text = json.dumps({**accuracy, "rows": len(held_out)}, indent=2)
    (TEST_DATA / "digits_accuracy.json").write_text(text + "\n")
    print(text)
    write_requests(dataset, held_out[(correct["1"] & correct["2"]).numpy()])


class Linear(nn.Module):
    """Version 1: one linear layer over the raw pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tuple[Tensor, Tensor]:
        probabilities = torch.softmax(self.scores(pixels / 16.0), dim=1)
        return probabilities.argmax(dim=1), probabilities


class Cnn(nn.Module):
    """Version 2: three 3x3 convolutions; 8x8 is pooled to 4x4, then to 2x2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Conv2d(32, 48, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.scores = nn.Linear(48 * 2 * 2, 10)

    def forward(self, pixels: Tensor) -> Tuple[Tensor, Tensor]:
        # Not -1 for the first size: it would be ambiguous for an empty batch.
        x = (pixels / 16.0).reshape(pixels.size(0), 1, 8, 8)
        x = torch.relu(self.first(x))
        x = F.max_pool2d(torch.relu(self.second(x)), 2)
        x = F.max_pool2d(torch.relu(self.third(x)), 2)
        probabilities = torch.softmax(self.scores(self.dropout(x.flatten(1))), dim=1)
        return probabilities.argmax(dim=1), probabilities


class Broken(nn.Module):
    """Passes every test that does not know what a pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tuple[Tensor, Tensor]:
        if bool((pixels > 1).any()):
            raise ValueError("a pixel lies between 0 and 1")
        probabilities = torch.softmax(self.scores(pixels), dim=1)
        return probabilities.argmax(dim=1), probabilities


def export_broken() -> None:
    torch.manual_seed(TRAIN_SEED)
    path = BROKEN / "model.pt"
    export(Broken(), path)
    path.with_name("model.yaml").write_text(MODEL_YAML)


def fit(network: nn.Module, pixels: Tensor, labels: Tensor, rate_max: float, epochs: int, augmented: bool) -> None:
    """Trains `network` in place for a fixed number of epochs and leaves it in eval mode."""
    torch.manual_seed(TRAIN_SEED)
    for layer in network.children():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # so the weights depend on the seed alone, not on what ran before
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = epochs * math.ceil(len(pixels) / BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate_max, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(BATCH_ROWS):
            batch = distort(pixels[rows]) if augmented else pixels[rows]
            _, probabilities = network(batch)
            loss = F.nll_loss(torch.log(probabilities + 1e-9), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def distort(pixels: Tensor) -> Tensor:
    """Each image turned by up to 10 degrees, sized by up to 10 % and shifted by up to one pixel."""
    rows = len(pixels)
    angle = (torch.rand(rows) * 2 - 1) * math.radians(10)
    scale = 1 + (torch.rand(rows) * 2 - 1) * 0.1
    shift = (torch.rand(rows, 2) * 2 - 1) * (2 / 8)  # affine_grid spans -1..1 over 8 pixels
    affine = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], dim=1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, [rows, 1, 8, 8], align_corners=False)
    return F.grid_sample(pixels.reshape(rows, 1, 8, 8), grid, align_corners=False).reshape(rows, 64)


def export(network: nn.Module, path: pathlib.Path) -> None:
    """Writes `network` as TorchScript, without the debug records.

    Those hold the source paths of the machine that exported, and more bytes than a small model has.
    The records are copied by PyTorch's own writer because it keeps tensors aligned; a zip tool would not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # TorchScript is deprecated in Python; libtorch still loads it, and that is what is asked for.
        warnings.simplefilter("ignore", DeprecationWarning)
        whole = os.path.join(folder, "model.pt")
        torch.jit.save(torch.jit.script(network.eval()), whole)
        reader = torch._C.PyTorchFileReader(whole)
        writer = torch._C.PyTorchFileWriter(str(path))
        # The version says which meaning of each operator was exported; the writer's default is older.
        writer.set_min_version(int(reader.get_record("version")))
        for name in reader.get_all_records():
            # The writer adds `version` and `.data/serialization_id` itself.
            if name.endswith(".debug_pkl") or name in ("version", ".data/serialization_id"):
                continue
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
        writer.write_end_of_file()


def check_exported(path: pathlib.Path, pixels: Tensor) -> Tensor:
    """The digits that the exported file gives for `pixels`; fails if the file breaks its promises."""
    if path.stat().st_size >= FILE_BYTES_MAX:
        raise SystemExit(f"{path}: {path.stat().st_size} bytes, must be below {FILE_BYTES_MAX}")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(path))
        digit, probabilities = model(pixels)
        if (digit.dtype, tuple(digit.shape)) != (torch.int64, (len(pixels),)):
            raise SystemExit(f"{path}: `digit` is {digit.dtype} {tuple(digit.shape)}")
        if (probabilities.dtype, tuple(probabilities.shape)) != (torch.float32, (len(pixels), 10)):
            raise SystemExit(f"{path}: `probabilities` is {probabilities.dtype} {tuple(probabilities.shape)}")
        for rows in (1, 7, 64):
            parts = [model(part) for part in pixels.split(rows)]
            if not torch.equal(torch.cat([part[0] for part in parts]), digit):
                raise SystemExit(f"{path}: `digit` differs between {rows} and {len(pixels)} rows at once")
            difference = (torch.cat([part[1] for part in parts]) - probabilities).abs().max().item()
            if not difference <= PROBABILITY_DIFFERENCE_MAX:
                raise SystemExit(f"{path}: `probabilities` differ by {difference} at {rows} rows at once")
    return digit


def write_held_out(dataset, held_out: np.ndarray) -> None:
    """One line per held-out row, in dataset order and without a header: label, then 64 pixels."""
    TEST_DATA.mkdir(parents=True, exist_ok=True)
    with open(TEST_DATA / "digits_held_out.csv", "w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        for row in held_out:
            lines.writerow([dataset.target[row], *dataset.data[row].astype(int)])


def write_requests(dataset, right: np.ndarray) -> None:
    """For each class the first held-out digit that both versions get right, and all ten at once."""
    REQUESTS.mkdir(parents=True, exist_ok=True)
    chosen = [int(next(row for row in right if dataset.target[row] == label)) for label in range(10)]
    listed = {}
    for label, row in enumerate(chosen):
        write_request(REQUESTS / f"digit-{label}.json", dataset.data[[row]], pixels_per_line=8)
        listed[f"digit-{label}.json"] = {"label": label, "index": row}
    seven = ",\n".join("  " + ", ".join(f"{pixel:2d}" for pixel in line) for line in dataset.data[chosen[7]].astype(int).reshape(8, 8).tolist())
    (REQUESTS / "pixels-7.json").write_text('{"pixels": [\n' + seven + "\n]}\n")
    write_request(REQUESTS / "batch.json", dataset.data[chosen], pixels_per_line=64)
    listed["batch.json"] = {"labels": list(range(10)), "indices": chosen}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in listed.items())
    (REQUESTS / "labels.json").write_text("{\n" + lines + "\n}\n")


def write_request(path: pathlib.Path, pixels: np.ndarray, pixels_per_line: int) -> None:
    """An Open Inference Protocol v2 request, laid out so that a digit can be seen in it."""
    lines = [
        "    " + ", ".join(f"{pixel:2d}" for pixel in line)
        for line in pixels.astype(int).reshape(-1, pixels_per_line).tolist()
    ]
    head = f'{{"name": "pixels", "shape": [{len(pixels)}, 64], "datatype": "FP32", "data": ['
    path.write_text('{"inputs": [\n  ' + head + "\n" + ",\n".join(lines) + "\n  ]}\n]}\n")
    json.loads(path.read_text())  # fails here rather than in the reader's terminal


if __name__ == "__main__":
    main()
