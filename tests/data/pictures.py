"""Writes the pictures under `tests/data/pictures/` and what torchvision makes of each, which the engine must make of it too.

Decides: which kinds of files are covered. `NAME.rgb` holds what Pillow and torchvision leave of `NAME` after EXIF turning, conversion
to RGB, resizing and cropping, as bytes: CROP rows of CROP pixels. `refused-*` are files for which the engine must have an error.
Never does: fetch anything. The photograph is scikit-learn's china.jpg (by danielbuechele, CC BY 2.0), cut and made smaller.

    pip install torch==2.11.0 torchvision==0.26.0 pillow==13.0.0 numpy scikit-learn && python tests/data/pictures.py
"""

import pathlib
import sys

import sklearn
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

FOLDER = pathlib.Path(__file__).resolve().parent / "pictures"
CHINA = pathlib.Path(sklearn.__file__).parent / "datasets/images/china.jpg"
RESIZE, CROP = 48, 40
ORIENTATION = 0x0112


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    photo = Image.open(CHINA).convert("RGB").crop((60, 20, 620, 400)).resize((210, 142), Image.Resampling.LANCZOS)
    alpha = photo.copy()
    alpha.putalpha(photo.convert("L"))
    exif = Image.Exif()
    exif[ORIENTATION] = 6

    photo.save(FOLDER / "baseline.jpg", quality=88)
    photo.save(FOLDER / "full-colour.jpg", quality=88, subsampling=0)
    photo.save(FOLDER / "progressive.jpg", quality=80, progressive=True)
    photo.convert("L").save(FOLDER / "grey.jpg", quality=88)
    photo.save(FOLDER / "turned.jpg", quality=88, exif=exif)
    photo.save(FOLDER / "rgb.png")
    photo.crop((0, 0, 31, 120)).save(FOLDER / "narrow.png")
    photo.resize((33, 24)).save(FOLDER / "smaller.png", exif=exif)
    photo.quantize(32).save(FOLDER / "palette.png", transparency=3)
    photo.resize((90, 60)).convert("L").quantize(4).convert("L").save(FOLDER / "grey.png", bits=8)
    photo.resize((90, 60)).convert("1").save(FOLDER / "one-bit.png")
    photo.resize((90, 60)).convert("LA").save(FOLDER / "grey-alpha.png")
    alpha.resize((90, 60)).save(FOLDER / "alpha.png")
    photo.save(FOLDER / "lossy.webp", quality=85)
    alpha.resize((90, 60)).save(FOLDER / "alpha.webp", lossless=True)
    for path in sorted(FOLDER.iterdir()):
        expect(path, InterpolationMode.BILINEAR, path.name)
    expect(FOLDER / "rgb.png", InterpolationMode.BICUBIC, "rgb.png.bicubic")
    expect(FOLDER / "smaller.png", InterpolationMode.BICUBIC, "smaller.png.bicubic")

    photo.resize((60, 40)).convert("CMYK").save(FOLDER / "refused-cmyk.jpg")
    photo.resize((60, 40)).convert("I;16").save(FOLDER / "refused-grey16.png")
    print(sum(path.stat().st_size for path in FOLDER.iterdir()), "bytes")


def expect(path: pathlib.Path, interpolation: InterpolationMode, name: str) -> None:
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    # Neither mean nor deviation: floats from 0 to 1, which are bytes again without loss.
    transform = ImageClassification(
        crop_size=CROP, resize_size=RESIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation=interpolation
    )
    tensor = transform(picture) * 255.0
    levels = tensor.round()
    if (tensor - levels).abs().max() > 1e-3:
        sys.exit(f"{name}: not a level of 256")
    (FOLDER / f"{name}.rgb").write_bytes(bytes(levels.permute(1, 2, 0).to(dtype=torch.uint8).flatten().tolist()))


if __name__ == "__main__":
    main()
