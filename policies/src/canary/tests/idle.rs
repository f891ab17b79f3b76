//! Nights without requests, requests that come once in a few minutes, answers that take long, and restarts in the midst of what hangs:
//! nothing gets more by what is not known, and nothing waits for ever.

use super::*;

const CANARY: &str = "steps: [50, 60], dwell: 10s, gates: {errors: {at_most: 5}}";

impl World {
    /// Hours without requests, with a look every few seconds.
    fn night(&mut self) {
        for _ in 0..8 * 3_600 / 5 {
            self.now += Duration::from_secs(5);
            self.canary.judge(self.now);
        }
    }

    /// As after a restart now.
    pub(super) fn restarted(&mut self, canary: &str) {
        let kept = serde_json::to_string(&self.canary.progress(self.now)).unwrap();
        self.canary = Canary::new(policy(canary), Beginnings::default(), self.now);
        self.canary.restore(&serde_json::from_str(&kept).unwrap(), self.now);
    }

    /// What keeps the step from ending.
    pub(super) fn waits_for(&self) -> &str {
        self.canary.waits_for.as_deref().unwrap_or_default()
    }
}

/// Part of the requests hang.
fn hanging(part: f64) -> impl Fn(&mut Dice) -> (Duration, Sight) {
    move |dice| if dice.falls(part) { (ms(60_000), Sight::Late(ms(60_000))) } else { answered(5) }
}

#[test]
fn a_night_without_requests_neither_advances_anybody_nor_is_in_the_way_of_the_next_step() {
    for dwelt in [3, 9, 10] {
        let mut world = World::new(CANARY, dwelt);
        let mut traffic = Traffic::default();
        traffic.flow(&mut world, (20, dwelt as u32), hanging(0.0));
        (0..10).for_each(|_| traffic.tick(&mut world, 0, hanging(0.0)));
        let step = world.canary.step;
        world.night();
        assert_eq!(world.canary.step, step, "after {dwelt} s: {:?}", world.canary.history);
        // The first of the morning hang, and enough is known of those before.
        traffic.tick(&mut world, 100, hanging(0.2));
        (0..100).for_each(|_| traffic.tick(&mut world, 0, hanging(0.0)));
        assert_eq!(world.canary.step, step, "after {dwelt} s: {:?}", world.canary.history);
        world.night();
        let held = traffic.flow(&mut world, (40, 600), hanging(0.0));
        assert!(held.is_some() || step == 1, "{}: {:?}", world.waits_for(), world.canary.history);
    }
}

#[test]
fn nights_between_the_steps_are_no_more_than_that() {
    let mut world = World::new(CANARY, 1);
    let mut traffic = Traffic::default();
    for step in 0..2 {
        let held = traffic.flow(&mut world, (20, 60), hanging(0.0));
        assert!(held.is_some_and(|held| held <= 110) || step == 1, "{held:?}");
        (0..10).for_each(|_| traffic.tick(&mut world, 0, hanging(0.0)));
        world.night();
    }
    assert_eq!(world.canary.phase, Phase::Promoted);
}

#[test]
fn a_restart_amid_requests_that_hang_begins_the_step_anew_and_it_ends_once_nothing_does() {
    for seed in 0..10 {
        let mut world = World::new(CANARY, seed);
        let mut traffic = Traffic::default();
        for restart in 0..4 {
            assert_eq!(traffic.flow(&mut world, (40, 9), hanging(0.3)), None);
            assert!(world.canary.hanging.count(world.now) > 0);
            world.restarted(CANARY);
            // They have gone with the process.
            traffic = Traffic::default();
            let dwelt = world.canary.progress(world.now).dwelt;
            assert_eq!((dwelt, world.canary.gates[0].requests), (Duration::ZERO, 0), "restart {restart}");
        }
        let held = traffic.flow(&mut world, (40, 60), hanging(0.0));
        assert!(held.is_some_and(|held| (99..=110).contains(&held)), "{held:?} {:?}", world.canary.history);
    }
}

/// On each side, with a user of its own or none.
#[test]
fn a_request_every_few_minutes_shows_as_much_as_many_a_second_and_what_hangs_of_them_shows_nothing() {
    for (keyed, takes) in [(false, 20), (false, 2_000), (true, 20), (true, 2_000)] {
        for hangs in [false, true] {
            let canary = if keyed {
                "steps: [50], dwell: 10m, sticky: {header: user}, gates: {errors: {at_most: 5}}"
            } else {
                "steps: [50], dwell: 10m, gates: {errors: {at_most: 5}}"
            };
            let mut world = World::new(canary, 1);
            let asked = world.canary.asked();
            let mut hung = Vec::new();
            for request in 0..100 {
                let under_way = asked.begin();
                for look in 1..=1_800 {
                    world.now += ms(100);
                    let is_over = look == (takes / 100).max(1);
                    if is_over && hangs && request % 5 == 4 {
                        hung.push(asked.begin());
                    } else if is_over {
                        let key = keyed.then_some(request);
                        let sight = answered(takes).1;
                        world.canary.witness(world.assigned(true), key, sight, world.now);
                        under_way.ended(ms(takes), Some(sight));
                    }
                    world.canary.judge(world.now);
                    if is_over {
                        break;
                    }
                }
                drop(under_way);
                // Nothing happens until the next comes.
                for _ in 0..36 {
                    world.now += ms(5_000);
                    world.canary.judge(world.now);
                }
            }
            let promoted = world.canary.phase == Phase::Promoted;
            assert_eq!(promoted, !hangs, "{keyed} {takes}: {} {:?}", world.waits_for(), world.canary.history);
        }
    }
}

/// One every three seconds, which takes five: some are always under way, and answers are further apart than a second.
#[test]
fn answers_that_take_long_and_come_rarely_do_not_keep_a_step_waiting_for_ever() {
    for every in [12, 20, 30, 45] {
        let mut world = World::new(CANARY, 1);
        let mut traffic = Traffic::default();
        let held = (0..12_000).find(|tick| {
            traffic.tick(&mut world, u32::from(tick % every == 0), |_| answered(5_000));
            world.canary.step > 0
        });
        let most = 80 * every + 200;
        assert!(held.is_some_and(|held| held <= most), "{held:?} every {every}: {}", world.waits_for());
    }
}
