//! Messages of clients, and the frame of what is answered.

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

/// An error that a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RpcError {
    pub(super) code: i64,
    pub(super) message: String,
}

impl RpcError {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        RpcError {
            code,
            message: message.into(),
        }
    }

    pub(super) fn invalid_request(message: impl Into<String>) -> Self {
        RpcError::new(-32600, message)
    }

    pub(super) fn method_not_found(method: &str) -> Self {
        RpcError::new(
            -32601,
            format!("exec-server stub does not implement `{method}` yet"),
        )
    }

    pub(super) fn invalid_params(message: impl Into<String>) -> Self {
        RpcError::new(-32602, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        RpcError::new(-32603, message)
    }

    #[expect(dead_code, reason = "for the methods on files to come")]
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        RpcError::new(-32004, message)
    }
}

/// What a client calls its request: echoed as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum RequestId {
    Number(i64),
    Text(String),
}

/// A message of a client.
#[derive(Debug)]
pub(super) enum Incoming {
    Request {
        id: RequestId,
        method: String,
        params: Box<RawValue>,
    },
    Notification {
        method: String,
    },
    /// An answer to a request that was never made: it ends the connection.
    Answer,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default, deserialize_with = "present")]
    id: Option<RequestId>,
    method: Option<String>,
    params: Option<Box<RawValue>>,
    result: Option<Box<RawValue>>,
    error: Option<Box<RawValue>>,
}

/// An id that is there must be one: `null` is none.
fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RequestId>, D::Error> {
    RequestId::deserialize(deserializer).map(Some)
}

/// Reads a message; the error is what the answer with the id -1 says.
pub(super) fn decode(text: &[u8]) -> Result<Incoming, String> {
    // A struct is read from an array, too.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err("expected a JSON-RPC object".to_owned());
    }
    let message: Message = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match message {
        Message {
            id: Some(id),
            method: Some(method),
            params,
            ..
        } => Ok(Incoming::Request {
            id,
            method,
            params: params.unwrap_or_else(|| RawValue::NULL.to_owned()),
        }),
        Message {
            id: None,
            method: Some(method),
            ..
        } => Ok(Incoming::Notification { method }),
        Message {
            id: Some(_),
            result,
            error,
            ..
        } if result.is_some() || error.is_some() => Ok(Incoming::Answer),
        _ => Err("missing field `error`".to_owned()),
    }
}

/// Writes the answer to a request, of which a good one is JSON already.
pub(super) fn encode_answer(id: &RequestId, answer: Result<String, RpcError>) -> String {
    let id = match id {
        RequestId::Number(number) => Value::from(*number),
        RequestId::Text(text) => Value::from(text.as_str()),
    };
    match answer {
        Ok(result) => format!(r#"{{"id":{id},"result":{result}}}"#),
        Err(error) => {
            json!({"error": {"code": error.code, "message": error.message}, "id": id}).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_message_is_told_apart_from_what_ends_the_connection() {
        for text in [
            "{bad",
            "[]",
            "7",
            "{}",
            r#"{"id":7}"#,
            r#"{"id":null,"method":"x"}"#,
            r#"{"id":1.5,"method":"x"}"#,
            r#"{"id":9223372036854775808,"method":"x"}"#,
            r#"{"id":1,"id":2,"method":"x"}"#,
            r#"{"error":{},"id":null}"#,
        ] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
        let answer = decode(br#"{"id":1,"result":{}}"#).unwrap();
        assert!(matches!(answer, Incoming::Answer));
        let notification = decode(br#"{"method":"initialized"}"#).unwrap();
        assert!(matches!(notification, Incoming::Notification { .. }));
    }

    #[test]
    fn ids_are_echoed_as_they_were_sent() {
        for id in ["-3", r#""a\"""#] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"x","extra":1}}"#);
            let Ok(Incoming::Request {
                id: decoded,
                params,
                ..
            }) = decode(text.as_bytes())
            else {
                panic!("{text}");
            };
            assert_eq!(params.get(), "null");
            let answer = encode_answer(&decoded, Ok("{}".to_owned()));
            assert_eq!(answer, format!(r#"{{"id":{id},"result":{{}}}}"#));
        }
    }
}
