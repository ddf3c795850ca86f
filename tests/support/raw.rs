//! A client that sends whatever it is told to.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, http, protocol::WebSocketConfig},
};

use super::soon;

pub struct Raw {
    socket: WebSocketStream<TcpStream>,
    last_id: u64,
    /// Notifications that came while something else was waited for.
    pub notifications: Vec<Value>,
}

impl Raw {
    pub async fn connect(url: &str) -> Self {
        let address = url.strip_prefix("ws://").unwrap();
        let socket = soon(TcpStream::connect(address)).await.unwrap();
        let config = WebSocketConfig::default()
            .max_frame_size(None)
            .max_message_size(None);
        let request = http::Uri::try_from(format!("{url}/")).unwrap();
        let (socket, _) = soon(client_async_with_config(request, socket, Some(config)))
            .await
            .unwrap();
        Raw {
            socket,
            last_id: 1000,
            notifications: Vec::new(),
        }
    }

    /// Connects and greets. Returns the id of the session.
    pub async fn greet(url: &str, resume: Option<&str>) -> (Self, String) {
        let mut raw = Raw::connect(url).await;
        let params = json!({"clientName": "raw", "resumeSessionId": resume});
        let answer = raw.call("initialize", params).await.unwrap();
        raw.send(r#"{"method":"initialized"}"#).await;
        (raw, answer["sessionId"].as_str().unwrap().to_owned())
    }

    pub async fn send(&mut self, text: &str) {
        // A server that has hung up is found out by who waits for an answer.
        let _gone = soon(self.socket.send(Message::text(text))).await;
    }

    /// The next message, or `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            match soon(self.socket.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).ok(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    /// The next message that is no notification.
    pub async fn answer(&mut self) -> Option<Value> {
        loop {
            let message = self.next().await?;
            if message.get("id").is_some() {
                return Some(message);
            }
            self.notifications.push(message);
        }
    }

    /// Sends a request and waits for its answer. The error is the error object.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.last_id += 1;
        let request = json!({"id": self.last_id, "method": method, "params": params});
        self.send(&request.to_string()).await;
        let answer = self.answer().await.unwrap();
        assert_eq!(answer["id"], self.last_id, "{answer}");
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].clone()),
        }
    }

    /// Waits until the streams of a process are closed.
    pub async fn closed(&mut self, id: &str) {
        let is_it = |message: &Value| {
            message["method"] == "process/closed" && message["params"]["processId"] == id
        };
        while !self.notifications.iter().any(is_it) {
            let message = self.next().await.unwrap();
            self.notifications.push(message);
        }
    }
}
