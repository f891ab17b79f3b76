//! Labels in paths: which version a label stands for is what the policy says at that moment. Decides what is told of one
//! that it does not have.

use crate::directory::{Models, list};
use crate::refusal::Refusal;
use crate::route::{Address, Target};
use policies::{ModelPolicy, Snapshot};

/// The model and the version that a path names, by number or by label.
pub(crate) fn target<'a>(
    snapshot: &Snapshot,
    models: &Models,
    address: Address<'a>,
) -> Result<Target<'a>, Refusal> {
    match address.label() {
        None => Ok(address.target()),
        Some(label) => labelled(snapshot, models, address.model, label),
    }
}

/// The version that has this label.
pub(crate) fn labelled<'a>(
    snapshot: &Snapshot,
    models: &Models,
    model: &'a str,
    label: &str,
) -> Result<Target<'a>, Refusal> {
    let policy = snapshot.model(model);
    if let Some(version) = policy.and_then(|policy| policy.labelled(label)) {
        return Ok(Target { model, pinned: Some(version.0) });
    }
    if models.connected {
        models.find(Target { model, pinned: None })?;
    }
    let known = list(policy.into_iter().flat_map(ModelPolicy::labels).map(|(label, _)| label));
    Err(Refusal::NotFound(format!("model `{model}` has no label `{label}`, there is {known}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;
    use wire::{Index, ModelEntry};

    #[test]
    fn a_label_is_what_the_policy_says_and_an_unknown_one_names_the_others() {
        let policy = "models: {m: {labels: {stable: 1, canary: 2}, split: {weights: {stable: 1}}}}";
        let snapshot = policies::parse(policy, "policies.yaml").unwrap();
        let directory = Directory::default();
        let entry = |name: &str| ModelEntry { name: name.into(), version: 1, ..ModelEntry::default() };
        directory.publish(Index { models: vec![entry("m"), entry("n")], ..Index::default() });
        let find = |model, label| {
            labelled(&snapshot, &directory.load(), model, label).map_err(|refusal| refusal.to_string())
        };
        assert_eq!(find("m", "canary"), Ok(Target { model: "m", pinned: Some(2) }));
        assert_eq!(find("m", "old"), Err("model `m` has no label `old`, there is `canary`, `stable`".into()));
        assert_eq!(find("n", "stable"), Err("model `n` has no label `stable`, there is none".into()));
        assert_eq!(find("o", "stable"), Err("no model `o`, there is `m`, `n`".into()));
    }
}
