//! One request and its answer, from the head to the last byte: counted once, whatever cuts it short. Decides what an
//! answer says of itself; never what it is.

use super::Grpc;
use super::status;
use crate::record::{Record, Watchers};
use crate::refusal::Refusal;
use crate::request_id::REQUEST_ID;
use crate::service::{GENERATION, RATE_LIMIT, RATE_LIMIT_POLICY, VERSION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tonic::Code;

/// A request that is under way. Dropping it before it is closed means that its client has gone.
#[derive(Debug)]
#[must_use = "dropping it counts its client as gone"]
pub(crate) struct Exchange {
    /// What is known of it.
    pub(crate) record: Record,
    watchers: Watchers,
    is_closed: bool,
}

impl Exchange {
    /// A request for `route` whose metadata has come.
    pub(crate) fn begin(grpc: &Grpc, metadata: &HeaderMap, route: &'static str) -> Self {
        let watchers = grpc.watchers.clone();
        let mut record = Record::begin(&watchers.metrics);
        (record.route, record.method) = (route, Method::POST);
        record.identify(metadata, &watchers);
        Self { record, watchers, is_closed: false }
    }

    /// Who answers, under which policy, and what is left to the caller: as REST's headers say it.
    pub(crate) fn describe(&self, headers: &mut HeaderMap) {
        if let Some(id) = &self.record.request_id {
            headers.insert(REQUEST_ID, id.header().clone());
        }
        if let Some((_, version)) = &self.record.version {
            headers.insert(VERSION, HeaderValue::from(*version));
        }
        if self.record.generation > 0 {
            headers.insert(GENERATION, HeaderValue::from(self.record.generation));
        }
        if let Some(quota) = &self.record.quota {
            let fields = [(RATE_LIMIT_POLICY, quota.limit.field()), (RATE_LIMIT, quota.field())];
            for (name, field) in fields {
                headers
                    .insert(name, field.try_into().expect("a field is ASCII that can be seen, and spaces"));
            }
        }
    }

    /// There is an answer of so many bytes, compressed if it is; it is still to be written.
    pub(crate) fn answer(&mut self, bytes: usize) {
        if let Some(slot) = &mut self.record.slot {
            slot.keep(bytes);
        }
        self.record.status = StatusCode::OK.as_u16();
        self.record.grpc_status = Some(status::word(Code::Ok));
    }

    /// There is none.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        self.record.refuse(refusal);
        self.record.status = refusal.status().as_u16();
        self.record.grpc_status = Some(status::word(status::code(refusal)));
    }

    /// Nothing is left to be written.
    pub(crate) fn close(mut self) {
        self.count();
    }

    fn count(&mut self) {
        self.is_closed = true;
        self.record.close(self.record.route, &self.watchers);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_closed {
            if self.record.refusal.is_none() {
                self.refuse(&Refusal::ClientGone);
            }
            self.count();
        }
    }
}
