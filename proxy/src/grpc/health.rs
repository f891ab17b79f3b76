//! `grpc.health.v1`: readiness, for whoever asks and for whoever waits for it to change. Decides nothing: what is ready
//! is [`Readiness`]'s to say, and it is asked each time.

use crate::readiness::Readiness;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// How often readiness is looked at for those who wait for a change.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Answers for the whole server and for its one service.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub(super) readiness: Readiness,
}

impl Health {
    fn status(&self, service: &str) -> ServingStatus {
        match service {
            "" | protocol::SERVICE => match self.readiness.server() {
                Ok(()) => ServingStatus::Serving,
                Err(_) => ServingStatus::NotServing,
            },
            _ => ServingStatus::ServiceUnknown,
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl tonic_health::pb::health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.status(&service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!("no service `{service}`"))),
            known @ (ServingStatus::Unknown | ServingStatus::Serving | ServingStatus::NotServing) => {
                Ok(Response::new(response(known)))
            }
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (health, service) = (self.clone(), request.into_inner().service);
        let (changes, changed) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut told = None;
            loop {
                let status = health.status(&service);
                if told != Some(status) {
                    told = Some(status);
                    if changes.send(Ok(response(status))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = changes.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(changed)))
    }
}
