//! Stands between a client and a server, and answers some requests itself.

use std::{cell::RefCell, rc::Rc};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_tungstenite::{
    accept_async_with_config, client_async_with_config,
    tungstenite::{Message, http, protocol::WebSocketConfig},
};

/// What becomes of a request.
pub enum Verdict {
    Forward,
    /// It is not forwarded, and rejected with this code and message.
    Reject(i64, &'static str),
    /// It is not forwarded, and never answered.
    Swallow,
    /// It is not forwarded, and both connections end.
    Cut,
}

type Rule = Rc<RefCell<dyn FnMut(&Value) -> Verdict>>;

/// Ends with its tasks.
pub struct Between {
    pub url: String,
    accepting: JoinHandle<()>,
}

impl Between {
    /// Asks `rule` about each request.
    pub async fn start(target: &str, rule: impl FnMut(&Value) -> Verdict + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let target = target.to_owned();
        let rule: Rule = Rc::new(RefCell::new(rule));
        let accepting = actix::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                actix::spawn(carry(client, target.clone(), rule.clone()));
            }
        });
        Between { url, accepting }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(client: TcpStream, target: String, rule: Rule) {
    let config = WebSocketConfig::default()
        .max_frame_size(None)
        .max_message_size(None);
    let Ok(mut client) = accept_async_with_config(client, Some(config)).await else {
        return;
    };
    let address = target.trim_start_matches("ws://");
    let socket = TcpStream::connect(address)
        .await
        .expect("the server listens");
    let uri = http::Uri::try_from(format!("{target}/")).expect("a URL");
    let (mut server, _) = client_async_with_config(uri, socket, Some(config))
        .await
        .expect("the server accepts");
    loop {
        tokio::select! {
            message = client.next() => {
                let Some(Ok(message)) = message else { return };
                let request = match &message {
                    Message::Text(text) => serde_json::from_str(text).ok(),
                    _ => None,
                };
                let verdict = match &request {
                    Some(request) => (rule.borrow_mut())(request),
                    None => Verdict::Forward,
                };
                let sent = match verdict {
                    Verdict::Forward => server.send(message).await,
                    Verdict::Reject(code, words) => {
                        let id = request.map(|request: Value| request["id"].clone());
                        let error = json!({"id": id, "error": {"code": code, "message": words}});
                        client.send(Message::text(error.to_string())).await
                    }
                    Verdict::Swallow => Ok(()),
                    Verdict::Cut => return,
                };
                if sent.is_err() {
                    return;
                }
            }
            message = server.next() => {
                let Some(Ok(message)) = message else { return };
                if client.send(message).await.is_err() {
                    return;
                }
            }
        }
    }
}
