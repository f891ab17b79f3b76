//! Which requests are asked once more, and whom: only where the engine says that nothing ran, or nothing was sent, once, and
//! within bounds that the core keeps. Never feeds an overload, never repeats a run that has failed or may have begun.

use super::{Asking, By, InferPath, is_ready};
use crate::call::Call;
use crate::caller::Caller;
use crate::link::Link;
use crate::record::{Record, Retry};
use crate::refusal::Refusal;
use policies::{Instead, NotAgain, Pass, Version};
use std::time::{Duration, Instant};

/// News of a version that the engine has just taken out comes within this, on another connection.
const NEWS_MAX: Duration = Duration::from_millis(250);

/// Why a version has not answered, and whether asking once more may help.
pub(super) struct Unanswered {
    pub(super) refusal: Refusal,
    pub(super) again: Again,
    /// The engine has gone with it.
    pub(super) is_lost: bool,
}

/// Only what was not run is asked again.
pub(super) enum Again {
    /// It may have run, or would be refused again.
    Never,
    /// The version is gone: the policy may name another one.
    Choose,
    /// The engine has not taken it, or not over this link: another one may have taken over.
    Ask(Option<Link>),
    /// The server of the version is not there: the one that answers while its breaker is open may as well answer before it is.
    FallBack,
}

impl From<Refusal> for Unanswered {
    fn from(refusal: Refusal) -> Self {
        let is_unreachable = matches!(refusal, Refusal::RemoteUnreachable(_));
        let again = if is_unreachable { Again::FallBack } else { Again::Never };
        Self { refusal, again, is_lost: false }
    }
}

impl InferPath {
    /// Whom to ask once more, now that nothing has run: the same version, or whichever the policy names instead, if that
    /// lets it in and not too many were asked twice. A version in the path is never replaced.
    pub(super) async fn once_more<'a, C: Call>(
        &self,
        call: &C,
        again: &Again,
        asking: &Asking<'a>,
        record: &mut Record,
    ) -> Option<(Asking<'a>, Pass)> {
        let Asking { snapshot, target, .. } = *asking;
        let (reason, models, version) = match again {
            Again::Never => return None,
            Again::FallBack => return self.ask_fallback(asking, record),
            Again::Ask(asked) => {
                let link = self.links.worker().await.ok()?;
                // The same engine would say the same.
                if asked.as_ref().is_some_and(|asked| asked.is(&link)) {
                    return None;
                }
                (Retry::ENGINE_REPLACED, self.directory.load(), asking.version)
            }
            Again::Choose if target.pinned.is_some() => return None,
            Again::Choose => {
                let news = self.directory.changed_since(&asking.models);
                // If there is none, the same version is named again.
                let _ = tokio::time::timeout(NEWS_MAX.min(asking.deadline.left(Instant::now())), news).await;
                let models = self.directory.load();
                let caller = Caller::with_body(call.head(), asking.of_body);
                let chosen = self.pick(snapshot, &models, target, &caller)?;
                let is_ready = is_ready(snapshot, &models, target.model, chosen.number);
                if !is_ready {
                    return None;
                }
                (Retry::UNLOADED, models, chosen.number)
            }
        };
        let now = Instant::now();
        if asking.deadline.left(now).is_zero() {
            return None;
        }
        let versions = (Version(asking.version), Version(version));
        let pass = match self.ledger.enter_again(snapshot, target.model, versions, now) {
            Ok(pass) => pass,
            Err(NotAgain::Tripped) => return None,
            Err(NotAgain::OverBudget) => {
                record.retry = Some(Retry { version: asking.version, reason, is_asked: false });
                return None;
            }
        };
        record.ask_again(Retry { version: asking.version, reason, is_asked: true });
        let is_same = version == asking.version;
        if !is_same {
            record.divert(version, Instead::Retry);
        }
        let by = By { assigned: asking.by.assigned.filter(|_| is_same), ..asking.by };
        Some((Asking { models, version, by, now, ..*asking }, pass))
    }

    /// Whom to ask in place of a version whose server is not there. How many that may be at once has its own bound, and they cost
    /// the server nothing: no budget is asked.
    fn ask_fallback<'a>(&self, asking: &Asking<'a>, record: &mut Record) -> Option<(Asking<'a>, Pass)> {
        let Asking { snapshot, target, .. } = *asking;
        let now = Instant::now();
        if asking.deadline.left(now).is_zero() {
            return None;
        }
        let models = self.directory.load();
        let (version, pass) = self.fall_back(snapshot, &models, target, asking.version, now)?;
        record.ask_again(Retry { version: asking.version, reason: Retry::UNREACHABLE, is_asked: true });
        record.divert(version, Instead::Fallback);
        let by = By { assigned: None, ..asking.by };
        Some((Asking { models, version, by, now, ..*asking }, pass))
    }
}
