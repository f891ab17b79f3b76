//! Image files to pixels: JPEG, PNG and WebP, the kinds that cameras, phones and browsers make. Decides what they have to
//! be to be read at all; how large they are is known from their heads, and refused there, before anything is allocated.
//!
//! Colours are what Pillow's `convert("RGB")` makes of them: transparency is dropped, grey and palettes become RGB, 16
//! bits lose the lower 8. What moves, CMYK and 16 bits of grey are refused. A picture that a camera has marked as rotated is
//! turned upright.

use super::orientation::Orientation;
use super::resample::{CHANNELS, Pixels};
use image_webp::WebPDecoder;
use png::{BitDepth, ColorType, Transformations};
use std::io::Cursor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Of a progressive JPEG, which is gone through once for each: encoders make about ten.
const SCANS_MAX: usize = 40;

/// What metadata may take once it is unpacked.
const METADATA_BYTES_MAX: usize = 64 << 20;

/// The most that a decoder holds for each pixel, with the coefficients of a progressive JPEG, its pixels, and these once
/// more when they are turned.
pub(crate) const BYTES_PER_PIXEL: u64 = 12;

/// No JPEG has a longer side; what resizing takes grows with it.
const SIDE_MAX: u64 = 65_535;

/// Why a file is not read: for the caller, after the words "row 3".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("has no pixels")]
    Empty,
    #[error("is no JPEG, PNG or WebP image")]
    Unknown,
    #[error("has {width}×{height} pixels, at most {most} are read")]
    TooLarge { width: u64, height: u64, most: u64 },
    #[error("has {width}×{height} pixels, and no side may have more than {SIDE_MAX}")]
    TooLong { width: u64, height: u64 },
    #[error("is {0}, which is not read")]
    Unsupported(&'static str),
    #[error("is a broken {format} image: {why}")]
    Broken { format: &'static str, why: String },
}

/// A file of which the head has been read.
pub(crate) enum Opened<'a> {
    Jpeg(Box<JpegDecoder<ZCursor<&'a [u8]>>>),
    Png(Box<png::Decoder<Cursor<&'a [u8]>>>),
    WebP(Box<WebPDecoder<Cursor<&'a [u8]>>>),
}

impl<'a> Opened<'a> {
    /// Reads the head of a file, and what its pixels are said to be; `pixels_max` is the most that is read.
    pub(crate) fn head(file: &'a [u8], pixels_max: u64) -> Result<(Self, u64), Unreadable> {
        let (opened, width, height) = match file {
            [] => return Err(Unreadable::Empty),
            [0xff, 0xd8, 0xff, ..] => jpeg_head(file)?,
            [0x89, b'P', b'N', b'G', ..] => png_head(file)?,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp_head(file)?,
            _ => return Err(Unreadable::Unknown),
        };
        if width > SIDE_MAX || height > SIDE_MAX {
            return Err(Unreadable::TooLong { width, height });
        }
        match width.checked_mul(height) {
            Some(0) => Err(Unreadable::Empty),
            Some(pixels) if pixels <= pixels_max => Ok((opened, pixels)),
            _ => Err(Unreadable::TooLarge { width, height, most: pixels_max }),
        }
    }

    /// All of its pixels, upright.
    pub(crate) fn decode(self) -> Result<Pixels, Unreadable> {
        let (pixels, orientation) = match self {
            Self::Jpeg(decoder) => jpeg(*decoder)?,
            Self::Png(decoder) => png(*decoder)?,
            Self::WebP(decoder) => webp(*decoder)?,
        };
        debug_assert_eq!(pixels.bytes.len(), pixels.width * pixels.height * CHANNELS, "pixels are whole");
        Ok(orientation.turn(pixels))
    }
}

fn broken(format: &'static str) -> impl Fn(String) -> Unreadable {
    move |why| Unreadable::Broken { format, why: why.replace('\n', " ") }
}

fn jpeg_head(file: &[u8]) -> Result<(Opened<'_>, u64, u64), Unreadable> {
    let failed = broken("JPEG");
    let options = DecoderOptions::default()
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(SCANS_MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options.set_strict_mode(false));
    decoder.decode_headers().map_err(|error| failed(error.to_string()))?;
    match decoder.input_colorspace() {
        Some(ColorSpace::Luma | ColorSpace::YCbCr | ColorSpace::RGB) => {}
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => return Err(Unreadable::Unsupported("a CMYK image")),
        _ => return Err(Unreadable::Unsupported("a JPEG image of unusual colours")),
    }
    let (width, height) = decoder.dimensions().ok_or_else(|| failed("it has no size".into()))?;
    // What stands between heads does no harm; but a picture of which a part is missing would be filled up with grey.
    decoder.set_options(decoder.options().set_strict_mode(true));
    Ok((Opened::Jpeg(Box::new(decoder)), width as u64, height as u64))
}

fn jpeg(mut decoder: JpegDecoder<ZCursor<&[u8]>>) -> Result<(Pixels, Orientation), Unreadable> {
    let failed = broken("JPEG");
    let (width, height) = decoder.dimensions().expect("the head has been read");
    let bytes = decoder.decode().map_err(|error| failed(error.to_string()))?;
    if bytes.len() != width * height * CHANNELS {
        return Err(failed("it has another number of pixels than it says".into()));
    }
    let orientation = decoder.exif().map_or(Orientation::default(), |exif| Orientation::of_exif(exif));
    Ok((Pixels { width, height, bytes }, orientation))
}

fn png_head(file: &[u8]) -> Result<(Opened<'_>, u64, u64), Unreadable> {
    let failed = broken("PNG");
    let limits = png::Limits { bytes: METADATA_BYTES_MAX };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let info = decoder.read_header_info().map_err(|error| failed(error.to_string()))?;
    if (info.color_type, info.bit_depth) == (ColorType::Grayscale, BitDepth::Sixteen) {
        // Pillow cuts off everything above 255 of such a picture, which leaves it white.
        return Err(Unreadable::Unsupported("a PNG image of 16 bits of grey"));
    }
    let (width, height) = (u64::from(info.width), u64::from(info.height));
    Ok((Opened::Png(Box::new(decoder)), width, height))
}

fn png(decoder: png::Decoder<Cursor<&[u8]>>) -> Result<(Pixels, Orientation), Unreadable> {
    let failed = broken("PNG");
    let mut reader = decoder.read_info().map_err(|error| failed(error.to_string()))?;
    let size = reader.output_buffer_size().ok_or_else(|| failed("it is too large".into()))?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(|error| failed(error.to_string()))?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if (frame.width as usize, frame.height as usize) != (width, height) {
        return Err(failed("its first frame is a part of it only".into()));
    }
    let exif = reader.info().exif_metadata.as_deref();
    let orientation = exif.map_or(Orientation::default(), Orientation::of_exif);
    let bytes = match frame.color_type {
        ColorType::Grayscale => to_rgb(&bytes, |[grey]: [u8; 1]| [grey; CHANNELS]),
        ColorType::GrayscaleAlpha => to_rgb(&bytes, |[grey, _]: [u8; 2]| [grey; CHANNELS]),
        ColorType::Rgb => bytes,
        ColorType::Rgba => to_rgb(&bytes, |[red, green, blue, _]: [u8; 4]| [red, green, blue]),
        ColorType::Indexed => return Err(failed("its palette is not expanded".into())),
    };
    if bytes.len() != width * height * CHANNELS {
        return Err(failed("it has another number of pixels than it says".into()));
    }
    Ok((Pixels { width, height, bytes }, orientation))
}

fn webp_head(file: &[u8]) -> Result<(Opened<'_>, u64, u64), Unreadable> {
    let failed = broken("WebP");
    let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(|error| failed(error.to_string()))?;
    decoder.set_memory_limit(METADATA_BYTES_MAX);
    if decoder.is_animated() {
        return Err(Unreadable::Unsupported("an animated WebP image"));
    }
    let (width, height) = decoder.dimensions();
    // The decoder compares the two only after it has made room for the larger.
    if webp_frame(file).is_some_and(|frame| frame != (width, height)) {
        return Err(failed("its frame is not as large as it says".into()));
    }
    Ok((Opened::WebP(Box::new(decoder)), u64::from(width), u64::from(height)))
}

/// Width and height as the lossy frame has them, if there is one.
fn webp_frame(file: &[u8]) -> Option<(u32, u32)> {
    let mut rest = file.get(12..)?;
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if head.starts_with(b"VP8 ") {
            let side = |at| Some(u32::from(u16::from_le_bytes(*after.get(at..)?.first_chunk()?) & 0x3fff));
            return Some((side(6)?, side(8)?));
        }
        rest = after.get(length.checked_next_multiple_of(2)?..)?;
    }
    None
}

fn webp(mut decoder: WebPDecoder<Cursor<&[u8]>>) -> Result<(Pixels, Orientation), Unreadable> {
    let failed = broken("WebP");
    let (width, height) = decoder.dimensions();
    let size = decoder.output_buffer_size().ok_or_else(|| failed("it is too large".into()))?;
    let mut bytes = vec![0; size];
    decoder.read_image(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if decoder.has_alpha() {
        bytes = to_rgb(&bytes, |[red, green, blue, _]: [u8; 4]| [red, green, blue]);
    }
    // What cannot be read says nothing of how the picture stands.
    let exif = decoder.exif_metadata().ok().flatten();
    let orientation = exif.map_or(Orientation::default(), |exif| Orientation::of_exif(&exif));
    Ok((Pixels { width: width as usize, height: height as usize, bytes }, orientation))
}

fn to_rgb<const N: usize>(pixels: &[u8], convert: impl Fn([u8; N]) -> [u8; CHANNELS]) -> Vec<u8> {
    pixels.as_chunks::<N>().0.iter().flat_map(|pixel| convert(*pixel)).collect()
}
