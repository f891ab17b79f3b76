//! Stories of requests that bring files in place of tensors, in a whole engine with a model that does what the test says.

use crate::library::{Candidate, Loaded, Stamp};
use crate::model::{Dimension, Form};
use crate::preprocess::{Declared, Preprocess};
use crate::scenarios::{Asked, Client, Engine};
use crate::scripted::{Scripted, fp32, output_fp32, rows_spec};
use bytes::Bytes;
use wire::{Datatype, Infer, Kind, ModelEntry, Status, push_element};

const YAML: &str = "image: {resize: 2, crop: 2, mean: [0, 0, 0], std: [1, 1, 1], pixels_max: 100}";

/// `image` or `x: [-1, 3, 2, 2]` to `y: [-1, 1]`, what the first pixel has of red.
fn start() -> (Engine, Client, ModelEntry) {
    let load = || {
        let mut spec = rows_spec(&[("x", 12)], &[("y", 1)], 8);
        let [side, colours] = [2, 3].map(Dimension::Fixed);
        let form = Form { datatype: Datatype::Fp32, shape: vec![Dimension::Free, colours, side, side] };
        spec.inputs[0].form = Some(form);
        let declared: Declared = serde_saphyr::from_str(YAML).expect("it is declared as it should be");
        let preprocess = Preprocess::bind(declared, &spec, || unreachable!("it takes no text"))?;
        let model = Scripted::new(spec, |inputs| {
            let y: Vec<f32> = fp32(&inputs[0]).chunks(12).map(|row| row[0]).collect();
            assert!(!y.contains(&1.0), "white was cancelled");
            Ok(vec![output_fp32("y", &[y.len() as u64, 1], &y)])
        });
        Ok(Loaded { model: Box::new(model), golden: None, preprocess: Some(preprocess), files: None })
    };
    let stamp = Stamp::made_up(1);
    let engine = Engine::start(vec![Candidate {
        name: "m".into(),
        version: 1,
        stamp,
        bytes: 0,
        load: Box::new(load),
    }]);
    let mut client = engine.connect();
    let entry = client.index().remove(0);
    (engine, client, entry)
}

/// A PNG file of one grey.
fn grey(level: u8, side: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    let pixels = vec![level; (side * side) as usize];
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("memory takes it");
    file
}

fn ask(files: &[&[u8]]) -> Asked {
    let mut tensor = Vec::new();
    files.iter().for_each(|file| push_element(&mut tensor, file));
    Asked::of("m").input("image", Datatype::Bytes, &[files.len() as u64], &tensor)
}

#[test]
fn files_become_the_models_tensor_which_may_be_sent_as_well() {
    let (_engine, mut client, entry) = start();
    assert_eq!(entry.inputs.len(), 1);
    let raw = &entry.inputs[0];
    assert_eq!(
        (raw.name.as_str(), raw.datatype, &raw.shape[..]),
        ("image", Datatype::Bytes as u32, &[-1][..])
    );

    client.infer(1, ask(&[&grey(51, 2), &grey(102, 9)]));
    let answer = client.reply().unwrap();
    assert_eq!(answer.fp32("y"), [0.2, 0.4]);
    assert!(answer.reply.timing.unwrap().prepare_us > 0);

    client.infer(2, Asked::of("m").fp32("x", &[1, 3, 2, 2], &[0.5; 12]));
    let answer = client.reply().unwrap();
    assert_eq!((answer.fp32("y"), answer.reply.timing.unwrap().prepare_us), (vec![0.5], 0));
}

#[test]
fn each_bad_file_fails_alone_and_is_named_by_its_row() {
    let (_engine, mut client, _) = start();
    let good = grey(51, 2);
    let files: [Vec<&[u8]>; 4] =
        [vec![&good, b"GIF"], vec![&good[..40]], vec![&good], vec![&good, &good, &[]]];
    client.infer_all((1..).zip(files.iter().map(|files| ask(files))));
    client.infer(5, ask(&[&grey(51, 11)]));
    client.infer(6, ask(&[]));
    client.infer(7, Asked::of("m").input("picture", Datatype::Bytes, &[0], &[]));
    let answers = client.replies(7);
    let says = |at: usize| answers[at].reply.message.as_str();
    assert_eq!(says(0), "input `image`, row 1 is no JPEG, PNG or WebP image");
    assert!(says(1).starts_with("input `image`, row 0 is a broken PNG image: "), "{}", says(1));
    assert_eq!(answers[2].fp32("y"), [0.2]);
    assert_eq!(says(3), "input `image`, row 2 has no pixels");
    assert_eq!(says(4), "input `image`, row 0 has 11×11 pixels, at most 100 are read");
    assert_eq!(says(5), "input `image`: dimension 0 of [0] is 0; empty tensors are not run");
    assert_eq!(says(6), "unknown input `picture`; the model takes `x`, or `image`");
    let refused = answers.iter().filter(|answer| answer.status() == Status::InvalidArgument);
    assert_eq!(refused.count(), 6);
}

#[test]
fn one_that_is_cancelled_or_expires_before_it_is_prepared_is_never_run() {
    let (_engine, mut client, _) = start();
    // The model fails the test if it gets white.
    let white = grey(255, 2);
    let mut outbox = wire::Outbox::new();
    let asked = ask(&[&white]);
    outbox.push(Kind::Infer, 1, &asked.infer, Bytes::from(asked.payload()));
    outbox.push(Kind::Cancel, 1, &Infer::default(), Bytes::new());
    client.send_all(outbox);
    client.infer(2, ask(&[&white]).budget_us(1));
    client.infer(3, ask(&[&grey(51, 2)]));
    let answers = client.replies(2);
    assert_eq!((answers[0].id, answers[0].status()), (2, Status::DeadlineExceeded));
    assert_eq!((answers[1].id, answers[1].fp32("y")), (3, vec![0.2]));
}

#[test]
fn what_is_being_prepared_when_the_engine_stops_is_answered() {
    let (mut engine, mut client, _) = start();
    let file = grey(51, 2);
    client.infer_all((1..=20).map(|id| (id, ask(&[&file]))));
    let before = client.barrier();
    engine.tell_to_stop();
    let after = client.replies(20 - before.len());
    assert!(before.iter().chain(&after).all(|answer| answer.fp32("y") == [0.2]));
    engine.join();
}
