//! What `model.yaml` says, and which mistakes it is told of.

use super::*;

const DIGITS: &str = "
inputs:
  - {name: pixels, datatype: FP32, shape: [-1, 64]}
outputs:
  - {name: digit, datatype: INT64, shape: [-1]}
  - {name: odds, datatype: FP32, shape: [-1, 2], labels: [\"0\", \"1\"]}
";

fn argument(name: &str, type_name: &str, has_default: bool) -> Argument {
    Argument {
        name: name.into(),
        type_name: type_name.into(),
        takes_tensor: type_name.contains("Tensor"),
        has_default,
    }
}

fn signature(arguments: &[Argument], returns: usize) -> Signature {
    Signature { arguments: arguments.into(), returns: Some(returns) }
}

fn refusal(yaml: &str, signature: &Signature) -> String {
    Manifest::parse(yaml).and_then(|manifest| manifest.bind(signature)).unwrap_err().to_string()
}

#[test]
fn a_declaration_that_fits_gives_the_spec_in_the_order_of_the_arguments() {
    let yaml = "
inputs:
  - {name: b, datatype: INT64, shape: [-1, -1]}
  - {name: a, datatype: FP32, shape: [-1, 3]}
outputs:
  - {name: y, datatype: FP32, shape: [-1]}
max_batch: 5
";
    let arguments =
        [argument("a", "Tensor", false), argument("scale", "float", true), argument("b", "Tensor", false)];
    let bound = Manifest::parse(yaml).unwrap().bind(&signature(&arguments, 1)).unwrap();
    assert_eq!(bound.positions, [0, 2]);
    assert_eq!(bound.spec.inputs[0].name, "a");
    assert_eq!(bound.spec.inputs[1].form.as_ref().unwrap().to_string(), "[-1, -1]");
    assert_eq!(bound.spec.rows, Rows::UpTo(5));
}

#[test]
fn a_model_is_stateful_where_its_author_says_so() {
    let stateful = |said: &str| {
        let manifest = Manifest::parse(&format!("{DIGITS}{said}")).unwrap();
        manifest.bind(&signature(&[argument("pixels", "Tensor", false)], 2)).unwrap().spec.stateful
    };
    assert_eq!(["", "stateful: false", "stateful: true"].map(stateful), [false, false, true]);
    let wrong = Manifest::parse(&format!("{DIGITS}stateful: sometimes")).unwrap_err().to_string();
    assert!(wrong.contains("line 7"), "{wrong}");
}

#[test]
fn max_batch_is_32_unless_said_otherwise() {
    let bound =
        Manifest::parse(DIGITS).unwrap().bind(&signature(&[argument("pixels", "Tensor", false)], 2)).unwrap();
    assert_eq!(bound.spec.rows, Rows::UpTo(32));
    assert_eq!(bound.spec.outputs[1].labels, ["0", "1"]);
}

#[test]
fn a_tensor_that_does_not_start_free_means_there_are_no_rows() {
    let yaml = DIGITS.replace("INT64, shape: [-1]", "INT64, shape: [10]");
    let bound =
        Manifest::parse(&yaml).unwrap().bind(&signature(&[argument("pixels", "Tensor", false)], 2)).unwrap();
    assert_eq!(bound.spec.rows, Rows::None { why: "output `digit` does not start with -1".into() });
}

#[test]
fn a_mistake_is_named_with_its_place() {
    let fits = signature(&[argument("pixels", "Tensor", false)], 2);
    let with = |from: &str, to: &str| refusal(&DIGITS.replace(from, to), &fits);
    let line3 = |message: String| {
        assert!(message.starts_with("model.yaml: ") && message.contains("line 3"), "{message}");
        assert!(!message.contains('\n'), "{message}");
        message
    };
    assert!(
        line3(with("FP32, shape: [-1, 64]", "FLOAT, shape: [-1, 64]")).contains("unknown datatype `FLOAT`")
    );
    assert!(line3(with("[-1, 64]", "[-1, 0]")).contains("dimension 0 must be"));
    assert!(line3(with("[-1, 64]", "[-1, n]")).contains("a name (in quotes where"));
    assert!(line3(with("name: pixels,", "name: pixels, size: 3,")).contains("unknown field `size`"));
    assert!(refusal(&format!("{DIGITS}max_batch: 0"), &fits).contains("max_batch 0 must be 1 to 65536"));
    assert_eq!(with("name: odds", "name: digit"), "model.yaml: `digit` is declared twice");
    let empty = with("FP32, shape: [-1, 64]", "INT64, shape: [-1, 64], min: 99, max: 0");
    assert_eq!(empty, "model.yaml: `pixels`: no INT64 lies between 99 and 0");
    let beyond = with("FP32, shape: [-1, 64]", "UINT16, shape: [-1, 64], min: 65536");
    assert_eq!(beyond, "model.yaml: `pixels`: no UINT16 lies between 65536 and 65535");
}

#[test]
fn a_declaration_of_another_model_says_what_this_one_has() {
    let two = signature(&[argument("image", "Tensor", false), argument("k", "int", true)], 2);
    assert_eq!(
        refusal(DIGITS, &two),
        "model.yaml: input `pixels` is no argument of forward(image: Tensor, k: int = ..)"
    );
    let more = signature(&[argument("pixels", "Tensor", false), argument("mask", "Tensor", false)], 2);
    assert_eq!(
        refusal(DIGITS, &more),
        "model.yaml: input `mask` of forward(pixels: Tensor, mask: Tensor) is not declared"
    );
    assert_eq!(
        refusal(DIGITS, &signature(&[argument("pixels", "int", false)], 2)),
        "argument `pixels` of forward(pixels: int) is neither a tensor nor a number"
    );
    assert_eq!(
        refusal(DIGITS, &signature(&[argument("pixels", "Tensor", false)], 3)),
        "model.yaml: 2 outputs are declared, the model returns 3"
    );
}

#[test]
fn names_of_classes_stand_in_the_declaration_or_beside_it() {
    let fits = signature(&[argument("pixels", "Tensor", false)], 2);
    let unnamed = DIGITS.replace(", labels: [\"0\", \"1\"]", "") + "postprocess: {softmax: odds}";
    let spec = |yaml: &str, text| {
        let manifest = Manifest::parse(yaml).and_then(|manifest| manifest.with_labels(text));
        manifest.and_then(|manifest| manifest.bind(&fits)).map_err(|error| error.to_string())
    };
    let spec_of = spec(&unnamed, "no\nyes\n").unwrap().spec;
    assert_eq!(spec_of.outputs[1].labels, ["no", "yes"]);
    assert_eq!(spec_of.postprocess.unwrap().output, "odds");
    for (yaml, says) in [
        (DIGITS.to_owned(), "labels.txt: model.yaml has no postprocess"),
        (format!("{DIGITS}postprocess: {{softmax: odds}}"), "labels.txt: model.yaml has labels as well"),
        (unnamed.replace("softmax: odds", "softmax: digit"), "postprocess: output `digit` has shape [-1]"),
        (unnamed.replace("softmax: odds", "top_k: 1"), "neither under softmax"),
    ] {
        assert!(spec(&yaml, "no\nyes\n").unwrap_err().contains(says), "{yaml}");
    }
    assert!(spec(&unnamed, "one").unwrap_err().contains("has 2 classes and 1 labels"));
}

#[test]
fn without_a_declaration_names_are_all_there_is() {
    let arguments = [argument("x", "Tensor", false), argument("mask", "Optional[Tensor]", true)];
    let bound = undeclared(&signature(&arguments, 2)).unwrap();
    assert_eq!(bound.spec.inputs, [bare_slot("x".into(), false), bare_slot("mask".into(), true)]);
    assert_eq!(bound.spec.outputs[1].name, "OUTPUT__1");
    assert!(undeclared(&signature(&[argument("k", "int", false)], 1)).is_err());
}

#[test]
fn a_dimension_with_a_name_is_the_same_in_all_tensors_and_may_be_padded() {
    const TEXT: &str = "
dimensions: {tokens: {pad_to: [16, 32], max: 64}}
inputs:
  - {name: ids, datatype: INT64, shape: [-1, tokens], pad: 1}
  - {name: seen, datatype: INT64, shape: [-1, tokens], mask: true}
outputs:
  - {name: y, datatype: FP32, shape: [-1, tokens, 4]}";
    let argument = |name: &str| Argument {
        name: name.into(),
        type_name: "Tensor".into(),
        takes_tensor: true,
        has_default: false,
    };
    let signature = Signature { arguments: vec![argument("ids"), argument("seen")], returns: Some(1) };
    let bind = |text: &str| {
        let bound = Manifest::parse(text).and_then(|manifest| manifest.bind(&signature));
        bound.map_err(|error| error.to_string())
    };
    let spec = bind(TEXT).unwrap().spec;
    assert_eq!(
        spec.dimensions,
        [Named { name: "tokens".into(), pad_to: vec![16, 32], waste_max: 0.5, max: Some(64) }]
    );
    assert_eq!((spec.inputs[0].pad, spec.inputs[1].mask), (1.0, true));
    let padded = |size| spec.dimensions[0].padded(size);
    assert_eq!([7, 8, 16, 17, 33].map(padded), [7, 16, 16, 32, 33]);
    for (from, to, says) in [
        ("[16, 32]", "[32, 16]", "must be 1 to 64 rising sizes"),
        ("[16, 32], max: 64}", "[16], waste_max: 1}", "waste_max 1 must be at least 0 and less than 1"),
        ("{tokens: {pad_to: [16, 32], max: 64}}", "{t: {pad_to: [16]}}", "dimension `t`: no input has it"),
        ("max: 64", "max: 31", "dimension `tokens`: pad_to goes beyond its max"),
        ("{pad_to: [16, 32], max: 64}", "{}", "dimension `tokens`: neither pad_to nor max is said of it"),
        ("pad: 1", "pad: 0.5", "`ids`: cannot be padded with 0.5, which is no INT64"),
        ("pad: 1", "pad: 9007199254740994", "or beyond 2^53"),
        (
            "datatype: INT64, shape: [-1, tokens], pad: 1",
            "datatype: UINT8, shape: [-1, tokens], pad: 256",
            "no UINT8",
        ),
        ("[-1, tokens, 4]", "[-1, token, 4]", "dimension `token`: an output has it, and no input"),
        ("[-1, tokens], pad: 1", "[tokens, 1], pad: 1", "the first dimension is written -1"),
        ("[-1, tokens], mask", "[-1, 4], mask", "`seen`: mask is for inputs with a named dimension only"),
        ("tokens, 4]}", "tokens, 4], pad: 1}", "`y`: pad or mask is for inputs only"),
    ] {
        let text = TEXT.replacen(from, to, 1);
        assert_ne!(text, TEXT, "{from}");
        let error = bind(&text).unwrap_err();
        assert!(error.contains(says), "{text}\n{error}");
    }
}

#[test]
fn the_annotated_example_is_read_and_fits_a_model_of_sentences() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/model.yaml")).unwrap();
    let mut manifest = Manifest::parse(&text).unwrap();
    assert!(manifest.take_preprocess().is_some());
    let arguments =
        [argument("input_ids", "Tensor", false), argument("attention_mask", "Optional[Tensor]", true)];
    let spec = manifest.bind(&signature(&arguments, 1)).unwrap().spec;
    assert_eq!((spec.rows, spec.dimensions[0].padded(17)), (Rows::UpTo(32), 32));
}
