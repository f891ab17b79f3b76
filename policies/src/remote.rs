//! A version that another server answers: where that is. Decides nothing else about it; it has a breaker, a share and a
//! rollout like any other version.

use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where requests for a version go, as they came.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Remote {
    uri: Uri,
    tensors: Tensors,
    tls: Tls,
}

/// How a server takes tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tensors {
    /// As bytes after the JSON, by Triton's extension of the protocol; or in it.
    #[default]
    Binary,
    /// In the JSON only.
    Json,
}

/// PEM files of a connection over TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Certificates that vouch for the server; without them, those of the system do.
    pub ca: Option<Arc<Path>>,
    /// The certificate that we show, with those between it and one that the server trusts, and its key.
    pub own: Option<(Arc<Path>, Arc<Path>)>,
}

/// Why a file with certificates makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileFault {
    #[error("only an https URL has certificates")]
    Plain,
    #[error("`cert` and `key` belong together")]
    Alone,
    #[error("expected an absolute path, got `{0}`")]
    Relative(String),
}

impl Remote {
    /// Of an absolute `http` or `https` URL without credentials; `None` of anything else.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let is_known = uri.scheme().is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let authority = uri.authority().filter(|authority| !authority.host().is_empty())?;
        let port = authority.as_str().strip_prefix(authority.host())?;
        let has_port = port.is_empty() || authority.port_u16().is_some_and(|port| port > 0);
        let is_whole = !authority.as_str().contains('@') && !url.contains('#');
        (is_known && has_port && is_whole).then_some(Self {
            uri,
            tensors: Tensors::default(),
            tls: Tls::default(),
        })
    }

    /// The same, for a server that takes tensors so.
    pub(crate) fn with_tensors(self, tensors: Tensors) -> Self {
        Self { tensors, ..self }
    }

    /// How it takes tensors.
    pub fn tensors(&self) -> Tensors {
        self.tensors
    }

    /// The same, with these files for its connections.
    pub(crate) fn with_tls(self, tls: Tls) -> Self {
        Self { tls, ..self }
    }

    /// A PEM file for its connections.
    pub(crate) fn file(&self, file: &str) -> Result<Arc<Path>, FileFault> {
        if !self.is_tls() {
            return Err(FileFault::Plain);
        }
        let path = Path::new(file);
        if path.is_absolute() { Ok(path.into()) } else { Err(FileFault::Relative(file.to_owned())) }
    }

    /// How it and we prove who we are.
    pub fn tls(&self) -> &Tls {
        &self.tls
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

    /// The URL without a query: that may hold what is nobody's business.
    pub fn address(&self) -> String {
        let scheme = if self.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.uri.path())
    }

    /// What is asked for there.
    pub fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)?;
        if self.tensors == Tensors::Json {
            f.write_str(", which takes tensors as JSON")?;
        }
        if let Some(ca) = &self.tls.ca {
            write!(f, ", for which {} vouches", ca.display())?;
        }
        match &self.tls.own {
            Some((cert, _)) => write!(f, ", which is shown {}", cert.display()),
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
        for url in [
            "triton:8000/v2",
            "/v2",
            "ftp://a/b",
            "http://",
            "http://me:secret@a/b",
            "http:// a",
            "",
            "http://a:99999/b",
            "http://a:/b",
            "http://a:0/b",
            "http://a/b#c",
        ] {
            assert_eq!(of(url), None, "{url}");
        }
    }

    #[test]
    fn a_server_that_takes_json_only_is_another_one() {
        let remote = Remote::parse("http://a/b").unwrap();
        let json = remote.clone().with_tensors(Tensors::Json);
        assert_eq!((remote.tensors(), json.tensors()), (Tensors::Binary, Tensors::Json));
        assert_eq!(json.to_string(), "http://a/b, which takes tensors as JSON");
        assert_ne!(remote, json, "a plan tells of it");
    }

    #[test]
    fn certificates_that_vouch_for_it_are_in_a_file_that_is_found_from_anywhere() {
        let remote = |url| Remote::parse(url).unwrap();
        let file = |file| remote("https://a/b").file(file).unwrap();
        let vouched = remote("https://a/b").with_tls(Tls { ca: Some(file("/etc/ca.pem")), own: None });
        assert_eq!(vouched.to_string(), "https://a/b, for which /etc/ca.pem vouches");
        assert_eq!(remote("http://a/b").file("/etc/ca.pem"), Err(FileFault::Plain));
        assert_eq!(remote("https://a/b").file("ca.pem"), Err(FileFault::Relative("ca.pem".into())));
        let own = Some((file("/our.pem"), file("/our.key")));
        let shown = remote("https://a/b").with_tls(Tls { ca: None, own });
        assert_eq!(shown.to_string(), "https://a/b, which is shown /our.pem");
    }
}
