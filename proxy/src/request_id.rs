//! What ties a log line, a span and an answer together. Decides which ids a client may give; never what they mean.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries it, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ones are not taken over: they would be on every line.
const CHARACTERS_MAX: usize = 128;

/// The id of one request: its client's, if it gives one, else made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// That of a request with these headers; `dice` make one up.
    pub fn of(headers: &HeaderMap, dice: u64) -> Self {
        let given = headers.get(REQUEST_ID).filter(|given| {
            let length = given.len();
            (1..=CHARACTERS_MAX).contains(&length) && given.as_bytes().iter().all(u8::is_ascii_graphic)
        });
        given.map_or_else(|| Self::made_up(dice), |given| Self(given.clone()))
    }

    fn made_up(dice: u64) -> Self {
        Self(HeaderValue::from_str(&format!("{dice:016x}")).expect("hexadecimal digits"))
    }

    /// As the answer has it.
    pub fn header(&self) -> &HeaderValue {
        &self.0
    }

    /// As lines and spans have it.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("only visible ASCII is taken over")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_kept_unless_it_could_break_a_line() {
        let of = |given: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            RequestId::of(&headers, 0xabc).as_str().to_owned()
        };
        assert_eq!(of(b"order-7/attempt-1"), "order-7/attempt-1");
        let made_up = "0000000000000abc";
        assert_eq!(RequestId::of(&HeaderMap::new(), 0xabc).as_str(), made_up);
        for strange in [&b""[..], b"two words", b"tab\t", "\u{fc}".as_bytes(), &[b'x'; 129]] {
            assert_eq!(of(strange), made_up, "{strange:?}");
        }
    }
}
