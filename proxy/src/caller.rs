//! What the policy may know of a caller: headers, cookies, query parameters and the path, borrowed from the request head,
//! and what was read of the body for it. What can be written in several ways is decoded: else the same caller had several keys, and a
//! rule about a path could be passed by. Never parses what no rule asks for.

use http::{HeaderMap, Uri, header, request};
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// A request head, as the policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    headers: &'a HeaderMap,
    uri: &'a Uri,
    of_body: Option<&'a str>,
}

impl<'a> Caller<'a> {
    /// Who sent this head.
    pub fn new(head: &'a request::Parts) -> Self {
        Self { headers: &head.headers, uri: &head.uri, of_body: None }
    }

    /// The same, of whose body this was read.
    pub(crate) fn with_body(head: &'a request::Parts, of_body: Option<&'a str>) -> Self {
        Self { of_body, ..Self::new(head) }
    }
}

impl policies::Attributes for Caller<'_> {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        Some(text(self.headers.get(name)?.as_bytes()))
    }

    fn cookie(&self, name: &str) -> Option<Cow<'_, str>> {
        self.headers
            .get_all(header::COOKIE)
            .iter()
            // What stands in others is none of its business, in whatever letters.
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
            .find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(text)
    }

    fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut pairs = self.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(key, value)| (of_form(key) == name).then(|| of_form(value)))
    }

    fn path(&self) -> Cow<'_, str> {
        percent_decode_str(self.uri.path()).decode_utf8_lossy()
    }

    fn of_body(&self) -> Option<&str> {
        self.of_body
    }
}

/// What a header says: in UTF-8, or else in Latin-1, which HTTP once said it was, and in which any bytes are something.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    let as_latin_1 = || bytes.iter().map(|byte| char::from(*byte)).collect();
    std::str::from_utf8(bytes).map_or_else(|_| Cow::Owned(as_latin_1()), Cow::Borrowed)
}

/// A name or value in a query, as forms write it.
fn of_form(written: &str) -> Cow<'_, str> {
    if !written.contains('+') {
        return percent_decode_str(written).decode_utf8_lossy();
    }
    Cow::Owned(percent_decode_str(&written.replace('+', " ")).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::Attributes;

    #[test]
    fn the_path_is_what_was_sent_without_the_query_over_either_protocol() {
        let path = |uri: &str| {
            let (head, ()) = http::Request::post(uri).body(()).unwrap().into_parts();
            Caller::new(&head).path().into_owned()
        };
        assert_eq!(path("/predictions/digits?x=/v2"), "/predictions/digits");
        assert_eq!(path("/%70redictions/dig%69ts"), "/predictions/digits");
        let grpc = "http://localhost:8001/inference.GRPCInferenceService/ModelInfer";
        assert_eq!(path(grpc), "/inference.GRPCInferenceService/ModelInfer");
    }

    #[test]
    fn cookies_are_found_among_others_and_across_headers() {
        let request = http::Request::get("/?uid=7&x=&uid=8").header(header::COOKIE, "theme=dark; uid=42");
        let (head, ()) = request.header(header::COOKIE, "last=x=y").body(()).unwrap().into_parts();
        let caller = Caller::new(&head);
        let query = |name| caller.query(name).map(Cow::into_owned);
        assert_eq!((query("uid").as_deref(), query("x").as_deref(), query("y")), (Some("7"), Some(""), None));
        assert_eq!(caller.cookie("uid").as_deref(), Some("42"));
        assert_eq!(caller.cookie("last").as_deref(), Some("x=y"));
        assert_eq!((caller.cookie("id"), caller.cookie("the")), (None, None));
        assert_eq!(caller.header("cookie").as_deref(), Some("theme=dark; uid=42"));
        let among = http::HeaderValue::from_bytes(b"name=J\xfcrgen; uid=7; city=K\xc3\xb6ln").unwrap();
        let request = http::Request::get("/").header(header::COOKIE, among);
        let (head, ()) = request.body(()).unwrap().into_parts();
        let caller = Caller::new(&head);
        let cookie = |name| caller.cookie(name).map(Cow::into_owned);
        let found = ["uid", "name", "city"].map(cookie);
        assert_eq!(
            found.each_ref().map(Option::as_deref),
            [Some("7"), Some("J\u{fc}rgen"), Some("K\u{f6}ln")]
        );
        let named = http::HeaderValue::from_bytes("j\u{f6}rg".as_bytes()).unwrap();
        let request = http::Request::get("/").header("x-user-id", named);
        let (head, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(Caller::new(&head).header("x-user-id").as_deref(), Some("j\u{f6}rg"));
        let in_latin_1 = http::HeaderValue::from_bytes(b"j\xf6rg").unwrap();
        let request = http::Request::get("/").header("x-user-id", in_latin_1);
        let (head, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(Caller::new(&head).header("x-user-id").as_deref(), Some("j\u{f6}rg"));
    }

    #[test]
    fn however_a_query_writes_it_a_value_is_the_same() {
        for written in ["mail=a@b+c", "mail=a%40b%20c", "x=1&ma%69l=a%40b+c", "mail=%61@b%20c&mail=other"] {
            let (head, ()) = http::Request::get(format!("/?{written}")).body(()).unwrap().into_parts();
            assert_eq!(Caller::new(&head).query("mail").as_deref(), Some("a@b c"), "{written}");
        }
    }
}
