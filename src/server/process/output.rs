//! What a process has written: kept in its log, sent to the client, and read again by it.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::log::{Log, Source};
use crate::{
    protocol::base64,
    server::{
        envelope::RpcError,
        outbox::{Answer, Attachment, Outbox},
    },
};

/// What the tasks that read the process share with its actor.
pub(super) struct Shared {
    pub(super) id: String,
    /// As it is written in notifications.
    pub(super) json_id: String,
    pub(super) log: RefCell<Log>,
    /// Something came, for those who wait to read it.
    pub(super) changed: Notify,
    /// The client lets more come.
    pub(super) room: Notify,
    pub(super) attachment: Rc<Attachment>,
}

impl Shared {
    pub(super) async fn may_read(&self) {
        loop {
            let room = self.room.notified();
            if self.log.borrow().has_room() {
                break;
            }
            room.await;
        }
        self.attachment.has_room().await;
    }

    pub(super) fn output(&self, source: Source, bytes: &[u8]) {
        let seq = self
            .log
            .borrow_mut()
            .output(source, Bytes::copy_from_slice(bytes));
        self.changed.notify_waiters();
        self.attachment.notify(|| {
            let (id, name) = (&self.json_id, source.name());
            let mut json = Vec::with_capacity(bytes.len() / 3 * 4 + id.len() + 160);
            json.extend_from_slice(
                format!(
                    r#"{{"method":"process/output","params":{{"processId":{id},"seq":{seq},"stream":"{name}","chunk":"#
                )
                .as_bytes(),
            );
            base64::append_json(bytes, &mut json);
            json.extend_from_slice(b"}}");
            String::from_utf8(json).expect("the id is UTF-8, and base64 ASCII")
        });
    }

    /// Answers a read when there is something to tell, or its time is up, and when the connection that asks has room for the answer.
    pub(super) async fn answer(
        self: Rc<Self>,
        after_seq: u64,
        max_bytes: Option<u64>,
        until: Option<Instant>,
        asking: Arc<Outbox>,
    ) -> Result<Answer, RpcError> {
        loop {
            let changed = self.changed.notified();
            if self.log.borrow().is_news(after_seq) {
                break;
            }
            match until {
                Some(until) if timeout_at(until, changed).await.is_ok() => {}
                _ => break,
            }
        }
        let size = self.log.borrow().answer_size(after_seq, max_bytes);
        let room = asking.room(size).await?;
        Ok(Answer {
            json: self.log.borrow().read(after_seq, max_bytes),
            room,
        })
    }
}
