//! A version that another server answers: where that is. Decides nothing else about it; it has a breaker, a share and a
//! rollout like any other version.

use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where requests for a version go, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    uri: Uri,
    /// A file.
    ca: Option<Arc<Path>>,
}

/// Why a file with certificates makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CaFault {
    #[error("only an https URL has a certificate that somebody vouches for")]
    Plain,
    #[error("expected an absolute path, got `{0}`")]
    Relative(String),
}

impl Remote {
    /// Of an absolute `http` or `https` URL without credentials; `None` of anything else.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let is_known = uri.scheme().is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let authority = uri.authority().filter(|authority| !authority.host().is_empty())?;
        (is_known && !authority.as_str().contains('@')).then_some(Self { uri, ca: None })
    }

    /// Whose certificate must be vouched for by those in this file, and not by the system's.
    pub(crate) fn with_ca(self, file: &str) -> Result<Self, CaFault> {
        if !self.is_tls() {
            return Err(CaFault::Plain);
        }
        let path = Path::new(file);
        if !path.is_absolute() {
            return Err(CaFault::Relative(file.to_owned()));
        }
        Ok(Self { ca: Some(path.into()), ..self })
    }

    /// A PEM file of the certificates that vouch for it; without one, those of the system do.
    pub fn ca(&self) -> Option<&Arc<Path>> {
        self.ca.as_ref()
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
        self.uri.fmt(f)?;
        match &self.ca {
            Some(ca) => write!(f, ", for which {} vouches", ca.display()),
            None => Ok(()),
        }
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

    #[test]
    fn certificates_that_vouch_for_it_are_in_a_file_that_is_found_from_anywhere() {
        let remote = |url| Remote::parse(url).unwrap();
        let vouched = remote("https://a/b").with_ca("/etc/ca.pem").unwrap();
        assert_eq!(vouched.ca().map(|ca| &**ca), Some(Path::new("/etc/ca.pem")));
        assert_eq!(vouched.to_string(), "https://a/b, for which /etc/ca.pem vouches");
        assert_eq!(remote("http://a/b").with_ca("/etc/ca.pem"), Err(CaFault::Plain));
        assert_eq!(remote("https://a/b").with_ca("ca.pem"), Err(CaFault::Relative("ca.pem".into())));
    }
}
