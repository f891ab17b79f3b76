//! Models that remember what they were asked, where no made-up row shows it.

use super::*;

/// What the trial never makes up.
const MARK: f32 = 77_777.0;

/// A model `x: [-1, 2] → y: [-1, 1]`: of rows that begin with the mark the sum of all second elements so far, of others nothing. It
/// notes how many runs there are at a time, at most.
fn summing(stateful: bool, most: Arc<AtomicUsize>) -> Candidate {
    let load: Load = Box::new(move || {
        let spec = Spec { stateful, ..rows_spec(&[("x", 2)], &[("y", 1)], 16) };
        let (sum, running, most) = (Mutex::new(0.0), AtomicUsize::new(0), Arc::clone(&most));
        let model = Scripted::new(spec, move |inputs| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut sum = sum.lock().unwrap();
            let rows = fp32(&inputs[0]);
            let y = rows.chunks(2).map(|row| {
                *sum += if row[0] == MARK { row[1] } else { 0.0 };
                if row[0] == MARK { *sum } else { 0.0 }
            });
            let y: Vec<f32> = y.collect();
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(vec![output_fp32("y", &[y.len() as u64, 1], &y)])
        });
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: None, files: None })
    });
    to_load("summing", 1, load)
}

#[test]
fn what_is_declared_stateful_runs_one_request_at_a_time_and_says_so_though_no_trial_finds_it() {
    let start = |stateful, most: &Arc<AtomicUsize>| {
        Engine::start_with(vec![summing(stateful, Arc::clone(most))], |settings| settings.lanes = 2)
    };
    let undeclared = start(false, &Arc::default()).connect().index().remove(0);
    assert_eq!((undeclared.max_batch, undeclared.reason.as_str()), (16, ""), "no trial finds it");

    let most = Arc::default();
    let engine = start(true, &most);
    let mut client = engine.connect();
    let entry = client.index().remove(0);
    let why = "not batched: model.yaml says that its answers depend on earlier requests";
    assert_eq!((entry.state(), entry.max_batch, entry.reason.as_str()), (ModelState::Ready, 1, why));
    client.infer_all((1..=12).map(|id| (id, Asked::of("summing").fp32("x", &[1, 2], &[MARK, id as f32]))));
    let answers = client.replies(12);
    let mut expected = 0.0;
    for (answer, id) in answers.iter().zip(1..) {
        expected += id as f32;
        assert_eq!(answer.fp32("y"), [expected], "request {id} runs after those before it");
        assert_eq!(answer.reply.timing.as_ref().unwrap().batch_requests, 1);
    }
    assert_eq!(most.load(Ordering::SeqCst), 1, "however many lanes there are");
}
