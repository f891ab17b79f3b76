//! Versions that another server answers, how it takes tensors, and the files by which it and we know each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fault::{Fault, Faults};
use super::optional;
use crate::place::Place;
use crate::remote::{FileFault, Remote, Tensors, Tls};
use crate::schema;
use crate::units::Version;

pub(super) fn remotes(
    written: &BTreeMap<String, schema::Remote>,
    path: &Place<'_>,
    faults: &mut Faults,
) -> BTreeMap<Version, Arc<Remote>> {
    let remote = |(number, written): (&String, &schema::Remote)| {
        let path = path.join(number.as_str());
        let version = faults.keep(&path, number.parse::<Version>());
        let url = Remote::parse(&written.url).ok_or_else(|| Fault::Url(written.url.clone()));
        let remote = faults.keep(&path.join("url"), url)?;
        let tls = tls(&remote, written, &path, faults)?;
        let tensors = match written.tensors {
            schema::Tensors::Binary => Tensors::Binary,
            schema::Tensors::Json => Tensors::Json,
        };
        Some((version?, Arc::new(remote.with_tensors(tensors).with_tls(tls))))
    };
    written.iter().filter_map(remote).collect()
}

fn tls(remote: &Remote, written: &schema::Remote, path: &Place<'_>, faults: &mut Faults) -> Option<Tls> {
    let mut file = |field: &'static str, name: &String| faults.keep(&path.join(field), remote.file(name));
    let ca = written.ca.as_ref().map(|name| file("ca", name));
    let (cert, key) = (&written.cert, &written.key);
    let cert_and_key = [("cert", cert), ("key", key)].map(|(field, name)| Some(file(field, name.as_ref()?)));
    let own = match cert_and_key {
        [None, None] => None,
        [Some(cert), Some(key)] => Some((cert?, key?)),
        [cert, _] => {
            let alone = if cert.is_some() { "cert" } else { "key" };
            return faults.keep(&path.join(alone), Err(FileFault::Alone));
        }
    };
    Some(Tls { ca: optional(ca, |ca| ca)?, own })
}
