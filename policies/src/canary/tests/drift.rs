//! Tensors that move, of the candidate alone or of both versions.

use super::*;

impl World {
    /// A window of rows of this version ends, and so far have its tensors moved.
    fn drift(&mut self, version: u64, least: u32, most: u32) {
        let (began, ended) = (self.now, self.now + Duration::from_secs(5));
        self.now = ended;
        let sight = DriftSight { what: "output `y`".into(), least, most, rows: 600, began, ended };
        self.canary.drifted(Version(version), sight, self.now);
    }
}

#[test]
fn a_candidate_whose_world_is_not_known_to_be_its_own_gets_no_more_and_one_whose_is_does() {
    let mut world = World::new("steps: [10, 50], dwell: 1m, gates: {drift: {at_most: 0.1}}", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(60), Some(Verdict::InsufficientData));
    let why = world.canary.status().verdicts.pop().unwrap().why;
    assert!(why.contains("no window of rows of version 2"), "{why}");
    world.drift(2, 0, 300_000);
    assert_eq!(world.work(1), Some(Verdict::Hold), "it may be as much as 0.3");
    world.drift(2, 0, 90_000);
    assert_eq!(world.work(1), Some(Verdict::Advance));
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(60), Some(Verdict::InsufficientData), "each step asks anew");
    world.drift(2, 0, 90_000);
    assert_eq!(world.work(1), Some(Verdict::Advance));
    assert_eq!(world.canary.phase, Phase::Promoted);
}

#[test]
fn a_candidate_that_alone_has_moved_is_rolled_back_at_once_and_a_world_that_has_moved_only_holds() {
    let canary = "steps: [10], dwell: 1h, gates: {drift: {at_most: 0.1}}";
    let mut world = World::new(canary, 1);
    for _ in 0..10 {
        world.drift(1, 200_000, 400_000);
        world.drift(2, 200_000, 400_000);
    }
    assert_eq!(world.canary.phase, Phase::Running);
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(3600), Some(Verdict::Hold));
    assert_eq!(world.canary.status().gates.last().map(|gate| (gate.gate, gate.worse)), Some(("drift", 2.0)));
    world.drift(1, 0, 50_000);
    assert_eq!(world.canary.phase, Phase::Running);
    world.drift(2, 200_000, 400_000);
    assert_eq!(world.canary.phase, Phase::RolledBack);
    assert!(world.canary.news().pop().unwrap().why.contains("nothing of version 1 has"));

    let kept = serde_json::to_string(&world.canary.progress(world.now)).unwrap();
    let mut next = Canary::new(policy(canary), Beginnings::default(), world.now);
    next.restore(&serde_json::from_str(&kept).unwrap(), world.now);
    assert_eq!(next.phase, Phase::RolledBack);
    assert_eq!(next.status().verdicts, world.canary.status().verdicts, "a restart keeps the gate's name");
}

#[test]
fn what_moves_changes_nothing_for_those_who_have_not_asked() {
    let mut world = World::new("steps: [10], dwell: 1m", 1);
    (0..10).for_each(|round| world.drift(1 + round % 2, 900_000, 1_000_000));
    (0..600).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.work(60), Some(Verdict::Advance));
}

#[test]
fn how_far_tensors_may_move_is_a_part_of_a_bit_and_of_this_engine() {
    let says = |canary: &str, rest: &str| {
        let text = format!(
            "models: {{m: {{canary: {{baseline: 1, candidate: 2, gates: {{drift: {canary}}}}}, {rest}}}}}"
        );
        parse(&text, "p").map(|_| ()).map_err(|errors| errors.to_string())
    };
    assert_eq!(says("{at_most: 0.05}", ""), Ok(()));
    for wrong in
        ["{at_most: 0}", "{at_most: 1}", "{at_most: .nan}", "{at_most: -0.1}", "{at_most: 0.12345678}"]
    {
        assert!(says(wrong, "").unwrap_err().contains("expected 0.0001 to 0.9999 bits"), "{wrong}");
    }
    let remote = "remote: {2: {url: 'http://triton/v2/models/m/infer'}}";
    assert!(says("{at_most: 0.1}", remote).unwrap_err().contains("nobody knows how far it has moved"));
}
