//! A JSON body without the contents of its arrays of numbers, which are most of it: what is left is short, and read by a
//! parser of everything. Where such an array ends is found without reading it; that it is one is for others to say.

use memchr::{memchr2, memmem, memrchr};

/// Shorter arrays are not worth a copy of the rest.
const WORTH_CUTTING: usize = 32;

/// The text, and what was left out of it.
pub(crate) struct Skeleton<'a> {
    /// Has `[]` in place of each array.
    pub(crate) json: Vec<u8>,
    /// Where that stands, in ascending order, and what stood there.
    cuts: Vec<(usize, &'a [u8])>,
}

impl<'a> Skeleton<'a> {
    /// `None` if there is nothing to leave out. What is taken for an array of numbers, of however many dimensions, may be
    /// anything else without a quote.
    pub(crate) fn of(json: &'a [u8]) -> Option<Self> {
        let mut skeleton = Self { json: Vec::new(), cuts: Vec::new() };
        let mut copied = 0;
        let mut searched = 0;
        while let Some(found) = memmem::find(&json[searched..], b"\"data\"") {
            let key = searched + found;
            searched = key + b"\"data\"".len();
            // An escaped quote: this is the inside of a string.
            if key > 0 && json[key - 1] == b'\\' {
                continue;
            }
            let Some(start) = after(json, searched, b':').and_then(|at| after(json, at, b'[')) else {
                continue;
            };
            // What follows it is another key, or the end of the object.
            let Some(length) = memchr2(b'"', b'}', &json[start..]) else { break };
            let Some(length) = memrchr(b']', &json[start..start + length]) else { continue };
            if length < WORTH_CUTTING {
                continue;
            }
            skeleton.json.extend_from_slice(&json[copied..start]);
            skeleton.cuts.push((skeleton.json.len() - 1, &json[start - 1..=start + length]));
            copied = start + length;
            searched = copied;
        }
        if skeleton.cuts.is_empty() {
            return None;
        }
        skeleton.json.extend_from_slice(&json[copied..]);
        Some(skeleton)
    }

    /// What was left out of `text`, which is a part of the skeleton that the parser has found to be an array.
    pub(crate) fn cut(&self, text: &str) -> Option<&'a [u8]> {
        let at = (text.as_ptr() as usize).checked_sub(self.json.as_ptr() as usize)?;
        // There may be as many as a body holds.
        let found = self.cuts.binary_search_by_key(&at, |(place, _)| *place).ok()?;
        Some(self.cuts[found].1)
    }

    /// How many arrays were left out.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.len()
    }
}

/// The place after `byte`, if that is what comes next.
fn after(json: &[u8], at: usize, byte: u8) -> Option<usize> {
    let at = at + json[at..].iter().position(|byte| !byte.is_ascii_whitespace())?;
    (json[at] == byte).then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_contents_of_long_arrays_are_left_out() {
        let numbers = (0..20).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
        for array in [format!("[{numbers}]"), format!("[[[{numbers}], [{numbers}]]]")] {
            let json = format!(
                r#"{{"id": "\"data\": {array}", "inputs": [{{"data": [1, 2]}}, {{"data" : {array} , "x": 1}}, {{"data": ["{numbers}"]}}]}}"#
            );
            let skeleton = Skeleton::of(json.as_bytes()).unwrap();
            let want = json.replacen(&format!("\"data\" : {array}"), "\"data\" : []", 1);
            assert_eq!(std::str::from_utf8(&skeleton.json), Ok(want.as_str()));
            let at = want.find(" : []").unwrap() + 3;
            let text = std::str::from_utf8(&skeleton.json[at..at + 2]).unwrap();
            assert_eq!(skeleton.cut(text), Some(array.as_bytes()));
            assert_eq!(skeleton.cut("[]"), None, "not a part of it");
        }
        assert!(Skeleton::of(br#"{"data": [1, 2]}"#).is_none());
        assert!(Skeleton::of(format!(r#"{{"data": [{numbers}"#).as_bytes()).is_none(), "it does not end");
        assert!(Skeleton::of(format!(r#"{{"data": [{numbers}}}]"#).as_bytes()).is_none(), "nor does this");
    }

    #[test]
    fn each_of_many_is_found_where_it_stood() {
        let array = |number: usize| format!("[{number:040}]");
        let all: Vec<_> = (0..1000).map(|number| format!(r#"{{"data": {}}}"#, array(number))).collect();
        let json = format!("[{}]", all.join(","));
        let skeleton = Skeleton::of(json.as_bytes()).unwrap();
        assert_eq!(skeleton.cuts(), 1000);
        let text = std::str::from_utf8(&skeleton.json).unwrap();
        for (number, (place, _)) in text.match_indices("[]").enumerate() {
            assert_eq!(skeleton.cut(&text[place..]), Some(array(number).as_bytes()));
            assert_eq!(skeleton.cut(&text[place + 1..]), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in prop::collection::vec(prop::sample::select(b"0123456789.-+eE, [\"]}data:".to_vec()), 0..80)) {
            let _ = Skeleton::of(&text);
        }
    }
}
