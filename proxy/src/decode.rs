//! The body of an infer request, from bytes to tensors laid out for the engine. Accepts the Open Inference
//! Protocol's JSON and Triton's binary tensor extension; checks that the body agrees with itself. Whether it
//! fits the model is the engine's to say: it owns the declaration.

pub(crate) mod answer;
mod parameters;

use crate::numbers;
use crate::object::Object;
use crate::refusal::Refusal;
use crate::skeleton::Skeleton;
use crate::tensor_json::{TensorData, quote_non_finite};
use bytes::Bytes;
use parameters::{RequestParameters, TensorParameters};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;
use wire::elements::LENGTH_BYTES;
use wire::{Datatype, Layout, TensorMeta, element_count};

/// More inputs or outputs than this are no request but an attack on memory and time.
pub(crate) const TENSORS_MAX: usize = 1024;

/// libtorch knows no tensor of more dimensions.
pub(crate) const DIMENSIONS_MAX: usize = 64;

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
                Some(quoted) => parse(&quoted, &binary),
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

/// What this server does not have. To go on as if it had not been asked for would be an answer to another question.
pub(crate) const SHARED_MEMORY: &str = "parameter `shared_memory_region`: shared memory is not supported";

#[derive(Deserialize)]
struct RawOutput {
    name: String,
    #[serde(default)]
    parameters: Object<TensorParameters>,
}

/// Sizes along the dimensions of a tensor.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape, which is an array of whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(Size(size)) = sizes.next_element()? {
            if shape.len() == DIMENSIONS_MAX {
                return Err(A::Error::custom(format_args!(
                    "a shape has more than {DIMENSIONS_MAX} dimensions"
                )));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 0")
    }

    fn visit_u64<E: Error>(self, size: u64) -> Result<Size, E> {
        Ok(Size(size))
    }
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

/// Tensors laid out so far, and the binary data not yet claimed by an input.
struct Payload<'s> {
    bytes: Vec<u8>,
    /// In place of them: all binary data, which is one tensor and goes on as it came. Large tensors come like that.
    as_it_came: Option<Bytes>,
    layout: Layout,
    binary: Bytes,
    /// What the body is read from, if that lacks its numbers; and how many arrays of them have been found again.
    skeleton: Option<&'s Skeleton<'s>>,
    filled: usize,
    /// Why it is not read, if that is because of what this server does not have.
    unsupported: Option<&'static str>,
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

impl Payload<'_> {
    fn new(binary: Bytes) -> Self {
        let (bytes, layout) = (Vec::new(), Layout::default());
        Self { bytes, as_it_came: None, layout, binary, skeleton: None, filled: 0, unsupported: None }
    }

    fn supports<E: Error>(&mut self, parameters: &TensorParameters) -> Result<(), E> {
        if parameters.shared_memory_region.is_none() {
            return Ok(());
        }
        self.unsupported = Some(SHARED_MEMORY);
        Err(E::custom(SHARED_MEMORY))
    }

    fn laid_out(&self) -> &[u8] {
        self.as_it_came.as_deref().unwrap_or(&self.bytes)
    }

    fn take(&mut self) -> Bytes {
        self.as_it_came.take().unwrap_or_else(|| std::mem::take(&mut self.bytes).into())
    }

    /// Appends the values of a tensor that were kept as text.
    fn fill(&mut self, text: &RawValue, datatype: Datatype, shape: &[u64]) -> Result<(), serde_json::Error> {
        let cut = self.skeleton.and_then(|skeleton| skeleton.cut(text.get()));
        self.filled += usize::from(cut.is_some());
        if let Some(numbers) = cut
            && datatype != Datatype::Bool
        {
            let unusual = || Error::custom("unusual");
            // An element takes two characters or more.
            let elements = element_count(shape).filter(|elements| *elements <= numbers.len() / 2);
            let elements = elements.ok_or_else(unusual)?;
            let sizes = numbers::read(numbers, datatype, elements, &mut self.bytes);
            // What is wrong with it, a second reading finds out.
            return match sizes.as_deref() {
                Some([all]) if *all == elements as u64 => Ok(()),
                Some(sizes) if sizes == shape => Ok(()),
                Some(_) | None => Err(unusual()),
            };
        }
        let text = cut.unwrap_or(text.get().as_bytes());
        let mut parser = serde_json::Deserializer::from_slice(text);
        TensorData { bytes: &mut self.bytes, datatype, shape }.deserialize(&mut parser)?;
        parser.end()
    }

    /// Aligns the payload for the next tensor and returns its offset.
    fn begin<E: Error>(&mut self, datatype: Datatype, shape: &[u64]) -> Result<u64, E> {
        if let Some(first) = self.as_it_came.take() {
            self.bytes = first.into();
        }
        let offset = self.layout.place(0);
        self.bytes.resize(offset, 0);
        // A hint only.
        if let Some(elements) = element_count(shape) {
            self.bytes
                .reserve(elements.saturating_mul(datatype.size().unwrap_or(LENGTH_BYTES)).min(64 << 10));
        }
        Ok(offset as u64)
    }

    fn claim_binary<E: Error>(
        &mut self,
        name: &str,
        datatype: Datatype,
        shape: &[u64],
        size: usize,
    ) -> Result<u64, E> {
        let expected = match datatype.size() {
            Some(element) => element_count(shape).and_then(|elements| elements.checked_mul(element)),
            None => Some(size),
        };
        if expected != Some(size) {
            return Err(E::custom(format_args!(
                "input `{name}`: binary_data_size is {size}, {} of shape {shape:?} takes {}",
                datatype.name(),
                expected
                    .map_or_else(|| "more than memory holds".to_owned(), |bytes| format!("{bytes} bytes")),
            )));
        }
        if size > self.binary.len() {
            return Err(E::custom(format_args!(
                "input `{name}`: binary_data_size is {size}, {} bytes of binary data are left",
                self.binary.len()
            )));
        }
        let claimed = self.binary.split_to(size);
        if self.binary.is_empty() && self.laid_out().is_empty() {
            self.as_it_came = Some(claimed);
            return Ok(0);
        }
        let offset = self.begin::<E>(datatype, shape)?;
        self.bytes.extend_from_slice(&claimed);
        Ok(offset)
    }

    fn end(&mut self) {
        let start = self.layout.place(0);
        self.layout.place(self.laid_out().len() - start);
    }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(json: &str) -> Result<InferRequest, String> {
        InferRequest::decode(&json.to_owned().into(), None).map_err(|refusal| refusal.to_string())
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn a_wrong_parameter_is_told_by_its_name_and_what_it_takes() {
        let refused = |parameters: &str, of: &str| {
            let input = |more: &str| {
                format!(r#"{{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]{more}}}"#)
            };
            let text = match of {
                "request" => format!(r#"{{"inputs": [{}], "parameters": {parameters}}}"#, input("")),
                "input" => {
                    format!(r#"{{"inputs": [{}]}}"#, input(&format!(r#", "parameters": {parameters}"#)))
                }
                _ => format!(
                    r#"{{"inputs": [{}], "outputs": [{{"name": "y", "parameters": {parameters}}}]}}"#,
                    input("")
                ),
            };
            parse(text.as_bytes(), &Bytes::new()).expect_err("it is wrong").to_string()
        };
        for (parameters, of, says) in [
            (
                r#"{"priority": -1}"#,
                "request",
                "`priority`: expected a whole number from 0 to 4294967295, got -1",
            ),
            (
                r#"{"timeout": "5"}"#,
                "request",
                r#"`timeout`: expected a whole number of microseconds, got "5""#,
            ),
            (
                r#"{"binary_data_output": 1}"#,
                "request",
                "`binary_data_output`: expected true or false, got 1",
            ),
            (
                r#"{"binary_data_size": "12"}"#,
                "input",
                r#"`binary_data_size`: expected a whole number of bytes, got "12""#,
            ),
            (r#"{"classification": 1.5}"#, "output", "`classification`: expected a whole number from 0"),
            (
                r#"{"timeout": [1]}"#,
                "request",
                "`timeout`: expected a whole number of microseconds, got an array",
            ),
            (r#"{"binary_data": "yes"}"#, "output", r#"`binary_data`: expected true or false, got "yes""#),
        ] {
            let why = refused(parameters, of);
            assert!(why.contains(&format!("parameter {says}")), "{why}");
        }
    }

    #[test]
    fn json_tensors_are_laid_out_aligned_whatever_the_order_of_fields() {
        let request = decode(
            r#"{"id":"a","parameters":{"timeout":1500,"unknown":[1]},"inputs":[
                {"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]},
                {"data":[[3],[NaN]],"datatype":"FP32","name":"y","extra":{},"shape":[2,1]}],
              "outputs":[{"name":"z","parameters":{"binary_data":true,"classification":3}},{"name":"w"}]}"#,
        )
        .unwrap();
        assert_eq!(request.id.as_deref(), Some("a"));
        assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
        assert_eq!(request.inputs[0].locate(&request.payload).unwrap().1, 0..8);
        assert_eq!(request.inputs[1].locate(&request.payload).unwrap().1, 64..72);
        assert_eq!(request.payload[..8], floats(&[1.0, 2.0]));
        assert_eq!(request.payload[64..68], floats(&[3.0]));
        assert!(request.is_binary("z") && !request.is_binary("w"));
        assert_eq!((request.outputs[0].classes, request.outputs[1].classes), (3, 0));
    }

    #[test]
    fn binary_and_json_tensors_mix() {
        let json = r#"{"inputs":[{"name":"a","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}},
            {"name":"b","shape":[1],"datatype":"BOOL","data":[true]},
            {"name":"c","shape":[3],"datatype":"UINT8","parameters":{"binary_data_size":3}}],
            "parameters":{"binary_data_output":true}}"#;
        let body = [json.as_bytes(), &[1, 2, 3, 4, 9, 8, 7]].concat();
        let request = InferRequest::decode(&body.into(), Some(json.len())).unwrap();
        let at = |index: usize| &request.payload[request.inputs[index].locate(&request.payload).unwrap().1];
        assert_eq!((at(0), at(1), at(2)), (&[1, 2, 3, 4][..], &[1][..], &[9, 8, 7][..]));
        assert!(request.is_binary("anything"));
    }

    #[test]
    fn a_binary_tensor_that_is_alone_is_not_copied() {
        let decode = |more: &str| {
            let json = format!(
                r#"{{"inputs":[{{"name":"a","shape":[2],"datatype":"FP16","parameters":{{"binary_data_size":4}}}}{more}]}}"#
            );
            let body = Bytes::from([json.as_bytes(), &[1, 2, 3, 4]].concat());
            let request = InferRequest::decode(&body, Some(json.len())).unwrap();
            assert_eq!(&request.payload[..4], [1, 2, 3, 4]);
            (request.inputs, body.as_ptr_range().contains(&request.payload.as_ptr()))
        };
        assert!(decode("").1);
        let (inputs, is_slice) = decode(r#",{"name":"b","shape":[1],"datatype":"BOOL","data":[true]}"#);
        assert_eq!((inputs[0].offset, inputs[1].offset, is_slice), (0, 64, false));
    }

    #[test]
    fn bytes_come_as_strings_or_as_binary_elements_that_add_up() {
        let request =
            decode(r#"{"inputs":[{"name":"t","shape":[2],"datatype":"BYTES","data":["ab",""]}]}"#).unwrap();
        assert_eq!(request.payload, &b"\x02\0\0\0ab\0\0\0\0"[..]);
        assert_eq!(request.inputs[0].bytes, 10);
        assert!(request.inputs[0].locate(&request.payload).is_ok());

        let binary = |shape: u64, tensor: &[u8]| {
            let size = tensor.len();
            let json = format!(
                r#"{{"inputs":[{{"name":"t","shape":[{shape}],"datatype":"BYTES","parameters":{{"binary_data_size":{size}}}}}]}}"#
            );
            InferRequest::decode(&[json.as_bytes(), tensor].concat().into(), Some(json.len()))
                .map_err(|refusal| refusal.to_string())
        };
        assert_eq!(binary(2, b"\x02\0\0\0ab\0\0\0\0").unwrap(), request);
        assert!(
            binary(1, b"\x02\0\0\0a").unwrap_err().contains("an element of tensor `t` reaches beyond its 5")
        );
        assert!(binary(3, &[0; 8]).unwrap_err().contains("tensor `t` has 2 elements, shape [3] has 3"));
        assert!(binary(1, &[]).unwrap_err().contains("tensor `t` has 0 elements, shape [1] has 1"));
        assert!(binary(u64::MAX, &[0; 8]).unwrap_err().contains("tensor `t` has 2 elements"));
    }

    #[test]
    fn each_mistake_is_named() {
        let input = |fields: &str| format!(r#"{{"inputs":[{{{fields}}}]}}"#);
        for (json, says) in [
            ("", "EOF while parsing"),
            ("[]", "expected an object with `inputs`"),
            ("{}", "missing field `inputs`"),
            (r#"{"inputs":3}"#, "expected an array of inputs"),
            (r#"{"inputs":[]} trailing"#, "trailing characters"),
            (&input(r#""shape":[1],"datatype":"FP32","data":[1]"#), "missing field `name`"),
            (&input(r#""name":"x","datatype":"FP32","data":[1]"#), "input `x` has no `shape`"),
            (&input(r#""name":"x","shape":[1],"data":[1]"#), "input `x` has no `datatype`"),
            (&input(r#""name":"x","shape":[1],"datatype":"FP32""#), "input `x` has no `data`"),
            (
                &input(r#""name":"x","shape":[1],"datatype":"STRING","data":["a"]"#),
                "datatype `STRING` is not one of BOOL, UINT8",
            ),
            (
                &input(r#""name":"x","shape":[-1],"datatype":"FP32","data":[1]"#),
                "integer `-1`, expected a whole number from 0",
            ),
            (
                &input(r#""name":"x","shape":[2],"datatype":"FP32","data":[1]"#),
                "input `x`: data has 1 elements, shape [2] has 2",
            ),
            (
                &input(
                    r#""name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}"#,
                ),
                "both `data` and",
            ),
            (
                &input(r#""name":"x","shape":[1],"datatype":"FP32","data":[1],"datatype":"INT32""#),
                "`datatype` occurs twice",
            ),
            (&input(r#""name":"x","data":[1],"data":[2]"#), "`data` occurs twice"),
            (r#"{"inputs":[],"inputs":[]}"#, "`inputs` occurs twice"),
            (
                r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-1}}]}"#,
                "parameter `classification`: expected a whole number from 0 to 4294967295, got -1",
            ),
            (
                &input(r#""name":"x","shape":[4294967296,4294967296],"datatype":"FP32","data":[1]"#),
                "overflows",
            ),
            (
                &input(r#""name":"x","shape":[99999999999],"datatype":"FP32","data":[1]"#),
                "data has 1 elements",
            ),
        ] {
            let error = decode(json).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
    }

    #[test]
    fn more_tensors_than_any_model_takes_are_refused() {
        let input = r#"{"name":"x","shape":[0],"datatype":"FP32","data":[]}"#;
        let long = format!(r#"{{"name":"x","shape":[16],"datatype":"FP32","data":[{}1]}}"#, "1,".repeat(15));
        let all = |one: &str, most: usize| vec![one; most].join(",");
        for one in [input, long.as_str()] {
            let decode = |most| decode(&format!(r#"{{"inputs":[{}]}}"#, all(one, most)));
            assert_eq!(decode(1024).unwrap().inputs.len(), 1024);
            assert!(decode(1025).unwrap_err().contains("more than 1024 tensors"));
        }
        let outputs = format!(r#"{{"inputs":[{input}],"outputs":[{}]}}"#, all(r#"{"name":"y"}"#, 1025));
        assert!(decode(&outputs).unwrap_err().contains("more than 1024 tensors"));
    }

    #[test]
    fn binary_sizes_must_add_up_exactly() {
        let json =
            r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
        let decode =
            |extra: &[u8]| InferRequest::decode(&[json.as_bytes(), extra].concat().into(), Some(json.len()));
        assert!(decode(&[0; 8]).is_ok());
        assert!(decode(&[0; 7]).unwrap_err().to_string().contains("7 bytes of binary data are left"));
        assert!(
            decode(&[0; 9]).unwrap_err().to_string().contains("1 bytes of binary data belong to no input")
        );
        let wrong = json.replace(":8}", ":4}");
        let error = InferRequest::decode(&[wrong.as_bytes(), &[0; 4]].concat().into(), Some(wrong.len()))
            .unwrap_err();
        assert!(error.to_string().contains("FP32 of shape [2] takes 8 bytes"));
        assert!(
            InferRequest::decode(&Bytes::from_static(b"{}"), Some(3))
                .unwrap_err()
                .to_string()
                .contains("the whole body has 2 bytes")
        );
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200), len in prop::option::of(0usize..300)) {
            let _ = InferRequest::decode(&body.into(), len);
        }

        #[test]
        fn no_damaged_request_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut body = br#"{"id":"a","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,2.5]]}],"outputs":[{"name":"y"}]}"#.to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = InferRequest::decode(&body.into(), None);
        }
    }
}
