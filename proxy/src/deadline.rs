//! How long a request may take. Counts from the moment at which it is complete: a slow upload has a limit of its
//! own and must not eat the model's time.

use crate::decode::InferRequest;
use crate::refusal::{Refusal, time};
use http::{HeaderMap, HeaderName};
use std::time::{Duration, Instant};

/// The header in which a caller says how long it waits, ms.
pub(crate) const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// When the caller stops waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// The moment.
    pub(crate) at: Instant,
    /// How much there was for it.
    pub(crate) given: Duration,
}

impl Deadline {
    /// At most so much, or the request's own (parameter `timeout`) if that is sooner and was read.
    pub(crate) fn of(most: Duration, request: Option<&InferRequest>, now: Instant) -> Self {
        let own = request.and_then(|request| request.timeout);
        let given = own.map_or(most, |own| own.min(most));
        Self { at: now + given, given }
    }

    /// The policy's, or the caller's own if that is sooner: all that can be told without the body.
    pub(crate) fn at_most(policy: Duration, callers: Option<Duration>) -> Duration {
        callers.map_or(policy, |callers| callers.min(policy))
    }

    /// What is left of it.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }

    /// What it is to miss it.
    pub(crate) fn exceeded(&self) -> Refusal {
        Refusal::DeadlineExceeded { deadline: self.given, predicted: None }
    }

    /// What it is that somebody says so as of `now`, and why: too early to have waited for it, unless nothing is left.
    pub(crate) fn would_be_exceeded(&self, why: &str, now: Instant) -> Refusal {
        let left = self.left(now);
        let predicted = (!left.is_zero()).then(|| format!("{why}, and {} are left", time(left)));
        Refusal::DeadlineExceeded { deadline: self.given, predicted }
    }
}

/// A header that holds a whole number, written in digits alone and only once.
pub(crate) fn header_number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<usize>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digits =
        value.to_str().ok().map(str::trim).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match (digits.and_then(|digits| digits.parse().ok()), values.next()) {
        (Some(number), None) => Ok(Some(number)),
        _ => Err(Refusal::Invalid(format!("header {name} is not one whole number"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_LENGTH;

    #[test]
    fn who_is_turned_away_before_the_deadline_is_not_told_that_it_has_passed() {
        let now = Instant::now();
        let deadline = Deadline { at: now + Duration::from_millis(50), given: Duration::from_millis(50) };
        let says = |at| deadline.would_be_exceeded("a run takes longer", at).to_string();
        assert_eq!(
            says(now + Duration::from_millis(8)),
            "would not be answered within the deadline of 0.050 s: a run takes longer, and 0.042 s are left"
        );
        assert_eq!(says(deadline.at), "no answer within the deadline of 0.050 s");
        assert_eq!(deadline.exceeded().to_string(), says(deadline.at));
    }

    #[test]
    fn the_soonest_of_policy_header_and_parameter_counts() {
        let now = Instant::now();
        let given = |header: Option<u64>, parameter: Option<u64>| {
            let most = Deadline::at_most(Duration::from_secs(2), header.map(Duration::from_millis));
            let timeout = parameter.map(Duration::from_millis);
            let request = InferRequest { timeout, ..InferRequest::default() };
            Deadline::of(most, Some(&request), now).left(now).as_millis()
        };
        assert_eq!(given(None, None), 2000);
        assert_eq!(given(Some(300), None), 300);
        assert_eq!(given(Some(300), Some(200)), 200);
        assert_eq!(given(Some(60_000), None), 2000, "a caller cannot outstay the policy");
    }

    #[test]
    fn a_number_given_twice_is_refused_as_is_what_is_no_number() {
        let mut headers = HeaderMap::new();
        headers.append("content-length", "5".parse().unwrap());
        assert_eq!(header_number(&headers, &CONTENT_LENGTH), Ok(Some(5)));
        headers.append("content-length", "5".parse().unwrap());
        assert!(header_number(&headers, &CONTENT_LENGTH).is_err());
        for nonsense in ["-1", "+5", "1.5", "soon", ""] {
            headers.insert("content-length", nonsense.parse().unwrap());
            assert!(header_number(&headers, &CONTENT_LENGTH).is_err(), "{nonsense}");
        }
    }
}
