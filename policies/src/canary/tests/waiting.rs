//! What a person is told whose step outlasts what the policy says.

use super::*;

impl World {
    fn why(&mut self) -> String {
        self.canary.judge(self.now);
        self.canary.status().waits_for.unwrap_or_default()
    }

    fn last(&self) -> &str {
        self.canary.history.back().map_or("", |record| &record.why)
    }
}

#[test]
fn nothing_is_waited_for_before_a_step_has_lasted_nor_once_it_is_over() {
    let mut world = World::new("steps: [10, 50], dwell: 1m", 1);
    world.now += Duration::from_secs(59);
    assert_eq!(world.why(), "");
    world.now += Duration::from_secs(1);
    assert_eq!(world.why(), "errors: 0 requests, at least 354 are needed; version 2 has answered nobody yet");
    (0..100).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.why(), "errors: 100 requests, at least 354 are needed");
    let told = "errors: 0 requests, at least 354 are needed; version 2 has answered nobody yet";
    assert_eq!((world.last(), world.canary.history.len()), (told, 1), "as it was found first");
    world.now += Duration::from_secs(3_600);
    let silent = "errors: 100 requests, at least 354 are needed; version 2 has answered nobody for 6s";
    assert_eq!(world.why(), silent);
    (0..300).for_each(|_| world.tell(true, FAST));
    assert_eq!(world.why(), "");
    assert_eq!(world.last(), "every gate has passed");
    world.now += Duration::from_secs(60);
    assert!(world.why().starts_with("errors: 0 requests, at least 354 are needed"), "of the next step");
    world.canary.command(Command::Pause, "", world.now).unwrap();
    assert_eq!(world.why(), "", "a person is waited for");
}

#[test]
fn users_are_told_as_they_are_heard() {
    let mut world = World::new("steps: [10], dwell: 1m, sticky: {header: user}", 1);
    for user in 0..30 {
        world.canary.witness(world.assigned(true), Some(user), FAST, world.now);
    }
    world.now += Duration::from_secs(60);
    world.tell(true, FAST);
    assert_eq!(world.why(), "errors: users were heard 31 times, each once in 6s; 354 times are needed");
}

#[test]
fn a_step_that_lasts_until_it_is_known_what_hangs_says_for_how_long() {
    let mut world = World::new("steps: [50, 60], dwell: 2s, gates: {errors: {at_most: 5}}", 1);
    let asked = world.canary.asked();
    for _ in 0..100 {
        asked.begin().ended(ms(3_000), Some(answered(3_000).1));
        world.tell(true, answered(3_000).1);
    }
    world.now += Duration::from_secs(2);
    let lasts = |left: &str| {
        format!(
            "a step lasts for 24.117248s, until it is known of what version 2 is asked whether it hangs: {left} to go"
        )
    };
    assert_eq!(world.why(), lasts("22.2s"));
    assert_eq!((world.canary.history[0].verdict, world.last()), (Verdict::Hold, &*lasts("22.2s")));
    let under_way: Vec<_> = (0..3).map(|_| asked.begin()).collect();
    for look in 0..220 {
        world.now += ms(100);
        if look % 10 == 0 {
            world.tell(true, answered(3_000).1);
            asked.begin().ended(ms(3_000), Some(answered(3_000).1));
        }
        let why = world.why();
        assert_ne!(why, "", "at look {look}");
    }
    drop(under_way);
    (0..2).for_each(|_| {
        world.now += ms(100);
        world.why();
    });
    assert_eq!((world.canary.step, world.last()), (1, "every gate has passed"), "{:?}", world.canary.history);
}

#[test]
fn what_has_just_come_is_waited_for_and_when_it_will_be_known_is_told() {
    let mut world = World::new("steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 5}}", 1);
    world.now += Duration::from_secs(20);
    let asked = world.canary.asked();
    let under_way: Vec<_> = (0..3).map(|_| asked.begin()).collect();
    (0..100).for_each(|_| world.tell(true, FAST));
    let waits = |left: &str| {
        format!(
            "every gate has passed, and 3 requests are under way of which it is known in {left} at the earliest whether they hang"
        )
    };
    assert_eq!(world.why(), waits("300ms"));
    world.now += ms(100);
    assert_eq!(world.why(), waits("200ms"));
    assert!(world.canary.history.is_empty(), "it is soon over");
    world.now += ms(200);
    let hang = "errors: 0 of 100 is not shown to be below 5 % while 3 more take longer than its answers do";
    assert_eq!((world.why(), world.last()), (hang.into(), hang));
    drop(under_way);
    assert_eq!((world.why(), world.canary.step), (String::new(), 1));
}

#[test]
fn who_left_what_was_refused_what_was_not_compared_and_who_is_silent_are_told_with_their_numbers() {
    let mut world = World::new("steps: [50], dwell: 10s, gates: {errors: {at_most: 5}}", 1);
    for user in 0..6 {
        let assigned = world.assigned(true).within(ms(30), ms(1_000));
        world.canary.witness(assigned, Some(user), Sight::Late(ms(30)), world.now);
        world.now += ms(200);
    }
    world.now += Duration::from_secs(10);
    let left = "errors: 6 of the last 6 who left sooner than version 1 is known to answer are version 2's, where its share of the \
                requests makes 3.0: a person has to say so";
    assert_eq!((world.why(), world.last()), (left.into(), left));

    let mut world = World::new("steps: [50], dwell: 10s, gates: {errors: {at_most: 50}}", 1);
    (0..100).for_each(|_| world.tell(true, FAST));
    (0..20).for_each(|at| world.tell(at % 2 == 0, Sight::Refused));
    for user in 0..4 {
        (0..40).for_each(|_| {
            world.canary.witness(world.assigned(true), Some(user), Sight::Refused, world.now);
        });
    }
    world.now += Duration::from_secs(10);
    world.tell(true, FAST);
    let refused = "errors: version 2 refuses 57.7 % of what it is asked, where what version 1 refuses makes 4.2 % and 50 % may \
                   fail: a person has to say whose fault that is, or it ends";
    assert_eq!((world.why(), world.last()), (refused.into(), refused));

    let mut world = compared(2.0, 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    (0..600).for_each(|_| world.compare(None, true));
    (0..601).for_each(|_| world.canary.compared(world.assigned(false), None, None, world.now));
    world.now += Duration::from_secs(1);
    let compared = "disagreement: 600 of 1201 copies were compared; at least half of them have to be";
    assert_eq!((world.why(), world.last()), (compared.into(), compared));

    let mut world = World::new("steps: [50], dwell: 10s, gates: {errors: {at_most: 5}}", 1);
    (0..100).for_each(|_| world.tell(true, FAST));
    world.now += Duration::from_secs(20);
    assert_eq!(
        (world.why(), world.last()),
        ("version 2 has answered nobody for 1s".into(), "version 2 has answered nobody for 1s")
    );

    let mut world = World::new("steps: [10, 50], dwell: 10s, gates: {drift: {at_most: 0.1}}", 1);
    (0..600).for_each(|_| world.tell(true, FAST));
    world.now += Duration::from_secs(10);
    world.tell(true, FAST);
    assert!(world.why().starts_with("drift: no window of rows of version 2"), "{}", world.why());
}
