//! Dials: from a URL to an upgraded WebSocket. All that awc has to do with us is in this file.

use std::{
    cell::Cell,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use actix_service::{Service, ServiceExt as _};
use awc::{
    BoxedSocket, ConnectRequest, ConnectResponse,
    error::{SendRequestError, WsClientError},
    http::{
        Uri,
        header::{HeaderMap, HeaderValue, HttpDate, RETRY_AFTER},
        uri::Authority,
    },
    middleware::Transform,
};
use bytes::BytesMut;
use log::{debug, warn};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;

use crate::{config::Config, error::ConnectError};

/// An upgraded socket, and what was read behind the upgrade already.
pub(crate) struct Dialled {
    pub(crate) socket: BoxedSocket,
    pub(crate) read: BytesMut,
}

/// Dials the server of `config`.
pub(crate) async fn dial(config: &Config) -> Result<Dialled, ConnectError> {
    let target = Target::parse(&config.url)?;
    let credentials = target.credentials(config)?;
    let server = target.server;

    // awc leaves Nagle's algorithm on, which holds back a small request for as long as the server
    // takes to acknowledge the one before.
    let tcp = actix_tls::connect::Connector::default().service().map(
        |connection: actix_tls::connect::Connection<Uri, _>| {
            let socket: &actix_rt::net::TcpStream = connection.io_ref();
            if let Err(error) = socket.set_nodelay(true) {
                warn!(error:%; "cannot turn off Nagle's algorithm, calls may be slow");
            }
            connection
        },
    );
    let connector = awc::Connector::new()
        .connector(tcp)
        .timeout(config.connect_timeout);
    let retry_after = Rc::<Cell<_>>::default();
    let client = awc::Client::builder()
        .connector(connector)
        .wrap(KeepRetryAfter(retry_after.clone()))
        .disable_timeout()
        .finish();
    let mut request = client.ws(target.uri);
    if let Some(credentials) = credentials {
        request = request.header("authorization", credentials);
    }
    debug!(server:%; "dialling");
    match timeout(config.connect_timeout, request.connect()).await {
        Ok(Ok((_, framed))) => {
            let parts = framed.into_parts();
            Ok(Dialled {
                socket: parts.io,
                read: parts.read_buf,
            })
        }
        Ok(Err(error)) => Err(refused(
            error,
            server,
            config.connect_timeout,
            retry_after.get(),
        )),
        Err(_) => Err(ConnectError::Timeout {
            server,
            after: config.connect_timeout,
        }),
    }
}

/// Names the server of a URL for logs and errors: without user, password and query.
pub(crate) fn server_name(url: &str) -> String {
    url.parse::<Uri>()
        .map_or_else(|_| "(not a URL)".to_owned(), |uri| name(&uri))
}

fn name(uri: &Uri) -> String {
    let port = uri
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!(
        "{}://{}{port}{}",
        uri.scheme_str().unwrap_or_default().to_ascii_lowercase(),
        uri.host().unwrap_or_default(),
        uri.path()
    )
}

/// Where a URL leads.
#[derive(Debug)]
struct Target {
    /// Without user and password.
    uri: Uri,
    server: String,
    /// User and password, as the header wants them.
    basic: Option<String>,
    is_loopback: bool,
}

impl Target {
    fn parse(url: &str) -> Result<Self, ConnectError> {
        let invalid = |problem: String| ConnectError::InvalidUrl { problem };
        // The parser's error does not quote the URL, which may hold a password.
        let uri: Uri = url.parse().map_err(|error| invalid(format!("{error}")))?;
        let scheme = uri.scheme_str().map(str::to_ascii_lowercase);
        match scheme.as_deref() {
            Some("ws") => {}
            Some("wss") => {
                return Err(invalid(
                    "TLS (wss) is not supported by this build".to_owned(),
                ));
            }
            Some(other) => return Err(invalid(format!("the scheme is {other}, not ws"))),
            None => return Err(invalid("it has no scheme".to_owned())),
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() || host == "[]" {
            return Err(invalid("it has no host".to_owned()));
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = host.eq_ignore_ascii_case("localhost")
            || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let server = name(&uri);

        let authority = uri.authority().map_or("", Authority::as_str);
        let (basic, authority) = match authority.rsplit_once('@') {
            Some((user_info, authority)) => (Some(basic(user_info)), authority),
            None => (None, authority),
        };
        if let Some(port) = authority[host.len()..].strip_prefix(':')
            && port.parse::<u16>().is_err()
        {
            return Err(invalid(format!("{port:?} is not a port")));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder()
            .scheme("ws")
            .authority(authority)
            .path_and_query(path)
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Target {
            uri,
            server,
            basic,
            is_loopback,
        })
    }

    /// Returns the value of the `Authorization` header, if it may be sent there.
    fn credentials(&self, config: &Config) -> Result<Option<HeaderValue>, ConnectError> {
        let bearer = config.bearer_token.as_ref();
        let credentials = bearer
            .map(|token| format!("Bearer {token}"))
            .or_else(|| self.basic.clone());
        if credentials.is_some() && !self.is_loopback && !config.allow_plaintext_credentials {
            return Err(ConnectError::PlaintextCredentials {
                server: self.server.clone(),
            });
        }
        let Some(credentials) = credentials else {
            return Ok(None);
        };
        let mut value =
            HeaderValue::from_str(&credentials).map_err(|_| ConnectError::InvalidCredentials {
                problem: "the token has characters that a header cannot hold, say a line break",
            })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn basic(user_info: &str) -> String {
    let decoded: Vec<u8> = percent_decode_str(user_info).collect();
    format!("Basic {}", base64_turbo::STANDARD.encode(decoded))
}

/// Turns awc's error, which is not `Send`, into ours.
fn refused(
    error: WsClientError,
    server: String,
    after: Duration,
    retry_after: Option<Duration>,
) -> ConnectError {
    use awc::error::ConnectError as Tcp;

    let problem = error.to_string();
    match error {
        WsClientError::InvalidResponseStatus(status) => ConnectError::UpgradeRefused {
            server,
            status: status.as_u16(),
            retry_after,
        },
        WsClientError::SendRequest(error) => match error {
            SendRequestError::Timeout | SendRequestError::Connect(Tcp::Timeout) => {
                ConnectError::Timeout { server, after }
            }
            // So does a proxy whose server is not there yet.
            SendRequestError::Connect(Tcp::Disconnected) => ConnectError::Unreachable {
                server,
                problem: "it ended the connection without an answer to the upgrade".to_owned(),
            },
            SendRequestError::Connect(error) => ConnectError::Unreachable {
                server,
                problem: error.to_string(),
            },
            SendRequestError::Send(error) => ConnectError::Unreachable {
                server,
                problem: error.to_string(),
            },
            SendRequestError::Url(error) => ConnectError::InvalidUrl {
                problem: error.to_string(),
            },
            error => ConnectError::NotWebSocket {
                server,
                problem: format!("its answer is not HTTP ({error})"),
            },
        },
        WsClientError::InvalidUpgradeHeader
        | WsClientError::InvalidConnectionHeader(_)
        | WsClientError::MissingConnectionHeader
        | WsClientError::MissingWebSocketAcceptHeader
        | WsClientError::InvalidChallengeResponse(..)
        | WsClientError::Protocol(_) => ConnectError::NotWebSocket {
            server,
            problem: problem.to_lowercase(),
        },
    }
}

/// Keeps how long a server that refuses asks to be left alone. The error of awc shows only the status.
struct KeepRetryAfter(Rc<Cell<Option<Duration>>>);

/// A connector with that around it.
struct RetryAfterKept<S> {
    inner: S,
    retry_after: Rc<Cell<Option<Duration>>>,
}

impl<S> Transform<S, ConnectRequest> for KeepRetryAfter
where
    RetryAfterKept<S>: Service<ConnectRequest>,
{
    type Transform = RetryAfterKept<S>;

    fn new_transform(self, inner: S) -> Self::Transform {
        RetryAfterKept {
            inner,
            retry_after: self.0,
        }
    }
}

impl<S> Service<ConnectRequest> for RetryAfterKept<S>
where
    S: Service<ConnectRequest, Response = ConnectResponse, Error = SendRequestError>,
    S::Future: 'static,
{
    type Response = ConnectResponse;
    type Error = SendRequestError;
    type Future = Pin<Box<dyn Future<Output = Result<ConnectResponse, SendRequestError>>>>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), SendRequestError>> {
        self.inner.poll_ready(context)
    }

    fn call(&self, request: ConnectRequest) -> Self::Future {
        let (answer, kept) = (self.inner.call(request), self.retry_after.clone());
        Box::pin(async move {
            let answer = answer.await?;
            if let ConnectResponse::Tunnel(head, _) = &answer {
                kept.set(retry_after(&head.headers, SystemTime::now()));
            }
            Ok(answer)
        })
    }
}

/// Returns how long a server asks to be left alone: it says so in seconds, or names a time.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let said = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = said.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = SystemTime::from(said.parse::<HttpDate>().ok()?);
    // A time that has passed asks for no wait.
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("ws://me:p%40ss@Example.org:8080/a?b=c").unwrap();
        assert_eq!(target.uri.to_string(), "ws://Example.org:8080/a?b=c");
        assert_eq!(target.server, "ws://Example.org:8080/a");
        assert_eq!(target.basic.as_deref(), Some("Basic bWU6cEBzcw=="));
        assert!(!target.is_loopback);
        for loopback in [
            "ws://127.0.0.1:1",
            "ws://127.9.9.9",
            "ws://[::1]:1/",
            "ws://LOCALHOST:1",
        ] {
            let target = Target::parse(loopback).unwrap();
            assert!(target.is_loopback && target.basic.is_none(), "{loopback}");
        }
        assert!(
            !Target::parse("ws://localhost.example.org")
                .unwrap()
                .is_loopback
        );
    }

    #[test]
    fn a_scheme_may_be_written_in_any_case() {
        for url in ["WS://me:p@127.0.0.1:1/x", "Ws://me:p@127.0.0.1:1/x"] {
            let target = Target::parse(url).unwrap();
            assert_eq!(target.uri.to_string(), "ws://127.0.0.1:1/x");
            assert_eq!(target.server, "ws://127.0.0.1:1/x");
            assert_eq!(server_name(url), "ws://127.0.0.1:1/x");
        }
        match Target::parse("WSS://h") {
            Err(ConnectError::InvalidUrl { problem }) => assert!(problem.contains("TLS")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_says_in_two_ways_when_to_come_back() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (said, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(said));
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{said}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn wrong_urls_are_refused_with_what_is_wrong() {
        for (url, problem) in [
            ("", "empty"),
            ("127.0.0.1:80", "no scheme"),
            ("/x", "no scheme"),
            ("http://127.0.0.1", "scheme is http"),
            ("wss://127.0.0.1", "TLS"),
            ("ws://", "invalid"),
            ("ws://:80", "no host"),
            ("ws://[]:80", "no host"),
            ("ws://host:", "not a port"),
            ("ws://host:99999", "not a port"),
            ("ws://me:secret@[::1]:x", "not a port"),
            ("ws://a b", "invalid"),
            ("ws://me:secret@:80", "no host"),
        ] {
            match Target::parse(url) {
                Err(ConnectError::InvalidUrl { problem: said }) => {
                    assert!(
                        said.to_lowercase().contains(&problem.to_lowercase()),
                        "{url}: {said}"
                    );
                    assert!(!said.contains("secret"), "{said}");
                }
                other => panic!("{url}: {other:?}"),
            }
        }
    }

    #[test]
    fn p11_credentials_are_sent_in_the_clear_only_to_loopback_or_where_allowed() {
        let credentials = |url: &str, token: Option<&str>, allow| {
            let mut config = Config::new(url);
            config.bearer_token = token.map(Into::into);
            config.allow_plaintext_credentials = allow;
            Target::parse(url).unwrap().credentials(&config)
        };
        let refused = |answer| matches!(answer, Err(ConnectError::PlaintextCredentials { .. }));
        assert!(refused(credentials("ws://h", Some("t"), false)));
        assert!(refused(credentials("ws://me:p@h", None, false)));
        for (url, token, allow, expected) in [
            ("ws://h", None, false, None),
            ("ws://h", Some("t"), true, Some("Bearer t")),
            ("ws://me:p@h", None, true, Some("Basic bWU6cA==")),
            ("ws://127.0.0.1", Some("t"), false, Some("Bearer t")),
        ] {
            let credentials = credentials(url, token, allow).unwrap();
            assert_eq!(
                credentials.as_ref().map(HeaderValue::as_bytes),
                expected.map(str::as_bytes),
                "{url}"
            );
            assert!(credentials.is_none_or(|credentials| credentials.is_sensitive()));
        }
        assert!(matches!(
            credentials("ws://127.0.0.1", Some("line\nbreak"), false),
            Err(ConnectError::InvalidCredentials { .. })
        ));
    }

    #[test]
    fn p11_a_server_is_named_without_credentials() {
        assert_eq!(
            server_name("ws://me:secret@h:1/p?token=secret"),
            "ws://h:1/p"
        );
        assert_eq!(server_name("ws://h"), "ws://h/");
        assert_eq!(server_name("me:secret@ h"), "(not a URL)");
    }
}
