//! The limiter against buckets that are kept as what they are, tokens that come back with time, and of which none is ever
//! forgotten: more callers than places, so that places change hands and callers come back.

use std::collections::HashMap;

use super::*;

/// In units of nanoseconds, so that one comes back in each.
#[derive(Clone, Copy)]
struct Tokens {
    full: u64,
    left: u64,
    looked: u64,
}

impl Tokens {
    fn new(full: u64) -> Self {
        Self { full, left: full, looked: 0 }
    }

    /// So many that come back `times` as fast.
    fn look(&mut self, times: u64, now: u64) -> u64 {
        self.left = self.full.min(self.left + times * (now - self.looked));
        self.looked = now;
        self.left
    }

    fn owes(mut self, now: u64) -> bool {
        self.look(1, now) < self.full
    }
}

/// What is known of one limiter that forgets nobody.
struct Oracle {
    /// Everything that each caller was ever let through, wherever that was counted.
    callers: HashMap<u64, Tokens>,
    /// Buckets of those who have or had a place.
    places: HashMap<u64, Tokens>,
    overflow: Tokens,
    /// All places and the overflow bucket as one.
    together: Tokens,
}

#[derive(Default)]
struct Seen {
    came_back: u32,
    overflowed: u32,
    began_in_debt: u32,
}

#[test]
fn nobody_is_let_through_above_the_limit_under_one_key_or_many_whatever_was_evicted() {
    let mut seen = Seen::default();
    (1..=5_000).for_each(|seed| arrive_at_random(seed, &mut seen));
    let Seen { came_back, overflowed, began_in_debt } = seen;
    assert!(
        came_back > 10_000 && overflowed > 10_000 && began_in_debt > 1_000,
        "{came_back} came back, {overflowed} had no place, {began_in_debt} got one in debt"
    );
}

fn arrive_at_random(seed: u64, seen: &mut Seen) {
    let mut state = seed;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    let (places, burst, per_second) = (2 + dice(7), 1 + dice(5), 1 + dice(1_000));
    let (callers, rate) = (places + 1 + dice(2 * places), format!("{per_second}/s").parse::<Rate>().unwrap());
    let interval = rate.interval().as_nanos() as u64;
    let policy = LimitPolicy {
        name: "per-user".into(),
        key: Some(Attribute::Header("user".into())),
        models: None,
        cost: Cost::Requests,
        rate,
        burst: NonZeroU32::new(burst as u32).unwrap(),
        max_keys: NonZeroU32::new(places as u32).unwrap(),
    };
    let limiter = Limiter::new(Arc::new(policy));
    let full = burst * interval;
    let mut oracle = Oracle {
        callers: HashMap::new(),
        places: HashMap::new(),
        overflow: Tokens::new(full),
        together: Tokens::new((places + 1) * full),
    };
    // From crowds in which every place owes to pauses after which none does.
    let gap = 1 + interval / (1 + dice(2 * places));
    let mut now = 0;
    for step in 0..200 {
        now += dice(2 * gap) + if dice(40) == 0 { dice(2 * full) } else { 0 };
        let (caller, units) = (dice(callers), 1 + dice(burst));
        let (cost, name) = (units * interval, caller.to_string());
        let place = format!("seed {seed}, step {step}: {units} of {burst} for {caller} at {now}");
        let user = [("user", name.as_str())];
        let bucket = limiter.open(&user, Moment::new(now));
        let had = oracle.places.get(&caller).copied();
        let (is_its_own, mut expected) = match bucket.place {
            Place::Own(..) => (true, had.expect("it had a place")),
            Place::New(_) => (true, oracle.overflow),
            Place::Shared => (false, oracle.overflow),
        };
        if !matches!(bucket.place, Place::Own(..)) {
            assert!(!had.is_some_and(|had| had.owes(now)), "{place}: evicted in debt");
            seen.came_back += u32::from(had.is_some() && is_its_own);
            seen.began_in_debt += u32::from(is_its_own && oracle.overflow.owes(now));
            seen.overflowed += u32::from(!is_its_own);
        }
        let left = expected.look(1, now);
        let arrived = bucket.arrive(NonZeroU32::new(units as u32).unwrap());
        match arrived {
            Err(Refusal::TooMuch) => panic!("{place}: it is no more than a burst"),
            Err(Refusal::TooSoon(wait)) => {
                assert_eq!(Some(wait.as_nanos() as u64), cost.checked_sub(left), "{place}: the wait");
                assert!(!wait.is_zero(), "{place}: refused for nothing");
                drop(bucket);
            }
            Ok(level) => {
                assert!(left >= cost, "{place}: its bucket has {left} of {cost}");
                bucket.spend(level);
                expected.left -= cost;
                if is_its_own {
                    oracle.places.insert(caller, expected);
                } else {
                    oracle.overflow = expected;
                }
                let of_caller = oracle.callers.entry(caller).or_insert(Tokens::new(full));
                let had = of_caller.look(1, now);
                assert!(had >= cost, "{place}: of all that it was ever let through, it had {had} of {cost}");
                of_caller.left -= cost;
                let together = oracle.together.look(places + 1, now);
                assert!(together >= cost, "{place}: all together had {together}");
                oracle.together.left -= cost;
            }
        }
        assert!(limiter.remembered() as u64 <= places, "{place}: no more than have a place");
    }
}
