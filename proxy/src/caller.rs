//! What the policy may know of a caller: headers, cookies, query parameters and the path, borrowed from the request head,
//! and what was read of the body for it. Never parses what no rule asks for.

use http::{HeaderMap, Uri, header, request};

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
    fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.headers.get(name)?.as_bytes()).ok()
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        self.headers
            .get_all(header::COOKIE)
            .iter()
            // What stands in others is none of its business, in whatever letters.
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
            .filter_map(|pair| std::str::from_utf8(pair.trim_ascii()).ok()?.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    fn query(&self, name: &str) -> Option<&str> {
        let mut pairs = self.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn of_body(&self) -> Option<&str> {
        self.of_body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::Attributes;

    #[test]
    fn the_path_is_what_was_sent_without_the_query_over_either_protocol() {
        let path = |uri: &str| {
            let (head, ()) = http::Request::post(uri).body(()).unwrap().into_parts();
            Caller::new(&head).path().to_owned()
        };
        assert_eq!(path("/predictions/digits?x=/v2"), "/predictions/digits");
        assert_eq!(path("/predictions/dig%69ts"), "/predictions/dig%69ts");
        let grpc = "http://localhost:8001/inference.GRPCInferenceService/ModelInfer";
        assert_eq!(path(grpc), "/inference.GRPCInferenceService/ModelInfer");
    }

    #[test]
    fn cookies_are_found_among_others_and_across_headers() {
        let request = http::Request::get("/?uid=7&x=&uid=8").header(header::COOKIE, "theme=dark; uid=42");
        let (head, ()) = request.header(header::COOKIE, "last=x=y").body(()).unwrap().into_parts();
        let caller = Caller::new(&head);
        assert_eq!((caller.query("uid"), caller.query("x"), caller.query("y")), (Some("7"), Some(""), None));
        assert_eq!(caller.cookie("uid"), Some("42"));
        assert_eq!(caller.cookie("last"), Some("x=y"));
        assert_eq!(caller.cookie("id"), None);
        assert_eq!(caller.header("cookie"), Some("theme=dark; uid=42"));
        let among = http::HeaderValue::from_bytes(b"name=J\xfcrgen; uid=7; city=K\xc3\xb6ln").unwrap();
        let request = http::Request::get("/").header(header::COOKIE, among);
        let (head, ()) = request.body(()).unwrap().into_parts();
        let caller = Caller::new(&head);
        assert_eq!((caller.cookie("uid"), caller.cookie("name")), (Some("7"), None));
        assert_eq!(caller.cookie("city"), Some("K\u{f6}ln"));
        let named = http::HeaderValue::from_bytes("j\u{f6}rg".as_bytes()).unwrap();
        let request = http::Request::get("/").header("x-user-id", named);
        let (head, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(Caller::new(&head).header("x-user-id"), Some("j\u{f6}rg"));
    }
}
