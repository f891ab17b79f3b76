//! Requests that are padded to run together, and cut back.

use super::*;

/// A model `x: [-1, n], seen: [-1, n] (a mask) → y: [-1, n], total: [-1]`, padded to 4 and 8.
fn padding_model(gate: Arc<Gate>, honest: bool) -> Candidate {
    let load: Load = Box::new(move || {
        let mut spec = rows_spec(&[("x", 1), ("seen", 1)], &[("y", 1), ("total", 1)], 16);
        let dimension = Named { name: "n".into(), pad_to: vec![4, 8], waste_max: 0.5, max: Some(9) };
        spec.dimensions.push(dimension);
        fn shape(slot: &mut Slot) -> &mut Vec<Dimension> {
            &mut slot.form.as_mut().unwrap().shape
        }
        for slot in spec.inputs.iter_mut().chain(&mut spec.outputs[..1]) {
            shape(slot)[1] = Dimension::Named(0);
        }
        shape(&mut spec.outputs[1]).truncate(1);
        (spec.inputs[0].pad, spec.inputs[1].mask) = (7.0, true);
        let model = Scripted::new(spec, move |inputs| {
            gate.pass();
            let (x, seen) = (fp32(&inputs[0]), fp32(&inputs[1]));
            let n = inputs[0].shape[1] as usize;
            let y: Vec<f32> = x.iter().map(|x| x * 2.0).collect();
            let seen_of = |at: usize| if honest { seen[at] } else { 1.0 };
            let totals: Vec<f32> = (0..x.len() / n)
                .map(|row| (row * n..row * n + n).map(|at| x[at] * seen_of(at)).sum())
                .collect();
            Ok(vec![
                output_fp32("y", &inputs[0].shape, &y),
                output_fp32("total", &[totals.len() as u64], &totals),
            ])
        });
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None })
    });
    to_load("padded", 1, load)
}

#[test]
fn requests_of_many_sizes_are_padded_to_few_and_run_together() {
    let gate = Arc::new(Gate::default());
    let engine = Engine::start(vec![padding_model(Arc::clone(&gate), true)]);
    let mut client = engine.connect();
    assert_eq!(client.index()[0].reason, "");
    let ask = |x: &[f32]| Asked::of("padded").fp32("x", &[1, x.len() as u64], x);
    gate.shut();
    client.infer(1, ask(&[1.0]));
    gate.await_held(1);
    client.infer(2, ask(&[1.0, 2.0, 3.0]));
    client.infer(3, ask(&[1.0, 2.0, 3.0, 4.0]));
    client.infer(4, ask(&[1.0, 2.0]).fp32("seen", &[1, 2], &[0.0, 1.0]));
    client.infer(5, ask(&[1.0; 9]));
    let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    client.infer(6, Asked::of("padded").fp32("x", &[2, 3], &rows));
    client.barrier();
    gate.open();
    let answers = client.replies(6);
    assert_eq!(answers[0].fp32("total"), [1.0], "alone, because three quarters would be padding");
    assert_eq!((answers[1].fp32("y"), answers[1].fp32("total")), (vec![2.0, 4.0, 6.0], vec![6.0]));
    assert_eq!(answers[1].output("y").0.shape, [1, 3]);
    assert_eq!(answers[2].fp32("total"), [10.0]);
    assert_eq!((answers[3].fp32("y"), answers[3].fp32("total")), (vec![2.0, 4.0], vec![2.0]));
    assert_eq!((answers[4].fp32("y").len(), answers[4].fp32("total")), (9, vec![9.0]));
    assert_eq!(answers[5].output("y").0.shape, [2, 3]);
    assert_eq!(
        (answers[5].fp32("y"), answers[5].fp32("total")),
        (rows.map(|x| 2.0 * x).to_vec(), vec![6.0, 15.0])
    );
    let ran_with = |at: usize| answers[at].reply.timing.as_ref().unwrap().batch_requests;
    assert_eq!([1, 2, 3, 5].map(ran_with), [4; 4]);
    let padding = |at: usize| answers[at].reply.timing.as_ref().unwrap().padding_millionths;
    assert_eq!([1, 2, 3, 5].map(padding), [250_000; 4], "5 of 20 elements of each input");
    assert_eq!((padding(0), padding(4)), (0, 0));
    assert_eq!(ran_with(4), 1, "larger than any size that is padded to");
    client.infer(7, ask(&[1.0; 10]));
    let refused = client.replies(1).remove(0);
    assert_eq!(refused.status(), Status::InvalidArgument);
    assert_eq!(refused.reply.message, "input `x`: dimension `n` is 10, at most 9 is allowed");
}

/// A model `x: [1, n] → y: [n, 2], sum: [1]`, which has no rows, padded to 4.
#[test]
fn outputs_of_a_padded_model_without_rows_are_cut_back_in_all_dimensions() {
    let load: Load = Box::new(|| {
        let mut spec = rows_spec(&[("x", 4)], &[("y", 2), ("sum", 1)], 16);
        spec.rows = Rows::None { why: "output `y` does not start with -1".into() };
        spec.dimensions.push(Named { name: "n".into(), pad_to: vec![4], waste_max: 0.9, max: None });
        let shapes = [
            vec![Dimension::Fixed(1), Dimension::Named(0)],
            vec![Dimension::Named(0), Dimension::Fixed(2)],
            vec![Dimension::Fixed(1)],
        ];
        for (slot, shape) in spec.inputs.iter_mut().chain(&mut spec.outputs).zip(shapes) {
            slot.form.as_mut().unwrap().shape = shape;
        }
        let model = Scripted::new(spec, |inputs| {
            let x = fp32(&inputs[0]);
            let y: Vec<f32> = x.iter().flat_map(|x| [*x, 2.0 * x]).collect();
            let sum = x.iter().sum();
            Ok(vec![output_fp32("y", &[x.len() as u64, 2], &y), output_fp32("sum", &[1], &[sum])])
        });
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None })
    });
    let engine = Engine::start(vec![to_load("spread", 1, load)]);
    let mut client = engine.connect();
    client.index();
    client.infer(1, Asked::of("spread").fp32("x", &[1, 3], &[1.0, 2.0, 3.0]));
    let answer = client.reply().unwrap();
    assert_eq!((answer.output("y").0.shape.clone(), answer.fp32("sum")), (vec![3, 2], vec![6.0]));
    assert_eq!(answer.fp32("y"), [1.0, 2.0, 2.0, 4.0, 3.0, 6.0]);
}

#[test]
fn what_would_be_too_large_once_padded_is_never_made_and_such_a_model_is_not_padded() {
    let load: Load = Box::new(|| {
        let mut spec = rows_spec(&[("x", 1), ("seen", 1)], &[("y", 1)], 16);
        spec.dimensions.push(Named {
            name: "n".into(),
            pad_to: vec![1 << 40],
            waste_max: 0.999_999_999_999,
            max: None,
        });
        for slot in spec.inputs.iter_mut().chain(&mut spec.outputs) {
            slot.form.as_mut().unwrap().shape[1] = Dimension::Named(0);
        }
        spec.inputs[1].mask = true;
        let model =
            Scripted::new(spec, |inputs| Ok(vec![output_fp32("y", &inputs[0].shape, &fp32(&inputs[0]))]));
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None })
    });
    let engine = Engine::start(vec![to_load("wide", 1, load)]);
    let mut client = engine.connect();
    let reason = client.index().remove(0).reason;
    let why = format!("not padded: {} bytes in one request, at most ", 2 * 4 * (1_u64 << 40));
    assert!(reason.starts_with(&why), "{reason}");
    client.infer(1, Asked::of("wide").fp32("x", &[1, 3], &[1.0, 2.0, 3.0]));
    assert_eq!(client.reply().unwrap().fp32("y"), [1.0, 2.0, 3.0]);
}

#[test]
fn a_model_that_takes_padding_for_input_is_not_padded() {
    let engine = Engine::start(vec![padding_model(Arc::default(), false)]);
    let mut client = engine.connect();
    let reason = client.index().remove(0).reason;
    assert!(reason.starts_with("not padded: answers change (output `total`, "), "{reason}");
    client.infer(1, Asked::of("padded").fp32("x", &[1, 3], &[1.0, 2.0, 3.0]));
    assert_eq!(client.reply().unwrap().fp32("total"), [6.0]);
    let uneven = Asked::of("padded").fp32("x", &[1, 3], &[0.0; 3]).fp32("seen", &[1, 2], &[1.0; 2]);
    client.infer(2, uneven);
    assert_eq!(client.reply().unwrap().reply.message, "input `seen`: dimension `n` is 2, in `x` it is 3");
}
