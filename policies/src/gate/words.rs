//! What a gate tells a person: why the candidate is worse, and what somebody has to say something about. Decides nothing.

use super::few::All;
use super::refusals::TooMany;
use super::{Event, Gate};
use crate::canary::Grounds;
use crate::units::{Version, share_of_all};

impl Gate {
    /// That the candidate is worse, with what that is made of.
    pub(crate) fn why_worse(&self, version: Version, baseline: Version) -> String {
        let grounds = self.grounds();
        let (Grounds { all, by_share, .. }, of_candidate) = (grounds, grounds.in_words());
        let (is, what) = match self.event {
            Event::Error => ("fails", "failures"),
            Event::Slow(_) => ("is slow", "slow answers"),
            Event::Fault => ("is at fault", "faults"),
            Event::Disagreement => {
                let most = self.percent_at_most();
                return format!(
                    "version {version} disagrees with version {baseline} more often than {most} %: {of_candidate} of the last {all} \
                     answers that were compared differ, where {by_share:.1} may"
                );
            }
        };
        format!(
            "version {version} {is} more often than version {baseline}: {of_candidate} of the last {all} {what} are its, where its \
             share of the requests makes {by_share:.1}"
        )
    }

    /// What a person has to say, if so: the numbers alone may not.
    pub(crate) fn why_asked(&self, version: Version, baseline: Version) -> Option<String> {
        let Grounds { all, of_candidate, by_share, .. } = self.leavers.are_unlike()?;
        let gate = self.event.gate();
        Some(format!(
            "{gate}: {of_candidate} of the last {all} who left sooner than version {baseline} is known to answer are version \
             {version}'s, where its share of the requests makes {by_share:.1}: a person has to say so"
        ))
    }

    /// What the candidate refuses, if that is more than it may.
    pub(crate) fn why_refusing(&self, version: Version, baseline: Version) -> Option<String> {
        let too_many = self.refusals.are_too_many(share_of_all(self.at_most))?;
        let TooMany { refused, explained, requests } = too_many;
        let percent = |part: f64| 100.0 * part / requests;
        let (refused, explained) = (percent(refused), percent(explained));
        let (gate, most) = (self.event.gate(), self.percent_at_most());
        Some(format!(
            "{gate}: version {version} refuses {refused:.1} % of what it is asked, where what version {baseline} refuses makes \
             {explained:.1} % and {most} % may fail: a person has to say whose fault that is, or it ends"
        ))
    }

    /// The same of few users, if it refuses each of them something, and the baseline none of so many that it has answered.
    pub(crate) fn why_refusing_all(
        &self,
        version: Version,
        (baseline, of_baseline): (Version, usize),
    ) -> Option<String> {
        let All { users, refused, requests } =
            self.few.are_all_refused(share_of_all(self.at_most), of_baseline)?;
        let gate = self.event.gate();
        Some(format!(
            "{gate}: version {version} has refused {refused} of {requests}, of each of its {users} users some, and version \
             {baseline} none of its own: a person has to say whose fault that is, or it ends"
        ))
    }

    /// What the candidate misses of deadlines that callers have brought, if that is more than it may.
    pub(crate) fn why_missing(&self, version: Version, baseline: Version) -> Option<String> {
        let TooMany { refused: missed, explained, requests } =
            self.misses.are_too_many(share_of_all(self.at_most))?;
        let (gate, most) = (self.event.gate(), self.percent_at_most());
        Some(format!(
            "{gate}: version {version} has missed {missed:.1} deadlines that its callers have brought, where what version {baseline} \
             misses makes {explained:.1} and {most} % of {requests:.0} may fail: a person has to say whose fault that is, or it ends"
        ))
    }
}
