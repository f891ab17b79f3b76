//! What the policy may know of a caller: headers and cookies, borrowed from the request head. Never parses
//! what no rule asks for.

use http::{HeaderMap, header};

/// A request head, as the policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    headers: &'a HeaderMap,
}

impl<'a> Caller<'a> {
    /// Who sent these headers.
    pub fn new(headers: &'a HeaderMap) -> Self {
        Self { headers }
    }
}

impl policies::Attributes for Caller<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        self.headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::Attributes;

    #[test]
    fn cookies_are_found_among_others_and_across_headers() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "theme=dark; uid=42".parse().unwrap());
        headers.append(header::COOKIE, "last=x=y".parse().unwrap());
        let caller = Caller::new(&headers);
        assert_eq!(caller.cookie("uid"), Some("42"));
        assert_eq!(caller.cookie("last"), Some("x=y"));
        assert_eq!(caller.cookie("id"), None);
        assert_eq!(caller.header("cookie"), Some("theme=dark; uid=42"));
    }
}
