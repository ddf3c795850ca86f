//! Messages of clients, and the frame of what is answered.

use std::{borrow::Cow, collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};

/// The code of an answer to a request that the server has no room for.
const OVERLOADED: i64 = -32011;

/// An error that a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RpcError {
    pub(super) code: i64,
    pub(super) message: String,
    /// Goes out as `data.kind`; only refused starts have one.
    pub(super) kind: Option<&'static str>,
}

impl RpcError {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        RpcError {
            code,
            message: message.into(),
            kind: None,
        }
    }

    pub(super) fn with_kind(mut self, kind: &'static str) -> Self {
        self.kind = Some(kind);
        self
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

    pub(super) fn session_attached(id: &str) -> Self {
        let message = format!("session {id} is already attached to another connection");
        RpcError::new(-32010, message)
    }

    /// For a request that the server has no room for. The releases have no such code.
    pub(super) fn overloaded(message: impl Into<String>) -> Self {
        RpcError::new(OVERLOADED, message)
    }

    pub(super) fn is_overload(&self) -> bool {
        self.code == OVERLOADED
    }

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
        params: Box<RawValue>,
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
    #[serde(rename = "trace")]
    _trace: Option<Trace>,
    result: Option<Box<RawValue>>,
    error: Option<Box<RawValue>>,
}

/// Where a request belongs in a trace of the client's. It is of no use here, but has to be right.
#[derive(Deserialize)]
struct Trace {
    #[serde(rename = "traceparent")]
    _parent: Option<String>,
    #[serde(rename = "tracestate")]
    _state: Option<String>,
}

/// An id that is there must be one: `null` is none.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RequestId>, D::Error> {
    RequestId::deserialize(deserializer).map(Some)
}

/// Reads a message; the error is what the answer with the id -1 says.
pub(super) fn decode(text: &[u8]) -> Result<Incoming, String> {
    // A struct is read from an array, too.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err("expected a JSON-RPC object".to_owned());
    }
    check(text)?;
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
            params,
            ..
        } => Ok(Incoming::Notification {
            method,
            params: params.unwrap_or_else(|| RawValue::NULL.to_owned()),
        }),
        Message {
            id: Some(_),
            result,
            error,
            ..
        } if result.is_some() || error.is_some() => Ok(Incoming::Answer),
        _ => Err("missing field `error`".to_owned()),
    }
}

/// Reads params. Where they are in the message is of no use to anyone.
pub(super) fn decode_params<'a, P: Deserialize<'a>>(params: &'a RawValue) -> Result<P, RpcError> {
    serde_json::from_str(params.get()).map_err(|error| {
        let text = error.to_string();
        let text = text
            .rsplit_once(" at line ")
            .map_or(&*text, |(text, _)| text);
        RpcError::invalid_params(text)
    })
}

/// How many values a message may hold.
const MAX_VALUES: usize = 262_144;

/// Checks what the typed readers of a message do not see: that no object has a key twice, and that there are
/// not too many values.
pub(super) fn check(text: &[u8]) -> Result<(), String> {
    let mut values = 0;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    Checked(&mut values)
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|error| error.to_string())
}

/// Counts values, and compares keys.
struct Checked<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Checked<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.0 += 1;
        if *self.0 > MAX_VALUES {
            return Err(de::Error::custom("too many JSON values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Checked(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if keys.contains(&key) {
                return Err(de::Error::custom(format!(
                    "duplicate JSON object key `{key}`"
                )));
            }
            keys.insert(key);
            map.next_value_seed(Checked(self.0))?;
        }
        Ok(())
    }
}

/// Writes the answer to a request. A result is JSON already, and may be as large as a file: its envelope is put around it where it is.
pub(super) fn encode_answer(id: &RequestId, answer: Result<String, RpcError>) -> String {
    let id = match id {
        RequestId::Number(number) => Value::from(*number),
        RequestId::Text(text) => Value::from(text.as_str()),
    };
    match answer {
        Ok(mut json) => {
            json.insert_str(0, &format!(r#"{{"id":{id},"result":"#));
            json.push('}');
            json
        }
        Err(error) => {
            let mut object = json!({"code": error.code, "message": error.message});
            if let Some(kind) = error.kind {
                object["data"] = json!({"kind": kind});
            }
            json!({"error": object, "id": id}).to_string()
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
            r#"{"id":1,"method":"x","params":{"a":{"b":1,"b":2}}}"#,
            r#"{"id":1,"method":"x","trace":7}"#,
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
