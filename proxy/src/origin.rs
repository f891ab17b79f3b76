//! Decides whether what comes to the admin port may come from there. It is on loopback, which every page in a browser on
//! this machine reaches, too; so whoever asks has to be a program, or the page that this port itself serves.
//!
//! ```text
//!                                                           caught by
//! a page elsewhere posts to us                              Origin is not ours
//! a page elsewhere, whose name now leads to us (rebinding)  Host is a name that is not this machine's own
//! a page on another port of this machine                    Origin is not ours
//! a form or an image, whatever it hides of its origin       Sec-Fetch-Site, and the header that only a script can add
//! ```

use http::{HeaderMap, Method, header};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What a form cannot send, and a script of another origin not without asking first.
pub(crate) const PAGE_HEADER: &str = "x-penstock-page";

/// Whether this may be asked.
///
/// # Errors
/// Why not.
pub(crate) fn check(method: &Method, headers: &HeaderMap) -> Result<(), &'static str> {
    let host = own_host(headers)?;
    let changes = method != Method::GET && method != Method::HEAD;
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err("a page of somebody else may not ask this");
    }
    match headers.get(header::ORIGIN) {
        Some(origin) => {
            let is_ours = origin
                .to_str()
                .ok()
                .and_then(|origin| origin.strip_prefix("http://"))
                .is_some_and(|origin| origin.eq_ignore_ascii_case(host));
            if !is_ours {
                return Err("this is not for browsers, except for the page that this port serves");
            }
            if changes && !headers.contains_key(PAGE_HEADER) {
                return Err("this is not for forms");
            }
            Ok(())
        }
        None if changes && site.is_some() => Err("a browser says where it comes from"),
        None => Ok(()),
    }
}

/// The host by which we are asked, if it can only be this machine. No other name is believed: it may be one that led
/// elsewhere a moment ago. Which port is said does not matter, as it may be that of a tunnel.
///
/// # Errors
/// If it is any other.
pub(crate) fn own_host(headers: &HeaderMap) -> Result<&str, &'static str> {
    const FOREIGN: &str = "ask for localhost or a loopback address: no other name is believed here";
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(FOREIGN) };
    let host = host.to_str().map_err(|_| FOREIGN)?;
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let is_loopback = name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .and_then(|name| name.parse::<Ipv6Addr>().ok())
            .is_some_and(|address| address.is_loopback());
    if is_loopback { Ok(host) } else { Err(FOREIGN) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn asks(method: Method, headers: &[(&'static str, &'static str)]) -> Result<(), &'static str> {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        check(&method, &headers.iter().map(header).collect())
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:8003");
    const PAGE: (&str, &str) = (PAGE_HEADER, "1");

    #[test]
    fn a_program_may_ask_by_any_name_of_this_machine() {
        for host in ["localhost:8003", "LOCALHOST", "127.0.0.1:9", "127.1.2.3:8003", "[::1]:8003", "[::1]"] {
            assert_eq!(asks(Method::POST, &[("host", host)]), Ok(()), "{host}");
        }
        let foreign = [
            "evil.example:8003",
            "evil.example",
            "localhost.evil.example",
            "10.0.0.1:8003",
            "127.0.0.1.evil.example:8003",
            "127.0.0.1:8003:1",
            "::1",
            "",
            "localhost:",
            "localhost:8003x",
            "localhost@evil",
        ];
        for host in foreign {
            assert!(asks(Method::GET, &[("host", host)]).is_err(), "{host}");
        }
        assert!(asks(Method::GET, &[]).is_err() && asks(Method::GET, &[HOST, HOST]).is_err());
    }

    #[test]
    fn our_own_page_may_ask_and_no_other() {
        let ours = ("origin", "http://127.0.0.1:8003");
        let same = ("sec-fetch-site", "same-origin");
        assert_eq!(asks(Method::POST, &[HOST, ours, PAGE, same]), Ok(()));
        assert_eq!(asks(Method::POST, &[HOST, ours, PAGE]), Ok(()), "an old browser");
        assert_eq!(asks(Method::GET, &[HOST, same]), Ok(()));
        assert!(asks(Method::POST, &[HOST, ours, same]).is_err(), "a form");
        assert!(asks(Method::POST, &[HOST, PAGE, same]).is_err(), "a browser that hides its origin");
        for origin in [
            "http://evil.example",
            "null",
            "http://127.0.0.1:3000",
            "http://localhost:8003",
            "https://127.0.0.1:8003",
            "http://127.0.0.1:8003.evil.example",
            "",
        ] {
            assert!(asks(Method::POST, &[HOST, ("origin", origin), PAGE]).is_err(), "{origin}");
            assert!(asks(Method::GET, &[HOST, ("origin", origin)]).is_err(), "{origin}");
        }
        for site in ["cross-site", "same-site", "x"] {
            assert!(asks(Method::GET, &[HOST, ("sec-fetch-site", site)]).is_err(), "{site}");
        }
    }

    #[test]
    fn a_page_whose_name_has_come_to_lead_here_is_believed_nothing() {
        let host = ("host", "evil.example:8003");
        let origin = ("origin", "http://evil.example:8003");
        assert!(asks(Method::POST, &[host, origin, PAGE, ("sec-fetch-site", "same-origin")]).is_err());
        assert!(asks(Method::GET, &[host, ("sec-fetch-site", "same-origin")]).is_err());
    }
}
