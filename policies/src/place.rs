//! Where in a policy file a field stands, written down only if something is wrong with it. Until then it is a chain on the
//! stack: most files are right, and a large one has tens of thousands of fields.

use garde::error::Path;

/// One field, in those around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    around: Option<&'a Place<'a>>,
    step: Step<'a>,
}

/// From what is around a field to the field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

impl<'a> Place<'a> {
    pub(crate) fn new(field: &'a str) -> Self {
        Self { around: None, step: Step::Field(field) }
    }

    pub(crate) fn join<'b>(&'b self, step: impl Into<Step<'b>>) -> Place<'b> {
        Place { around: Some(self), step: step.into() }
    }

    pub(crate) fn path(&self) -> Path {
        let around = self.around.map_or_else(Path::empty, Place::path);
        match self.step {
            Step::Field(name) => around.join(name),
            Step::Item(at) => around.join(at),
        }
    }
}

impl<'a> From<&'a str> for Step<'a> {
    fn from(name: &'a str) -> Self {
        Self::Field(name)
    }
}

impl From<usize> for Step<'_> {
    fn from(at: usize) -> Self {
        Self::Item(at)
    }
}
