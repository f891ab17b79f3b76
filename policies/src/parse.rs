//! From text to a snapshot, or to every mistake with its line, column and field.
//!
//! Most good files are read once, and quickly, by `plain.rs`. What that leaves, serde-saphyr reads.
//!
//! Locations come from serde-saphyr: while it reads, it notes where each field stands, and while garde validates, it
//! looks up the fields that were complained about. Our checks need several fields at once, so the whole of
//! `compile.rs` runs as the validation of the file, and the compiled snapshot is left in the context.

use std::cell::OnceCell;

use garde::Validate;
use garde::error::{Path, Report};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::path_map::{PathKey, PathKind};
use serde_saphyr::{Location, MessageFormatter, NonFiniteFloatPolicy, Options, UserMessageFormatter};

use crate::compile::{Fault, compile};
use crate::errors::{PolicyError, PolicyErrors, did_you_mean};
use crate::plain;
use crate::schema::File;
use crate::snapshot::Snapshot;

/// Reads a policy file; `origin` is its name in messages. The empty text is the empty policy.
///
/// # Errors
/// Everything that is wrong with the values, in one go. Text that is not YAML, a field that does not exist and a value
/// of the wrong type are reported alone, because reading stops there.
pub fn parse(text: &str, origin: &str) -> Result<Snapshot, PolicyErrors> {
    // Noting where each field stands takes as long as reading them; only a file that is wrong is read so.
    let file =
        plain::read(text).or_else(|| serde_saphyr::from_str_with_options::<File>(text, options()).ok());
    if let Some(file) = file
        && let Ok(snapshot) = compile(&file)
    {
        return Ok(snapshot);
    }
    let compiled = OnceCell::new();
    match serde_saphyr::from_str_with_options_context_valid::<File>(text, options(), &compiled) {
        Ok(_) => Ok(compiled.into_inner().expect("a valid file has been compiled")),
        Err(error) => Err(PolicyErrors::new(located(error.without_snippet(), text, origin))),
    }
}

pub(crate) fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        // Whoever asks for a number refuses those.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        // A thousand models may well be the alias of one; what aliases stand for is bounded as a whole.
        budget: serde_saphyr::budget! { enforce_alias_anchor_ratio: false },
    }
}

impl Validate for File {
    type Context = OnceCell<Snapshot>;

    fn validate_into(&self, compiled: &Self::Context, _: &mut dyn FnMut() -> Path, report: &mut Report) {
        match compile(self) {
            Ok(snapshot) => compiled.set(snapshot).expect("a file is validated once"),
            Err(faults) => {
                for (path, fault) in faults {
                    report.append(path, garde::Error::new(fault));
                }
            }
        }
    }
}

fn located(error: &serde_saphyr::Error, text: &str, origin: &str) -> Vec<PolicyError> {
    let at = |location: Option<Location>, path: String, message: String| PolicyError {
        origin: origin.to_owned(),
        line: location.map_or(0, |location| location.line()),
        column: location.map_or(0, |location| location.column()),
        path,
        message,
    };
    match error {
        serde_saphyr::Error::ValidationError { issues, locations, .. } => issues
            .iter()
            .map(|issue| {
                let location =
                    locations.locations_for(&issue.path).and_then(|found| found.primary_location());
                at(location, dotted(&issue.path), issue.message.clone().unwrap_or_default())
            })
            .collect(),
        unreadable => {
            vec![at(unreadable.location(), field_being_read(text), in_plain_words(unreadable))]
        }
    }
}

/// `limits[0].rate`, as the author would say it.
fn dotted(path: &PathKey) -> String {
    let mut text = String::new();
    for (kind, name) in path.segments() {
        match kind {
            PathKind::Index => text.extend(["[", name, "]"]),
            PathKind::Key if text.is_empty() => text.push_str(name),
            PathKind::Key => text.extend([".", name]),
        }
    }
    text
}

/// serde-saphyr's message, except where it speaks of Rust types and parser events.
fn in_plain_words(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error::{
        AliasError, Budget, ExpectedMappingEndAfterEnumVariantValue,
        ExpectedStringKeyForExternallyTaggedEnum, InvalidScalar, NullIntoString, SerdeUnknownField,
        SerdeUnknownVariant, Unexpected,
    };
    match error {
        AliasError { error, .. } => in_plain_words(error),
        Budget { breach: BudgetBreach::Nodes { nodes }, .. } => {
            format!("expected less than {nodes} values, with those that aliases stand for")
        }
        Budget { breach: BudgetBreach::Depth { depth }, .. } => {
            format!("expected a value that is nested less than {depth} deep")
        }
        // By its tag it would be one.
        InvalidScalar { .. } => "expected a number".to_owned(),
        NullIntoString { .. } => "expected a text, got nothing".to_owned(),
        Unexpected { expected: "string scalar", .. } => "expected a text".to_owned(),
        Unexpected { expected: "mapping start", .. } => "expected a mapping".to_owned(),
        Unexpected { expected: "sequence start", .. } => "expected a list".to_owned(),
        ExpectedMappingEndAfterEnumVariantValue { .. } | ExpectedStringKeyForExternallyTaggedEnum { .. } => {
            Fault::OneAttribute.to_string()
        }
        SerdeUnknownField { field: name, expected, .. }
        | SerdeUnknownVariant { variant: name, expected, .. } => {
            let message = UserMessageFormatter.format_message(error);
            let is_top = expected.contains(&"models");
            if is_top && FIXED.contains(&name.as_ref()) {
                return format!(
                    "`{name}` is fixed when the process starts: it stands in its configuration, penstock.yaml, and a change of it \
                     needs a restart"
                );
            }
            format!("{message}{}", did_you_mean(name, expected.iter().copied()))
        }
        other => UserMessageFormatter.format_message(other).into_owned(),
    }
}

/// What somebody may look for here, and stands in the configuration of the process.
const FIXED: [&str; 9] =
    ["listen", "workers", "policies", "state", "engine", "requests", "log", "traces", "drain"];

/// Where reading stops. serde-saphyr tells the line but not the field, so the text is read once more, with a witness.
fn field_being_read(text: &str) -> String {
    let mut path = String::new();
    let _unreadable =
        serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
            serde_path_to_error::deserialize::<_, File>(deserializer).map_err(|error| {
                // The witness writes `?` for a key that it did not get to see.
                path = error.path().to_string().trim_end_matches(['?', '.']).to_owned();
                error.into_inner()
            })
        });
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a file that is wrong and compares the messages, one per line.
    #[track_caller]
    fn refuses(text: &str, messages: &str) {
        let errors = parse(text, "p.yaml").expect_err("the file is wrong");
        assert_eq!(format!("\n{errors}\n"), messages);
    }

    #[test]
    fn nothing_is_a_policy() {
        for text in ["", "# only a comment\n", "models: {}\nlimits: []\n", "models: {digits: {}}"] {
            assert!(parse(text, "p.yaml").is_ok(), "{text:?}");
        }
        assert_eq!(parse("", "p.yaml"), Ok(Snapshot::default()));
    }

    #[test]
    fn mappings_may_bring_keys_of_others() {
        let merged = "models:\n  a: &a {deadline: 3s, labels: {x: 1}}\n  b: {<<: *a, labels: {y: 2}}\n";
        let written = "models:\n  a: {deadline: 3s, labels: {x: 1}}\n  b: {deadline: 3s, labels: {y: 2}}\n";
        assert_eq!(parse(merged, "p.yaml").unwrap(), parse(written, "p.yaml").unwrap());
    }

    #[test]
    fn what_is_fixed_at_start_is_told_to_be_so() {
        refuses(
            "models: {}\nlisten: {http: '127.0.0.1:9000'}\n",
            "
p.yaml:2:1: listen: `listen` is fixed when the process starts: it stands in its configuration, penstock.yaml, and a change of it needs a restart
",
        );
        let errors = parse("limit: []", "p.yaml").unwrap_err().to_string();
        assert!(errors.contains("did you mean `limits`?"), "{errors}");
    }

    #[test]
    fn every_fault_of_a_file_is_reported_at_once() {
        refuses(
            "
models:
  digits:
    labels: {stable: 1, canary: 0}
    split:
      weights: {stable: 90, canry: 10, 1: -1}
      sticky: {header: x user}
      without_key: randm
    rules:
      - when: {header: a, cookie: b, equals: c}
        use: canary
      - when: {cookie: uid, equals: c, present: true}
        use: 0
    deadline: 2
    breaker: {failures: 0, open_for: 2m, max_open_for: 1m, probes: 101, probe_timeout: 0s}
  letters:
    labels: {7: 1, random: 2}
    split: {weights: {1: 0, 2: 0}}
  words:
    split: {weights: {1: 1}, without_key: 1}
limits:
  - {name: per-user, rate: 0/s, burst: 0, max_keys: 0, models: []}
  - {name: per-user, rate: 10, key: {cookie: 'a=b'}}
  - {name: '', rate: 1/h, burst: 10000}
",
            "
p.yaml:4:33: models.digits.labels.canary: expected a version number from 1 to 18446744073709551615, got 0
p.yaml:6:36: models.digits.split.weights.canry: expected `canary` or `stable` or a version number, got `canry`; did you mean `canary`?
p.yaml:6:43: models.digits.split.weights.1: expected a weight from 0 to 1000000, got -1
p.yaml:7:15: models.digits.split.sticky.header: a header name is letters, digits and !#$%&'*+-.^_`|~, got `x user`
p.yaml:8:20: models.digits.split.without_key: expected `random` or `canary` or `stable` or a version number, got `randm`; did you mean `random`?
p.yaml:10:15: models.digits.rules[0].when: expected exactly one of `header`, `cookie`, `query`, `path` and `tenant`
p.yaml:12:15: models.digits.rules[1].when: expected exactly one of `equals` and `present`
p.yaml:13:14: models.digits.rules[1].use: expected `canary` or `stable` or a version number, got `0`
p.yaml:14:15: models.digits.deadline: expected a duration such as `500ms`, `2s`, `1m` or `1h`, got `2`
p.yaml:15:25: models.digits.breaker.failures: expected a whole number from 1 to 4294967295, got 0
p.yaml:15:56: models.digits.breaker.max_open_for: must be at least `open_for`, which is 120s, got 60s
p.yaml:15:68: models.digits.breaker.probes: expected a whole number from 1 to 100, got 101
p.yaml:15:88: models.digits.breaker.probe_timeout: expected a duration from 1ms to 24h, got `0s`
p.yaml:17:17: models.letters.labels.7: a label starts with a letter and goes on with letters, digits, `-`, `_` or `.`, got `7`
p.yaml:17:28: models.letters.labels.random: `random` is the word for a draw and cannot be a label
p.yaml:18:22: models.letters.split.weights: no weight is positive, so nobody would answer
p.yaml:20:43: models.words.split.without_key: only with `sticky` is there a key that can be missing
p.yaml:22:28: limits[0].rate: must be at least 1, got `0/s`
p.yaml:22:40: limits[0].burst: expected a whole number from 1 to 4294967295, got 0
p.yaml:22:53: limits[0].max_keys: expected a whole number from 1 to 10000000, got 0
p.yaml:22:64: limits[0].models: must not be empty
p.yaml:23:12: limits[1].name: a limit called `per-user` exists already
p.yaml:23:28: limits[1].rate: expected a rate such as `100/s`, `6000/m` or `10/h`, got `10`
p.yaml:23:37: limits[1].key.cookie: a cookie name is letters, digits and !#$%&'*+-.^_`|~, got `a=b`
p.yaml:24:12: limits[2].name: must not be empty
p.yaml:24:34: limits[2].burst: a burst of 10000 at 1/h takes more than a year to refill
",
        );
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_together_with_what_would_do() {
        refuses(
            "
models:
  m:
    labels: {a: -1, b: '1', c: 99999999999999999999, d: one, e: 1.0}
    split: {weights: {a: -1, b: 1e400, c: '5', d: , e: [1]}}
    breaker: {failures: 4294967296, of_at_least: 1.5, probes: 1e3, failing: many, slow: {over: 1s, percent: 1e400}}
    shadow: {version: a, percent: 100.1, in_flight_max: true, compare: {absolute: -0.1, relative: .inf, argmax: [y], outputs: {x: {absolute: no}, y: {}}}}
limits:
  - {name: a, rate: 1/s, burst: -1, max_keys: 10000001}
  - {name: b, in_flight_max: {}}
",
            "
p.yaml:4:17: models.m.labels.a: expected a version number from 1 to 18446744073709551615, got -1
p.yaml:4:24: models.m.labels.b: expected a version number from 1 to 18446744073709551615, got the text `1`
p.yaml:4:32: models.m.labels.c: expected a version number from 1 to 18446744073709551615, got 100000000000000000000
p.yaml:4:57: models.m.labels.d: expected a version number from 1 to 18446744073709551615, got the text `one`
p.yaml:5:26: models.m.split.weights.a: expected a weight from 0 to 1000000, got -1
p.yaml:5:33: models.m.split.weights.b: expected a weight from 0 to 1000000, got inf
p.yaml:5:43: models.m.split.weights.c: expected a weight from 0 to 1000000, got the text `5`
p.yaml:5:49: models.m.split.weights.d: expected a weight from 0 to 1000000, got nothing
p.yaml:5:56: models.m.split.weights.e: expected a weight from 0 to 1000000, got a list
p.yaml:6:25: models.m.breaker.failures: expected a whole number from 1 to 4294967295, got 4294967296
p.yaml:6:50: models.m.breaker.of_at_least: expected a whole number from 1 to 4294967295, got 1.5
p.yaml:6:63: models.m.breaker.probes: expected a whole number from 1 to 100, got 1000
p.yaml:6:77: models.m.breaker.failing: expected a percentage from 0.0001 to 99.9999, got the text `many`
p.yaml:6:109: models.m.breaker.slow.percent: expected a percentage from 0.0001 to 99.9999, got inf
p.yaml:7:35: models.m.shadow.percent: expected a percentage from 0.0001 to 100, got 100.1
p.yaml:7:57: models.m.shadow.in_flight_max: expected a whole number from 1 to 4294967295, got `true`
p.yaml:7:83: models.m.shadow.compare.absolute: expected a number that is 0 or more, got -0.1
p.yaml:7:99: models.m.shadow.compare.relative: expected a number that is 0 or more, got inf
p.yaml:7:142: models.m.shadow.compare.outputs.x.absolute: expected a number that is 0 or more, got the text `no`
p.yaml:7:150: models.m.shadow.compare.outputs.y: expected an output that is not under `argmax`: of this one only the place of the largest value counts
p.yaml:9:33: limits[0].burst: expected a whole number from 1 to 4294967295, got -1
p.yaml:9:47: limits[0].max_keys: expected a whole number from 1 to 10000000, got 10000001
p.yaml:10:30: limits[1].in_flight_max: expected a whole number from 1 to 4294967295, got a mapping
",
        );
    }

    #[test]
    fn a_rollout_that_cannot_work_is_refused() {
        refuses(
            "
models:
  digits:
    labels: {stable: 1, canary: 2}
    split: {weights: {stable: 1}}
    canary:
      baseline: stable
      candidate: 1
      steps: [5, 5, 100, -1]
      dwell: soon
      without_key: random
      gates: {errors: {at_most: 0}, latency: {over: 200, at_most: .nan}}
  letters:
    canary: {baseline: 1, candidate: new, steps: []}
  words:
    breaker: {failing: 33.33333}
  late:
    deadline: 1s
    canary: {baseline: 1, candidate: 2, sticky: {header: u}, without_key: 2, gates: {latency: {over: 5s, at_most: 1}}}
",
            "
p.yaml:7:7: models.digits.canary: expected either `split` or `canary`, got both: a canary is a split that changes by itself
p.yaml:8:18: models.digits.canary.candidate: expected another version than the baseline, got version 1 for both
p.yaml:9:18: models.digits.canary.steps[1]: expected more than the step before, which is 5, got 5
p.yaml:9:21: models.digits.canary.steps[2]: expected a percentage from 0.0001 to 99.9999, got 100
p.yaml:10:14: models.digits.canary.dwell: expected a duration such as `500ms`, `2s`, `1m` or `1h`, got `soon`
p.yaml:11:20: models.digits.canary.without_key: only with `sticky` is there a key that can be missing
p.yaml:12:33: models.digits.canary.gates.errors.at_most: expected a percentage from 0.0001 to 99.9999, got 0
p.yaml:12:53: models.digits.canary.gates.latency.over: expected a duration such as `500ms`, `2s`, `1m` or `1h`, got `200`
p.yaml:12:67: models.digits.canary.gates.latency.at_most: expected a percentage from 0.0001 to 99.9999, got NaN
p.yaml:14:38: models.letters.canary.candidate: expected a version number, got `new`
p.yaml:14:50: models.letters.canary.steps: must not be empty
p.yaml:16:24: models.words.breaker.failing: expected a percentage with at most four decimals, got 33.33333
p.yaml:19:75: models.late.canary.without_key: expected `random` or another version than the candidate, got version 2: no rollback would take it away
p.yaml:19:102: models.late.canary.gates.latency.over: must be less than the deadline, which is 1s, got 5s: no answer takes longer
",
        );
    }

    #[test]
    fn a_path_that_nobody_asks_for_is_refused() {
        refuses(
            "
models:
  digits:
    rules:
      - when: {path: {starts_with: predictions/}}
        use: 1
      - when: {path: {equals: '/predictions/digits?x=1'}}
        use: 1
      - when: {path: {}}
        use: 1
      - when: {path: {equals: /a, starts_with: /a}}
        use: 1
      - when: {path: {starts_with: /a}, present: true}
        use: 1
      - when: {path: {starts_with: /a}, header: x-cohort}
        use: 1
",
            "
p.yaml:5:36: models.digits.rules[0].when.path.starts_with: a path starts with `/` and has neither `?` nor `#`, got `predictions/`
p.yaml:7:31: models.digits.rules[1].when.path.equals: a path starts with `/` and has neither `?` nor `#`, got `/predictions/digits?x=1`
p.yaml:9:22: models.digits.rules[2].when.path: expected exactly one of `equals` and `starts_with`
p.yaml:11:22: models.digits.rules[3].when.path: expected exactly one of `equals` and `starts_with`
p.yaml:13:15: models.digits.rules[4].when: beside `path`, which has its own, expected neither `equals` nor `present`
p.yaml:15:15: models.digits.rules[5].when: expected exactly one of `header`, `cookie`, `query`, `path` and `tenant`
p.yaml:15:15: models.digits.rules[5].when: expected exactly one of `equals` and `present`
",
        );
        let misspelt = "models: {m: {rules: [{when: {path: {start_with: /a}}, use: 1}]}}";
        let errors = parse(misspelt, "p.yaml").unwrap_err().to_string();
        let place = "p.yaml:1:37: models.m.rules[0].when.path.start_with: ";
        assert!(errors.starts_with(place) && errors.ends_with("; did you mean `starts_with`?"), "{errors}");
    }

    /// Ten lines that stand for ten thousand million values: where a number is expected, whatever else stands there is read to its end.
    #[test]
    fn aliases_of_aliases_are_not_followed_for_ever() {
        let mut text =
            String::from("models:\n  m:\n    labels:\n      a: &l0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let before = format!("*l{}", level - 1);
            text += &format!("      a{level}: &l{level} [{}]\n", [before.as_str(); 10].join(", "));
        }
        let errors = parse(&text, "p.yaml").expect_err("no label is a list").to_string();
        let most = ": expected less than 250001 values, with those that aliases stand for";
        assert!(errors.ends_with(most) && errors.contains(": models.m.labels.a5["), "{errors}");
    }

    #[test]
    fn a_thousand_models_may_be_the_alias_of_one() {
        let of = |model: &str| {
            let models: String = (0..1_000).map(|at| format!("  m{at}: {model}\n")).collect();
            parse(
                &format!("models:\n  first: &d {{deadline: 2s, breaker: {{failures: 5}}}}\n{models}"),
                "p.yaml",
            )
        };
        let written =
            of("{deadline: 2s, breaker: {failures: 5}}").unwrap_or_else(|errors| panic!("{errors}"));
        for model in ["*d", "{<<: *d}"] {
            assert_eq!(of(model).as_ref(), Ok(&written), "{model}");
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_told_where() {
        let text = format!("models: {{m: {{labels: {{a: {}{}}}}}}}", "[".repeat(70), "]".repeat(70));
        let errors = parse(&text, "p.yaml").expect_err("no label is a list").to_string();
        assert!(errors.starts_with("p.yaml:1:86: models.m.labels.a[0][0]"), "{errors}");
        assert!(errors.ends_with("[0]: expected a value that is nested less than 65 deep"), "{errors}");
    }

    #[test]
    fn an_unreadable_file_names_the_field_where_reading_stopped() {
        for (text, message) in [
            (
                "models: {digits: {brekaer: 1}}",
                "p.yaml:1:19: models.digits.brekaer: unknown field `brekaer`, \
                 expected one of labels, remote, split, canary, shadow, rules, deadline, breaker; did you mean `breaker`?",
            ),
            (
                "models: {digits: {canary: {baseline: , candidate: 2}}}",
                "p.yaml:1:36: models.digits.canary.baseline: expected a text, got nothing",
            ),
            (
                "models: {digits: {canary: {baseline: [1], candidate: 2}}}",
                "p.yaml:1:38: models.digits.canary.baseline: expected a text",
            ),
            (
                "models: {digits: {}, digits: {}}",
                "p.yaml:1:22: models: duplicate mapping key `digits` is not allowed here",
            ),
            (
                "models: {digits: {deadline: 1s, deadline: 1s}}",
                "p.yaml:1:33: models.digits: duplicate mapping key `deadline` is not allowed here",
            ),
            (
                "models: {1: {deadline: 1s}, '1': {deadline: 2s}}",
                "p.yaml:1:29: models.1: duplicate mapping key `1` is not allowed here",
            ),
            (
                "models: {digits: {split: {weights: {1: 90, 2: 10, \"1\": 5}}}}",
                "p.yaml:1:51: models.digits.split.weights.1: duplicate mapping key `1` is not allowed here",
            ),
            (
                "models: {m: {remote: {2: {url: 'http://a/b'}, '2': {url: 'http://c/d'}}}}",
                "p.yaml:1:47: models.m.remote.2: duplicate mapping key `2` is not allowed here",
            ),
            (
                "models: {m: {shadow: {version: 1, compare: {outputs: {a: {}, a: {}}}}}}",
                "p.yaml:1:62: models.m.shadow.compare.outputs: duplicate mapping key `a` is not allowed here",
            ),
            ("models: {digits: }", "p.yaml:1:16: models.digits: expected a mapping"),
            ("limits: [{rate: 3/s}]", "p.yaml:1:11: limits[0]: missing field `name`"),
            (
                "limits: [{name: a, rate: 1/s, key: {headr: b}}]",
                "p.yaml:1:37: limits[0].key: unknown variant `headr`, expected one of header, cookie, query; did you mean `header`?",
            ),
            (
                "limits: [{name: a, rate: 1/s, key: {header: b, cookie: c}}]",
                "p.yaml:1:48: limits[0].key.header: expected exactly one entry, such as `header: x-user-id`",
            ),
            (
                "models: {m: {split: {weights: {1: 1}, sticky: {}}}}",
                "p.yaml:1:48: models.m.split.sticky: expected exactly one entry, such as `header: x-user-id`",
            ),
            (
                "models: {m: {split: {weights: {1: 1}, sticky: {parameter: b, input: c}}}}",
                "p.yaml:1:62: models.m.split.sticky.parameter: expected exactly one entry, such as `header: x-user-id`",
            ),
            (
                "models: {m: {split: {weights: {1: 1}, sticky: {field: b}}}}",
                "p.yaml:1:48: models.m.split.sticky: unknown variant `field`, expected one of header, cookie, query, parameter, input",
            ),
            (
                "models: {m: {split: {weights: {1: 1}, sticky: {parameter: ''}}}}",
                "p.yaml:1:47: models.m.split.sticky.parameter: must not be empty",
            ),
            ("models: [", "p.yaml:1:9: models: expected a mapping"),
            (
                "models: {}\n---\nmodels: {}",
                "p.yaml:3:1: only single YAML document expected but multiple found",
            ),
        ] {
            refuses(text, &format!("\n{message}\n"));
        }
    }

    #[test]
    fn what_no_answer_can_be_is_no_measure_of_slowness() {
        refuses(
            "models: {m: {deadline: 2s, breaker: {slow: {over: 2s, percent: 80}}}}",
            "\np.yaml:1:51: models.m.breaker.slow.over: must be less than the deadline, which is 2s, got 2s: no answer \
             takes longer\n",
        );
        assert!(
            parse("models: {m: {deadline: 2s, breaker: {slow: {over: 1999ms, percent: 80}}}}", "p.yaml")
                .is_ok()
        );
    }

    #[test]
    fn what_alone_is_ever_chosen_does_not_stand_in_for_itself() {
        refuses(
            "models: {m: {labels: {a: 1}, split: {weights: {a: 1, 2: 0}}, breaker: {fallback: {version: a}}}}",
            "\np.yaml:1:92: models.m.breaker.fallback.version: expected another version than 1: nothing else is ever chosen here, \
             and it cannot answer in its own place\n",
        );
        for policy in [
            "split: {weights: {1: 9, 2: 1}}",
            "split: {weights: {1: 1}}, rules: [{when: {header: u, present: true}, use: 2}]",
            "split: {weights: {1: 1}, sticky: {header: u}, without_key: 2}",
            "canary: {baseline: 1, candidate: 2}",
            "rules: [{when: {header: u, present: true}, use: 1}]",
        ] {
            let text = format!("models: {{m: {{{policy}, breaker: {{fallback: {{version: 1}}}}}}}}");
            assert!(parse(&text, "p.yaml").is_ok(), "{policy}");
        }
    }

    #[test]
    fn a_file_with_very_many_mistakes_is_told_fifty_and_how_many_more() {
        let models: String = (0..60).map(|number| format!("  m{number}: {{deadline: 0s}}\n")).collect();
        let errors = parse(&format!("models:\n{models}"), "p.yaml").expect_err("the file is wrong");
        let told = errors.to_string();
        let lines: Vec<_> = told.lines().collect();
        assert_eq!((lines.len(), lines[50]), (51, "and 10 more"));
        assert!(lines[49].starts_with("p.yaml:51:19: models.m49.deadline: "), "{}", lines[49]);
        let long = format!("models: {{m: {{deadline: {}}}}}", "v".repeat(2000));
        let told = parse(&long, "p.yaml").expect_err("the file is wrong").to_string();
        assert!(told.len() < 1200 && told.ends_with("vvv…"), "{told}");
    }

    #[test]
    fn a_quoted_line_break_does_not_break_the_message() {
        refuses(
            "limits: [{name: a, rate: \"1\\n/s\"}]",
            "\np.yaml:1:26: limits[0].rate: expected a rate such as `100/s`, `6000/m` or `10/h`, got `1\u{fffd}/s`\n",
        );
    }

    #[test]
    fn what_decides_alike_is_equal() {
        let flow = "models: {digits: {split: {weights: {1: 9, 2: 1, 3: 0}, sticky: {header: X-User}}}}";
        let block = "
models:
  digits:
    split:
      sticky: {header: x-user}
      weights: {2: 0.1, 1: 0.9}
      without_key: random
    deadline: 10000ms
";
        assert_eq!(parse(flow, "a").unwrap(), parse(block, "b").unwrap());
    }

    #[test]
    fn a_key_without_a_value_turns_nothing_off() {
        for (text, path) in [
            ("models:", "models"),
            ("limits:", "limits"),
            ("models: {m: {split:}}", "models.m.split"),
            ("models: {m: {canary:}}", "models.m.canary"),
            ("models: {m: {shadow:}}", "models.m.shadow"),
            ("models: {m: {deadline:}}", "models.m.deadline"),
            ("models: {m: {split: {weights: {1: 1}, sticky:}}}", "models.m.split.sticky"),
            ("models: {m: {breaker: {fallback:}}}", "models.m.breaker.fallback"),
            (
                "models: {m: {canary: {baseline: 1, candidate: 2, gates: {latency:}}}}",
                "models.m.canary.gates.latency",
            ),
            ("limits: [{name: a, rate: 1/s, key:}]", "limits[0].key"),
        ] {
            let errors = parse(text, "p.yaml").unwrap_err();
            let [error] = &errors.iter().collect::<Vec<_>>()[..] else { panic!("{text}: {errors}") };
            let want = "expected a value; without one, leave the key out";
            assert_eq!((error.path.as_str(), error.message.as_str()), (path, want), "{text}");
            assert_eq!(error.line, 1, "{text}");
        }
    }
}
