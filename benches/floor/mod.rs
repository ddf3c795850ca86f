//! What the WebSocket alone costs: awc's own client, which counts frames and looks into none.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{future::poll_fn, pin::Pin};

use actix_codec::Framed;
use actix_http::ws::{Codec, Message};
use actix_service::ServiceExt as _;
use awc::{BoxedSocket, http::Uri};
use bytestring::ByteString;
use futures_util::{FutureExt as _, StreamExt as _};

/// A connection without any handshake but the upgrade.
pub struct Floor {
    socket: Framed<BoxedSocket, Codec>,
}

impl Floor {
    pub async fn connect(url: &str) -> Self {
        let tcp = actix_tls::connect::Connector::default().service().map(
            |connection: actix_tls::connect::Connection<Uri, _>| {
                let socket: &actix_rt::net::TcpStream = connection.io_ref();
                socket.set_nodelay(true).expect("a socket");
                connection
            },
        );
        let client = awc::Client::builder()
            .connector(awc::Connector::new().connector(tcp))
            .finish();
        let request = client.ws(url).max_frame_size(128 << 20);
        let (_, socket) = request.connect().await.expect("an upgrade");
        Floor { socket }
    }

    /// Sends a request.
    pub async fn send(&mut self, json: impl Into<ByteString>) {
        self.queue(json);
        self.flush().await;
    }

    /// Counts so many frames.
    pub async fn count(&mut self, frames: u64) {
        for _ in 0..frames {
            self.next().await;
        }
    }

    /// Makes so many calls of one request, `in_flight` at a time: counts an answer, and sends the request
    /// again. All answers that are there are counted before anything is written.
    pub async fn call(&mut self, json: &'static str, calls: u64, in_flight: u64) {
        let mut unsent = calls;
        let mut unanswered = calls;
        for _ in 0..in_flight.min(calls) {
            self.queue(json);
            unsent -= 1;
        }
        while unanswered > 0 {
            self.flush().await;
            self.next().await;
            loop {
                unanswered -= 1;
                if unsent > 0 {
                    self.queue(json);
                    unsent -= 1;
                }
                if unanswered == 0 || self.next().now_or_never().is_none() {
                    break;
                }
            }
        }
    }

    async fn next(&mut self) {
        let frame = self.socket.next().await.expect("a connection");
        frame.expect("a frame");
    }

    fn queue(&mut self, json: impl Into<ByteString>) {
        let written = Pin::new(&mut self.socket).write(Message::Text(json.into()));
        written.expect("encodes");
    }

    async fn flush(&mut self) {
        poll_fn(|context| Pin::new(&mut self.socket).flush::<Message>(context))
            .await
            .expect("a connection");
    }
}
