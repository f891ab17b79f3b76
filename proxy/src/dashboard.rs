//! The page that shows a running process in a browser: one file, without anything from elsewhere. Decides what it may do:
//! run its own script, and ask where it comes from. What it shows is [`crate::status`].
//!
//! Names of models and words of clients are others' text. The page never makes HTML of text, and this policy forbids it
//! to: script and style run by a number that is drawn for each answer, and no string becomes script.

use crate::monitor::respond;
use http::{HeaderValue, Response, StatusCode, header};
use rand::Rng;

const PAGE: &str = include_str!("dashboard.html");

/// Where the number goes.
const NONCE: &str = "{nonce}";

/// The page.
pub(crate) fn page() -> Response<Vec<u8>> {
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let mut answer = respond(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace(NONCE, &nonce));
    let headers = answer.headers_mut();
    let policy = HeaderValue::from_str(&policy).expect("it is ASCII");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"), // nobody's page gets somebody to press its buttons
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_runs_nothing_but_its_own_script_and_loads_nothing() {
        let (one, other) = (page(), page());
        let policy = one.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
        let html = std::str::from_utf8(one.body()).unwrap();
        assert_eq!(html.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "a style and a script");
        assert!(!html.contains(NONCE) && one.body() != other.body());
        // The namespace of SVG is a name, and asks nobody; the link to the admin port is made of what the process says.
        let html =
            html.replace("\"http://www.w3.org/2000/svg\"", "").replace("\"http://\" + status.admin", "");
        for forbidden in
            ["http://", "https://", "innerHTML", "insertAdjacentHTML", "eval(", " style=\"", " onclick"]
        {
            let found = html.contains(forbidden);
            assert!(!found, "{forbidden}");
        }
    }
}
