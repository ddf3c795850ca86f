//! The envelope: its words, and requests on their way out.
//!
//! JSON-RPC 2.0 without its `jsonrpc` member, as the exec-server speaks it.

mod decode;
mod plain;

use std::{borrow::Cow, fmt};

use serde::Deserialize;
use serde_json::value::RawValue;

pub(crate) use self::{
    decode::decode,
    plain::{PLAIN_FILE, PlainOutput, plain_answer, plain_file, plain_output, plain_result},
};
use super::{Dialect, Method, Params, notification::Notification};
use crate::error::InvalidRequest;

/// Largest message that every server accepts. Beyond it they drop the connection.
pub(crate) const MAX_REQUEST_SIZE: usize = 64 << 20;

/// A JSON-RPC error code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub i64);

impl ErrorCode {
    /// The request is not valid at this point: a duplicate or unknown process id, an unknown session,
    /// invalid input of a file method.
    pub const INVALID_REQUEST: ErrorCode = ErrorCode(-32600);
    /// The server does not have the method.
    pub const METHOD_NOT_FOUND: ErrorCode = ErrorCode(-32601);
    /// The params do not decode.
    pub const INVALID_PARAMS: ErrorCode = ErrorCode(-32602);
    /// The operation failed: a program that cannot be run, an I/O error.
    pub const INTERNAL_ERROR: ErrorCode = ErrorCode(-32603);
    /// No such file or file handle (servers from 0.120 on).
    pub const NOT_FOUND: ErrorCode = ErrorCode(-32004);
    /// The session is still attached to another connection (servers from 0.142 on).
    pub const SESSION_ATTACHED: ErrorCode = ErrorCode(-32010);
    /// The server has no room for the request, which it has not carried out (this crate's own server).
    pub const OVERLOADED: ErrorCode = ErrorCode(-32011);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrorCode({})", self.0)
    }
}

/// The `error` member of an error response.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ErrorObject {
    pub(crate) code: ErrorCode,
    #[serde(default)]
    pub(crate) message: String,
    /// The `kind` in the `data` of the error (servers from 0.171 on); see [`error_kind`].
    #[serde(skip)]
    pub(crate) kind: Option<Box<str>>,
}

/// The longest `kind` that is kept, in bytes. Those of servers are shorter.
const MAX_KIND: usize = 64;

/// Returns `data.kind` of an error object, if it is a word of a few ASCII letters.
///
/// Servers put `data` of any shape into an error, and a client may not fail because of it: everything that is not such
/// a word is ignored.
fn error_kind(error: &RawValue) -> Option<Box<str>> {
    #[derive(Deserialize)]
    struct WithData<'a> {
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct WithKind<'a> {
        #[serde(borrow)]
        kind: Cow<'a, str>,
    }
    let WithData { data } = serde_json::from_str(error.get()).ok()?;
    // A struct is also read from an array.
    let data = data.map(RawValue::get).filter(|it| it.starts_with('{'))?;
    let WithKind { kind } = serde_json::from_str(data).ok()?;
    let is_word = |kind: &str| kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_kept = !kind.is_empty() && kind.len() <= MAX_KIND && is_word(&kind);
    is_kept.then(|| kind.into())
}

impl ErrorObject {
    /// Reads the `error` member of an answer.
    fn from_json(json: &RawValue) -> serde_json::Result<Self> {
        let mut error: ErrorObject = serde_json::from_str(json.get())?;
        error.kind = error_kind(json);
        Ok(error)
    }
}

/// The id of something that came in. Our own ids are numbers from 1 upwards.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Id {
    Number(i64),
    Text(String),
    /// Null, a fraction, a long text, or anything else that no request of ours or of a server has.
    Invalid,
}

/// A message of the server.
#[derive(Debug)]
pub(crate) enum Incoming<'a> {
    Notification(Notification),
    /// A notification that this crate has no use for.
    OtherNotification {
        method: String,
    },
    /// A request of the server.
    Request {
        id: Id,
        method: String,
    },
    /// The answer to a request of ours; without `result` if the server left it out.
    Response {
        id: Id,
        result: Option<&'a RawValue>,
    },
    Error {
        id: Id,
        error: ErrorObject,
    },
}

/// Encodes a request.
pub(crate) fn encode_request<M: Method>(
    id: i64,
    method: &M,
    dialect: Dialect,
) -> Result<Vec<u8>, InvalidRequest> {
    encode(id, M::NAME, dialect, |params| method.write_params(params))
}

/// Encodes a request into `json`, which is empty.
pub(crate) fn write_request<M: Method>(
    id: i64,
    method: &M,
    dialect: Dialect,
    json: &mut Vec<u8>,
) -> Result<(), InvalidRequest> {
    let params = |params: &mut Params<'_>| method.write_params(params);
    write(id, M::NAME, dialect, params, json)
}

/// Encodes a request whose params `write_params` writes.
pub(crate) fn encode(
    id: i64,
    method: &str,
    dialect: Dialect,
    write_params: impl FnOnce(&mut Params<'_>) -> Result<(), InvalidRequest>,
) -> Result<Vec<u8>, InvalidRequest> {
    let mut json = Vec::new();
    write(id, method, dialect, write_params, &mut json)?;
    Ok(json)
}

#[inline]
fn write(
    id: i64,
    method: &str,
    dialect: Dialect,
    write_params: impl FnOnce(&mut Params<'_>) -> Result<(), InvalidRequest>,
    json: &mut Vec<u8>,
) -> Result<(), InvalidRequest> {
    json.reserve(128);
    json.extend_from_slice(b"{\"id\":");
    json.extend_from_slice(itoa::Buffer::new().format(id).as_bytes());
    json.extend_from_slice(b",\"method\":\"");
    json.extend_from_slice(method.as_bytes());
    json.extend_from_slice(b"\",\"params\":");
    let mut params = Params::open(json, dialect);
    write_params(&mut params)?;
    params.close();
    json.push(b'}');
    if json.len() > MAX_REQUEST_SIZE {
        return Err(InvalidRequest::TooLarge {
            size: json.len(),
            limit: MAX_REQUEST_SIZE,
        });
    }
    Ok(())
}

/// Encodes the refusal of a request of the server; nothing if its id is one that cannot be echoed.
///
/// It repeats as little as possible of what the peer has sent, which has not been checked.
pub(crate) fn encode_method_not_found(id: &Id) -> Option<Vec<u8>> {
    let id = match id {
        Id::Number(number) => serde_json::Value::from(*number),
        Id::Text(text) => serde_json::Value::from(text.as_str()),
        Id::Invalid => return None,
    };
    let error = serde_json::json!({
        "id": id,
        "error": {
            "code": ErrorCode::METHOD_NOT_FOUND.0,
            "message": "this client does not support the method",
        },
    });
    Some(error.to_string().into_bytes())
}

/// Returns the params of a request as it goes on the wire.
#[cfg(test)]
pub(crate) fn encoded_params<M: Method>(
    paths: super::PathSpelling,
    method: &M,
) -> serde_json::Value {
    let json = encode_request(1, method, Dialect::new(paths)).expect("the request is valid");
    let mut request: serde_json::Value = serde_json::from_slice(&json).expect("it is JSON");
    assert_eq!(request["method"], M::NAME);
    request["params"].take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{PathSpelling, ReadEnvironmentInfo, WriteStdin};

    #[test]
    fn requests_are_encoded_with_id_method_and_params() {
        let dialect = Dialect::new(PathSpelling::Plain);
        let json = encode_request(5, &ReadEnvironmentInfo, dialect).unwrap();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"id":5,"method":"environment/info","params":{}}"#
        );
    }

    #[test]
    fn a_request_that_servers_would_drop_the_connection_for_is_refused() {
        let write = WriteStdin::new("p", vec![0; 48 << 20]);
        let error = encode_request(1, &write, Dialect::new(PathSpelling::Plain)).unwrap_err();
        assert!(matches!(
            error,
            InvalidRequest::TooLarge {
                limit: MAX_REQUEST_SIZE,
                ..
            }
        ));
    }

    #[test]
    fn a_refusal_echoes_the_id_and_nothing_else() {
        for (id, expected) in [(Id::Number(3), "3"), (Id::Text("a\"".into()), r#""a\"""#)] {
            let json = encode_method_not_found(&id).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(json["id"].to_string(), expected);
            assert_eq!(json["error"]["code"], -32601);
        }
        assert_eq!(encode_method_not_found(&Id::Invalid), None);
    }
}
