//! The output window, an extension: the server holds a process back until its output is consumed.
//!
//! The start says in `outputWindow` how many bytes may wait for the client, each output counting for
//! [`OUTPUT_OVERHEAD`] more than it has. With that many, the server stops reading what the process writes.
//! The notification `process/consumed {processId, seq}` says that everything up to this `seq` is consumed;
//! without a `seq`, that nobody says so any more, and the process need not wait.

use serde::Serialize;

use super::ProcessId;

/// What keeping an output costs beside its bytes: the event, its place in a queue, and what the allocator
/// adds. Without it, a flood of small outputs would hold many times what is allowed.
pub(crate) const OUTPUT_OVERHEAD: usize = 128;

/// The most that a server keeps back.
pub(crate) const MAX_OUTPUT_WINDOW: usize = 1 << 20;

#[derive(Serialize)]
struct Consumed<'a> {
    method: &'static str,
    params: ConsumedParams<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConsumedParams<'a> {
    process_id: &'a ProcessId,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
}

/// Encodes the notification that all output up to `seq` is consumed, or need not be.
pub(crate) fn encode_consumed(process_id: &ProcessId, seq: Option<u64>) -> Vec<u8> {
    let consumed = Consumed {
        method: "process/consumed",
        params: ConsumedParams { process_id, seq },
    };
    serde_json::to_vec(&consumed).expect("texts and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_consumed_is_told_by_its_seq() {
        let encoded = |seq| String::from_utf8(encode_consumed(&"p\"".into(), seq)).unwrap();
        assert_eq!(
            encoded(Some(7)),
            r#"{"method":"process/consumed","params":{"processId":"p\"","seq":7}}"#
        );
        assert_eq!(
            encoded(None),
            r#"{"method":"process/consumed","params":{"processId":"p\""}}"#
        );
    }
}
