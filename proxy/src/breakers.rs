//! Tells in the log when a breaker has opened and when it lets everybody through again. Compares what breakers do now with what they did
//! when it last looked; decides nothing. One that opened and closed in between is not told of.

use policies::{BreakerState, BreakerStatus, Version};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Those that were told of as open.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    open: BTreeSet<(Arc<str>, Version)>,
}

/// What is new of one.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Opened { next_try_in: Duration },
    Passes,
}

impl Breakers {
    /// Tells what has changed.
    pub(crate) fn tell(&mut self, breakers: &[BreakerStatus]) {
        for (status, news) in self.follow(breakers) {
            let BreakerStatus { model, version, .. } = status;
            match news {
                News::Opened { next_try_in } => {
                    tracing::warn!(%model, version = version.0, ?next_try_in, "the version keeps failing: its breaker has opened");
                }
                News::Passes => {
                    tracing::info!(%model, version = version.0, "the breaker lets everybody through again")
                }
            }
        }
    }

    fn follow<'a>(&mut self, breakers: &'a [BreakerStatus]) -> Vec<(&'a BreakerStatus, News)> {
        let mut news = Vec::new();
        let before = std::mem::take(&mut self.open);
        for status in breakers {
            let version = (status.model.clone(), status.version);
            let was_open = before.contains(&version);
            match status.state {
                BreakerState::Tripped { retry_after: next_try_in } => {
                    self.open.insert(version);
                    if !was_open {
                        news.push((status, News::Opened { next_try_in }));
                    }
                }
                BreakerState::Probing if was_open => drop(self.open.insert(version)),
                // Should the probe fail, it is told of then.
                BreakerState::Probing => {}
                BreakerState::Passing if was_open => news.push((status, News::Passes)),
                BreakerState::Passing => {}
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_told_of_when_it_opens_and_when_it_lets_through_again_and_not_of_its_probes() {
        let mut breakers = Breakers::default();
        let mut told = |state| {
            let status = BreakerStatus { model: "m".into(), version: Version(2), state };
            breakers.follow(&[status]).into_iter().map(|(_, news)| news).collect::<Vec<_>>()
        };
        let (open, wait) = (|retry_after| BreakerState::Tripped { retry_after }, Duration::from_secs(10));
        assert_eq!(told(BreakerState::Passing), []);
        assert_eq!(told(open(wait)), [News::Opened { next_try_in: wait }]);
        assert_eq!(told(open(Duration::ZERO)), []);
        assert_eq!(told(BreakerState::Probing), []);
        assert_eq!(told(open(2 * wait)), [], "it is open for longer");
        assert_eq!(told(BreakerState::Probing), []);
        assert_eq!(told(BreakerState::Passing), [News::Passes]);
        assert_eq!(told(BreakerState::Probing), [], "it was open for a moment that nobody saw");
        assert_eq!(told(open(wait)), [News::Opened { next_try_in: wait }]);
        assert_eq!(told(BreakerState::Passing), [News::Passes]);
        assert_eq!(told(BreakerState::Passing), []);
        assert!(breakers.follow(&[]).is_empty() && breakers.open.is_empty());
    }
}
