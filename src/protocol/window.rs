//! The output window, an extension: the server holds a process back until its output is consumed.
//!
//! The start says in `outputWindow` how many bytes may wait for the client, each output counting for
//! [`OUTPUT_OVERHEAD`] more than it has. With that many, the server stops reading what the process writes.
//! The notification `process/consumed {processId, seq}` says that everything up to this `seq` is consumed; the
//! request `process/releaseOutput {processId}`, that the process need not wait any more, whatever is.

use serde::Serialize;

use super::{Capabilities, Done, InvalidRequest, Method, Params, ProcessId, Unsupported};

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
    seq: u64,
}

/// Encodes the notification that all output up to `seq` is consumed.
pub(crate) fn encode_consumed(process_id: &ProcessId, seq: u64) -> Vec<u8> {
    let consumed = Consumed {
        method: "process/consumed",
        params: ConsumedParams { process_id, seq },
    };
    serde_json::to_vec(&consumed).expect("texts and numbers are JSON")
}

/// `process/releaseOutput`: the process is not held back any more. One that is not there is not an error.
#[derive(Debug)]
pub(crate) struct ReleaseOutput {
    pub(crate) process_id: ProcessId,
}

impl Method for ReleaseOutput {
    const NAME: &'static str = "process/releaseOutput";
    type Response = Done;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        let remedy = "no process is held back there";
        capabilities
            .output_window
            .then_some(())
            .ok_or(Unsupported::new("output_window", remedy))
    }

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{PathSpelling, jsonrpc::encoded_params};

    #[test]
    fn what_is_consumed_is_told_by_its_seq() {
        assert_eq!(
            String::from_utf8(encode_consumed(&"p\"".into(), 7)).unwrap(),
            r#"{"method":"process/consumed","params":{"processId":"p\"","seq":7}}"#
        );
        let release = ReleaseOutput {
            process_id: "p".into(),
        };
        assert_eq!(
            encoded_params(PathSpelling::Plain, &release),
            json!({"processId": "p"})
        );
    }
}
