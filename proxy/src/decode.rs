//! The body of an infer request, from bytes to tensors laid out for the engine. Accepts the Open Inference
//! Protocol's JSON and Triton's binary tensor extension; checks that the body agrees with itself. Whether it
//! fits the model is the engine's to say: it owns the declaration.

pub(crate) mod answer;
mod parameters;
mod payload;
mod shape;

use crate::object::Object;
use crate::refusal::Refusal;
use crate::skeleton::Skeleton;
use crate::tensor_json::{TensorData, quote_non_finite};
use bytes::Bytes;
use parameters::{RequestParameters, TensorParameters};
use payload::Payload;
pub(crate) use payload::SHARED_MEMORY;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
pub(crate) use shape::DIMENSIONS_MAX;
use shape::Shape;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;
use wire::{Datatype, TensorMeta};

/// More inputs or outputs than this are no request but an attack on memory and time.
pub(crate) const TENSORS_MAX: usize = 1024;

/// A request that agrees with itself.
#[derive(Debug, Default, PartialEq)]
pub struct InferRequest {
    /// The client's own id, echoed in the answer.
    pub id: Option<String>,
    /// Where each input lies in `payload`.
    pub inputs: Vec<TensorMeta>,
    /// Input elements, laid out as the wire wants them.
    pub payload: Bytes,
    /// Outputs wanted, in this order; empty means all.
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs that do not say otherwise are answered as binary data.
    pub binary_outputs: bool,
    /// The time this request gives itself, if it says.
    pub timeout: Option<Duration>,
    /// 1 before others, 2 (or 0) as usual, 3 and above after others.
    pub priority: u32,
    /// Whether it is one of a sequence, which another server may know of.
    pub is_of_a_sequence: bool,
    /// Whether its JSON has the words `NaN` or `Infinity`, which JSON lacks: another server may not read it.
    pub has_bare_words: bool,
}

/// One entry of `outputs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedOutput {
    /// Its name.
    pub name: String,
    /// Overrides [`InferRequest::binary_outputs`].
    pub binary: Option<bool>,
    /// How many of its best classes are wanted in its place; 0 for the output itself.
    pub classes: u32,
}

impl InferRequest {
    /// Decodes a whole body. `json_len` is the value of `Inference-Header-Content-Length`: the length of the
    /// JSON in front of the binary tensors.
    pub fn decode(body: &Bytes, json_len: Option<usize>) -> Result<Self, Refusal> {
        let json_len = json_len.unwrap_or(body.len());
        let json = body.get(..json_len).ok_or_else(|| {
            Refusal::Invalid(format!(
                "Inference-Header-Content-Length is {json_len}, the whole body has {} bytes",
                body.len()
            ))
        })?;
        let binary = body.slice(json_len..);
        if let Some(request) = parse_around_numbers(json, &binary) {
            return Ok(request);
        }
        match parse(json, &binary) {
            // Only a body that has failed is searched for the words that JSON lacks.
            Err(error) => match quote_non_finite(json) {
                Some(quoted) => {
                    parse(&quoted, &binary).map(|request| Self { has_bare_words: true, ..request })
                }
                None => Err(error),
            },
            result => result,
        }
    }

    /// Whether `output` goes out as binary data.
    pub fn is_binary(&self, output: &str) -> bool {
        self.requested(output).and_then(|requested| requested.binary).unwrap_or(self.binary_outputs)
    }

    /// What is said of this output.
    pub(crate) fn requested(&self, output: &str) -> Option<&RequestedOutput> {
        self.outputs.iter().find(|requested| requested.name == output)
    }
}

/// A body whose long arrays of numbers are as usual, and which is well-formed: others are for [`parse`], which says what is
/// wrong with them.
fn parse_around_numbers(json: &[u8], binary: &Bytes) -> Option<InferRequest> {
    let skeleton = Skeleton::of(json)?;
    let mut payload = Payload::new(binary.clone());
    payload.skeleton = Some(&skeleton);
    let mut parser = serde_json::Deserializer::from_slice(&skeleton.json);
    let request = RequestSeed { payload: &mut payload }.deserialize(&mut parser).ok()?;
    parser.end().ok()?;
    (payload.filled == skeleton.cuts()).then_some(request)
}

fn parse(json: &[u8], binary: &Bytes) -> Result<InferRequest, Refusal> {
    let mut parser = serde_json::Deserializer::from_slice(json);
    let mut payload = Payload::new(binary.clone());
    let request = RequestSeed { payload: &mut payload }.deserialize(&mut parser);
    request.and_then(|request| parser.end().map(|()| request)).map_err(|error| match payload.unsupported {
        Some(what) => Refusal::Unsupported(what.to_owned()),
        None => Refusal::Invalid(format!("request body: {error}")),
    })
}

#[derive(Deserialize)]
struct RawOutput {
    name: String,
    #[serde(default)]
    parameters: Object<TensorParameters>,
}

struct RequestSeed<'p, 's> {
    payload: &'p mut Payload<'s>,
}

impl<'de> DeserializeSeed<'de> for RequestSeed<'_, '_> {
    type Value = InferRequest;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<InferRequest, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RequestSeed<'_, '_> {
    type Value = InferRequest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `inputs`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<InferRequest, A::Error> {
        let mut request = InferRequest::default();
        let payload = self.payload;
        let mut has_inputs = false;
        let mut seen = Seen::of(&["id", "inputs", "outputs", "parameters"]);
        while let Some(field) = fields.next_key::<Cow<'de, str>>()? {
            seen.once(&field)?;
            match field.as_ref() {
                "id" => request.id = fields.next_value()?,
                "inputs" => {
                    request.inputs = fields.next_value_seed(InputsSeed { payload: &mut *payload })?;
                    has_inputs = true;
                }
                "outputs" => {
                    let outputs: Vec<Object<RawOutput>> = fields.next_value()?;
                    at_most_tensors(outputs.len())?;
                    for Object(RawOutput { name, parameters: Object(parameters) }) in outputs {
                        payload.supports(&parameters)?;
                        let (binary, classes) = (parameters.binary_data, parameters.classification);
                        request.outputs.push(RequestedOutput { name, binary, classes });
                    }
                }
                "parameters" => {
                    let Object(parameters) = fields.next_value::<Object<RequestParameters>>()?;
                    request.is_of_a_sequence = parameters.is_of_a_sequence();
                    request.binary_outputs = parameters.binary_data_output.unwrap_or(false);
                    request.priority = parameters.priority.unwrap_or(0);
                    request.timeout = parameters.timeout.filter(|us| *us > 0).map(Duration::from_micros);
                }
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !has_inputs {
            return Err(A::Error::missing_field("inputs"));
        }
        if !payload.binary.is_empty() {
            return Err(A::Error::custom(format_args!(
                "{} bytes of binary data belong to no input",
                payload.binary.len()
            )));
        }
        request.payload = payload.take();
        Ok(request)
    }
}

/// Known fields of an object, each allowed once: a `shape` that came after its data would give the bytes another
/// meaning.
struct Seen {
    known: &'static [&'static str],
    bits: u32,
}

impl Seen {
    fn of(known: &'static [&'static str]) -> Self {
        Self { known, bits: 0 }
    }

    fn once<E: Error>(&mut self, field: &str) -> Result<(), E> {
        let bit = self.known.iter().position(|known| *known == field).map_or(0, |place| 1 << place);
        if self.bits & bit != 0 {
            return Err(E::custom(format_args!("`{field}` occurs twice")));
        }
        self.bits |= bit;
        Ok(())
    }
}

struct InputsSeed<'p, 's> {
    payload: &'p mut Payload<'s>,
}

impl<'de> DeserializeSeed<'de> for InputsSeed<'_, '_> {
    type Value = Vec<TensorMeta>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for InputsSeed<'_, '_> {
    type Value = Vec<TensorMeta>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of inputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut inputs = Vec::new();
        while let Some(input) = items.next_element_seed(InputSeed { payload: &mut *self.payload })? {
            inputs.push(input);
            at_most_tensors(inputs.len())?;
        }
        Ok(inputs)
    }
}

struct InputSeed<'p, 's> {
    payload: &'p mut Payload<'s>,
}

impl<'de> DeserializeSeed<'de> for InputSeed<'_, '_> {
    type Value = TensorMeta;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TensorMeta, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for InputSeed<'_, '_> {
    type Value = TensorMeta;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an input with `name`, `shape`, `datatype` and data")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<TensorMeta, A::Error> {
        let mut name: Option<String> = None;
        let mut shape: Option<Vec<u64>> = None;
        let mut datatype: Option<Datatype> = None;
        let mut binary_data_size = None;
        let mut data = Data::Absent;
        let mut seen = Seen::of(&["name", "shape", "datatype", "parameters", "data"]);
        while let Some(field) = fields.next_key::<Cow<'de, str>>()? {
            seen.once(&field)?;
            match field.as_ref() {
                "name" => name = Some(fields.next_value()?),
                "shape" => shape = Some(fields.next_value::<Shape>()?.0),
                "datatype" => datatype = Some(read_datatype(fields.next_value::<Cow<'de, str>>()?.as_ref())?),
                "parameters" => {
                    let Object(parameters) = fields.next_value::<Object<TensorParameters>>()?;
                    self.payload.supports(&parameters)?;
                    binary_data_size = parameters.binary_data_size;
                }
                "data" => {
                    data = match (datatype, &shape) {
                        (Some(datatype), Some(shape)) if self.payload.skeleton.is_none() => {
                            let offset = self.payload.begin::<A::Error>(datatype, shape)?;
                            fields
                                .next_value_seed(TensorData {
                                    bytes: &mut self.payload.bytes,
                                    datatype,
                                    shape,
                                })
                                .map_err(|error| of_input(name.as_deref(), error))?;
                            Data::At(offset)
                        }
                        // Clients may write `data` first: kept as text until the rest is known.
                        _ => Data::Text(fields.next_value()?),
                    }
                }
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        let name = name.ok_or_else(|| A::Error::missing_field("name"))?;
        let missing = |field| A::Error::custom(format_args!("input `{name}` has no `{field}`"));
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let datatype = datatype.ok_or_else(|| missing("datatype"))?;
        let offset = match (data, binary_data_size) {
            (Data::Absent, Some(size)) => self.payload.claim_binary(&name, datatype, &shape, size)?,
            (Data::Absent, None) => return Err(missing("data")),
            (_, Some(_)) => {
                return Err(A::Error::custom(format_args!(
                    "input `{name}` has both `data` and `binary_data_size`"
                )));
            }
            (Data::At(offset), None) => offset,
            (Data::Text(text), None) => {
                let offset = self.payload.begin::<A::Error>(datatype, &shape)?;
                let filled = self.payload.fill(text, datatype, &shape);
                filled.map_err(|error| of_input(Some(&name), A::Error::custom(error)))?;
                offset
            }
        };
        self.payload.end();
        let bytes = match datatype {
            Datatype::Bytes => self.payload.laid_out().len() as u64 - offset,
            _ => 0,
        };
        let input = TensorMeta { name, datatype: datatype as u32, shape, offset, bytes };
        // The lengths inside of it came from the client, and have not been looked at yet.
        if datatype == Datatype::Bytes && binary_data_size.is_some() {
            input.locate(self.payload.laid_out()).map_err(A::Error::custom)?;
        }
        Ok(input)
    }
}

enum Data<'de> {
    Absent,
    /// Already in the payload, from this offset.
    At(u64),
    Text(&'de RawValue),
}

fn at_most_tensors<E: Error>(got: usize) -> Result<(), E> {
    if got > TENSORS_MAX { Err(E::custom(format_args!("more than {TENSORS_MAX} tensors"))) } else { Ok(()) }
}

fn read_datatype<E: Error>(name: &str) -> Result<Datatype, E> {
    Datatype::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Datatype::ALL.iter().map(|datatype| datatype.name()).collect();
        E::custom(format_args!("datatype `{name}` is not one of {}", known.join(", ")))
    })
}

fn of_input<E: Error>(name: Option<&str>, error: E) -> E {
    match name {
        Some(name) => E::custom(format_args!("input `{name}`: {error}")),
        None => error,
    }
}

#[cfg(test)]
mod tests;
