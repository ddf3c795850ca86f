//! What comes in: each text message read in one pass, into what it is for.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{ErrorObject, Id, Incoming};
use crate::{
    error::{DisconnectReason, JsonError},
    protocol::notification::KnownNotification,
};

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
                Member::Error => {
                    // What is wrong with its `data` must not be an error, so it is read twice.
                    let json = map.next_value::<Option<&'de RawValue>>()?;
                    let read = json.map(ErrorObject::from_json).transpose();
                    error = read.map_err(de::Error::custom)?;
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ErrorCode, ProcessEvent, Stream};

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
    fn the_kind_of_an_error_is_kept() {
        for (data, expected) in [
            (r#"{"kind":"spawnNotFound"}"#, Some("spawnNotFound")),
            (
                r#"{"x":[{"kind":1}],"kind":"spawn\u0046ailed","y":null}"#,
                Some("spawnFailed"),
            ),
            (r#"{"kind":"somethingNew2"}"#, Some("somethingNew2")),
        ] {
            assert_eq!(kind_in(data).as_deref(), expected, "{data}");
        }
        let last = r#"{"id":1,"error":{"data":{"kind":"a"},"message":"no","code":7}}"#;
        assert!(
            matches!(decode(last), Ok(Incoming::Error { error, .. }) if error.kind.as_deref() == Some("a"))
        );
    }

    #[test]
    fn p10_error_data_of_any_other_shape_is_ignored() {
        let too_long = format!(r#"{{"kind":"{}"}}"#, "a".repeat(65));
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        for data in [
            "null",
            "7",
            "1e999",
            r#""spawnFailed""#,
            r#"["spawnFailed"]"#,
            r#"[{"kind":"spawnFailed"}]"#,
            "{}",
            r#"{"kind":null}"#,
            r#"{"kind":7}"#,
            r#"{"kind":["spawnFailed"]}"#,
            r#"{"kind":{"kind":"spawnFailed"}}"#,
            r#"{"kind":""}"#,
            r#"{"kind":"two words"}"#,
            r#"{"kind":"line\nbreak"}"#,
            r#"{"kind":"ä"}"#,
            r#"{"kind":"\ud800"}"#,
            r#"{"kind":"a","kind":"b"}"#,
            r#"{"Kind":"spawnFailed"}"#,
            r#"{"kind":"a"},"data":{"kind":"b"}"#,
            &too_long,
            &deep,
        ] {
            assert_eq!(kind_in(data), None, "{data}");
        }
    }

    /// Returns the kind that is read from an error with this `data`, after checking that the rest is read, too.
    fn kind_in(data: &str) -> Option<Box<str>> {
        let text = format!(r#"{{"id":1,"error":{{"code":-32603,"data":{data},"message":"no"}}}}"#);
        let Ok(Incoming::Error { id, error }) = decode(&text) else {
            panic!("not an error: {text}");
        };
        assert_eq!(
            (id, error.code),
            (Id::Number(1), ErrorCode(-32603)),
            "{text}"
        );
        assert_eq!(error.message, "no", "{text}");
        error.kind
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
