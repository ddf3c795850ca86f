//! A link: an open WebSocket after the handshake. A connection has one after the other.

use std::{io, pin::Pin};

use bytes::BytesMut;
use log::debug;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    dial::{Dialled, dial, server_name},
    handshake::{ServerInfo, handshake, resume},
    pending::after,
    retry::{Jitter, connect_again},
    socket::{self, MessageReader, MessageWriter},
};
use crate::{config::Config, error::ConnectError, protocol::SessionId};

/// An open WebSocket whose peer is an exec-server.
pub(crate) struct Link {
    pub(super) reader: MessageReader,
    pub(super) writer: MessageWriter,
}

/// What the first link to a server has brought.
pub(crate) struct FirstLink {
    pub(super) link: Link,
    pub(super) server: ServerInfo,
    /// How to get another link, and to what session. `None` if there is none to be had.
    pub(super) resume: Option<(Dialler, SessionId)>,
}

/// How links are made.
pub(crate) enum Dialler {
    /// By the URL of the configuration.
    Url,
    /// By the application, which upgrades them too.
    Custom(Box<dyn FnMut() -> Connecting>),
}

pub(crate) type Connecting = Pin<Box<dyn Future<Output = io::Result<awc::BoxedSocket>>>>;

impl Dialler {
    async fn dial(&mut self, config: &Config) -> Result<Dialled, ConnectError> {
        match self {
            Dialler::Url => dial(config).await,
            Dialler::Custom(connect) => {
                let server = server_name(&config.url);
                match timeout(config.connect_timeout, connect()).await {
                    Ok(Ok(socket)) => Ok(Dialled {
                        socket,
                        read: BytesMut::new(),
                    }),
                    Ok(Err(error)) => Err(ConnectError::Unreachable {
                        server,
                        problem: error.to_string(),
                    }),
                    Err(_) => Err(ConnectError::Timeout {
                        server,
                        after: config.connect_timeout,
                    }),
                }
            }
        }
    }
}

impl FirstLink {
    pub(crate) fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// Dials, again and again if that is asked for, and shakes hands.
    pub(crate) async fn dial(mut dialler: Dialler, config: &Config) -> Result<Self, ConnectError> {
        let give_up = after(Instant::now(), config.connect_retry);
        let mut jitter = Jitter(config.jitter_seed);
        let mut attempts = 0;
        let dialled = loop {
            let error = match dialler.dial(config).await {
                Ok(dialled) => break dialled,
                Err(error) => error,
            };
            attempts += 1;
            let Some(wait) = connect_again(&error) else {
                return Err(error);
            };
            let wait = wait.saturating_add(jitter.delay(attempts));
            let at = after(Instant::now(), wait);
            if at >= give_up {
                return Err(error);
            }
            debug!(error:%, attempts; "not connected yet");
            sleep_until(at).await;
        };
        FirstLink::open(dialled, Some(dialler), config).await
    }

    /// Shakes hands over a socket on which the upgrade is done.
    pub(crate) async fn over(
        socket: awc::BoxedSocket,
        config: &Config,
    ) -> Result<Self, ConnectError> {
        let dialled = Dialled {
            socket,
            read: BytesMut::new(),
        };
        FirstLink::open(dialled, None, config).await
    }

    async fn open(
        dialled: Dialled,
        dialler: Option<Dialler>,
        config: &Config,
    ) -> Result<Self, ConnectError> {
        let server = server_name(&config.url);
        let mut link = Link::split(dialled, config);
        let shaken = handshake(
            &mut link.reader,
            &mut link.writer,
            &config.client_name,
            &server,
        );
        let introduced = in_time(config, &server, shaken).await?;
        debug!(server:%, dialect:? = introduced.server.dialect; "connected");
        Ok(FirstLink {
            link,
            server: introduced.server,
            resume: dialler.zip(introduced.session),
        })
    }
}

impl Link {
    fn split(dialled: Dialled, config: &Config) -> Self {
        let Dialled { socket, read } = dialled;
        let (reader, writer) = socket::split(socket, read, config.max_message_size);
        Link { reader, writer }
    }

    /// Makes another link to a session.
    pub(crate) async fn resume(
        dialler: &mut Dialler,
        session: &SessionId,
        config: &Config,
    ) -> Result<Self, ConnectError> {
        let dialled = dialler.dial(config).await?;
        let server = server_name(&config.url);
        let mut link = Link::split(dialled, config);
        let resumed = resume(
            &mut link.reader,
            &mut link.writer,
            &config.client_name,
            session,
            &server,
        );
        in_time(config, &server, resumed).await?;
        debug!(server:%; "resumed");
        Ok(link)
    }
}

async fn in_time<T>(
    config: &Config,
    server: &str,
    handshake: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(config.handshake_timeout, handshake)
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::HandshakeTimeout {
                server: server.to_owned(),
                after: config.handshake_timeout,
            })
        })
}
