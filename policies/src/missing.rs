//! What a policy names and nobody has: versions that are not ready, and models that are not known. Only told, to whoever
//! plans or changes a policy, or looks at a process: a slip of the pen reads like the name of what will come, so nothing is refused
//! for it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::attribute::{Attribute, Field};
use crate::ledger::Ledger;
use crate::shadow::Comparison;
use crate::snapshot::{ModelPolicy, Snapshot};
use crate::units::{ALL, Millionths, Version};

/// What there is for a policy to name.
pub trait Known {
    /// Whether this version answers now.
    fn is_ready(&self, model: &str, version: Version) -> bool;

    /// Whether there is a model of this name, in whatever state.
    fn has(&self, model: &str) -> bool;

    /// Names of what versions of a model take, of all that are ready; nothing where one does not say.
    fn inputs(&self, model: &str) -> Option<BTreeSet<String>>;

    /// Names of what they give.
    fn outputs(&self, model: &str) -> Option<BTreeSet<String>>;
}

impl Ledger {
    /// What `new` names, `old` did not say in the same way, and nobody has; with the model or limit that it is about.
    pub fn missing(&self, old: &Snapshot, new: &Snapshot, known: &impl Known) -> Vec<(String, String)> {
        let is_new = |name: &str, policy: &ModelPolicy| old.model(name) != Some(policy);
        let models = new.models().filter(|(name, policy)| is_new(name, policy)).flat_map(|(name, policy)| {
            let before = old.model(name).and_then(|policy| policy.canary.as_deref());
            let share = policy.canary.as_deref().map_or(0, |canary| self.share(name, canary, before));
            let lines = missing_lines(name, policy, share, known);
            lines.into_iter().map(move |line| (format!("model {name}"), line))
        });
        let (before, after) = (old.limit_lines(), new.limit_lines());
        let limits = after.keys().filter(|name| before.get(*name) != after.get(*name)).flat_map(|name| {
            missing_models(name, new, known).into_iter().map(move |line| (format!("limit {name}"), line))
        });
        models.chain(limits).collect()
    }
}

/// A version that a policy names and that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its number.
    pub version: Version,
    /// As what it is named, such as `version 7 of the rules`.
    named: String,
    /// What becomes of whoever is meant for it.
    pub so: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not ready: {}", self.named, self.so)
    }
}

impl Ledger {
    /// Versions that `snapshot` names of a model and that do not answer, as far as rollouts are now; a version may be there several
    /// times.
    pub fn missing_versions(
        &self,
        snapshot: &Snapshot,
        model: &str,
        is_ready: impl Fn(Version) -> bool,
    ) -> Vec<Missing> {
        let Some(policy) = snapshot.model(model) else { return Vec::new() };
        let share = policy.canary.as_deref().map_or(0, |canary| self.share(model, canary, None));
        missing_versions(policy, share, is_ready)
    }
}

/// The same where the candidate of its rollout has this share.
fn missing_versions(
    policy: &ModelPolicy,
    share: Millionths,
    is_ready: impl Fn(Version) -> bool,
) -> Vec<Missing> {
    let is_missing = |version: &Version| !policy.remotes.contains_key(version) && !is_ready(*version);
    let mut all = Vec::new();
    let mut note = |version: Version, named: String, so: &str| {
        if is_missing(&version) {
            all.push(Missing { version, named, so: so.to_owned() });
        }
    };
    let arms = policy.canary.as_deref().map(|canary| canary.versions_of_arms());
    let nobody_gets_it = share == 0;
    if let Some((baseline, candidate)) = arms {
        let all_get_it = share == ALL && !is_missing(&candidate);
        if !nobody_gets_it {
            let so = format!("until it is, version {baseline} answers for it");
            note(candidate, format!("version {candidate}"), &so);
        }
        if !all_get_it {
            note(baseline, format!("version {baseline}, the baseline,"), "its requests are refused");
        }
    }
    let split: BTreeSet<Version> = policy.split.iter().flat_map(|split| split.versions()).collect();
    for version in split {
        note(version, format!("version {version} of the split"), "its requests are refused");
    }
    if let Some(version) = policy.canary.as_deref().and_then(|canary| canary.without_key()) {
        note(version, format!("version {version}"), "who has no sticky key is refused");
    }
    // Where a candidate was rolled back, a rule gives its requests to the baseline; before, it takes the candidate at its word.
    let is_over =
        |version: Version| nobody_gets_it && arms.is_some_and(|(_, candidate)| candidate == version);
    let rules: BTreeSet<Version> = policy.rules.iter().map(|rule| rule.target.version).collect();
    for version in rules.into_iter().filter(|version| !is_over(*version)) {
        note(version, format!("version {version} of the rules"), "whom a rule sends there is refused");
    }
    for (label, version) in &policy.labels {
        note(*version, format!("version {version}, labelled {label},"), "who asks for it is refused");
    }
    if let Some(version) = policy.fallback() {
        note(version, format!("version {version}"), "nobody can fall back to it");
    }
    if let Some(shadow) = &policy.shadow {
        note(shadow.version, format!("version {}", shadow.version), "copies for it fail");
    }
    all
}

/// Of a model, as sentences; the candidate of its rollout has this share.
pub(crate) fn missing_lines(
    name: &str,
    policy: &ModelPolicy,
    share: Millionths,
    known: &impl Known,
) -> Vec<String> {
    let missing = missing_versions(policy, share, |version| known.is_ready(name, version));
    if missing.is_empty() && policy.remotes.is_empty() && !known.has(name) {
        return vec!["no model is called so: until there is one, this process is not ready".into()];
    }
    let tensors = missing_tensors(name, policy, known);
    missing.iter().map(Missing::to_string).chain(tensors).collect()
}

/// Names of inputs and outputs that no version has: what is read there is never found.
fn missing_tensors(name: &str, policy: &ModelPolicy, known: &impl Known) -> Vec<String> {
    let canary = policy.canary.as_deref().and_then(|canary| canary.stickiness.as_ref());
    let sticky = canary.or_else(|| policy.split.as_ref().and_then(|split| split.stickiness()));
    let key = match sticky.map(|sticky| &sticky.key) {
        Some(Attribute::Body(Field::Input(input))) => Some(input),
        Some(
            Attribute::Body(Field::Parameter(_))
            | Attribute::Header(_)
            | Attribute::Cookie(_)
            | Attribute::Query(_)
            | Attribute::Path,
        )
        | None => None,
    };
    let compared = policy.shadow.iter().flat_map(|shadow| {
        let Comparison { argmax, outputs, .. } = &shadow.comparison;
        argmax
            .iter()
            .map(|name| (name, "its argmax is"))
            .chain(outputs.keys().map(|name| (name, "its bounds are")))
    });
    let is_in = |names: Option<BTreeSet<String>>, name: &str| names.is_none_or(|names| names.contains(name));
    let inputs = key.filter(|input| !is_in(known.inputs(name), input));
    let outputs = compared.filter(|(output, _)| !is_in(known.outputs(name), output));
    let no_input =
        inputs.into_iter().map(|input| format!("no version has an input {input}: nobody has the sticky key"));
    no_input
        .chain(
            outputs.map(|(output, what)| format!("no version has an output {output}: {what} not looked at")),
        )
        .collect()
}

/// Of a limit, as sentences.
pub(crate) fn missing_models(limit: &str, policy: &Snapshot, known: &impl Known) -> Vec<String> {
    let of_rates = policy.limits().iter().filter(|one| *one.name == *limit).map(|one| &one.models);
    let of_crowds = policy.crowds().iter().filter(|one| *one.name == *limit).map(|one| &one.models);
    let models: BTreeSet<&Arc<str>> = of_rates.chain(of_crowds).flatten().flatten().collect();
    let is_missing = |model: &&Arc<str>| policy.model(model).is_none() && !known.has(model);
    models.into_iter().filter(is_missing).map(|model| format!("no model is called {model}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canary::Command;
    use crate::parse;
    use std::time::Instant;

    /// Versions 1 and 2 of `m`, and version 1 of `bare`.
    struct Here;

    impl Known for Here {
        fn is_ready(&self, model: &str, version: Version) -> bool {
            matches!((model, version.0), ("m", 1 | 2) | ("bare", 1))
        }

        fn has(&self, model: &str) -> bool {
            ["m", "bare"].contains(&model)
        }

        fn inputs(&self, model: &str) -> Option<BTreeSet<String>> {
            (model == "m").then(|| ["x".to_owned()].into())
        }

        fn outputs(&self, model: &str) -> Option<BTreeSet<String>> {
            (model == "m").then(|| ["y".to_owned()].into())
        }
    }

    #[track_caller]
    fn told(policy: &str) -> Vec<String> {
        let policy = parse(policy, "p").unwrap_or_else(|errors| panic!("{errors}"));
        let ledger = Ledger::new();
        let told = ledger.missing(&Snapshot::default(), &policy, &Here);
        assert!(ledger.missing(&policy, &policy, &Here).is_empty(), "what was so before is not told again");
        told.into_iter().map(|(of, line)| format!("{of}: {line}")).collect()
    }

    #[test]
    fn versions_that_nobody_has_are_told_by_what_they_are_for() {
        let split = "split: {weights: {1: 1, 8: 1}, sticky: {header: u}, without_key: 9}, labels: {next: 7}, \
                     rules: [{when: {header: h, equals: x}, use: 6}]";
        let others = "breaker: {fallback: {version: 5}}, shadow: {version: 4}";
        assert_eq!(
            told(&format!("models: {{m: {{{split}, {others}}}}}")),
            [
                "model m: version 8 of the split is not ready: its requests are refused",
                "model m: version 9 of the split is not ready: its requests are refused",
                "model m: version 6 of the rules is not ready: whom a rule sends there is refused",
                "model m: version 7, labelled next, is not ready: who asks for it is refused",
                "model m: version 5 is not ready: nobody can fall back to it",
                "model m: version 4 is not ready: copies for it fail",
            ]
        );
        assert_eq!(
            told("models: {m: {canary: {baseline: 9, candidate: 8, steps: [10]}}}"),
            [
                "model m: version 8 is not ready: until it is, version 9 answers for it",
                "model m: version 9, the baseline, is not ready: its requests are refused",
            ]
        );
    }

    #[test]
    fn of_each_it_is_told_what_follows_also_while_its_policy_is_in_force() {
        let policy = "models: {m: {rules: [{when: {header: h, equals: x}, use: 6}, {when: {header: h, equals: y}, use: 1}], \
                      breaker: {fallback: {version: 6}}, remote: {8: {url: 'http://there/infer'}}, labels: {there: 8}}}";
        let (policy, ledger) = (parse(policy, "p").unwrap(), Ledger::new());
        let missing = ledger.missing_versions(&policy, "m", |version| Here.is_ready("m", version));
        let told: Vec<_> = missing.iter().map(|missing| (missing.version.0, missing.so.as_str())).collect();
        assert_eq!(told, [(6, "whom a rule sends there is refused"), (6, "nobody can fall back to it")]);
        assert_eq!(ledger.missing_versions(&policy, "other", |_| false), []);
        let mentioned: Vec<_> =
            policy.model("m").unwrap().mentioned().iter().map(|version| version.0).collect();
        assert_eq!(mentioned, [1, 6, 8]);
    }

    #[test]
    fn who_gets_nothing_from_a_decided_rollout_is_not_missed() {
        let policy = |baseline: u64, candidate: u64, deadline: &str| {
            let canary = format!("{{baseline: {baseline}, candidate: {candidate}, steps: [10]}}");
            parse(&format!("models: {{m: {{deadline: {deadline}, canary: {canary}}}}}"), "p").unwrap()
        };
        let told = |baseline: u64, candidate: u64, command: Command| {
            let (ledger, now) = (Ledger::new(), Instant::now());
            let before = policy(baseline, candidate, "1s");
            ledger.roll_out(&before, now);
            ledger.command("m", command, "", now).unwrap();
            let lines = ledger.missing(&before, &policy(baseline, candidate, "2s"), &Here);
            lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        let nothing = [""; 0];
        assert_eq!(told(1, 8, Command::Abort), nothing);
        assert_eq!(told(9, 1, Command::Promote), nothing);
        let baseline = "version 9, the baseline, is not ready: its requests are refused";
        assert_eq!(told(9, 1, Command::Abort), [baseline]);
        let candidate = "version 8 is not ready: until it is, version 9 answers for it";
        assert_eq!(told(9, 8, Command::Promote), [candidate, baseline]);
    }

    /// A rule asks whether its version was rolled back, and not whether it is ready.
    #[test]
    fn of_whom_a_rule_sends_to_a_missing_version_it_is_told_what_becomes_of_them() {
        let policy = |baseline: u64, candidate: u64, rule: u64, deadline: &str| {
            let canary = format!(
                "canary: {{baseline: {baseline}, candidate: {candidate}, steps: [10], sticky: {{header: u}}, without_key: 7}}"
            );
            let rules = format!("rules: [{{when: {{header: h, equals: x}}, use: {rule}}}]");
            parse(&format!("models: {{m: {{deadline: {deadline}, {rules}, {canary}}}}}"), "p").unwrap()
        };
        let told = |baseline: u64, candidate: u64, rule: u64, command: Option<Command>| {
            let (ledger, now) = (Ledger::new(), Instant::now());
            let before = policy(baseline, candidate, rule, "1s");
            ledger.roll_out(&before, now);
            if let Some(command) = command {
                ledger.command("m", command, "", now).unwrap();
            }
            let lines = ledger.missing(&before, &policy(baseline, candidate, rule, "2s"), &Here);
            lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        let keyless = "version 7 is not ready: who has no sticky key is refused";
        let by_rule = |version: u64| {
            format!("version {version} of the rules is not ready: whom a rule sends there is refused")
        };
        let others = "version 8 is not ready: until it is, version 1 answers for it";
        for command in [None, Some(Command::Promote)] {
            assert_eq!(told(1, 8, 8, command), [others, keyless, &by_rule(8)], "{command:?}");
        }
        assert_eq!(told(1, 8, 8, Some(Command::Abort)), [keyless], "the baseline answers");
        let baseline = "version 9, the baseline, is not ready: its requests are refused";
        assert_eq!(told(9, 8, 8, Some(Command::Abort)), [baseline, keyless], "it would");
        assert_eq!(told(9, 1, 9, Some(Command::Promote)), [keyless, &by_rule(9)]);
        assert_eq!(told(1, 2, 6, Some(Command::Abort)), [keyless, &by_rule(6)], "another one than those");
    }

    #[test]
    fn what_is_here_or_at_another_server_is_not_missed() {
        let remote = "remote: {8: {url: 'http://there/infer'}}";
        let policy =
            format!("models: {{m: {{{remote}, canary: {{baseline: 1, candidate: 8, steps: [10]}}}}}}");
        assert_eq!(told(&policy), [""; 0]);
        assert_eq!(told("models: {m: {split: {weights: {1: 1, 2: 1}}, shadow: {version: 2}}}"), [""; 0]);
    }

    #[test]
    fn tensors_and_models_of_no_such_name_are_told() {
        let policy = |model: &str, input: &str, output: &str| {
            format!(
                "models: {{{model}: {{split: {{weights: {{1: 1}}, sticky: {{input: {input}}}}}, \
                 shadow: {{version: 1, compare: {{argmax: [{output}], outputs: {{{output}1: {{absolute: 1}}}}}}}}}}}}"
            )
        };
        assert_eq!(
            told(&policy("m", "x", "y")),
            ["model m: no version has an output y1: its bounds are not looked at"]
        );
        assert_eq!(
            told(&policy("m", "xx", "yy")),
            [
                "model m: no version has an input xx: nobody has the sticky key",
                "model m: no version has an output yy: its argmax is not looked at",
                "model m: no version has an output yy1: its bounds are not looked at"
            ]
        );
        assert_eq!(told(&policy("bare", "xx", "yy")), [""; 0], "it does not say");
        assert_eq!(
            told("models: {mm: {deadline: 1s}}"),
            ["model mm: no model is called so: until there is one, this process is not ready"]
        );
    }

    #[test]
    fn a_limit_for_a_model_of_no_such_name_is_told_to_be_for_nobody() {
        let limit = |models: &str| {
            format!(
                "models: {{coming: {{remote: {{1: {{url: 'http://there/infer'}}}}}}}}\n\
                 limits: [{{name: a, rate: 1/s, models: {models}}}, {{name: b, in_flight_max: 2, models: {models}}}]"
            )
        };
        assert_eq!(told(&limit("[m, bare, coming]")), [""; 0]);
        assert_eq!(
            told(&limit("[m, bar]")),
            ["limit a: no model is called bar", "limit b: no model is called bar"]
        );
    }
}
