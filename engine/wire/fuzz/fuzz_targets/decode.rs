//! Any bytes, in any pieces: the decoder gives frames or an error, holds no more than its limits allow, and
//! whatever the frames claim about their tensors is checked before anybody believes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use wire::{Datatype, Decoder, Elements, Index, Infer, Limits, Reply};

const LIMITS: Limits = Limits { metadata_bytes: 4 << 10, payload_bytes: 64 << 10 };

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (stream, piece) = input;
    let mut decoder = Decoder::new(LIMITS);
    for piece in stream.chunks(usize::from(piece).max(1)) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.decode() {
                Ok(Some(frame)) => {
                    assert!(frame.metadata.len() <= LIMITS.metadata_bytes && frame.payload.len() <= LIMITS.payload_bytes);
                    let _ = Index::decode(frame.metadata.clone());
                    let inputs = Infer::decode(frame.metadata.clone()).map(|infer| infer.inputs).unwrap_or_default();
                    let outputs = Reply::decode(frame.metadata).map(|reply| reply.outputs).unwrap_or_default();
                    for tensor in inputs.iter().chain(&outputs) {
                        if let Ok((datatype, range)) = tensor.locate(&frame.payload) {
                            let bytes = &frame.payload[range];
                            if datatype == Datatype::Bytes {
                                assert!(Elements::of(bytes).all(|element| element.is_ok()));
                            }
                        }
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
