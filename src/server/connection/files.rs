//! Requests of one connection about files: carried out in the order in which they came, on a thread that may block.

use std::{rc::Rc, sync::Arc};

use actix_web::web;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::push;
use crate::{
    server::{
        envelope::{RequestId, RpcError},
        fs::{self, Handles},
        limits::{Held, OverLimit},
        outbox::{Answer, NoRoom, Outbox, units},
        registry::Registry,
    },
    task::Task,
};

/// What a request counts for beside its params, in bytes.
const OVERHEAD: usize = 256;

/// Answers of up to so many bytes are not waited for room for. All that change something are as small.
const SMALL: usize = 1 << 10;

struct FileRequest {
    id: RequestId,
    method: String,
    params: Box<RawValue>,
    _place: OwnedSemaphorePermit,
    _held: Held,
}

/// The requests that wait, and the task that works on them.
pub(super) struct FileQueue {
    registry: Arc<Registry>,
    /// Bounded by `places`.
    requests: mpsc::UnboundedSender<FileRequest>,
    places: Arc<Semaphore>,
    _working: Task,
}

impl FileQueue {
    pub(super) fn start(registry: Arc<Registry>, outbox: Arc<Outbox>, peer: Rc<str>) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        let places = units(registry.limits.max_queued_bytes) as usize;
        FileQueue {
            _working: Task::spawn(work(requests, registry.clone(), outbox, peer)),
            registry,
            requests: sender,
            places: Arc::new(Semaphore::new(places)),
        }
    }

    /// Queues a request, when there is a place for it.
    pub(super) async fn add(
        &self,
        id: RequestId,
        method: String,
        params: Box<RawValue>,
    ) -> Result<(), OverLimit> {
        let bytes = params.get().len() + OVERHEAD;
        let held = self.registry.memory.hold(bytes)?;
        let units = units(bytes.min(self.registry.limits.max_queued_bytes));
        // Neither the semaphore nor the channel closes before this does.
        if let Ok(place) = self.places.clone().acquire_many_owned(units).await {
            let _working = self.requests.send(FileRequest {
                id,
                method,
                params,
                _place: place,
                _held: held,
            });
        }
        Ok(())
    }
}

async fn work(
    mut requests: mpsc::UnboundedReceiver<FileRequest>,
    registry: Arc<Registry>,
    outbox: Arc<Outbox>,
    peer: Rc<str>,
) {
    let handles = Handles::default();
    while let Some(request) = requests.recv().await {
        let (id, shared, handles) = (request.id.clone(), registry.clone(), handles.clone());
        let answer = web::block(move || {
            let FileRequest { method, params, .. } = &request;
            fs::handle(&shared.files, &handles, &shared.memory, method, params)
                .unwrap_or_else(|| Err(RpcError::method_not_found(method)))
        })
        .await
        .unwrap_or_else(|_| Err(RpcError::internal("the request was given up")));
        // The next answer is made when this one has its room.
        let answer = match answer {
            // What has been done is answered: that costs no more than to refuse it.
            Ok(json) if json.len() <= SMALL => Ok(Answer::from(json)),
            Ok(json) => match outbox.room(json.len()).await {
                Ok(room) => Ok(Answer { json, room }),
                Err(NoRoom::Gone) => return,
                Err(no_room) => Err(no_room.into()),
            },
            Err(error) => Err(error),
        };
        push(&outbox, &registry.journal, &peer, &id, answer);
    }
}
