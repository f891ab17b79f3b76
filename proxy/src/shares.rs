//! How splits are seen, in words, for `penstock status`. Decides nothing: whether a split is as declared, the process says.

use crate::command::rounded;
use serde_json::Value;
use std::fmt::Write;

/// Two lines for each model at most: what its versions have answered, and what is wrong with that.
pub(crate) fn in_words(splits: &Value) -> String {
    let splits = splits.as_object();
    splits.into_iter().flatten().map(|(model, split)| one_in_words(model, split)).collect()
}

fn one_in_words(model: &str, split: &Value) -> String {
    // Whoever brings no key is one with each request.
    let of = if split["key"].is_null() { "requests" } else { "users or requests without a key" };
    let versions = split["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let version = |version: &Value| {
        let (number, declared) = (&version["version"], percent(&version["declared_percent"]));
        format!("version {number} has {} % where {declared} are declared", percent(&version["percent"]))
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
            one_in_words("m", &split),
            "m: of 120 users or requests without a key, version 1 has 98.33 % where 99.99 are declared, version 2 has 1.67 % where 0.01 are declared; \
             evidence of a mismatch 0.2 of 10000\n"
        );
        let nobody = json!({"key": null, "units": 0, "versions": [version(1, 100.0, None)]});
        assert_eq!(
            one_in_words("m", &nobody),
            "m: nobody has been answered yet by the split that is in force\n"
        );
        split["mismatch"] = json!({"why": "so"});
        (split["key"], split["evidence"]) = (Value::Null, 2e5.into());
        assert!(
            one_in_words("m", &split)
                .ends_with("evidence of a mismatch over 100000 of 10000\n  not as declared: so\n")
        );
    }
}
