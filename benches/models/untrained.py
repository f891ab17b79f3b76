#!/usr/bin/env python3
"""Makes models with random weights, for benchmarks in which only what a model costs matters, and prints how fast a plain loop runs them.

    resnet18    torchvision's, 224 by 224 images in bytes, normalised by the model itself
    perceptron  256 -> 4096 -> 4096 -> 16
    lookup      an embedding of 10 rows whose indices nobody checks: an index of 10 makes a GPU fail for the rest of the process
    hungry      twice its input, for which it takes 2 GiB a row: 64 of them are more than a GPU of 80 GB has

Never: says anything about what an engine does; it knows libtorch through Python alone.

    untrained.py DIR [--loop cuda:0]

Runs where torch 2.11 and torchvision can be imported.
"""

import argparse
import time
from pathlib import Path

import torch
import torchvision

HEAD = "# What this version takes and gives; the first -1 is the batch dimension.\n"
RESNET18_YAML = HEAD + """\
inputs: [{name: image, datatype: UINT8, shape: [-1, 3, 224, 224]}]
outputs: [{name: logits, datatype: FP32, shape: [-1, 1000]}]
max_batch: 64
bf16: true
tolerance: 0.05
"""
PERCEPTRON_YAML = HEAD + """\
inputs: [{name: features, datatype: FP32, shape: [-1, 256]}]
outputs: [{name: logits, datatype: FP32, shape: [-1, 16]}]
max_batch: 256
"""
LOOKUP_YAML = HEAD + """\
inputs: [{name: index, datatype: INT64, shape: [-1]}]
outputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
"""
HUNGRY_YAML = HEAD + """\
inputs: [{name: number, datatype: FP32, shape: [-1, 1]}]
outputs: [{name: twice, datatype: FP32, shape: [-1, 1]}]
max_batch: 64
"""
ROUND_SECONDS = 3


class Resnet18(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = torchvision.models.resnet18(weights=None)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image):
        return self.network((image.float() / 255.0 - self.mean) / self.deviation)


class Perceptron(torch.nn.Module):
    def __init__(self):
        super().__init__()
        wide = torch.nn.Linear(256, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 4096), torch.nn.ReLU()
        self.layers = torch.nn.Sequential(*wide, torch.nn.Linear(4096, 16))

    def forward(self, features):
        return self.layers(features)


class Lookup(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Embedding(10, 4)

    def forward(self, index):
        return self.rows(index)


class Hungry(torch.nn.Module):
    def forward(self, number):
        wide = number.expand(-1, 1 << 29) * 2.0
        return wide[:, :1].clone()


def main():
    parser = argparse.ArgumentParser(description="Makes models with random weights. See the top of this file.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loop", metavar="DEVICE", help="then run each in a plain loop there")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    image, features = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8), torch.rand(2, 256)
    with torch.no_grad():
        make(arguments.folder, "resnet18", Resnet18(), image, RESNET18_YAML)
        make(arguments.folder, "perceptron", Perceptron(), features, PERCEPTRON_YAML)
        make(arguments.folder, "lookup", Lookup(), torch.tensor([1, 2]), LOOKUP_YAML)
        save(arguments.folder, "hungry", torch.jit.script(Hungry()), HUNGRY_YAML)
    if arguments.loop:
        loop(arguments.folder / "resnet18/1/model.pt", image, (1, 8, 64), arguments.loop)
        loop(arguments.folder / "perceptron/1/model.pt", features, (1, 32, 256), arguments.loop)


def make(folder, name, network, example, manifest):
    save(folder, name, torch.jit.trace(network.eval(), example), manifest)


def save(folder, name, module, manifest):
    version = folder / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    module.save(version / "model.pt")
    (version / "model.yaml").write_text(manifest)


@torch.inference_mode()
def loop(path, example, sizes, device):
    """One thread, one batch after the other: from pageable memory, through the model, back."""
    model = torch.jit.load(path, device)
    for rows in sizes:
        batch = example[:1].repeat(rows, *(1 for _ in example.shape[1:]))
        for _ in range(5):
            model(batch.to(device)).cpu()
        began, runs = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < ROUND_SECONDS:
            model(batch.to(device)).cpu()
            runs += 1
        print(f"python, {path.parts[-3]}, batch {rows}: {runs * rows / took:.0f} rows/s, {took / runs * 1e6:.0f} µs a run")


if __name__ == "__main__":
    main()
