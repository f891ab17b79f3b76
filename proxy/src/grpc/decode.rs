//! `ModelInferRequest`, from bytes to tensors laid out for the engine. Checks that it agrees with itself; whether it fits
//! the model is the engine's to say. Elements go straight to where they belong: raw contents of a single input are not
//! even copied, and floats are copied as they are.

use super::fields::{Fields, Value, malformed, varint};
use crate::decode::{DIMENSIONS_MAX, InferRequest, RequestedOutput, SHARED_MEMORY, TENSORS_MAX};
use crate::refusal::Refusal;
use bytes::Bytes;
use std::convert::Infallible;
use std::time::Duration;
use wire::{Datatype, Layout, TensorMeta, element_count};

/// What the engine's frames hold; a number of one byte may become one of eight.
const PAYLOAD_BYTES_MAX: usize = 256 << 20;

/// Who is asked, and under which id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) model: String,
    pub(crate) version: Option<u64>,
    pub(crate) id: String,
}

impl Names {
    /// From a whole message.
    pub(crate) fn of(message: &[u8]) -> Result<Self, Refusal> {
        let mut names = Self::default();
        for field in Fields(message) {
            match field? {
                (1, value) => names.model = value.text()?.to_owned(),
                (2, value) => names.version = version(value.text()?)?,
                (3, value) => names.id = value.text()?.to_owned(),
                _ => {}
            }
        }
        if names.model.is_empty() {
            return Err(Refusal::Invalid("the message has no model_name".into()));
        }
        Ok(names)
    }

    /// From the beginning of a message, if it tells already: whoever writes fields in the order of their numbers, as
    /// everybody does, has said who is asked before the first tensor comes.
    pub(crate) fn of_beginning(message: &[u8]) -> Option<Self> {
        let (mut names, mut fields) = (Self::default(), Fields(message));
        loop {
            if fields.number()? > 3 {
                return (!names.model.is_empty()).then_some(names);
            }
            match fields.next()?.ok()? {
                (1, value) => names.model = value.text().ok()?.to_owned(),
                (2, value) => names.version = version(value.text().ok()?).ok()?,
                (3, value) => names.id = value.text().ok()?.to_owned(),
                _ => return None,
            }
        }
    }
}

pub(super) fn version(text: &str) -> Result<Option<u64>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let version: policies::Version = text
        .parse()
        .map_err(|_| Refusal::NotFound(format!("version `{text}`: versions are whole numbers")))?;
    Ok(Some(version.0))
}

/// Decodes a whole message that asks what `names` say.
pub(crate) fn decode(message: &Bytes, names: &Names) -> Result<InferRequest, Refusal> {
    if Names::of(message)? != *names {
        return Err(Refusal::Invalid("the message names another model further on".into()));
    }
    let mut request = InferRequest {
        id: (!names.id.is_empty()).then(|| names.id.clone()),
        binary_outputs: true,
        ..InferRequest::default()
    };
    let (mut inputs, mut raw) = (Vec::new(), Vec::new());
    for field in Fields(message) {
        match field? {
            (4, value) => read_parameter(value, &mut request)?,
            (5, value) => push(&mut inputs, Input::read(value)?, "inputs")?,
            (6, value) => push(&mut request.outputs, read_output(value)?, "outputs")?,
            (7, value) => push(&mut raw, value.bytes()?, "raw_input_contents")?,
            _ => {}
        }
    }
    (request.inputs, request.payload) =
        if raw.is_empty() { lay_out_typed(&inputs)? } else { lay_out_raw(message, &inputs, &raw)? };
    Ok(request)
}

fn push<T>(all: &mut Vec<T>, one: T, what: &str) -> Result<(), Refusal> {
    if all.len() >= TENSORS_MAX {
        return Err(Refusal::Invalid(format!("more than {TENSORS_MAX} {what}")));
    }
    all.push(one);
    Ok(())
}

/// One input, as it was declared.
struct Input<'a> {
    name: &'a str,
    datatype: Datatype,
    shape: Vec<u64>,
    /// An `InferTensorContents`.
    contents: &'a [u8],
}

impl<'a> Input<'a> {
    fn read(value: Value<'a>) -> Result<Self, Refusal> {
        let (mut name, mut datatype, mut shape, mut contents) = (None, None, Vec::new(), None);
        for field in Fields(value.bytes()?) {
            match field? {
                (1, value) => name = Some(value.text()?),
                (2, value) => datatype = Some(value.text()?),
                (3, value) => read_shape(value, &mut shape)?,
                (4, value) => no_shared_memory(value)?,
                (5, _) if contents.is_some() => {
                    return Err(Refusal::Invalid("an input has `contents` twice".into()));
                }
                (5, value) => contents = Some(value.bytes()?),
                _ => {}
            }
        }
        let name = name.ok_or_else(|| Refusal::Invalid("an input has no `name`".into()))?;
        let datatype =
            datatype.ok_or_else(|| Refusal::Invalid(format!("input `{name}` has no `datatype`")))?;
        let datatype = Datatype::from_name(datatype).ok_or_else(|| {
            let known: Vec<_> = Datatype::ALL.iter().map(|datatype| datatype.name()).collect();
            Refusal::Invalid(format!(
                "input `{name}`: datatype `{datatype}` is not one of {}",
                known.join(", ")
            ))
        })?;
        Ok(Self { name, datatype, shape, contents: contents.unwrap_or_default() })
    }

    /// Which input it is that something is wrong with.
    fn named(&self, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::Invalid(why) => Refusal::Invalid(format!("input `{}`: {why}", self.name)),
            other => other,
        }
    }

    fn elements(&self) -> Result<usize, Refusal> {
        element_count(&self.shape)
            .filter(|count| count.checked_mul(self.datatype.size().unwrap_or(1)).is_some())
            .ok_or_else(|| Refusal::Invalid(format!("shape {:?} overflows", self.shape)))
    }

    fn at(&self, offset: usize, len: usize) -> TensorMeta {
        TensorMeta {
            name: self.name.to_owned(),
            datatype: self.datatype as u32,
            shape: self.shape.clone(),
            offset: offset as u64,
            bytes: if self.datatype.size().is_none() { len as u64 } else { 0 },
        }
    }
}

fn read_shape(value: Value<'_>, shape: &mut Vec<u64>) -> Result<(), Refusal> {
    let mut put = |dimension: u64| {
        let dimension = dimension as i64;
        if shape.len() >= DIMENSIONS_MAX {
            return Err(Refusal::Invalid(format!("a shape has more than {DIMENSIONS_MAX} dimensions")));
        }
        let fits = u64::try_from(dimension);
        shape.push(fits.map_err(|_| Refusal::Invalid(format!("a shape has a dimension of {dimension}")))?);
        Ok(())
    };
    match value {
        Value::Varint(dimension) => put(dimension),
        Value::Bytes(mut packed) => {
            while !packed.is_empty() {
                put(varint(&mut packed)?)?;
            }
            Ok(())
        }
        Value::Fixed64(_) | Value::Fixed32(_) => Err(malformed()),
    }
}

/// The field of an `InferParameter` that is set, if one is.
pub(super) type Choice<'a> = Option<(u64, Value<'a>)>;

/// An entry of a map of parameters: its key, and what it is.
pub(super) fn parameter(value: Value<'_>) -> Result<(&str, Choice<'_>), Refusal> {
    let (mut key, mut choice) = ("", None);
    for field in Fields(value.bytes()?) {
        match field? {
            (1, value) => key = value.text()?,
            (2, value) => choice = Fields(value.bytes()?).last().transpose()?,
            _ => {}
        }
    }
    Ok((key, choice))
}

/// The request's own; others are the model's or a future extension's and are let pass.
fn read_parameter(value: Value<'_>, request: &mut InferRequest) -> Result<(), Refusal> {
    let (key, choice) = parameter(value)?;
    let number = || match choice {
        Some((2 | 5, Value::Varint(number))) if number <= i64::MAX as u64 => Ok(number),
        _ => Err(Refusal::Invalid(format!("parameter `{key}` is no whole number, or less than none"))),
    };
    match key {
        // As in Triton's schedule policy: microseconds, and 0 is none; 1 is the highest, and 0 is the default.
        "timeout" => request.timeout = Some(Duration::from_micros(number()?)).filter(|own| !own.is_zero()),
        "priority" => request.priority = u32::try_from(number()?).unwrap_or(u32::MAX),
        "sequence_id" => {
            request.is_of_a_sequence = match choice {
                None | Some((2 | 5, Value::Varint(0))) => false,
                Some((3, id)) => !id.text()?.is_empty(),
                Some(_) => true,
            }
        }
        _ => {}
    }
    Ok(())
}

/// A parameter of the request, if it is a text, a whole number or a truth value; of several, the last.
pub(crate) fn parameter_of(message: &[u8], name: &str) -> Option<String> {
    let mut found = None;
    for field in Fields(message) {
        if let (4, value) = field.ok()?
            && let (key, choice) = parameter(value).ok()?
            && key == name
        {
            found = choice;
        }
    }
    match found? {
        (1, Value::Varint(truth)) => Some((truth != 0).to_string()),
        (2, Value::Varint(number)) => Some((number as i64).to_string()),
        (3, text) => text.text().ok().map(str::to_owned),
        (5, Value::Varint(number)) => Some(number.to_string()),
        _ => None,
    }
}

fn no_shared_memory(value: Value<'_>) -> Result<(), Refusal> {
    let (key, _) = parameter(value)?;
    if key == "shared_memory_region" { Err(Refusal::Unsupported(SHARED_MEMORY.into())) } else { Ok(()) }
}

fn read_output(value: Value<'_>) -> Result<RequestedOutput, Refusal> {
    let (mut name, mut classes) = ("", 0);
    for field in Fields(value.bytes()?) {
        match field? {
            (1, value) => name = value.text()?,
            (2, value) => {
                no_shared_memory(value)?;
                if let ("classification", choice) = parameter(value)? {
                    classes = match choice {
                        Some((2 | 5, Value::Varint(number))) => u32::try_from(number).ok(),
                        _ => None,
                    }
                    .ok_or_else(|| {
                        Refusal::Invalid("parameter `classification` is no number of classes".into())
                    })?;
                }
            }
            _ => {}
        }
    }
    Ok(RequestedOutput { name: name.to_owned(), binary: None, classes })
}

fn lay_out_raw(
    message: &Bytes,
    inputs: &[Input<'_>],
    raw: &[&[u8]],
) -> Result<(Vec<TensorMeta>, Bytes), Refusal> {
    if let Some(input) = inputs.iter().find(|input| !input.contents.is_empty()) {
        return Err(Refusal::Invalid(format!(
            "input `{}` has `contents`, and there are raw_input_contents, which are for all inputs or none",
            input.name
        )));
    }
    if inputs.len() != raw.len() {
        return Err(Refusal::Invalid(format!(
            "there are {} raw_input_contents and {} inputs",
            raw.len(),
            inputs.len()
        )));
    }
    for (input, bytes) in inputs.iter().zip(raw) {
        let elements = input.elements().map_err(|refusal| input.named(refusal))?;
        let Some(size) = input.datatype.size() else {
            input.at(0, bytes.len()).locate(bytes).map_err(|error| Refusal::Invalid(error.to_string()))?;
            continue;
        };
        let expected = elements * size;
        if expected != bytes.len() {
            return Err(Refusal::Invalid(format!(
                "input `{}`: its raw_input_contents have {} bytes, {} of shape {:?} takes {expected}",
                input.name,
                bytes.len(),
                input.datatype.name(),
                input.shape
            )));
        }
    }
    if let ([input], [bytes]) = (inputs, raw) {
        return Ok((vec![input.at(0, bytes.len())], message.slice_ref(bytes)));
    }
    let mut layout = Layout::default();
    let places: Vec<usize> = raw.iter().map(|bytes| layout.place(bytes.len())).collect();
    let end = places.last().zip(raw.last()).map_or(0, |(place, bytes)| place + bytes.len());
    let mut payload = Vec::with_capacity(end);
    for (place, bytes) in places.iter().zip(raw) {
        payload.resize(*place, 0);
        payload.extend_from_slice(bytes);
    }
    let placed = inputs.iter().zip(raw).zip(places);
    let metas = placed.map(|((input, bytes), place)| input.at(place, bytes.len())).collect();
    Ok((metas, payload.into()))
}

fn lay_out_typed(inputs: &[Input<'_>]) -> Result<(Vec<TensorMeta>, Bytes), Refusal> {
    let mut layout = Layout::default();
    let mut payload = Vec::new();
    let mut metas = Vec::with_capacity(inputs.len());
    for input in inputs {
        let place = layout.place(0);
        payload.resize(place, 0);
        write_contents(input, &mut payload).map_err(|refusal| input.named(refusal))?;
        let len = payload.len() - place;
        layout.place(len);
        metas.push(input.at(place, len));
    }
    Ok((metas, payload.into()))
}

/// Fields of `InferTensorContents`, by number less one.
const CONTENTS: [&str; 8] = [
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
];

/// How a number is written behind others; an error says what it should have been.
type Put = fn(u64, &mut Vec<u8>) -> Result<(), &'static str>;

/// How the elements of a datatype travel.
enum Elements {
    Varints(Put),
    /// Little-endian, as in the payload.
    AsTheyAre,
}

/// Appends the elements of an input's contents.
fn write_contents(input: &Input<'_>, payload: &mut Vec<u8>) -> Result<(), Refusal> {
    let invalid = |why: String| Err(Refusal::Invalid(why));
    let datatype = input.datatype;
    let (own, elements) = match datatype {
        Datatype::Bool => {
            (1, Elements::Varints(|number, to| put(fits(u8::from(number != 0)), to, u8::to_le_bytes)))
        }
        Datatype::Int8 => {
            (2, Elements::Varints(|number, to| put(i8::try_from(int32(number)), to, i8::to_le_bytes)))
        }
        Datatype::Int16 => {
            (2, Elements::Varints(|number, to| put(i16::try_from(int32(number)), to, i16::to_le_bytes)))
        }
        Datatype::Int32 => {
            (2, Elements::Varints(|number, to| put(fits(int32(number)), to, i32::to_le_bytes)))
        }
        Datatype::Int64 => (3, Elements::Varints(|number, to| put(fits(number), to, u64::to_le_bytes))),
        Datatype::Uint8 => {
            (4, Elements::Varints(|number, to| put(u8::try_from(number as u32), to, u8::to_le_bytes)))
        }
        Datatype::Uint16 => {
            (4, Elements::Varints(|number, to| put(u16::try_from(number as u32), to, u16::to_le_bytes)))
        }
        Datatype::Uint32 => {
            (4, Elements::Varints(|number, to| put(fits(number as u32), to, u32::to_le_bytes)))
        }
        Datatype::Uint64 => (5, Elements::Varints(|number, to| put(fits(number), to, u64::to_le_bytes))),
        Datatype::Fp32 => (6, Elements::AsTheyAre),
        Datatype::Fp64 => (7, Elements::AsTheyAre),
        Datatype::Bytes => return write_elements(input, payload),
        Datatype::Fp16 | Datatype::Bf16 => {
            return invalid(format!("{} has no `contents`: send it as raw_input_contents", datatype.name()));
        }
    };
    let expected = input.elements()?;
    let (start, size) = (payload.len(), datatype.size().expect("all but BYTES, which is written elsewhere"));
    if expected.saturating_mul(size) > PAYLOAD_BYTES_MAX - start.min(PAYLOAD_BYTES_MAX) {
        return Err(Refusal::TooLarge { what: "the data of the tensors", limit: PAYLOAD_BYTES_MAX });
    }
    let end = start + expected * size;
    // A hint only, and never more than the message can fill.
    payload.reserve(expected.saturating_mul(size).min(input.contents.len().saturating_mul(size)));
    for field in Fields(input.contents) {
        let (number, value) = field?;
        if number != own {
            match CONTENTS.get(number as usize - 1) {
                Some(name) => {
                    let own = CONTENTS[own as usize - 1];
                    return invalid(format!("it has {name}, {} is sent as {own}", datatype.name()));
                }
                None => continue,
            }
        }
        let range = |what: &'static str| {
            Refusal::Invalid(format!("a value is {what}, out of the range of {}", datatype.name()))
        };
        match (&elements, value) {
            (Elements::Varints(put), Value::Varint(number)) => put(number, payload).map_err(range)?,
            (Elements::Varints(put), Value::Bytes(mut packed)) => {
                // One too many is enough to know.
                while !packed.is_empty() && payload.len() <= end {
                    put(varint(&mut packed)?, payload).map_err(range)?;
                }
            }
            (Elements::AsTheyAre, Value::Bytes(packed)) => payload.extend_from_slice(packed),
            (Elements::AsTheyAre, Value::Fixed32(one)) if size == 4 => payload.extend(one),
            (Elements::AsTheyAre, Value::Fixed64(one)) if size == 8 => payload.extend(one),
            _ => return Err(malformed()),
        }
    }
    if payload.len() != end {
        let got = if payload.len() > end {
            "more".to_owned()
        } else {
            ((payload.len() - start) / size).to_string()
        };
        return invalid(format!("`contents` has {got} elements, shape {:?} has {expected}", input.shape));
    }
    Ok(())
}

/// Appends byte strings, each behind its length.
fn write_elements(input: &Input<'_>, payload: &mut Vec<u8>) -> Result<(), Refusal> {
    let (expected, mut got) = (input.elements()?, 0);
    for field in Fields(input.contents) {
        match field? {
            (8, value) => {
                wire::push_element(payload, value.bytes()?);
                got += 1;
            }
            (number, _) => {
                if let Some(name) = CONTENTS.get(number as usize - 1) {
                    return Err(Refusal::Invalid(format!("it has {name}, BYTES is sent as bytes_contents")));
                }
            }
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Refusal::TooLarge { what: "the data of the tensors", limit: PAYLOAD_BYTES_MAX });
        }
    }
    if got != expected {
        return Err(Refusal::Invalid(format!(
            "`contents` has {got} elements, shape {:?} has {expected}",
            input.shape
        )));
    }
    Ok(())
}

/// A negative `int32` travels as the `int64` that it is.
fn int32(number: u64) -> i32 {
    number as i32
}

fn fits<T>(number: T) -> Result<T, Infallible> {
    Ok(number)
}

fn put<T, E, const N: usize>(
    number: Result<T, E>,
    to: &mut Vec<u8>,
    bytes: fn(T) -> [u8; N],
) -> Result<(), &'static str> {
    to.extend(bytes(number.map_err(|_| "too small or too large")?));
    Ok(())
}

#[cfg(test)]
mod tests;
