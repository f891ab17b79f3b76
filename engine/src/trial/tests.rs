//! Verdicts on models that do what the test says.

use super::rows::ROWS;
use super::*;
use crate::model::{Form, Spec};
use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
use crate::values::difference;
use half::f16;
use std::sync::atomic::{AtomicU32, Ordering};
use wire::Datatype;

/// The verdict on a model `x: [-1, 4] → y: [-1, 4]` whose rows are computed by `script`.
fn verdict(
    script: impl Fn(&[f32], u64) -> Result<(Vec<u64>, Vec<f32>), ModelError> + Send + Sync + 'static,
) -> Result<Verdict, String> {
    let spec = rows_spec(&[("x", 4)], &[("y", 4)], 8);
    let model = Scripted::new(spec, move |inputs| {
        let (shape, values) = script(&fp32(&inputs[0]), inputs[0].shape[0])?;
        Ok(vec![output_fp32("y", &shape, &values)])
    });
    run(&model, &Pace::alone())
}

fn why_one_by_one(verdict: Result<Verdict, String>) -> String {
    let verdict = verdict.unwrap();
    assert_eq!(verdict.grouping, Grouping::Together { max_rows: 1 });
    verdict.why_alone
}

fn why(verdict: Result<Verdict, String>) -> String {
    let verdict = verdict.unwrap();
    assert_eq!(verdict.grouping, Grouping::Serial);
    verdict.why_alone
}

#[test]
fn independent_rows_may_run_together() {
    let doubled = verdict(|x, rows| Ok((vec![rows, 4], x.iter().map(|v| v * 2.0).collect())));
    let grouping = Grouping::Together { max_rows: 8 };
    assert_eq!(doubled, Ok(Verdict { grouping, why_alone: String::new(), output_bytes: 16, draws: false }));
}

#[test]
fn another_order_of_summation_is_no_difference() {
    let jitter = verdict(|x, rows| Ok((vec![rows, 4], x.iter().map(|v| v + rows as f32 * 1e-6).collect())));
    assert_eq!(jitter.unwrap().grouping, Grouping::Together { max_rows: 8 });
}

#[test]
fn rows_that_see_each_other_are_never_batched() {
    let coupled = verdict(|x, rows| Ok((vec![rows, 4], x.iter().map(|v| v + rows as f32).collect())));
    assert_eq!(
        why(coupled),
        "not batched: rows change when they run together (output `y`, largest difference 4)"
    );
}

#[test]
fn rows_that_are_told_apart_by_their_size_or_length_alone_are_never_batched() {
    let by = |key: fn(&[f32]) -> i32| {
        verdict(move |x, rows| {
            let mut sorted: Vec<&[f32]> = x.chunks(4).collect();
            sorted.sort_by_key(|row| key(row));
            Ok((vec![rows, 4], sorted.concat()))
        })
    };
    for key in [
        |row: &[f32]| row.iter().rposition(|v| *v != 0.0).map_or(0, |at| at as i32),
        |row: &[f32]| (row[0] * 8.0).floor() as i32,
        |row: &[f32]| i32::from(row[0] < 0.0),
        |row: &[f32]| i32::from(row.iter().any(|v| *v > 1.0)),
    ] {
        assert!(why(by(key)).contains("rows change when they run together"));
    }
}

#[test]
fn rows_that_are_scaled_by_the_largest_integer_of_all_are_never_batched() {
    for bounds in [None, Some((0, 255))] {
        let mut spec = rows_spec(&[("x", 64)], &[("y", 64)], 8);
        let shape = spec.inputs[0].form.take().unwrap().shape;
        spec.inputs[0].form = Some(Form { datatype: Datatype::Uint8, shape });
        spec.inputs[0].bounds = bounds;
        let model = Scripted::new(spec, |inputs| {
            let x = inputs[0].parts.concat();
            let most = f32::from(x.iter().copied().max().unwrap_or(1).max(1));
            let y: Vec<f32> = x.iter().map(|x| f32::from(*x) / most).collect();
            Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
        });
        assert!(why(run(&model, &Pace::alone())).contains("rows change when they run together"));
    }
}

#[test]
fn what_a_model_does_not_take_alone_it_may_not_take_beside_others() {
    let is_negative = |x: &[f32]| x[0] < 0.0;
    let fussy = verdict(move |x, rows| {
        if x.chunks(4).any(is_negative) {
            return Err(ModelError::new("a pixel is negative"));
        }
        Ok((vec![rows, 4], x.to_vec()))
    });
    assert_eq!(fussy.unwrap().grouping, Grouping::Together { max_rows: 8 }, "it never takes them");
    let drops = verdict(move |x, rows| {
        let mut kept: Vec<&[f32]> = x.chunks(4).filter(|row| !is_negative(row)).collect();
        let Some(last) = kept.last().copied() else { return Err(ModelError::new("no rows are left")) };
        kept.resize(rows as usize, last);
        Ok((vec![rows, 4], kept.concat()))
    });
    assert_eq!(
        why(drops),
        "not batched: it takes a row beside another that it does not take alone: no rows are left"
    );
}

#[test]
fn a_row_that_depends_on_its_place_is_found() {
    let placed = verdict(|x, rows| {
        Ok((vec![rows, 4], x.iter().enumerate().map(|(at, v)| if at < 4 { *v } else { v + 1.0 }).collect()))
    });
    assert!(why(placed).contains("rows change when they run together"));
}

#[test]
fn a_model_that_remembers_is_never_batched() {
    let calls = AtomicU32::new(0);
    let stateful = verdict(move |x, rows| {
        let call = calls.fetch_add(1, Ordering::Relaxed) as f32;
        Ok((vec![rows, 4], x.iter().map(|v| v + call).collect()))
    });
    assert!(why(stateful).contains("gives another answer the next time (output `y`"));
}

#[test]
fn what_is_declared_stateful_is_not_batched_whatever_its_rows_show() {
    let run_of = |rows, x: fn(&[f32]) -> Vec<f32>| {
        let spec = Spec { stateful: true, rows, ..rows_spec(&[("x", 4)], &[("y", 4)], 8) };
        let model = Scripted::new(spec, move |inputs| {
            Ok(vec![output_fp32("y", &inputs[0].shape, &x(&fp32(&inputs[0])))])
        });
        run(&model, &Pace::alone())
    };
    let declared = "not batched: model.yaml says that its answers depend on earlier requests";
    assert_eq!(why(run_of(Rows::UpTo(8), <[f32]>::to_vec)), declared);
    assert_eq!(why(run_of(Rows::None { why: "it says so".into() }, <[f32]>::to_vec)), declared);
    let sums = |x: &[f32]| vec![x.iter().sum(); x.len()];
    assert!(why(run_of(Rows::UpTo(8), sums)).contains("rows change"), "what is found says more");
}

#[test]
fn what_runs_one_row_at_a_time_may_remember_the_row_before() {
    let before = AtomicU32::new(0);
    let model = Scripted::new(rows_spec(&[("x", 4)], &[("y", 4)], 1), move |inputs| {
        let x = fp32(&inputs[0]);
        let last = f32::from_bits(before.swap(x[0].to_bits(), Ordering::Relaxed));
        let y: Vec<f32> = x.iter().map(|v| v + if last == 0.0 { x[0] } else { last }).collect();
        Ok(vec![output_fp32("y", &inputs[0].shape, &y)])
    });
    assert!(why(run(&model, &Pace::alone())).contains("gives another answer the next time"));
}

#[test]
fn what_is_no_fault_of_the_model_says_nothing_about_it() {
    let failing = |rows_at_most: u64, error: fn() -> ModelError| {
        verdict(
            move |x, rows| {
                if rows > rows_at_most { Err(error()) } else { Ok((vec![rows, 4], x.to_vec())) }
            },
        )
    };
    let lost = || ModelError { device_lost: true, ..ModelError::new("cuda:0 works no more") };
    let full = || ModelError { out_of_memory: true, ..ModelError::new("out of memory") };
    for rows_at_most in [0, 1] {
        assert_eq!(failing(rows_at_most, lost), Err("cuda:0 works no more".into()));
        assert_eq!(failing(rows_at_most, full), Err("out of memory".into()));
    }
    let few = failing(ROWS.len() as u64, full).unwrap();
    assert_eq!(few.grouping, Grouping::Together { max_rows: 8 }, "lanes find out how many fit");
}

#[test]
fn a_device_that_is_lost_beside_another_row_says_nothing_about_the_row_either() {
    let failing = |beside: fn() -> ModelError| {
        verdict(move |x, rows| match (x.chunks(4).any(|row| row[0] < 0.0), rows) {
            (true, 1) => Err(ModelError::new("a pixel is negative")),
            (true, _) => Err(beside()),
            (false, _) => Ok((vec![rows, 4], x.to_vec())),
        })
    };
    let lost = || ModelError { device_lost: true, ..ModelError::new("cuda:0 works no more") };
    let full = || ModelError { out_of_memory: true, ..ModelError::new("out of memory") };
    assert_eq!(failing(lost), Err("cuda:0 works no more".into()));
    assert_eq!(failing(full), Err("out of memory".into()));
}

#[test]
fn a_wrong_number_of_rows_is_the_reason_that_is_shown() {
    let short = verdict(|x, _| Ok((vec![1, 4], x[..4].to_vec())));
    assert_eq!(why(short), "not batched: output `y` has 1 row, 5 went in");
}

#[test]
fn a_model_that_refuses_made_up_input_still_answers() {
    let fussy = verdict(|_, _| Err(ModelError::new("index out of range")));
    assert_eq!(why(fussy), "not batched: it fails on made-up input: index out of range");
    let lonely = verdict(|x, rows| match rows {
        1 => Ok((vec![1, 4], x.to_vec())),
        _ => Err(ModelError::new("one row only")),
    });
    assert_eq!(why_one_by_one(lonely), "not batched: several rows together fail: one row only");
}

#[test]
fn rows_of_which_fewer_run_together_may_depend_on_each_other() {
    let small = verdict(|x, rows| match rows {
        1..=2 => Ok((vec![rows, 4], x.iter().map(|v| v * rows as f32).collect())),
        _ => Err(ModelError::new("two at most")),
    });
    assert_eq!(why(small), "not batched: several rows together fail: two at most");
}

#[test]
fn rows_that_fail_together_do_not_hide_that_a_model_remembers() {
    let failed = AtomicU32::new(0);
    let upset = verdict(move |x, rows| match rows {
        1 => Ok((vec![1, 4], x.iter().map(|v| v + failed.load(Ordering::Relaxed) as f32).collect())),
        _ => {
            failed.fetch_add(1, Ordering::Relaxed);
            Err(ModelError::new("one row only"))
        }
    });
    let told = "not batched: the same input gives another answer the next time (output `y`, ";
    assert!(why(upset).starts_with(told));
}

#[test]
fn another_model_than_the_declared_one_is_refused() {
    let other = verdict(|x, rows| Ok((vec![rows, 3], x[..3 * rows as usize].to_vec())));
    assert_eq!(other, Err("output `y`: shape [1, 3] does not match [-1, 4]".into()));
}

#[test]
fn free_dimensions_get_a_size_that_fits() {
    let mut spec = rows_spec(&[("x", 4)], &[("y", 4)], 8);
    let free = Form { datatype: Datatype::Fp32, shape: vec![Dimension::Free, Dimension::Free] };
    spec.inputs[0].form = Some(free.clone());
    spec.outputs[0].form = Some(free);
    let model = Scripted::new(spec, |inputs| {
        if inputs[0].shape[1] < 20 {
            return Err(ModelError::new("too small for the kernel"));
        }
        Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))])
    });
    assert_eq!(run(&model, &Pace::alone()).unwrap().grouping, Grouping::Together { max_rows: 8 });
}

#[test]
fn a_declaration_without_measure_is_not_tried_in_full() {
    let most = 1 << 12;
    let tried = |shape: Vec<Dimension>| {
        let mut spec = rows_spec(&[("x", 4)], &[("y", 4)], 65_536);
        spec.inputs[0].form = Some(Form { datatype: Datatype::Fp32, shape });
        let model = Scripted::new(spec, move |inputs| {
            let rows = inputs[0].shape[0];
            assert!(inputs[0].parts.iter().map(|part| part.len() as u64).sum::<u64>() <= most);
            Ok(vec![output_fp32("y", &[rows, 4], &vec![0.0; 4 * rows as usize])])
        });
        run_within(&model, &Pace::alone(), most, Tolerance::Summation)
    };
    let small = tried(vec![Dimension::Free, Dimension::Fixed(4)]);
    assert_eq!(small.unwrap().grouping, Grouping::Together { max_rows: 65_536 });
    let two_do_not_fit = tried(vec![Dimension::Free, Dimension::Fixed(1000)]);
    assert_eq!(
        why(two_do_not_fit),
        "not batched: it fails on made-up input: it would be larger than 4096 bytes"
    );
    assert!(why(tried(vec![Dimension::Free; 16])).contains("larger than"));
}

#[test]
fn what_has_no_rows_runs_alone_and_says_why() {
    let spec = Spec {
        rows: Rows::None { why: "output `y` does not start with -1".into() },
        ..rows_spec(&[("x", 4)], &[("y", 4)], 8)
    };
    let model = Scripted::new(spec, |inputs| Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))]));
    let verdict = run(&model, &Pace::alone()).unwrap();
    assert_eq!((verdict.grouping, verdict.output_bytes), (Grouping::Alone, 12 * 16), "of the larger input");
    assert_eq!(verdict.why_alone, "not batched: output `y` does not start with -1");
}

#[test]
fn tolerance_follows_the_datatype() {
    let pair = |datatype, one: &[u8], other: &[u8]| difference(datatype, one, other, Tolerance::Summation);
    assert_eq!(pair(Datatype::Int32, &1i32.to_le_bytes(), &2i32.to_le_bytes()), Some(1.0));
    assert_eq!(pair(Datatype::Fp32, &1f32.to_le_bytes(), &1.0001f32.to_le_bytes()), None);
    assert!(pair(Datatype::Fp32, &1f32.to_le_bytes(), &1.001f32.to_le_bytes()).is_some());
    assert_eq!(
        pair(Datatype::Fp16, &f16::from_f32(1.0).to_le_bytes(), &f16::from_f32(1.01).to_le_bytes()),
        None
    );
    assert!(pair(Datatype::Fp32, &f32::NAN.to_le_bytes(), &1f32.to_le_bytes()).is_some_and(f64::is_nan));
    assert_eq!(pair(Datatype::Fp64, &f64::NAN.to_le_bytes(), &(-f64::NAN).to_le_bytes()), None);
}
