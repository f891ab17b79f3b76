//! A snapshot in plain words: what `penstock check` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::sync::Arc;

use crate::breaker::BreakerPolicy;
use crate::canary::CanaryPolicy;
use crate::ledger::CrowdPolicy;
use crate::limiter::{Cost, LimitPolicy};
use crate::pick::{Rule, Split, Stickiness, Target, WithoutKey};
use crate::shadow::{Comparison, ShadowPolicy};
use crate::snapshot::{Fallback, ModelPolicy, Snapshot};

impl Snapshot {
    /// What these policies do, in plain words, a few lines per model and one per limit.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        write_snapshot(self, &mut text).expect("writing to a string does not fail");
        text
    }
}

impl ModelPolicy {
    /// The same of one model, line by line.
    pub fn lines(&self) -> Vec<String> {
        let mut text = String::new();
        write_model("", self, &mut text).expect("writing to a string does not fail");
        text.lines().skip(1).map(|line| line.trim_start().to_owned()).collect()
    }
}

impl Snapshot {
    /// The same of each limit, by its name and without it.
    pub fn limit_lines(&self) -> BTreeMap<String, String> {
        let line = |name: &str, write: &dyn Fn(&mut String) -> fmt::Result| {
            let mut text = String::new();
            write(&mut text).expect("writing to a string does not fail");
            let line = text.trim_end().strip_prefix(&format!("limit {name}: ")).unwrap_or(&text).to_owned();
            (name.to_owned(), line)
        };
        let limits = self.limits.iter().map(|limit| line(&limit.name, &|out| write_limit(limit, out)));
        let crowds = self.crowds().iter().map(|crowd| line(&crowd.name, &|out| write_crowd(crowd, out)));
        limits.chain(crowds).collect()
    }

    /// The same of what holds when there is not enough for all.
    pub(crate) fn overload_lines(&self) -> Vec<String> {
        let conditions = self.overload.criticality.iter();
        let lines = conditions.map(|(when, is)| format!("if {when}, a request is {}", is.as_str()));
        let tenant = self.overload.tenant.as_ref();
        let shares =
            tenant.map(|tenant| format!("each {tenant} has an equal share, those without it one together"));
        lines.chain(shares).collect()
    }
}

fn write_snapshot(snapshot: &Snapshot, out: &mut String) -> fmt::Result {
    if snapshot.models.is_empty() {
        writeln!(out, "every model: its highest ready version answers")?;
    }
    for (name, model) in &*snapshot.models {
        write_model(name, model, out)?;
    }
    for limit in &snapshot.limits {
        write_limit(limit, out)?;
    }
    for crowd in snapshot.crowds() {
        write_crowd(crowd, out)?;
    }
    let overload = snapshot.overload_lines();
    if !overload.is_empty() {
        writeln!(
            out,
            "when there is not enough for all, sheddable requests are turned away first, critical ones last"
        )?;
    }
    overload.iter().try_for_each(|line| writeln!(out, "  {line}"))
}

fn write_model(name: &str, model: &ModelPolicy, out: &mut String) -> fmt::Result {
    writeln!(out, "model {name}")?;
    for (version, remote) in &model.remotes {
        writeln!(out, "  version {version} is at {remote}")?;
    }
    for rule in &model.rules {
        write_rule(rule, model.canary.as_deref(), out)?;
    }
    match (&model.split, &model.canary) {
        (_, Some(canary)) => write_canary(canary, out)?,
        (Some(split), None) => write_split(split, out)?,
        (None, None) => writeln!(out, "  the highest ready version answers")?,
    }
    writeln!(out, "  a request without a deadline has {:?}", model.deadline)?;
    write_breaker(&model.breaker, out)?;
    if let Some(Fallback { version, in_flight_max }) = model.fallback {
        // Which versions there are is not the policy's to say.
        let is_open = model.split.is_none() && model.canary.is_none();
        let of = if is_open { "another's" } else { "its" };
        writeln!(out, "  version {version} then answers in {of} place, up to {in_flight_max} at a time")?;
    }
    match &model.shadow {
        Some(shadow) => {
            write_shadow(shadow, out)?;
            if model.chooses_only(shadow.version) {
                writeln!(
                    out,
                    "  but it is the only one that answers: nothing is copied but what names another one"
                )?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}

fn write_shadow(shadow: &ShadowPolicy, out: &mut String) -> fmt::Result {
    let (share, version) = (percent(f64::from(shadow.share) / 1e6), shadow.version);
    let most = shadow.in_flight_max;
    writeln!(
        out,
        "  version {version} gets a copy of {share} % of the requests, up to {most} at a time, and is compared"
    )?;
    if let Some(deadline) = shadow.deadline {
        writeln!(out, "  a copy has {deadline:?}")?;
    }
    let Comparison { tolerance, argmax, outputs } = &shadow.comparison;
    let (absolute, relative) = (tolerance.absolute(), tolerance.relative());
    writeln!(out, "  its numbers may differ by {absolute} and by {relative} times the larger one")?;
    for (output, tolerance) in outputs {
        let (absolute, relative) = (tolerance.absolute(), tolerance.relative());
        writeln!(out, "  those of its output {output} by {absolute} and by {relative} times the larger one")?;
    }
    for output in argmax {
        writeln!(out, "  of its output {output} only the place of the largest number counts")?;
    }
    Ok(())
}

fn write_rule(rule: &Rule, canary: Option<&CanaryPolicy>, out: &mut String) -> fmt::Result {
    write!(out, "  if {}, {} answers", rule.when, Named(&rule.target))?;
    match canary.filter(|canary| canary.candidate.version == rule.target.version) {
        Some(canary) => writeln!(out, "; {} once it is rolled back", Named(&canary.baseline)),
        None => writeln!(out),
    }
}

fn write_split(split: &Split, out: &mut String) -> fmt::Result {
    for (target, share) in split.shares() {
        writeln!(out, "  {} % go to {}", percent(share), Named(target))?;
    }
    write_stickiness(split.stickiness(), out)
}

fn write_canary(canary: &CanaryPolicy, out: &mut String) -> fmt::Result {
    let (baseline, candidate) = (Named(&canary.baseline), Named(&canary.candidate));
    let share = |share: &u32| percent(f64::from(*share) / 1e6);
    let steps: Vec<String> = canary.steps.iter().map(share).collect();
    writeln!(
        out,
        "  {candidate} gets {} % and then all, each for at least {:?}; {baseline} the rest",
        steps.join(", "),
        canary.dwell
    )?;
    write_stickiness(canary.stickiness.as_ref(), out)?;
    writeln!(
        out,
        "  more only once it is shown that fewer than {} % of its requests fail",
        share(&canary.failing_at_most)
    )?;
    if let Some(slow) = &canary.slow {
        writeln!(
            out,
            "  and that fewer than {} % of its answers take longer than {:?}",
            share(&slow.at_most),
            slow.over
        )?;
    }
    if let Some(faulty) = &canary.faulty_at_most {
        writeln!(out, "  and that fewer than {} % of its requests are its own fault", share(faulty))?;
    }
    if let Some(disagreeing) = &canary.disagreeing_at_most {
        let most = share(disagreeing);
        writeln!(
            out,
            "  and that it answers fewer than {most} % of the copies of requests otherwise than the baseline"
        )?;
    }
    if let Some(drifting) = &canary.drifting_at_most {
        let most = f64::from(*drifting) / 1e6;
        writeln!(
            out,
            "  and that its inputs and answers have moved by less than {most} bits from its first rows"
        )?;
    }
    writeln!(out, "  none any more as soon as it is shown to be worse than the baseline")
}

fn write_stickiness(stickiness: Option<&Stickiness>, out: &mut String) -> fmt::Result {
    match stickiness {
        None => writeln!(out, "  each request draws anew"),
        Some(sticky) => {
            write!(out, "  one {} always gets the same version; without it ", sticky.key)?;
            match &sticky.without_key {
                WithoutKey::Random => writeln!(out, "each request draws anew"),
                WithoutKey::Use(target) => writeln!(out, "{} answers", Named(target)),
            }
        }
    }
}

fn write_breaker(breaker: &BreakerPolicy, out: &mut String) -> fmt::Result {
    let BreakerPolicy { failures, open_for, max_open_for, probes, probe_timeout, .. } = breaker;
    let probes = match probes.get() {
        1 => "a probe is answered".to_owned(),
        several => format!("{several} probes are answered, each"),
    };
    writeln!(
        out,
        "  a version that fails {failures} times in a row is left alone for {open_for:?}, doubling up to \
         {max_open_for:?}, until {probes} within {probe_timeout:?}",
    )?;
    let share = |share: u32| percent(f64::from(share) / 1e6);
    let (window, of) = (breaker.window, breaker.of_at_least);
    if let Some(failing) = breaker.failing {
        writeln!(
            out,
            "  and so is one of which {} % of {of} or more requests fail within {window:?}",
            share(failing)
        )?;
    }
    if let Some(slow) = breaker.slow {
        let (percent, over) = (share(slow.at_most), slow.over);
        writeln!(
            out,
            "  and one of which {percent} % of {of} or more take longer than {over:?}, within {window:?}"
        )?;
    }
    Ok(())
}

fn write_limit(limit: &LimitPolicy, out: &mut String) -> fmt::Result {
    let of = match limit.cost {
        Cost::Requests => "",
        Cost::Rows => " rows",
        Cost::Bytes => " bytes",
    };
    write!(out, "limit {}: {}{of} with bursts of {}", limit.name, limit.rate, limit.burst)?;
    match &limit.key {
        Some(key) => write!(out, " per {key}, for up to {} at a time", limit.max_keys)?,
        None => write!(out, " for everyone together")?,
    }
    write_models(limit.models.as_ref(), out)
}

fn write_crowd(crowd: &CrowdPolicy, out: &mut String) -> fmt::Result {
    write!(out, "limit {}: {} under way at once", crowd.name, crowd.in_flight_max)?;
    match &crowd.key {
        Some(key) => write!(out, " per {key}")?,
        None => write!(out, " for everyone together")?,
    }
    write_models(crowd.models.as_ref(), out)
}

fn write_models(models: Option<&BTreeSet<Arc<str>>>, out: &mut String) -> fmt::Result {
    match models {
        Some(models) => {
            writeln!(out, ", on {}", models.iter().map(|name| &**name).collect::<Vec<_>>().join(", "))
        }
        None => writeln!(out, ", on every model"),
    }
}

/// A target as a reader wants to see it: `canary (version 2)`.
struct Named<'a>(&'a Target);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.label {
            Some(label) => write!(f, "{label} (version {})", self.0.version),
            None => write!(f, "version {}", self.0.version),
        }
    }
}

/// A share of 1 in percent, with up to six decimals and no zeros at the end.
fn percent(share: f64) -> String {
    let text = format!("{:.6}", share * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use crate::parse;

    #[test]
    fn a_policy_reads_as_sentences() {
        let text = "
models:
  digits:
    labels: {stable: 1, canary: 2}
    remote: {1: {url: \"http://triton:8000/v2/models/digits/infer\"}}
    rules:
      - when: {header: X-Cohort, equals: beta}
        use: canary
      - when: {path: {starts_with: /predictions/}}
        use: stable
    split:
      weights: {stable: 2, canary: 1}
      sticky: {cookie: uid}
      without_key: stable
    deadline: 500ms
    breaker: {failing: 50, slow: {over: 400ms, percent: 80}, fallback: {version: stable}}
    shadow: {version: 3, percent: 5, deadline: 2s, compare: {relative: 0.01, argmax: [digit], outputs: {box: {absolute: 2}}}}
limits:
  - {name: per-user, key: {header: x-user-id}, models: [digits], rate: 100/s, burst: 20}
";
        let expected = "\
model digits
  version 1 is at http://triton:8000/v2/models/digits/infer
  if header x-cohort is `beta`, canary (version 2) answers
  if the path starts with `/predictions/`, stable (version 1) answers
  66.666667 % go to stable (version 1)
  33.333333 % go to canary (version 2)
  one cookie uid always gets the same version; without it stable (version 1) answers
  a request without a deadline has 500ms
  a version that fails 5 times in a row is left alone for 10s, doubling up to 60s, until a probe is answered within 500ms
  and so is one of which 50 % of 20 or more requests fail within 10s
  and one of which 80 % of 20 or more take longer than 400ms, within 10s
  version 1 then answers in its place, up to 32 at a time
  version 3 gets a copy of 5 % of the requests, up to 8 at a time, and is compared
  a copy has 2s
  its numbers may differ by 0.0001 and by 0.01 times the larger one
  those of its output box by 2 and by 0 times the larger one
  of its output digit only the place of the largest number counts
limit per-user: 100/s with bursts of 20 per header x-user-id, for up to 100000 at a time, on digits
";
        assert_eq!(parse(text, "policies.yaml").unwrap().explain(), expected);
    }

    #[test]
    fn a_rollout_reads_as_sentences() {
        let text = "
models:
  digits:
    labels: {stable: 1, canary: 2}
    rules: [{when: {header: x-cohort, equals: beta}, use: canary}]
    canary:
      baseline: stable
      candidate: canary
      steps: [0.5, 10]
      dwell: 1m
      sticky: {header: x-user-id}
      gates: {latency: {over: 200ms, at_most: 5}}
";
        let expected = "\
model digits
  if header x-cohort is `beta`, canary (version 2) answers; stable (version 1) once it is rolled back
  canary (version 2) gets 0.5, 10 % and then all, each for at least 60s; stable (version 1) the rest
  one header x-user-id always gets the same version; without it each request draws anew
  more only once it is shown that fewer than 1 % of its requests fail
  and that fewer than 5 % of its answers take longer than 200ms
  none any more as soon as it is shown to be worse than the baseline
";
        let explained = parse(text, "policies.yaml").unwrap().explain();
        assert!(explained.starts_with(expected), "{explained}");
    }

    #[test]
    fn a_version_that_nobody_is_known_to_be_sent_to_stands_in_for_others() {
        let says = |policy: &str| parse(policy, "p").unwrap().explain();
        let open = says("models: {m: {breaker: {fallback: {version: 1}}}}");
        assert!(open.contains("version 1 then answers in another's place"), "{open}");
        let rollout =
            says("models: {m: {canary: {baseline: 1, candidate: 2}, breaker: {fallback: {version: 1}}}}");
        assert!(rollout.contains("version 1 then answers in its place"), "{rollout}");
    }

    #[test]
    fn a_shadow_of_the_only_version_that_answers_is_said_to_get_no_copies() {
        let says = |of: &str| {
            parse(&format!("models: {{m: {{{of}, shadow: {{version: 2}}}}}}"), "p").unwrap().explain()
        };
        let in_vain = "but it is the only one that answers: nothing is copied but what names another one";
        assert!(says("split: {weights: {2: 1}}").contains(in_vain));
        for of in [
            "split: {weights: {1: 1}}",
            "split: {weights: {1: 1, 2: 1}}",
            "split: {weights: {2: 1}}, rules: [{when: {header: a, present: true}, use: 1}]",
            "canary: {baseline: 1, candidate: 2}",
            "deadline: 1s",
        ] {
            assert!(!says(of).contains(in_vain), "{of}");
        }
    }

    #[test]
    fn no_policy_is_a_policy_too() {
        assert_eq!(
            parse("", "policies.yaml").unwrap().explain(),
            "every model: its highest ready version answers\n"
        );
    }
}
