//! Sessions for tests: one that writes down what it is told, and one that hands it on.

use actix::{Actor, ActorContext as _, Addr, Context, Handler, Message};
use execmux::{Closed, Exited, Failed, Session, SessionEvent, protocol::Stream};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

/// Consumes every event as it comes, and checks order and the one last event.
pub struct Recorder {
    record: Record,
    began: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Sender<Record>>,
}

/// What a recorder will tell its test.
pub struct Recording {
    began: oneshot::Receiver<()>,
    ended: oneshot::Receiver<Record>,
}

impl Recorder {
    /// Starts a session that nobody but its route holds.
    pub fn start_session() -> (Session, Recording) {
        let (began, begins) = oneshot::channel();
        let (ended, ends) = oneshot::channel();
        let recorder = Recorder {
            record: Record::default(),
            began: Some(began),
            ended: Some(ended),
        };
        let recording = Recording {
            began: begins,
            ended: ends,
        };
        let mut session = None;
        Recorder::create(|context| {
            session = Some(Session::in_context(context));
            recorder
        });
        (session.expect("it is made at once"), recording)
    }
}

impl Actor for Recorder {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Recorder {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        assert!(
            !self.record.has_ended(),
            "after the last event came {event:?}"
        );
        self.record.add(event);
        if let Some(began) = self.began.take() {
            // The test may not care.
            let _gone = began.send(());
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            // The test may not care.
            let _gone = ended.send(std::mem::take(&mut self.record));
        }
    }
}

impl Recording {
    /// Waits for the first event.
    pub async fn began(&mut self) {
        super::soon(&mut self.began).await.expect("an event");
    }

    /// Waits until the session is gone, and returns what it was told, which may not be all.
    pub async fn partial(self) -> Record {
        super::soon(self.ended)
            .await
            .expect("a recorder tells in the end")
    }

    /// Waits until the session is gone, and returns what it was told, up to the last event.
    pub async fn record(self) -> Record {
        let record = self.partial().await;
        assert!(record.has_ended(), "no last event: {record:?}");
        record
    }
}

/// Hands every event on to its test, unconsumed.
pub struct Tap(UnboundedSender<SessionEvent>);

/// The events of a tap.
pub struct Events(UnboundedReceiver<SessionEvent>);

impl Tap {
    /// Starts a session that lives as long as the address returned.
    pub fn start_session() -> (Addr<Tap>, Events) {
        let (sender, receiver) = unbounded_channel();
        (Tap(sender).start(), Events(receiver))
    }
}

impl Events {
    /// Waits for the next event, or returns `None` when the session is gone.
    pub async fn next(&mut self) -> Option<SessionEvent> {
        super::soon(self.0.recv()).await
    }
}

impl Actor for Tap {
    type Context = Context<Self>;
}

impl Handler<SessionEvent> for Tap {
    type Result = ();

    fn handle(&mut self, event: SessionEvent, _: &mut Self::Context) {
        // The test may have seen enough.
        let _gone = self.0.send(event);
    }
}

/// Stops a tap.
pub struct Stop;

impl Message for Stop {
    type Result = ();
}

impl Handler<Stop> for Tap {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        context.stop();
    }
}

/// What a session was told, up to and including its last event.
#[derive(Debug, Default)]
pub struct Record {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub exited: Option<Exited>,
    pub closed: Option<Closed>,
    pub failed: Option<Failed>,
    pub last_seq: u64,
    pub gaps: usize,
    pub link_events: usize,
}

impl Record {
    pub fn has_ended(&self) -> bool {
        self.closed.is_some() || self.failed.is_some()
    }

    pub fn add(&mut self, event: SessionEvent) {
        let seq = match event {
            SessionEvent::Output(output) => {
                let stream = match output.stream {
                    Stream::Stdout => &mut self.stdout,
                    Stream::Stderr => &mut self.stderr,
                    Stream::Pty => &mut self.pty,
                };
                stream.extend_from_slice(&output.chunk);
                output.seq
            }
            SessionEvent::Exited(exited) => {
                let seq = exited.seq;
                assert!(self.exited.replace(exited).is_none(), "exited twice");
                seq
            }
            SessionEvent::Closed(closed) => {
                let seq = closed.seq;
                assert_eq!(
                    closed.exit_code,
                    self.exited.as_ref().map(|exited| exited.exit_code)
                );
                self.closed = Some(closed);
                seq
            }
            SessionEvent::Failed(failed) => {
                assert_eq!(failed.last_seq, self.last_seq);
                self.failed = Some(failed);
                return;
            }
            SessionEvent::Gap(gap) => {
                assert_eq!(gap.after_seq, self.last_seq);
                self.gaps += 1;
                self.last_seq = gap.before_seq - 1;
                return;
            }
            SessionEvent::Interrupted(_) | SessionEvent::Resumed(_) => {
                self.link_events += 1;
                return;
            }
            other => panic!("unknown event {other:?}"),
        };
        assert_eq!(seq, self.last_seq + 1, "out of order or not once");
        self.last_seq = seq;
    }

    /// The exit code of a process that was followed to its end.
    pub fn exit_code(&self) -> i32 {
        assert!(self.failed.is_none(), "failed: {:?}", self.failed);
        self.closed
            .as_ref()
            .and_then(|closed| closed.exit_code)
            .expect("an exit code")
    }
}
