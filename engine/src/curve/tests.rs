//! What a curve makes of runs that are made up.

use super::*;
use proptest::prelude::*;

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn learned(sizes: &[u32], took: impl Fn(u32) -> u64) -> Curve {
    let mut curve = Curve::default();
    for _ in 0..5 {
        for rows in sizes {
            curve.observe(*rows, us(took(*rows)));
        }
    }
    curve
}

fn micros(duration: Option<Duration>) -> u128 {
    duration.expect("enough was learned").as_micros()
}

#[test]
fn nothing_is_predicted_from_next_to_nothing() {
    let mut curve = Curve::default();
    curve.observe(1, us(100));
    curve.observe(1, us(100));
    assert_eq!((curve.typical(1), curve.slow(1), curve.efficient(8)), (None, None, None));
    curve.observe(1, us(100));
    assert_eq!(micros(curve.typical(1)), 100);
}

#[test]
fn between_sizes_it_is_interpolated_and_beyond_them_continued() {
    let curve = learned(&[4, 8], |rows| 100 + 10 * u64::from(rows));
    assert_eq!(micros(curve.typical(6)), 160);
    assert_eq!(micros(curve.typical(16)), 260);
    assert_eq!(micros(curve.typical(1)), 140, "no longer than the smallest that was seen");
    assert_eq!(micros(learned(&[4], |_| 100).typical(8)), 200, "in proportion, to be careful");
}

#[test]
fn a_slow_time_is_over_when_some_runs_in_a_row_are_much_faster() {
    let mut curve = Curve::default();
    let typical = |curve: &Curve| [1, 4, 8].map(|rows| micros(curve.typical(rows)));
    for rows in [1, 4, 8] {
        (0..40).for_each(|_| curve.observe(rows, us(2500)));
    }
    (0..2).for_each(|_| curve.observe(4, us(250)));
    assert_eq!(typical(&curve), [2500; 3], "few may be an accident");
    curve.observe(4, us(240));
    assert_eq!(
        typical(&curve),
        [250; 3],
        "fewer rows take no longer, and more were as slow because of the same"
    );
    (0..RECENT).for_each(|_| [4, 8].iter().for_each(|rows| curve.observe(*rows, us(2500))));
    assert_eq!(typical(&curve)[1], 2500, "and may be slow again");
}

#[test]
fn a_size_that_does_not_run_is_taken_to_be_faster_once_however_often_another_turns_out_to_be() {
    let mut curve = Curve::default();
    for (rows, took) in [(1, 2500), (8, 20_000)] {
        (0..RECENT).for_each(|_| curve.observe(rows, us(took)));
    }
    for _ in 0..3 {
        (0..OVER_RUNS).for_each(|_| curve.observe(1, us(250)));
        assert_eq!([1, 8].map(|rows| micros(curve.typical(rows))), [250, 2000]);
        (0..RECENT).for_each(|_| curve.observe(1, us(2500)));
    }
    (0..OVER_RUNS).for_each(|_| curve.observe(8, us(30_000)));
    (0..OVER_RUNS).for_each(|_| curve.observe(1, us(250)));
    assert_eq!(micros(curve.typical(8)), 3000, "it has run since");
}

#[test]
fn when_nothing_disturbs_runs_any_more_a_size_that_does_not_run_takes_what_it_did() {
    let mut curve = learned(&[1, 2, 4], |rows| 1000 + 100 * u64::from(rows));
    // Twos run in a busy time that spares the others.
    (0..8).for_each(|_| curve.observe(2, us(3600)));
    let calm = |curve: &mut Curve, runs| (0..runs).for_each(|_| curve.observe(1, us(1100)));
    calm(&mut curve, CALM_RUNS - 1);
    curve.observe(1, us(2200));
    calm(&mut curve, CALM_RUNS - 1);
    assert!(micros(curve.typical(2)) > 2000, "one that is disturbed is enough to doubt it");
    calm(&mut curve, 1);
    let predicted = [1, 2, 4].map(|rows| micros(curve.typical(rows)));
    assert_eq!([predicted[0], predicted[2]], [1100, 1400]);
    assert!((1200..1260).contains(&predicted[1]), "{predicted:?}");
    // And after another one again.
    (0..3).for_each(|_| curve.observe(2, us(1200)));
    (0..RECENT).for_each(|_| curve.observe(2, us(3600)));
    calm(&mut curve, CALM_RUNS);
    assert!(micros(curve.typical(2)) < 1400);
}

#[test]
fn a_size_that_is_slow_for_good_is_taken_to_be_faster_once() {
    let mut curve = learned(&[1, 2, 4], |rows| 1000 + 100 * u64::from(rows));
    let (mut taken, mut slow) = (0, 0);
    for _ in 0..100 {
        // Nobody has time for it unless it looks fast.
        while micros(curve.typical(4)) < 2500 {
            curve.observe(4, us(5000));
            slow += 1;
        }
        (0..CALM_RUNS).for_each(|_| curve.observe(1, us(1100)));
        taken += u32::from(micros(curve.typical(4)) < 2500);
    }
    assert_eq!(taken, 1);
    assert!(slow <= 10, "{slow}");
}

#[test]
fn a_size_that_runs_in_busy_times_only_takes_what_it_did_after_each_of_them() {
    let mut curve = learned(&[1, 2, 4], |rows| 1000 + 100 * u64::from(rows));
    for time in 0..3 {
        // Ones run when it begins, then there is too much to do for them.
        (0..4).for_each(|_| curve.observe(1, us(3300)));
        (0..RECENT).for_each(|_| curve.observe(4, us(4200)));
        (0..CALM_RUNS).for_each(|_| curve.observe(1, us(1100)));
        let predicted = [1, 4].map(|rows| micros(curve.typical(rows)));
        assert!(predicted[0] < 1200 && predicted[1] < 2000, "{predicted:?} after {time} others");
    }
}

#[test]
fn sizes_that_are_slow_for_good_are_no_busy_time_to_each_other() {
    let mut curve = learned(&[1, 2, 4, 5, 8], |_| 1000);
    let mut slow = 0;
    for _ in 0..100 {
        while let Some(rows) = [8, 5].into_iter().find(|rows| micros(curve.typical(*rows)) < 2000) {
            curve.observe(rows, us(3000));
            slow += 1;
        }
        // Nor are a few runs that something disturbs.
        (1..BUSY_RUNS).for_each(|_| curve.observe(1, us(3000)));
        (0..CALM_RUNS as u32).for_each(|run| curve.observe(1 << (run % 3), us(1000)));
    }
    assert!(slow <= 30, "{slow}");
}

#[test]
fn a_size_that_is_slow_whenever_it_runs_is_not_taken_to_be_as_fast_as_more_rows_are() {
    let mut curve = learned(&[1, 2, 4], |rows| if rows == 2 { 3000 } else { 1000 });
    let before = micros(curve.typical(2));
    assert!(before > 1500);
    for run in 0..100 * CALM_RUNS as u32 {
        curve.observe(1 + 3 * (run % 2), us(1000));
        assert!(micros(curve.typical(2)) > 1400, "after {run} runs");
    }
}

#[test]
fn what_was_guessed_of_a_size_and_refuted_by_its_next_run_is_not_what_it_took_undisturbed() {
    let mut curve = Curve::default();
    for (rows, took) in [(1, 2500), (8, 20_000)] {
        (0..RECENT).for_each(|_| curve.observe(rows, us(took)));
    }
    (0..OVER_RUNS).for_each(|_| curve.observe(1, us(250)));
    assert_eq!(micros(curve.typical(8)), 2000);
    (0..RECENT).for_each(|_| curve.observe(8, us(20_000)));
    (0..CALM_RUNS).for_each(|_| curve.observe(1, us(250)));
    assert_eq!([1, 8].map(|rows| micros(curve.typical(rows))), [250, 20_000]);
}

#[test]
fn where_every_second_or_third_run_is_disturbed_no_size_is_taken_to_be_what_it_was() {
    for (disturbed, times) in [(3, 2), (3, 3), (2, 2), (2, 3)] {
        let mut curve = learned(&[1, 2, 4, 8, 16, 32], |_| 1000);
        let (mut dice, mut restored) = (7u32, 0);
        for _ in 0..10_000 {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let slow = if (dice >> 16) % disturbed == 0 { times } else { 1 };
            curve.observe(1 << ((dice >> 8) % 6), us(1000 * slow));
            restored += u32::from(curve.calm == CALM_RUNS);
        }
        assert!(restored <= 2, "{restored} times where one of {disturbed} takes {times} times as long");
    }
}

#[test]
fn what_takes_now_this_and_now_that_is_not_taken_for_fast() {
    let mut curve = Curve::default();
    let (mut dice, mut fast) = (7u32, 0);
    for _ in 0..10_000 {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // A fifth of them, at random.
        curve.observe(1, us(if dice >> 16 < (1 << 16) / 5 { 100 } else { 1000 }));
        fast += u32::from(curve.typical(1).is_some_and(|typical| typical < us(500)));
    }
    assert!(fast < 600, "for {fast} of 10,000 runs");
}

#[test]
fn a_shape_that_has_not_run_is_expected_to_take_what_as_many_values_of_another_do() {
    let known = learned(&[1, 2, 4, 8], |rows| 100 + 10 * u64::from(rows));
    let mut curve = Curve::default();
    curve.expect(&known, 0.5);
    // Its rows are twice as large.
    assert_eq!([1, 2, 4, 8].map(|rows| micros(curve.typical(rows))), [120, 140, 180, 260]);
    assert!(!curve.reaches_down_to(1), "that is nothing that has run");
    // What has run counts; what has not, in proportion.
    (0..3).for_each(|_| curve.observe(4, us(360)));
    assert_eq!([1, 2, 4, 8].map(|rows| micros(curve.typical(rows))), [240, 280, 360, 520]);
    assert_eq!(curve.efficient(8), Some(8));
    (0..3).for_each(|_| curve.observe(1, us(90)));
    assert_eq!(micros(curve.typical(1)), 90);
}

#[test]
fn shapes_without_proportion_let_nothing_be_expected_that_is_no_time() {
    let known = learned(&[1, 2], |rows| u64::from(rows) * 1_000_000);
    for share in [0.0, f32::MIN_POSITIVE, f32::INFINITY] {
        let mut curve = Curve::default();
        curve.expect(&known, share);
        (0..3).for_each(|_| curve.observe(4, us(0)));
        for rows in [1, 4, u32::MAX] {
            let predicted = [curve.typical(rows), curve.slow(rows)];
            assert!(predicted.into_iter().flatten().all(|time| time < Duration::from_secs(4000)));
        }
    }
}

#[test]
fn one_slow_run_moves_nothing_but_a_change_is_learned() {
    let mut curve = learned(&[1], |_| 100);
    curve.observe(1, us(9000));
    assert_eq!(micros(curve.typical(1)), 100);
    for _ in 0..RECENT {
        curve.observe(1, us(200));
    }
    assert_eq!(micros(curve.typical(1)), 200);
}

#[test]
fn a_new_size_that_is_slow_once_moves_nothing_either() {
    let mut curve = learned(&[1, 2, 4, 8, 16, 32], |rows| 400 + 100 * u64::from(rows));
    curve.observe(3, us(20_000));
    assert_eq!([micros(curve.typical(3)), micros(curve.typical(16))], [700, 2000]);
    for _ in 0..2 {
        curve.observe(3, us(20_000));
    }
    assert!(micros(curve.typical(3)) > 700, "three are no accident");
    let mut large = learned(&[8], |_| 9000);
    large.observe(1, us(100));
    assert!(!large.reaches_down_to(1), "what ones take is not known from one of them");
}

#[test]
fn one_accident_among_few_runs_is_not_how_slow_runs_are() {
    let mut curve = learned(&[1], |_| 100);
    (0..70).for_each(|run| curve.observe(1, us(if run == 7 { 9000 } else { 100 })));
    assert_eq!(micros(curve.slow(1)), 100);
}

#[test]
fn the_slow_quantile_is_that_of_runs_against_what_was_expected() {
    let mut curve = learned(&[1, 2], |rows| 100 * u64::from(rows));
    for run in 0..400 {
        curve.observe(1 + run % 2, us(u64::from(1 + run % 2) * if run % 50 < 2 { 300 } else { 100 }));
    }
    assert_eq!(micros(curve.typical(2)), 200);
    assert_eq!(micros(curve.slow(2)), 300, "and more than half as long again nobody reckons with");
}

#[test]
fn efficiency_knows_flat_linear_and_stepped_models() {
    let sizes: Vec<u32> = (1..=32).collect();
    let flat = learned(&sizes, |_| 1000);
    assert_eq!((flat.efficient(32), flat.fill(20)), (Some(32), 20));
    let linear = learned(&sizes, |rows| 100 * u64::from(rows));
    assert_eq!(
        (linear.efficient(32), linear.fill(20)),
        (Some(1), 1),
        "nothing is gained by waiting for others"
    );
    let stepped = learned(&sizes, |rows| 1000 * u64::from(rows.div_ceil(8)));
    assert_eq!((stepped.efficient(32), stepped.efficient(9)), (Some(8), Some(8)));
    assert_eq!((stepped.fill(7), stepped.fill(9), stepped.fill(17), stepped.fill(24)), (7, 8, 8, 8));
}

#[test]
fn a_size_between_two_that_have_run_is_tried_if_it_may_be_as_good() {
    let steps = |rows: u32| 1000 * u64::from(rows.div_ceil(8));
    let mut curve = learned(&[1, 32], steps);
    assert_eq!((curve.fill(32), curve.between(32, 0), curve.between(20, 0)), (32, Some(15), Some(9)));
    let mut tried = Vec::new();
    while let Some(rows) = curve.between(32, 0) {
        curve.observe(rows, us(steps(rows)));
        tried.push(rows);
    }
    assert_eq!(tried, [15], "it is not as good, and fewer than eight cannot be");
    assert_eq!(learned(&[32], steps).between(32, 0), Some(5), "who knows");
    let saturated = learned(&[1, 5, 12, 32], |rows| 100 * u64::from(rows.max(10)));
    assert_eq!(saturated.fill(32), 12);
    let flat = learned(&[1, 32], |_| 1000);
    assert_eq!([32, 20, 3].map(|rows| flat.between(rows, 0)), [None; 3], "no smaller one does as many rows");
    let linear = learned(&[1, 3, 12], |rows| 100 * u64::from(rows));
    assert_eq!(
        [0, 1, 2].map(|turn| linear.between(12, turn)),
        [Some(6); 3],
        "of one and three nothing lies between"
    );
    let large = learned(&[10, 100], |_| 1000);
    assert_eq!((large.between(100, 0), large.explore(100), large.oldest(100)), (None, 100, 10));
    let gaps = learned(&[1, 10, 100], |rows| 100 * u64::from(rows));
    assert_eq!([0, 1, 2].map(|turn| gaps.between(100, turn)), [Some(3), Some(31), Some(3)]);
    let mut cold = learned(&[32], |_| 1000);
    cold.observe(1, us(30_000));
    assert_eq!(cold.between(32, 0), Some(5), "that may have been the first run ever");
}

#[test]
fn a_size_that_looked_slow_is_tried_again_and_one_that_is_slow_is_not() {
    let mut curve = Curve::default();
    for run in 0..15 {
        // Ones are as good as fours, but were disturbed; twos never were any good.
        curve.observe(1, us(if run % 5 == 0 { 1000 } else { 1400 }));
        curve.observe(2, us(3000));
        curve.observe(4, us(4000));
    }
    assert_eq!(curve.fill(4), 4);
    assert_eq!(curve.explore(4), 1);
    for _ in 0..15 {
        curve.observe(1, us(1000));
    }
    assert_eq!((curve.fill(4), curve.explore(4)), (1, 4), "next it is the others' turn");
    assert_eq!((curve.explore(3), curve.explore(30)), (1, 8), "as long as it pays, twice as many");
    (0..5).for_each(|_| curve.observe(8, us(9000)));
    assert_ne!(curve.explore(30), 16, "eights were no better");
}

proptest! {
    #[test]
    fn more_rows_never_take_less(runs in prop::collection::vec((1u32..300, 1u64..5000), 3..200)) {
        let mut curve = Curve::default();
        for (rows, took) in runs {
            curve.observe(rows, us(took));
        }
        let predicted: Vec<_> = (1..400).map(|rows| curve.typical(rows).unwrap()).collect();
        prop_assert!(predicted.is_sorted());
    }

    #[test]
    fn a_large_size_is_rounded_up_by_an_eighth_at_most(rows in 1u32..) {
        let size = size_of(rows);
        prop_assert!(size >= rows && u64::from(size) <= u64::from(rows) * 9 / 8);
    }
}
