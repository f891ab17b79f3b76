//! What is wrong with a policy file, one line per mistake: `policies.yaml:4:13: models.digits.split: ...`.
//!
//! The shape is the one compilers use, so that editors and CI logs turn it into a link.

use std::fmt;

/// Bytes of a field's name, or of a message, that are shown.
const SHOWN_MAX: usize = 1 << 10;

/// So many mistakes are told in full. Who has mended them asks again.
const TOLD_MAX: usize = 50;

/// One mistake in a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The file's name, as it was given to [`parse`](crate::parse).
    pub origin: String,
    /// Line, from 1; 0 if the mistake has no place.
    pub line: u64,
    /// Column in characters, from 1; 0 if the mistake has no place.
    pub column: u64,
    /// The field, such as `limits[0].rate`; empty where the text could not be read far enough to tell.
    pub path: String,
    /// What was expected and what came, in lower case.
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        // Names and values may hold line breaks, and be of any length; the message must stay on its line.
        let shown = |text: &str| {
            let end = text.floor_char_boundary(SHOWN_MAX);
            let cut = if end < text.len() { "…" } else { "" };
            format!(": {}{cut}", text[..end].replace(char::is_control, "\u{fffd}"))
        };
        if !self.path.is_empty() {
            f.write_str(&shown(&self.path))?;
        }
        f.write_str(&shown(&self.message))
    }
}

/// Every mistake in a policy file, in the order of the text; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors(Vec<PolicyError>);

impl PolicyErrors {
    pub(crate) fn new(mut errors: Vec<PolicyError>) -> Self {
        assert!(!errors.is_empty(), "a refused policy file has at least one error");
        errors.sort_by_key(|error| (error.line, error.column));
        Self(errors)
    }

    /// The mistakes, in the order of the text.
    pub fn iter(&self) -> std::slice::Iter<'_, PolicyError> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a PolicyErrors {
    type Item = &'a PolicyError;
    type IntoIter = std::slice::Iter<'a, PolicyError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.iter().take(TOLD_MAX).enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        match self.0.len().saturating_sub(TOLD_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for PolicyErrors {}

/// What to add to a message about a name that is not known: the one that is most like it, if one is like it at all.
pub(crate) fn did_you_mean<'a>(got: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|name| (strsim::damerau_levenshtein(got, name), name)).min();
    match near {
        Some((changes, name)) if 3 * changes <= name.len() => format!("; did you mean `{name}`?"),
        Some(_) | None => String::new(),
    }
}
