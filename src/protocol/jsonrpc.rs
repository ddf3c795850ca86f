//! The envelope: requests on their way out, and everything that comes in, each read in one pass.
//!
//! JSON-RPC 2.0 without its `jsonrpc` member, as the exec-server speaks it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Dialect, Method, Params,
    notification::{KnownNotification, Notification},
};
use crate::error::{DisconnectReason, InvalidRequest, JsonError};

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
    let mut json = Vec::with_capacity(128);
    json.extend_from_slice(b"{\"id\":");
    json.extend_from_slice(id.to_string().as_bytes());
    json.extend_from_slice(b",\"method\":\"");
    json.extend_from_slice(M::NAME.as_bytes());
    json.extend_from_slice(b"\",\"params\":");
    let mut params = Params::open(&mut json, dialect);
    method.write_params(&mut params)?;
    params.close();
    json.push(b'}');
    if json.len() > MAX_REQUEST_SIZE {
        return Err(InvalidRequest::TooLarge {
            size: json.len(),
            limit: MAX_REQUEST_SIZE,
        });
    }
    Ok(json)
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

/// Names (in characters) and ids (in bytes) of the peer are kept up to this length. Those of servers
/// are shorter.
const MAX_KEPT: usize = 256;

/// Decodes one text message.
///
/// # Errors
///
/// The reason for which the connection has to end: the message is not JSON-RPC, or it is a
/// notification that should be known and does not decode.
pub(crate) fn decode(text: &str) -> Result<Incoming<'_>, DisconnectReason> {
    let mut failed = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let envelope = Envelope {
        failed: &mut failed,
    };
    let decoded = envelope
        .deserialize(&mut deserializer)
        .and_then(|incoming| deserializer.end().map(|()| incoming));
    decoded.map_err(|error| match failed {
        Some(method) if error.is_data() => DisconnectReason::InvalidNotification {
            method,
            source: JsonError::from(error),
        },
        _ => DisconnectReason::InvalidMessage(JsonError::from(error)),
    })
}

/// Reads the object. `failed` names the known notification whose params are being read, so that an
/// error in them can say so.
struct Envelope<'f> {
    failed: &'f mut Option<&'static str>,
}

impl<'de> DeserializeSeed<'de> for Envelope<'_> {
    type Value = Incoming<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// The method of a message: known, with its params read as they come, or not.
enum MethodName {
    Known(KnownNotification),
    Other(String),
}

/// The members that matter; others are ignored wherever they stand.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Id,
    Method,
    Params,
    Result,
    Error,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for Envelope<'_> {
    type Value = Incoming<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut id = None;
        let mut method = None;
        // Params are read in place once the method is known; before that they are kept as they are.
        let mut early_params: Option<&'de RawValue> = None;
        let mut notification = None;
        let mut result = None;
        let mut error = None;

        while let Some(member) = map.next_key()? {
            match member {
                Member::Id => id = Some(map.next_value()?),
                Member::Method => method = Some(map.next_value()?),
                Member::Params => match &method {
                    Some(MethodName::Known(known)) => {
                        *self.failed = Some(known.name());
                        notification = Some(map.next_value_seed(*known)?);
                        *self.failed = None;
                    }
                    Some(MethodName::Other(_)) => {
                        map.next_value::<IgnoredAny>()?;
                    }
                    None => early_params = Some(map.next_value()?),
                },
                Member::Result => result = Some(map.next_value()?),
                Member::Error => error = map.next_value::<Option<ErrorObject>>()?,
                Member::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }

        match (method, id) {
            (Some(MethodName::Other(method)), Some(id)) => Ok(Incoming::Request { id, method }),
            (Some(MethodName::Known(known)), Some(id)) => Ok(Incoming::Request {
                id,
                method: known.name().to_owned(),
            }),
            (Some(MethodName::Other(method)), None) => Ok(Incoming::OtherNotification { method }),
            (Some(MethodName::Known(known)), None) => {
                *self.failed = Some(known.name());
                let notification = match (notification, early_params) {
                    (Some(notification), _) => notification,
                    (None, Some(params)) => known.deserialize(params).map_err(de::Error::custom)?,
                    (None, None) => return Err(de::Error::missing_field("params")),
                };
                Ok(Incoming::Notification(notification))
            }
            (None, id) => {
                let id = id.unwrap_or(Id::Invalid);
                match (error, result) {
                    (Some(error), _) => Ok(Incoming::Error { id, error }),
                    (None, result) if id != Id::Invalid => Ok(Incoming::Response { id, result }),
                    (None, _) => Err(de::Error::custom(
                        "neither a method nor the id of a response",
                    )),
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for MethodName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = MethodName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a method name")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<MethodName, E> {
                Ok(match KnownNotification::from_name(name) {
                    Some(known) => MethodName::Known(known),
                    None => MethodName::Other(name.chars().take(MAX_KEPT).collect()),
                })
            }
        }
        deserializer.deserialize_str(Name)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyId;
        impl<'de> Visitor<'de> for AnyId {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Id, E> {
                Ok(Id::Number(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
                Ok(i64::try_from(number).map_or(Id::Invalid, Id::Number))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Id, E> {
                Ok(Id::Invalid)
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Id, E> {
                Ok(Id::Invalid)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                if text.len() > MAX_KEPT {
                    return Ok(Id::Invalid);
                }
                Ok(Id::Text(text.to_owned()))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Id, E> {
                Ok(Id::Invalid)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Id, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Id::Invalid)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Id, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Id::Invalid)
            }
        }
        deserializer.deserialize_any(AnyId)
    }
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
    use crate::protocol::{PathSpelling, ProcessEvent, ReadEnvironmentInfo, Stream, WriteStdin};

    #[test]
    fn a_notification_decodes_in_any_order_of_its_members() {
        for text in [
            r#"{"method":"process/output","params":{"processId":"p","seq":3,"stream":"pty","chunk":"aGk="}}"#,
            r#"{"params":{"chunk":"aGk=","stream":"pty","processId":"p","seq":3},"method":"process/output"}"#,
            r#" { "x":[1,{}], "method" : "process\/output", "params":{"y":null,"processId":"p","seq":3,"stream":"pty","chunk":"aGk\u003d"}, "z":1 } "#,
        ] {
            let Incoming::Notification(notification) = decode(text).unwrap() else {
                panic!("not a notification: {text}");
            };
            assert_eq!(notification.process_id.as_str(), "p");
            assert_eq!(notification.seq, 3);
            assert_eq!(
                notification.event,
                ProcessEvent::Output {
                    stream: Stream::Pty,
                    chunk: "hi".into()
                }
            );
        }
    }

    #[test]
    fn responses_and_errors_are_told_apart_in_any_order() {
        for text in [
            r#"{"id":7,"result":{"a":1}}"#,
            r#"{"result":{"a":1},"id":7}"#,
        ] {
            let Incoming::Response { id, result } = decode(text).unwrap() else {
                panic!("not a response: {text}");
            };
            assert_eq!(id, Id::Number(7));
            assert_eq!(result.unwrap().get(), r#"{"a":1}"#);
        }
        for text in [
            r#"{"id":"a","error":{"code":-32600,"message":"no","data":[]}}"#,
            r#"{"error":{"message":"no","code":-32600},"id":"a"}"#,
        ] {
            let Incoming::Error { id, error } = decode(text).unwrap() else {
                panic!("not an error: {text}");
            };
            assert_eq!(id, Id::Text("a".into()));
            assert_eq!(
                (error.code, error.message.as_str()),
                (ErrorCode(-32600), "no")
            );
        }
    }

    #[test]
    fn ids_that_no_request_of_ours_has_are_kept_apart() {
        for id in [
            "null",
            "1.5",
            "99999999999999999999",
            "18446744073709551615",
            "true",
            "[1]",
            "{}",
        ] {
            let text = format!(r#"{{"error":{{"code":1,"message":""}},"id":{id}}}"#);
            let Incoming::Error { id, .. } = decode(&text).unwrap() else {
                panic!("not an error: {text}");
            };
            assert_eq!(id, Id::Invalid, "{text}");
        }
    }

    #[test]
    fn a_response_without_a_result_is_still_the_answer_to_its_request() {
        let incoming = decode(r#"{"id":7}"#).unwrap();
        assert!(matches!(
            incoming,
            Incoming::Response {
                id: Id::Number(7),
                result: None
            }
        ));
    }

    #[test]
    fn requests_and_other_notifications_carry_their_method() {
        let request =
            decode(r#"{"id":1,"method":"network/policyRequest","params":{"a":[]}}"#).unwrap();
        assert!(
            matches!(request, Incoming::Request { id: Id::Number(1), method } if method == "network/policyRequest")
        );
        let other = decode(r#"{"method":"fs/missingChanged","params":{"watchId":1}}"#).unwrap();
        assert!(
            matches!(other, Incoming::OtherNotification { method } if method == "fs/missingChanged")
        );
    }

    #[test]
    fn p10_what_is_not_json_rpc_is_an_error() {
        for text in [
            "",
            "x",
            "[]",
            "[{\"id\":1}]",
            "7",
            "null",
            "{}",
            "{\"id\":1",
            "{\"id\":1}{}",
            "{\"id\":null}",
            "{\"method\":7}",
            "{\"id\":1,\"error\":7}",
            "{\"params\":{}}",
        ] {
            assert!(
                matches!(decode(text), Err(DisconnectReason::InvalidMessage(_))),
                "{text}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(matches!(
            decode(&deep),
            Err(DisconnectReason::InvalidMessage(_))
        ));
    }

    #[test]
    fn a_known_notification_that_does_not_decode_is_named() {
        for (method, text) in [
            (
                "process/output",
                r#"{"method":"process/output","params":{"processId":"p","seq":1,"stream":"stdout","chunk":"?"}}"#,
            ),
            (
                "process/output",
                r#"{"method":"process/output","params":{"processId":"p","seq":-1,"stream":"stdout","chunk":""}}"#,
            ),
            (
                "process/exited",
                r#"{"params":{"processId":"p","seq":1},"method":"process/exited"}"#,
            ),
            ("process/closed", r#"{"method":"process/closed"}"#),
            (
                "process/closed",
                r#"{"method":"process/closed","params":null}"#,
            ),
        ] {
            match decode(text) {
                Err(DisconnectReason::InvalidNotification { method: named, .. }) => {
                    assert_eq!(named, method)
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn p11_a_notification_that_does_not_decode_is_not_quoted() {
        let text = r#"{"method":"process/output","params":{"processId":"p","seq":"secret","stream":"stdout","chunk":""}}"#;
        let error = decode(text).unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("secret"),
            "{error:?}"
        );
    }

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

    #[test]
    fn p10_names_and_ids_of_the_peer_are_kept_only_if_they_are_short() {
        let long = "ä".repeat(1 << 20);
        let request = format!(r#"{{"id":"{long}","method":"{long}"}}"#);
        match decode(&request).unwrap() {
            Incoming::Request {
                id: Id::Invalid,
                method,
            } => assert_eq!(method, "ä".repeat(MAX_KEPT)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_null_error_beside_a_result_is_no_error() {
        let incoming = decode(r#"{"id":1,"error":null,"result":{}}"#).unwrap();
        assert!(
            matches!(
                incoming,
                Incoming::Response {
                    result: Some(_),
                    ..
                }
            ),
            "{incoming:?}"
        );
    }
}
