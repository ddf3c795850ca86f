//! A link: an open WebSocket after the handshake, before its actor runs.

use bytes::BytesMut;
use log::debug;
use tokio::time::timeout;

use super::{
    dial::{dial, server_name},
    handshake::{ServerInfo, handshake},
    socket::{self, MessageReader, MessageWriter},
};
use crate::{config::Config, error::ConnectError};

/// An open WebSocket whose peer is an exec-server.
pub(crate) struct Link {
    pub(super) reader: MessageReader,
    pub(super) writer: MessageWriter,
    pub(super) server: ServerInfo,
}

impl Link {
    /// Dials the server of `config`.
    pub(crate) async fn dial(config: &Config) -> Result<Self, ConnectError> {
        let dialled = dial(config).await?;
        let server = server_name(&config.url);
        Link::open(dialled.socket, dialled.read, config, &server).await
    }

    /// Shakes hands over `socket`, on which the upgrade is done.
    pub(crate) async fn open(
        socket: awc::BoxedSocket,
        read: BytesMut,
        config: &Config,
        server: &str,
    ) -> Result<Self, ConnectError> {
        let (mut reader, mut writer) = socket::split(socket, read, config.max_message_size);
        let shaken = handshake(&mut reader, &mut writer, &config.client_name, server);
        let info = timeout(config.handshake_timeout, shaken)
            .await
            .map_err(|_| ConnectError::HandshakeTimeout {
                server: server.to_owned(),
                after: config.handshake_timeout,
            })??;
        debug!(server:%, dialect:? = info.dialect; "connected");
        Ok(Link {
            reader,
            writer,
            server: info,
        })
    }
}
