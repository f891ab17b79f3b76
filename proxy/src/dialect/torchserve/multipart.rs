//! The parts of a form (`multipart/form-data`, RFC 7578) that has come as a whole. Decides how many parts are too many;
//! what they are is somebody else's to say.

use crate::refusal::Refusal;
use bytes::Bytes;
use std::convert::Infallible;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// No model has more inputs that are worth a part of their own.
const PARTS_MAX: usize = 64;

/// One of them.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) content_type: Option<String>,
    pub(super) content: Bytes,
}

/// Whether a body of this type is a form.
pub(super) fn is_form(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default();
    media.trim().eq_ignore_ascii_case("multipart/form-data")
}

/// The parts in order.
pub(super) fn parts(content_type: &str, body: &Bytes) -> Result<Vec<Part>, Refusal> {
    let failed = |error: multer::Error| Refusal::Invalid(format!("request body: not a form: {error}"));
    let boundary = multer::parse_boundary(content_type).map_err(failed)?;
    let whole = futures_util::stream::iter([Ok::<_, Infallible>(body.clone())]);
    let mut form = multer::Multipart::new(whole, boundary);
    let read = async {
        let mut parts = Vec::new();
        while let Some(field) = form.next_field().await.map_err(failed)? {
            if parts.len() == PARTS_MAX {
                return Err(Refusal::Invalid(format!("request body: a form of more than {PARTS_MAX} parts")));
            }
            let name = field.name().unwrap_or_default().to_owned();
            let content_type = field.headers().get(http::header::CONTENT_TYPE);
            let content_type = content_type.and_then(|media| media.to_str().ok()).map(str::to_owned);
            parts.push(Part { name, content_type, content: field.bytes().await.map_err(failed)? });
        }
        Ok(parts)
    };
    // Everything is there already, so that nothing is waited for.
    match pin!(read).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(parts) => parts,
        Poll::Pending => Err(Refusal::Internal("a form that is there is waited for".into())),
    }
}
