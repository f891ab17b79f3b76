//! Conventions that a compiler does not check.

use harness::repository;
use std::path::{Path, PathBuf};

fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["policies", "proxy", "engine", "tests", "benches"] {
        walk(&repository(folder), &mut found);
    }
    found
}

/// What is not tests: all of a file before its unit tests, and of a file of tests only why it exists.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a file");
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return text.lines().take_while(|line| line.starts_with("//!")).collect();
    }
    let tests = ["mod tests", "pub(crate) mod tests"].map(|module| format!("#[cfg(test)]\n{module}"));
    let end = tests.iter().filter_map(|tests| text.find(tests.as_str())).min();
    text[..end.unwrap_or(text.len())].to_owned()
}

#[test]
fn every_file_says_why_it_exists() {
    for path in sources() {
        assert!(code(&path).starts_with("//! "), "{} does not open with `//!`", path.display());
    }
}

#[test]
fn libtorch_is_named_in_one_file() {
    for path in sources() {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let names_it =
            code(&path).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "tch");
        assert!(
            !names_it || ["torch.rs", "build.rs", "tidy.rs"].contains(&name.as_str()),
            "{} names tch",
            path.display()
        );
    }
}

#[test]
fn the_deciding_core_has_no_clock_and_no_dice() {
    let decides = |path: &PathBuf| {
        let within = path.strip_prefix(repository("policies/src"));
        within.is_ok_and(|within| !within.iter().any(|folder| folder == "tests"))
    };
    for path in sources().into_iter().filter(decides) {
        for word in ["Instant::now", "SystemTime", "rand::", "tokio", "std::fs", "std::thread"] {
            assert!(!code(&path).contains(word), "{} contains {word}", path.display());
        }
    }
}

#[test]
fn nothing_is_called_util() {
    for path in sources() {
        let stem = path.file_stem().expect("a file").to_string_lossy().into_owned();
        assert!(
            !["util", "utils", "common", "helpers", "misc"].contains(&stem.as_str()),
            "{}",
            path.display()
        );
    }
}
