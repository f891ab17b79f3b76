//! A version that another server answers: where that is. Decides nothing else about it; it has a breaker, a share and a
//! rollout like any other version.

use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use std::fmt;

/// Where requests for a version go, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    uri: Uri,
}

impl Remote {
    /// Of an absolute `http` or `https` URL without credentials; `None` of anything else.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let is_known = uri.scheme().is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let authority = uri.authority().filter(|authority| !authority.host().is_empty())?;
        (is_known && !authority.as_str().contains('@')).then_some(Self { uri })
    }

    /// Whether it is spoken to over TLS.
    pub fn is_tls(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    /// A name or an address, without the brackets of IPv6.
    pub fn host(&self) -> &str {
        let host = self.uri.host().expect("parse has seen to it");
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The one in the URL, else that of the scheme.
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(if self.is_tls() { 443 } else { 80 })
    }

    /// Host and port as they stand in the URL, which is what the server is told.
    pub fn authority(&self) -> &str {
        self.uri.authority().expect("parse has seen to it").as_str()
    }

    /// What is asked for there.
    pub fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_how() {
        let of = |url| {
            let remote = Remote::parse(url)?;
            Some((remote.is_tls(), remote.host().to_owned(), remote.port(), remote.path().to_owned()))
        };
        assert_eq!(
            of("http://triton:8000/v2/models/digits/infer"),
            Some((false, "triton".into(), 8000, "/v2/models/digits/infer".into()))
        );
        assert_eq!(of("https://[::1]"), Some((true, "::1".into(), 443, "/".into())));
        for url in ["triton:8000/v2", "/v2", "ftp://a/b", "http://", "http://me:secret@a/b", "http:// a", ""]
        {
            assert_eq!(of(url), None, "{url}");
        }
    }
}
