//! Requests without JSON: `Inference-Header-Content-Length: 0` says that the whole body is the model's one input
//! (Triton's binary tensor extension). Decides its shape, which nobody sends, from what the model declares and how long
//! the body is. All outputs are wanted, and go out as binary data.

use crate::decode::InferRequest;
use crate::refusal::Refusal;
use bytes::Bytes;
use wire::{Datatype, ModelEntry, TensorMeta, TensorSpec};

/// The request that `body` is to a model of this declaration: of one row, where the model has rows.
pub(crate) fn decode(body: &Bytes, entry: Option<&ModelEntry>) -> Result<InferRequest, Refusal> {
    let refuse = |why: String| Refusal::Invalid(format!("a request without a JSON header: {why}"));
    let entry = entry.ok_or_else(|| refuse("what the model takes is not known here".into()))?;
    let [input] = &entry.inputs[..] else {
        return Err(refuse(format!("the model takes {} inputs, and this is one", entry.inputs.len())));
    };
    let (datatype, shape) = form(input, entry.max_batch > 0, body.len()).map_err(refuse)?;
    let payload = if datatype == Datatype::Bytes { one_element(body) } else { body.clone() };
    let input = TensorMeta {
        name: input.name.clone(),
        datatype: datatype as u32,
        shape,
        offset: 0,
        bytes: if datatype == Datatype::Bytes { payload.len() as u64 } else { 0 },
    };
    Ok(InferRequest { inputs: vec![input], payload, binary_outputs: true, ..InferRequest::default() })
}

/// A body of BYTES is the one element, without the length that stands in front of each on the wire.
fn one_element(body: &Bytes) -> Bytes {
    let mut tensor = Vec::new();
    wire::push_element(&mut tensor, body);
    tensor.into()
}

/// Datatype and shape of an input that is `bytes` long.
fn form(input: &TensorSpec, has_rows: bool, bytes: usize) -> Result<(Datatype, Vec<u64>), String> {
    let name = &input.name;
    if input.datatype == 0 {
        return Err(format!("the model does not declare the datatype of input `{name}`"));
    }
    let datatype = Datatype::from_wire(input.datatype)
        .ok_or_else(|| format!("input `{name}` has no datatype that is known here"))?;
    let mut declared = input.shape.clone();
    if let Some(rows) = declared.first_mut().filter(|_| has_rows) {
        *rows = 1;
    }
    let Some(size) = datatype.size() else {
        return match declared.iter().all(|dimension| *dimension == 1 || *dimension < 0) {
            true => Ok((datatype, vec![1; declared.len()])),
            false => Err(format!("input `{name}` has more than one element: {declared:?}")),
        };
    };
    if declared.iter().filter(|dimension| **dimension < 0).count() > 1 {
        return Err(format!("more than one dimension of input `{name}` is open: {declared:?}"));
    }
    let mut known = declared.iter().filter_map(|dimension| usize::try_from(*dimension).ok());
    let unit = known.try_fold(size, |all: usize, one| all.checked_mul(one));
    let is_open = declared.iter().any(|dimension| *dimension < 0);
    let open = match unit.filter(|unit| *unit > 0 && bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some(unit) if is_open || bytes == unit => (bytes / unit) as u64,
        Some(_) | None => {
            return Err(format!(
                "{bytes} bytes are no {} of shape {declared:?}, input `{name}`",
                datatype.name()
            ));
        }
    };
    let shape = declared.iter().map(|dimension| u64::try_from(*dimension).unwrap_or(open));
    Ok((datatype, shape.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(datatype: u32, shape: &[i64], max_batch: u32) -> ModelEntry {
        let input = TensorSpec { name: "x".into(), datatype, shape: shape.into(), labels: Vec::new() };
        ModelEntry { inputs: vec![input], max_batch, ..ModelEntry::default() }
    }

    fn shape(model: &ModelEntry, bytes: usize) -> Result<Vec<u64>, String> {
        let decoded = decode(&vec![0; bytes].into(), Some(model)).map_err(|refusal| refusal.to_string())?;
        assert!(decoded.is_binary("anything"));
        let (datatype, range) = decoded.inputs[0].locate(&decoded.payload).unwrap();
        assert_eq!((datatype as u32, range), (model.inputs[0].datatype, 0..bytes));
        Ok(decoded.inputs[0].shape.clone())
    }

    #[test]
    fn the_shape_is_the_declared_one_with_one_row_and_what_the_length_says() {
        const FP32: u32 = Datatype::Fp32 as u32;
        assert_eq!(shape(&model(FP32, &[-1, 64], 8), 256), Ok(vec![1, 64]));
        assert_eq!(
            shape(&model(FP32, &[-1, 64], 0), 512),
            Ok(vec![2, 64]),
            "no batch: a dimension like others"
        );
        assert_eq!(shape(&model(FP32, &[-1, -1, 3], 1), 24), Ok(vec![1, 2, 3]));
        assert_eq!(shape(&model(Datatype::Int64 as u32, &[-1], 4), 8), Ok(vec![1]));
        assert_eq!(shape(&model(Datatype::Uint8 as u32, &[], 0), 1), Ok(vec![]), "a scalar");
    }

    #[test]
    fn bytes_are_one_element_that_needs_no_length_in_front() {
        let decoded = decode(&Bytes::from_static(b"\xff\xd8 a picture"), Some(&model(11, &[-1], 8))).unwrap();
        assert_eq!(decoded.inputs[0].shape, [1]);
        let (datatype, range) = decoded.inputs[0].locate(&decoded.payload).unwrap();
        let elements: Vec<_> = wire::Elements::of(&decoded.payload[range]).collect();
        assert_eq!((datatype, elements), (Datatype::Bytes, vec![Ok(&b"\xff\xd8 a picture"[..])]));
    }

    #[test]
    fn what_it_does_not_say_is_not_guessed() {
        const FP32: u32 = Datatype::Fp32 as u32;
        for (model, bytes, says) in [
            (model(FP32, &[-1, 64], 8), 512, "512 bytes are no FP32 of shape [1, 64], input `x`"),
            (model(FP32, &[-1, 64], 8), 0, "0 bytes are no FP32"),
            (model(FP32, &[-1, -1], 8), 0, "0 bytes are no FP32 of shape [1, -1]"),
            (model(FP32, &[-1, -1], 8), 7, "7 bytes are no FP32"),
            (model(FP32, &[-1, -1, -1], 8), 4, "more than one dimension of input `x` is open: [1, -1, -1]"),
            (model(FP32, &[-1, i64::MAX, 2], 8), 4, "4 bytes are no FP32"),
            (model(0, &[], 0), 4, "does not declare the datatype of input `x`"),
            (model(11, &[-1, 2], 0), 4, "input `x` has more than one element: [-1, 2]"),
            (model(99, &[-1], 0), 4, "input `x` has no datatype that is known here"),
            (ModelEntry::default(), 4, "the model takes 0 inputs, and this is one"),
        ] {
            let refusal = shape(&model, bytes).unwrap_err();
            assert!(refusal.contains(says), "{refusal}");
        }
        let refusal = decode(&Bytes::new(), None).unwrap_err().to_string();
        assert_eq!(refusal, "a request without a JSON header: what the model takes is not known here");
    }
}
