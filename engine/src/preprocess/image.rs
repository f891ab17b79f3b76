//! Images to the tensor of a vision model, as torchvision's transforms do it on Pillow's images: resize, cut out the
//! middle, bytes to floats from 0 to 1, less the mean, by the deviation, and the three colours one after the other.

use super::declared::{Image, Resize, Sides};
use super::picture::{BYTES_PER_PIXEL, Opened, Unreadable};
use super::resample::{CHANNELS, Interpolation, Pixels, Side, resize};
use super::work::{Kind, of_picture};
use super::{Made, Room, Unfit};
use crate::model::{Dimension, Form, Spec};
use std::ops::Range;
use wire::Datatype;

/// What is done to an image.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) input: String,
    pub(super) to: String,
    resize: Resize,
    crop: Sides,
    interpolation: Interpolation,
    pixels_max: u64,
    /// What each byte becomes, for each colour.
    values: Box<[[f32; 256]; CHANNELS]>,
}

impl Images {
    /// The error begins with the property that it is about.
    pub(super) fn bind(declared: Image, spec: &Spec) -> Result<Self, String> {
        let Image { input, to, resize, crop, interpolation, mean, std, pixels_max } = declared;
        let slot = match &to {
            Some(to) => spec
                .inputs
                .iter()
                .find(|slot| slot.name == *to)
                .ok_or_else(|| format!("to: the model has no input `{to}`"))?,
            None => match &spec.inputs[..] {
                [slot] => slot,
                _ => return Err("to: must say which input of the model the image becomes".into()),
            },
        };
        let form = slot.form.as_ref().ok_or("to: its shape is not declared")?;
        let (rows, height, width) = match form {
            Form { datatype: Datatype::Fp32, shape } => match shape[..] {
                [rows, Dimension::Fixed(3) | Dimension::Free, height, width] => (rows, height, width),
                _ => {
                    return Err(format!(
                        "to: an image is FP32 [-1, 3, height, width], input `{}` is {form}",
                        slot.name
                    ));
                }
            },
            Form { datatype, .. } => {
                return Err(format!(
                    "to: an image is FP32 [-1, 3, height, width], input `{}` is {}",
                    slot.name,
                    datatype.name()
                ));
            }
        };
        if let Dimension::Fixed(2..) = rows {
            return Err(format!("to: input `{}` takes several images at once", slot.name));
        }
        let crop = crop.unwrap_or(match (height, width) {
            (Dimension::Fixed(height), Dimension::Fixed(width)) => {
                Sides { height: height as usize, width: width as usize }
            }
            _ => Sides { height: 224, width: 224 },
        });
        let fits = |declared, crop: usize| match declared {
            Dimension::Fixed(size) => size == crop as u64,
            Dimension::Free | Dimension::Named(_) => true,
        };
        let Sides { height: high, width: wide } = crop;
        if !fits(height, high) || !fits(width, wide) {
            return Err(format!(
                "crop: {high}×{wide} pixels do not fit input `{}`, which is {form}",
                slot.name
            ));
        }
        let is_large_enough = match resize {
            Resize::ShorterSide(side) => side >= high && side >= wide,
            Resize::To(sides) => sides.height >= high && sides.width >= wide,
        };
        if !is_large_enough {
            return Err(format!("crop: {high}×{wide} pixels are more than `resize` leaves"));
        }
        let value = |colour: usize, byte: usize| (byte as f32 / 255.0 - mean[colour]) / std.0[colour];
        let values = std::array::from_fn(|colour| std::array::from_fn(|byte| value(colour, byte)));
        Ok(Self {
            input: input.0,
            to: slot.name.clone(),
            resize,
            crop,
            interpolation,
            pixels_max,
            values: Box::new(values),
        })
    }

    pub(super) fn bytes_of_row(&self) -> usize {
        CHANNELS * self.crop.height * self.crop.width * size_of::<f32>()
    }

    /// How much there is to do for a file: a small one is made as large as the others.
    pub(super) fn work(&self, file: &[u8]) -> (Kind, u64) {
        let (kind, pixels) = of_picture(file);
        (kind, pixels.saturating_add((self.crop.height * self.crop.width) as u64))
    }

    /// The tensor of these files, one for each row; nothing, if nobody wants it any more.
    pub(super) fn make(
        &self,
        files: &[&[u8]],
        room: &Room,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Option<Made>, Unfit> {
        let mut bytes = Vec::with_capacity(self.bytes_of_row() * files.len());
        for (row, file) in files.iter().enumerate() {
            if !is_wanted() {
                return Ok(None);
            }
            let pixels = self.pixels(file, room).map_err(|error| Unfit { row, why: error.to_string() })?;
            self.normalise(&pixels, &mut bytes);
        }
        let Sides { height, width } = self.crop;
        let shape = vec![files.len() as u64, CHANNELS as u64, height as u64, width as u64];
        Ok(Some(Made { name: self.to.clone(), datatype: Datatype::Fp32, shape, bytes }))
    }

    /// The middle of a file's picture.
    fn pixels(&self, file: &[u8], room: &Room) -> Result<Pixels, Unreadable> {
        let (opened, pixels) = Opened::head(file, self.pixels_max)?;
        let _taken = room.take(pixels * BYTES_PER_PIXEL);
        let picture = opened.decode()?;
        let (height, width) = self.resized(picture.height, picture.width);
        let side = |whole, kept| Side { whole, kept: middle(whole, kept) };
        let (width, height) = (side(width, self.crop.width), side(height, self.crop.height));
        Ok(resize(&picture, &width, &height, self.interpolation))
    }

    /// Height and width, as `Resize` of torchvision has them.
    fn resized(&self, height: usize, width: usize) -> (usize, usize) {
        match self.resize {
            Resize::To(sides) => (sides.height, sides.width),
            Resize::ShorterSide(shorter) => {
                let longer =
                    |long: usize, short: usize| (shorter as f64 * long as f64 / short as f64) as usize;
                if width <= height {
                    (longer(height, width), shorter)
                } else {
                    (shorter, longer(width, height))
                }
            }
        }
    }

    fn normalise(&self, pixels: &Pixels, into: &mut Vec<u8>) {
        for (colour, values) in self.values.iter().enumerate() {
            let bytes = pixels.bytes.iter().skip(colour).step_by(CHANNELS);
            into.extend(bytes.flat_map(|byte| values[usize::from(*byte)].to_le_bytes()));
        }
    }
}

/// What `CenterCrop` of torchvision keeps: halves are rounded to the even number.
fn middle(whole: usize, kept: usize) -> Range<usize> {
    let first = ((whole - kept) as f64 / 2.0).round_ties_even() as usize;
    first..first + kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::declared::{Declared, Deviations};
    use crate::scripted::rows_spec;
    use std::path::PathBuf;

    /// With what `tests/data/pictures.py` uses, so that values are bytes.
    fn plain() -> Image {
        let resize = Resize::ShorterSide(48);
        Image { resize, mean: [0.0; 3], std: Deviations([1.0; 3]), ..Image::default() }
    }

    fn spec(side: u64) -> Spec {
        let mut spec = rows_spec(&[("x", 1)], &[("y", 1)], 4);
        let size = Dimension::Fixed(side);
        let shape = vec![Dimension::Free, Dimension::Fixed(3), size, size];
        spec.inputs[0].form = Some(Form { datatype: Datatype::Fp32, shape });
        spec
    }

    fn file(name: &str) -> Vec<u8> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/pictures").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn levels(declared: Image, name: &str) -> Vec<u8> {
        let images = Images::bind(declared, &spec(40)).unwrap();
        let made =
            images.make(&[&file(name)], &Room::new(0), &|| true).map_err(|unfit| unfit.why).unwrap().unwrap();
        assert_eq!(made.shape, [1, 3, 40, 40]);
        let planes: Vec<u8> = made
            .bytes
            .chunks_exact(4)
            .map(|value| (f32::from_le_bytes(value.try_into().unwrap()) * 255.0).round() as u8)
            .collect();
        (0..40 * 40).flat_map(|pixel| [0, 1, 2].map(|colour| planes[colour * 40 * 40 + pixel])).collect()
    }

    fn refusal(file: &[u8]) -> String {
        let images = Images::bind(plain(), &spec(40)).unwrap();
        images.make(&[file], &Room::new(0), &|| true).err().expect("it must be refused").why
    }

    /// The largest difference, and how large it is in the mean.
    fn difference(name: &str, got: &[u8], want: &[u8]) -> (u8, f64) {
        assert_eq!(got.len(), want.len(), "{name}");
        let apart = || got.iter().zip(want).map(|(got, want)| got.abs_diff(*want));
        let sum: f64 = apart().map(f64::from).sum();
        (apart().max().unwrap_or(0), sum / got.len() as f64)
    }

    #[test]
    fn lossless_pictures_are_to_the_bit_what_torchvision_makes_of_them() {
        for name in [
            "rgb.png",
            "narrow.png",
            "smaller.png",
            "palette.png",
            "grey.png",
            "one-bit.png",
            "grey-alpha.png",
            "alpha.png",
            "alpha.webp",
        ] {
            assert_eq!(levels(plain(), name), file(&format!("{name}.rgb")), "{name}");
        }
        for name in ["rgb.png", "smaller.png"] {
            let bicubic = Image { interpolation: Interpolation::Bicubic, ..plain() };
            assert_eq!(levels(bicubic, name), file(&format!("{name}.bicubic.rgb")), "{name}");
        }
    }

    /// JPEG and lossy WebP leave to the decoder how it rounds and how it fills in colours that were stored at half the
    /// size; libjpeg-turbo, which Pillow has, does both a little differently.
    #[test]
    fn lossy_pictures_are_within_a_few_levels_of_256_of_what_torchvision_makes_of_them() {
        for name in
            ["baseline.jpg", "full-colour.jpg", "progressive.jpg", "grey.jpg", "turned.jpg", "lossy.webp"]
        {
            let (largest, mean) = difference(name, &levels(plain(), name), &file(&format!("{name}.rgb")));
            println!("{name}: {largest} {mean}");
            assert!(largest <= 3 && mean < 0.5, "{name}: by {largest} at most, {mean} in the mean");
        }
    }

    #[test]
    fn values_are_normalised_as_torchvision_does_by_default() {
        let images = Images::bind(Image::default(), &spec(224)).unwrap();
        let pixels = Pixels { width: 1, height: 2, bytes: vec![0, 128, 255, 255, 0, 128] };
        let mut bytes = Vec::new();
        images.normalise(&pixels, &mut bytes);
        let values = bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap()));
        // Of torchvision 0.26: red, then green, then blue.
        let want = [-2.117_904, 2.248_908_4, 0.205_182_06, -2.035_714_4, 2.64, 0.426_492_25];
        for (got, want) in values.zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_and_why() {
        assert_eq!(refusal(b""), "has no pixels");
        assert_eq!(refusal(b"GIF89a"), "is no JPEG, PNG or WebP image");
        assert_eq!(refusal(&file("refused-cmyk.jpg")), "is a CMYK image, which is not read");
        assert_eq!(
            refusal(&file("refused-grey16.png")),
            "is a PNG image of 16 bits of grey, which is not read"
        );
        // A canvas of one pixel before a frame of 210×142.
        let lossy = file("lossy.webp");
        let mut canvas = [&b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], &lossy[12..]].concat();
        let length = (canvas.len() as u32 - 8).to_le_bytes();
        canvas[4..8].copy_from_slice(&length);
        assert_eq!(refusal(&canvas), "is a broken WebP image: its frame is not as large as it says");
        for (name, format) in [
            ("baseline.jpg", "JPEG"),
            ("progressive.jpg", "JPEG"),
            ("rgb.png", "PNG"),
            ("lossy.webp", "WebP"),
            ("alpha.webp", "WebP"),
        ] {
            let whole = file(name);
            for part in [3, 20, whole.len() / 2] {
                let says = refusal(&whole[..part]);
                assert!(
                    says.starts_with(&format!("is a broken {format} image: "))
                        || says.starts_with("is no JPEG"),
                    "{name} cut at {part}: {says}"
                );
            }
        }
    }

    #[test]
    fn a_picture_of_a_thousand_million_pixels_is_refused_by_its_head() {
        let png = |width, height| {
            let mut file = Vec::new();
            png::Encoder::new(&mut file, width, height).write_header().unwrap();
            file
        };
        assert_eq!(refusal(&png(40_000, 25_000)), "has 40000×25000 pixels, at most 50000000 are read");
        assert_eq!(
            refusal(&png(1, 1_000_000_000)),
            "has 1×1000000000 pixels, and no side may have more than 65535"
        );
        let small = Image { pixels_max: 29_819, ..plain() };
        let images = Images::bind(small, &spec(40)).unwrap();
        let refused = images.make(&[&file("baseline.jpg")], &Room::new(0), &|| true).err().unwrap();
        assert_eq!(refused.why, "has 210×142 pixels, at most 29819 are read");
    }

    #[test]
    fn the_rest_of_what_nobody_wants_any_more_is_not_looked_at() {
        let images = Images::bind(plain(), &spec(40)).unwrap();
        let rows = std::cell::Cell::new(0);
        let first_alone = || rows.replace(rows.get() + 1) == 0;
        let made = images.make(&[&file("baseline.jpg"), b"no picture"], &Room::new(0), &first_alone);
        assert!(made.is_ok_and(|made| made.is_none()));
    }

    #[test]
    fn what_does_not_fit_the_model_is_named_with_its_place() {
        let bind = |yaml: &str, spec: &Spec| {
            let declared: Declared = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
            Images::bind(declared.image.unwrap(), spec).map(|images| images.to)
        };
        assert_eq!(bind("image: {}", &spec(224)), Ok("x".into()));
        assert_eq!(bind("image: {resize: [300, 200], crop: [40, 40]}", &spec(40)), Ok("x".into()));
        for (yaml, says) in [
            ("image: {to: y}", "to: the model has no input `y`"),
            ("image: {crop: 224}", "crop: 224×224 pixels do not fit input `x`, which is [-1, 3, 40, 40]"),
            ("image: {resize: [39, 60]}", "crop: 40×40 pixels are more than `resize` leaves"),
            ("image: {resize: 0}", "0 pixels must be 1 to 4096"),
            ("image: {resize: [1, 2, 3]}", "a number of pixels, or [height, width]"),
            ("image: {std: [1, 0, 1]}", "std [1.0, 0.0, 1.0] must be above 0"),
            ("image: {interpolation: nearest}", "unknown variant `nearest`"),
            ("image: {input: ''}", "must have 1 to 128"),
            ("image: {size: 3}", "unknown field `size`"),
        ] {
            let error = bind(yaml, &spec(40)).unwrap_err();
            assert!(error.contains(says), "{yaml}: {error}");
        }
        let flat = rows_spec(&[("x", 4)], &[("y", 1)], 4);
        let says = "to: an image is FP32 [-1, 3, height, width], input `x` is [-1, 4]";
        assert_eq!(bind("image: {}", &flat).unwrap_err(), says);
        let two = rows_spec(&[("a", 4), ("b", 4)], &[("y", 1)], 4);
        assert_eq!(
            bind("image: {}", &two).unwrap_err(),
            "to: must say which input of the model the image becomes"
        );
    }
}
