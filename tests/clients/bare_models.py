"""What published models say when nobody is between them and who asks: pixels and tokens are made here, in plain Python, and each
row runs alone. Runs under the python of benches/models/make.py, which has torch and nothing else; test_real_models.py starts it.

    bare_models.py < {"models": FOLDER, "vocabulary": FILE, "pictures": [PNG, ..], "sentences": [TEXT, ..]}
    > {"logits": [[1000 numbers], ..], "embeddings": [[384 numbers], ..], "tokens": [how many, ..]}

Never: uses anything of Penstock.
"""

import json
import os
import re
import sys
import zlib
from pathlib import Path

sys.setdlopenflags(os.RTLD_LAZY)  # of what torch is linked against, not all is there
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

RESIZE, CROP = 256, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main():
    asked = json.load(sys.stdin)
    models = Path(asked["models"])
    torch.set_num_threads(1)
    with torch.no_grad():
        classify = torch.jit.load(models / "efficientnet/1/model.pt")
        embed = torch.jit.load(models / "minilm/1/model.pt")
        logits = [classify(pixels(Path(path)))[0] for path in asked["pictures"]]
        words = {word: number for number, word in enumerate(Path(asked["vocabulary"]).read_text().splitlines())}
        rows = [tokens(sentence, words) for sentence in asked["sentences"]]
        embeddings = [embed(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0] for row in rows]
    json.dump(
        {
            "logits": [row.tolist() for row in logits],
            "embeddings": [row.tolist() for row in embeddings],
            "tokens": [len(row) for row in rows],
        },
        sys.stdout,
    )


def pixels(path):
    """As torchvision's transforms for ImageNet make them of what Pillow has read: bytes again after each of the two resizings."""
    picture = png(path.read_bytes()).permute(2, 0, 1)[None].float()
    height, width = picture.shape[2:]
    if height < width:
        height, width = RESIZE, RESIZE * width // height
    else:
        height, width = RESIZE * height // width, RESIZE
    for size in ((picture.shape[2], width), (height, width)):
        picture = functional.interpolate(picture, size, mode="bilinear", antialias=True).add(0.5).floor().clamp(0, 255)
    top, left = round((height - CROP) / 2), round((width - CROP) / 2)
    picture = picture[:, :, top : top + CROP, left : left + CROP] / 255
    return (picture - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def png(file):
    """Height, width, colours: of a file with 8 bits of each of three colours, not interlaced."""
    at, head, packed = 8, b"", b""
    while at < len(file):
        length, kind = int.from_bytes(file[at : at + 4], "big"), file[at + 4 : at + 8]
        chunk = file[at + 8 : at + 8 + length]
        head, packed = (chunk if kind == b"IHDR" else head), (packed + chunk if kind == b"IDAT" else packed)
        at += length + 12
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    assert tuple(head[8:]) == (8, 2, 0, 0, 0), "another kind of PNG"
    lines, before = zlib.decompress(packed), bytearray(3 * width)
    picture = bytearray()
    for at in range(0, len(lines), 3 * width + 1):
        how, line = lines[at], bytearray(lines[at + 1 : at + 1 + 3 * width])
        for x, value in enumerate(line):
            left, up, corner = (line[x - 3], before[x], before[x - 3]) if x >= 3 else (0, before[x], 0)
            line[x] = (value + (0, left, up, (left + up) // 2, paeth(left, up, corner))[how]) & 255
        picture += line
        before = line
    return torch.frombuffer(picture, dtype=torch.uint8).view(height, width, 3)


def paeth(left, up, corner):
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


def tokens(sentence, words):
    """WordPiece, for plain English: of each word the longest beginning that is known, and so on."""
    found = [words["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
        begin = 0
        while begin < len(word):
            prefix = "##" if begin else ""
            end = next(end for end in range(len(word), begin, -1) if prefix + word[begin:end] in words)
            found.append(words[prefix + word[begin:end]])
            begin = end
    return [*found, words["[SEP]"]]


if __name__ == "__main__":
    main()
