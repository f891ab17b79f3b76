//! What we ship for people to copy compiles.

use harness::repository;

#[test]
fn every_policy_that_is_shipped_compiles() {
    let mut files = vec![repository("configs/demo/policies.yaml")];
    files.extend(
        std::fs::read_dir(repository("configs/policies"))
            .expect("examples")
            .map(|entry| entry.expect("an entry").path()),
    );
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a file");
        if let Err(errors) = policies::parse(&text, &file.display().to_string()) {
            panic!("{errors}");
        }
    }
}
