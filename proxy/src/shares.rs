//! How splits are seen, in words, for `penstock status`. Decides nothing: whether a split is as declared, the process says.

use crate::command::rounded;
use serde_json::Value;
use std::fmt::Write;

/// Two lines for each model at most: what its versions have answered, and what is wrong with that. Of those that have canaries it was
/// the rollout that gave the shares, and it may have taken them back.
pub(crate) fn in_words(splits: &Value, canaries: &Value) -> String {
    let splits = splits.as_object();
    let shares = |model| match canaries[model]["phase"].as_str() {
        None => "are declared",
        Some("rolled_back") => "were the rollout's",
        Some(_) => "are the rollout's",
    };
    splits.into_iter().flatten().map(|(model, split)| one_in_words(model, split, shares(model))).collect()
}

fn one_in_words(model: &str, split: &Value, shares: &str) -> String {
    // Whoever brings no key is one with each request.
    let of = if split["key"].is_null() { "requests" } else { "users or requests without a key" };
    let versions = split["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let version = |version: &Value| {
        let (number, declared) = (&version["version"], percent(&version["declared_percent"]));
        format!("version {number} has {} % where {declared} {shares}", percent(&version["percent"]))
    };
    let versions: Vec<_> = versions.iter().map(version).collect();
    let number = |name: &str| split[name].as_f64().unwrap_or(f64::NAN);
    let (evidence, enough) = (rounded(number("evidence")), number("mismatch_at"));
    if split["units"] == 0 {
        return format!("{model}: nobody has been answered yet by the split that is in force\n");
    }
    let mut text = format!(
        "{model}: of {} {of}, {}; evidence of a mismatch {evidence} of {enough:.0}\n",
        split["units"],
        versions.join(", "),
    );
    if let Some(why) = split["mismatch"]["why"].as_str() {
        let _ = writeln!(text, "  not as declared: {why}");
    }
    text
}

/// With two decimals, or as many as it takes to be more than 0.
fn percent(value: &Value) -> String {
    let Some(percent) = value.as_f64() else { return "?".into() };
    let text = if percent < 0.1 { format!("{percent:.4}") } else { format!("{percent:.2}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_split_reads_as_a_sentence() {
        let version = |version: u64, declared: f64, percent: Option<f64>| json!({"version": version, "declared_percent": declared, "percent": percent});
        let mut split = json!({
            "key": "header x-user-id", "units": 120, "evidence": 0.234, "mismatch_at": 10_000.0, "mismatch": null,
            "versions": [version(1, 99.99, Some(98.333)), version(2, 0.01, Some(1.667))],
        });
        assert_eq!(
            one_in_words("m", &split, "are declared"),
            "m: of 120 users or requests without a key, version 1 has 98.33 % where 99.99 are declared, version 2 has 1.67 % where 0.01 are declared; \
             evidence of a mismatch 0.2 of 10000\n"
        );
        let nobody = json!({"key": null, "units": 0, "versions": [version(1, 100.0, None)]});
        assert_eq!(
            one_in_words("m", &nobody, "are declared"),
            "m: nobody has been answered yet by the split that is in force\n"
        );
        split["mismatch"] = json!({"why": "so"});
        (split["key"], split["evidence"]) = (Value::Null, 2e5.into());
        assert!(
            one_in_words("m", &split, "are declared")
                .ends_with("evidence of a mismatch over 100000 of 10000\n  not as declared: so\n")
        );
    }

    #[test]
    fn what_a_rollout_gave_and_has_taken_back_is_not_what_is_declared() {
        let version = |version: u64, declared: u64, percent: u64| json!({"version": version, "declared_percent": declared, "percent": percent});
        let splits = json!({"m": {
            "key": "header x-user-id", "units": 50, "evidence": 1.0, "mismatch_at": 10_000.0, "mismatch": null,
            "versions": [version(2, 90, 100), version(3, 10, 0)],
        }});
        let says = |phase: &str| in_words(&splits, &json!({"m": {"phase": phase}}));
        assert!(
            says("rolled_back").contains("version 3 has 0 % where 10 were the rollout's; "),
            "{}",
            says("rolled_back")
        );
        assert!(
            says("running").contains("version 3 has 0 % where 10 are the rollout's; "),
            "{}",
            says("running")
        );
    }
}
