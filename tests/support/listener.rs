//! Loopback servers that misbehave before or at the upgrade.

use std::net::SocketAddr;

use actix_http::ws;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::peer::Peer;

/// Accepts one connection, reads its HTTP request and hands both to `serve`.
pub async fn serve_once<F>(serve: impl FnOnce(String, TcpStream) -> F + 'static) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("an address");
    actix::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.expect("a request"));
        }
        serve(String::from_utf8(head).expect("ASCII"), socket).await;
    });
    address
}

/// Answers with `response` and closes.
pub async fn respond_once(response: &'static str) -> SocketAddr {
    serve_once(move |_, mut socket| async move {
        socket
            .write_all(response.as_bytes())
            .await
            .expect("the client reads");
    })
    .await
}

/// Upgrades the connection, and hands the peer to `serve`.
pub async fn upgrade_once<F>(serve: impl FnOnce(Peer<TcpStream>) -> F + 'static) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    serve_once(move |head, socket| async move { serve(upgrade(&head, socket).await).await }).await
}

pub async fn upgrade(head: &str, mut socket: TcpStream) -> Peer<TcpStream> {
    let accepted = acceptance(head);
    socket
        .write_all(accepted.as_bytes())
        .await
        .expect("the client reads");
    Peer::new(socket)
}

/// The answer to an upgrade that is accepted.
pub fn acceptance(head: &str) -> String {
    let name = "sec-websocket-key:";
    let key = head
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with(name))
        .map(|line| line[name.len()..].trim())
        .expect("a key");
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        String::from_utf8_lossy(&ws::hash_key(key.as_bytes()))
    )
}
