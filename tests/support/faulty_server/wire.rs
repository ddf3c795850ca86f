//! One connection of the server: requests in, answers and notifications out, and the faults between.

use std::{collections::VecDeque, rc::Rc};

use actix_codec::Decoder as _;
use actix_http::ws;
use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    select,
    task::yield_now,
    time::{Duration, Instant, sleep},
};

use super::{
    super::{peer, random::Random},
    Answer, FaultyServer,
    plan::{How, Link},
};

/// A frame is written in so many pieces at most, as each takes time.
const MAX_PIECES: usize = 8;

/// Why nothing more goes over a connection.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// As planned.
    Cut,
    Silent,
    /// The client has closed.
    ByClient,
}

struct Wire {
    server: Rc<FaultyServer>,
    number: u64,
    link: Link,
    random: Random,
    socket: DuplexStream,
    codec: ws::Codec,
    read: BytesMut,
    inbox: VecDeque<Value>,
    /// A write that holds up all requests behind it.
    blocked: Option<Value>,
    frames: u64,
    requests: u64,
}

/// Serves one connection to its end.
pub(super) async fn serve(server: Rc<FaultyServer>, socket: DuplexStream, number: u64) {
    let link = server.plan.link(number);
    server.state().open += 1;
    let mut wire = Wire {
        random: Random::of(server.plan.seed, &format!("wire {number}")),
        server: server.clone(),
        number,
        link: link.clone(),
        socket,
        codec: ws::Codec::new().max_size(1 << 20),
        read: BytesMut::new(),
        inbox: VecDeque::new(),
        blocked: None,
        frames: 0,
        requests: 0,
    };
    let in_time = async {
        match link.end {
            Some((How::AtTime, after)) => sleep(Duration::from_millis(after)).await,
            _ => std::future::pending().await,
        }
    };
    let ended = select! {
        biased;
        () = in_time => Ended::Cut,
        ended = wire.run() => ended,
    };
    if ended != Ended::ByClient
        && let Some((how, _)) = link.end
    {
        server.met(match how {
            How::BetweenFrames => "cut between frames",
            How::WithinFrame => "cut within a frame",
            How::Goodbye => "closed by the server",
            How::AnswerLost => "answer lost",
            How::Unread => "request not read",
            How::Silent => "silent",
            How::AtTime => "cut at some time",
        });
    }
    if ended == Ended::Silent {
        wire.hear_nothing().await;
    }
    drop(wire);
    server.state().open -= 1;
    if link.end.is_some() {
        if !link.away.is_zero() {
            server.state().away_until = Some(Instant::now() + link.away);
        }
        if !link.noticed_after.is_zero() {
            server.met("half-open");
            sleep(link.noticed_after).await;
        }
    }
    server.detach(number);
}

impl Wire {
    async fn run(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.turn().await {
                return ended;
            }
        }
    }

    /// Does one thing, or waits for one.
    async fn turn(&mut self) -> Result<(), Ended> {
        self.unblock().await?;
        let can_handle = self.blocked.is_none() && !self.inbox.is_empty();
        if !can_handle || self.random.chance(50) {
            let places = self.link.places;
            let push = self.server.next_push(self.number, places, &mut self.random);
            if let Some(push) = push {
                return self.push(&push.json()).await;
            }
        }
        if can_handle && let Some(request) = self.inbox.pop_front() {
            return self.handle(request).await;
        }
        let changed = self.server.changed.notified();
        let mut socket = (&mut self.socket).take(self.link.sip as u64);
        let read = select! {
            biased;
            () = changed => return Ok(()),
            read = socket.read_buf(&mut self.read) => read,
        };
        if !read.is_ok_and(|length| length > 0) {
            return Err(Ended::ByClient);
        }
        self.cut().await
    }

    /// Cuts what was read into requests.
    async fn cut(&mut self) -> Result<(), Ended> {
        while let Some(frame) = self.codec.decode(&mut self.read).expect("frames are right") {
            match frame {
                ws::Frame::Text(text) => self
                    .inbox
                    .push_back(serde_json::from_slice(&text).expect("JSON")),
                ws::Frame::Ping(payload) => {
                    self.server.met("ping");
                    self.write(&peer::frame(ws::Message::Pong(payload))).await?;
                }
                // A client sends one unasked while it does not read.
                ws::Frame::Pong(_) => {}
                ws::Frame::Close(reason) => {
                    // What came before the goodbye is still carried out.
                    while self.blocked.is_none()
                        && let Some(request) = self.inbox.pop_front()
                    {
                        self.handle(request).await?;
                    }
                    self.write(&peer::frame(ws::Message::Close(reason))).await?;
                    return Err(Ended::ByClient);
                }
                other => panic!("{other:?}"),
            }
        }
        Ok(())
    }

    async fn handle(&mut self, message: Value) -> Result<(), Ended> {
        let Some(id) = message["id"].as_i64() else {
            // A notification: `initialized`.
            return Ok(());
        };
        let is_last = match self.link.end {
            Some((how @ (How::AnswerLost | How::Unread), after)) if after == self.requests => {
                Some(how)
            }
            _ => None,
        };
        self.requests += 1;
        if is_last == Some(How::Unread) {
            return Err(Ended::Cut);
        }
        let method = message["method"].as_str().expect("a method");
        let answer = self.server.handle(self.number, method, &message["params"]);
        if is_last.is_some() {
            return Err(Ended::Cut);
        }
        let answer = match answer {
            Answer::Result(result) => json!({"id": id, "result": result}),
            Answer::Error(code, text) => {
                json!({"id": id, "error": {"code": code, "message": text}})
            }
            Answer::Later => {
                self.blocked = Some(message);
                return Ok(());
            }
        };
        self.send(&answer.to_string()).await?;
        if method == "process/start"
            && let Some(process_id) = message["params"]["processId"].as_str()
            && let Some(process) = self.server.state().processes.get_mut(process_id)
        {
            process.is_answered = true;
        }
        Ok(())
    }

    /// Goes on with a write that was held up, if its process has ended.
    async fn unblock(&mut self) -> Result<(), Ended> {
        let Some(write) = self.blocked.take() else {
            return Ok(());
        };
        let process_id = write["params"]["processId"].as_str().expect("an id");
        let has_exited = match self.server.state().processes.get(process_id) {
            Some(process) => process.exited || process.is_forgotten,
            None => true,
        };
        if !has_exited {
            self.blocked = Some(write);
            return Ok(());
        }
        self.handle(write).await
    }

    async fn push(&mut self, json: &str) -> Result<(), Ended> {
        self.send(json).await?;
        if self.random.chance(self.link.duplicates) {
            self.server.met("notification sent twice");
            self.send(json).await?;
        }
        Ok(())
    }

    /// Sends a message, unless it is here that the connection ends.
    async fn send(&mut self, json: &str) -> Result<(), Ended> {
        let bytes = peer::frame(ws::Message::Text(json.to_owned().into()));
        if let Some((how, after)) = self.link.end
            && after == self.frames
        {
            match how {
                How::BetweenFrames => return Err(Ended::Cut),
                How::WithinFrame => {
                    let part = 1 + self.random.below(bytes.len() as u64 - 1) as usize;
                    self.write(&bytes[..part]).await?;
                    return Err(Ended::Cut);
                }
                How::Goodbye => {
                    let code = ws::CloseCode::Away.into();
                    self.write(&peer::frame(ws::Message::Close(Some(code))))
                        .await?;
                    return Err(Ended::Cut);
                }
                How::Silent => return Err(Ended::Silent),
                How::AnswerLost | How::Unread | How::AtTime => {}
            }
        }
        if let Some((after, time)) = self.link.stall
            && after == self.frames
        {
            self.server.met("stalled");
            sleep(time).await;
            let longest = &mut self.server.state().longest_stall;
            *longest = time.max(*longest);
        }
        self.frames += 1;
        if self.link.latency > 0 && self.random.chance(30) {
            sleep(self.random.millis(self.link.latency)).await;
        }
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let slice = self.link.slice.max(bytes.len() / MAX_PIECES);
        for (n, piece) in bytes.chunks(slice).enumerate() {
            if n > 0 {
                // So that the client reads it by itself.
                yield_now().await;
            }
            let written = self.socket.write_all(piece).await;
            written.map_err(|_| Ended::ByClient)?;
        }
        Ok(())
    }

    /// Waits until the client gives up.
    async fn hear_nothing(&mut self) {
        loop {
            self.read.clear();
            let read = self.socket.read_buf(&mut self.read).await;
            if !read.is_ok_and(|length| length > 0) {
                return;
            }
        }
    }
}
