//! An exec-server in memory that does what real ones do, over connections that fail: one seed decides how.

mod plan;
mod process;
mod wire;

use std::{
    cell::{RefCell, RefMut},
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    rc::Rc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{DuplexStream, duplex},
    sync::Notify,
    time::{Instant, sleep},
};

use self::process::Taken;
pub use self::{
    plan::{Fatal, Plan, Release},
    process::{Event, Process},
};
use super::random::Random;

/// What was met in a run, and how often.
pub type Met = BTreeMap<&'static str, u64>;

const SESSION: &str = "00000000-0000-4000-8000-000000000000";

/// The server, shared by its connections.
pub struct FaultyServer {
    pub plan: Plan,
    state: RefCell<State>,
    /// There is something to send, or a process has ended.
    changed: Notify,
}

/// What the server knows.
#[derive(Default)]
pub struct State {
    pub processes: BTreeMap<String, Process>,
    /// How often each process was started, and each file written.
    pub starts: BTreeMap<String, u32>,
    pub files: BTreeMap<String, u32>,
    /// Processes whose writes have held up a connection.
    pub blocking: BTreeSet<String>,
    /// Processes that were asked to end.
    pub terminated: BTreeSet<String>,
    /// How many sockets are open.
    pub open: u64,
    pub met: Met,
    /// When it was tried to connect, and when the server noticed that a connection was lost.
    pub dialled_at: Vec<Instant>,
    pub detached_at: Vec<Instant>,
    /// The longest time for which nothing went over a connection that stood.
    pub longest_stall: Duration,
    connections: u64,
    attached: Option<u64>,
    /// Whether the session is gone.
    pub is_over: bool,
    /// Counts how often the session was detached.
    detached: u64,
    away_until: Option<Instant>,
    pushes: VecDeque<Push>,
}

/// A notification that is to be sent.
#[derive(Debug, Clone)]
struct Push {
    process_id: String,
    seq: u64,
    event: Event,
    exit_code: i32,
    /// How many others have overtaken it.
    overtaken: usize,
}

/// The answer to a request.
enum Answer {
    Result(Value),
    Error(i64, String),
    /// When the process has ended that does not read.
    Later,
}

impl FaultyServer {
    pub fn new(plan: Plan) -> Rc<Self> {
        Rc::new(FaultyServer {
            plan,
            state: RefCell::default(),
            changed: Notify::new(),
        })
    }

    pub fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    pub fn met(&self, what: &'static str) {
        *self.state().met.entry(what).or_default() += 1;
    }

    /// Connects, if that is possible now.
    pub async fn connect(self: Rc<Self>) -> io::Result<DuplexStream> {
        self.state().dialled_at.push(Instant::now());
        let away_until = self.state().away_until;
        if away_until.is_some_and(|until| Instant::now() < until) {
            self.met("nobody to connect to");
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let number = {
            let mut state = self.state();
            state.connections += 1;
            state.connections - 1
        };
        let (client, server) = duplex(self.plan.link(number).buffer);
        actix::spawn(wire::serve(self, server, number));
        Ok(client)
    }

    /// A connection was lost, or closed by the client, and the server has noticed.
    fn detach(self: &Rc<Self>, number: u64) {
        let mut state = self.state();
        if state.attached != Some(number) {
            return;
        }
        state.attached = None;
        state.detached_at.push(Instant::now());
        state.pushes.clear();
        state.detached += 1;
        let detached = state.detached;
        drop(state);
        let restarted = self.plan.fatal == Some(Fatal::Restarted) && number + 1 == self.plan.losses;
        let window = match restarted {
            true => Duration::ZERO,
            false => self.plan.release.window().unwrap_or_default(),
        };
        let server = self.clone();
        actix::spawn(async move {
            sleep(window).await;
            let mut state = server.state();
            if state.attached.is_none() && state.detached == detached {
                state.is_over = true;
                for process in state.processes.values_mut() {
                    process.is_forgotten = true;
                }
            }
        });
    }

    /// Carries out one request.
    fn handle(self: &Rc<Self>, number: u64, method: &str, params: &Value) -> Answer {
        let release = self.plan.release;
        let unknown = || {
            let text = format!("exec-server stub does not implement `{method}` yet");
            Answer::Error(-32601, text)
        };
        let process_id = params["processId"].as_str().unwrap_or_default();
        match method {
            "initialize" => self.initialize(number, params),
            _ if self.state().attached != Some(number) => {
                Answer::Error(-32600, "client must call initialize".into())
            }
            "environment/info" => match release {
                Release::March2026 | Release::R120 => unknown(),
                _ => Answer::Result(json!({"shell": {"name": "sh", "path": "/bin/sh"}})),
            },
            "environment/status" if release.is_newer() => Answer::Result(json!({})),
            "fs/close" if release.is_newer() => Answer::Result(json!({})),
            "process/start" => self.start(process_id),
            "process/read" => self.read(process_id, params),
            "process/write" => self.write(process_id, params),
            "process/terminate" => {
                self.state().terminated.insert(process_id.to_owned());
                let exit_code = if release.is_newer() { 137 } else { -1 };
                Answer::Result(json!({"running": self.kill(process_id, exit_code)}))
            }
            "process/signal" if release.writes_pipes() => {
                let heeds = |process: &Process| process.heeds_interrupt;
                if self.state().processes.get(process_id).is_some_and(heeds) {
                    self.kill(process_id, 130);
                }
                Answer::Result(json!({}))
            }
            "fs/writeFile" => {
                let path = params["path"].as_str().unwrap_or_default();
                let path = path.strip_prefix("file://").unwrap_or(path);
                if path.contains("refused") {
                    return Answer::Error(-32603, "No such file or directory (os error 2)".into());
                }
                *self.state().files.entry(path.to_owned()).or_default() += 1;
                Answer::Result(json!({}))
            }
            "fs/getMetadata" => {
                let path = params["path"].as_str().unwrap_or_default();
                if path.contains("missing") {
                    return Answer::Error(-32004, "No such file or directory (os error 2)".into());
                }
                Answer::Result(
                    json!({"isDirectory": false, "isFile": true, "createdAtMs": 0, "modifiedAtMs": 1}),
                )
            }
            _ => unknown(),
        }
    }

    fn initialize(&self, number: u64, params: &Value) -> Answer {
        let release = self.plan.release;
        let mut state = self.state();
        if let Some(session) = params["resumeSessionId"].as_str()
            && release.window().is_some()
        {
            if session != SESSION || state.is_over {
                return Answer::Error(-32600, format!("unknown session id {session}"));
            }
            if state.attached.is_some() {
                drop(state);
                self.met("resume refused");
                let code = if release.is_newer() { -32010 } else { -32600 };
                let text = format!("session {session} is already attached to another connection");
                return Answer::Error(code, text);
            }
            drop(state);
            self.met("resumed");
            state = self.state();
        }
        state.attached = Some(number);
        Answer::Result(match release {
            Release::March2026 => json!({}),
            Release::R120 | Release::R140 | Release::R142 => json!({"sessionId": SESSION}),
            Release::R150 => json!({"sessionId": SESSION, "environmentInfo": {"cwd": null}}),
            Release::R169 => json!({"sessionId": SESSION, "environmentInfo":
                {"cwd": "file:///", "capabilities": {"fileWriteStreaming": true}}}),
        })
    }

    fn start(self: &Rc<Self>, process_id: &str) -> Answer {
        let mut state = self.state();
        let earlier = state.processes.get(process_id);
        if earlier.is_some_and(|earlier| !earlier.is_forgotten) {
            drop(state);
            self.met("start repeated");
            return Answer::Error(-32600, format!("process {process_id} already exists"));
        }
        let mut random = Random::of(self.plan.seed, process_id);
        let Some(process) = Process::new(process_id, &mut random, !process_id.contains("deaf"))
        else {
            return Answer::Error(-32603, "No such file or directory (os error 2)".into());
        };
        *state.starts.entry(process_id.to_owned()).or_default() += 1;
        state.processes.insert(process_id.to_owned(), process);
        drop(state);
        actix::spawn(self.clone().run(process_id.to_owned()));
        Answer::Result(json!({"processId": process_id}))
    }

    /// Lets a process do what it is to do.
    async fn run(self: Rc<Self>, process_id: String) {
        loop {
            let wait = match self.state().processes.get(&process_id) {
                Some(process) => process.next_step(),
                None => None,
            };
            let Some(wait) = wait else {
                return;
            };
            if !wait.is_zero() {
                sleep(wait).await;
            }
            self.step(&process_id);
        }
    }

    fn step(self: &Rc<Self>, process_id: &str) {
        let mut state = self.state();
        let is_attached = state.attached.is_some();
        let Some(process) = state.processes.get_mut(process_id) else {
            return;
        };
        let Some((seq, event)) = process.step() else {
            return;
        };
        let exit_code = process.exit_code;
        let ends = match self.plan.release.forgets_after_exit() {
            true => event == Event::Exited,
            false => event == Event::Closed,
        };
        if is_attached {
            state.pushes.push_back(Push {
                process_id: process_id.to_owned(),
                seq,
                event,
                exit_code,
                overtaken: 0,
            });
        }
        drop(state);
        self.changed.notify_waiters();
        if ends {
            actix::spawn(self.clone().forget(process_id.to_owned()));
        }
    }

    async fn forget(self: Rc<Self>, process_id: String) {
        let keeps = match self.plan.forgets_early {
            true => Random::of(self.plan.seed, &process_id).millis(4000),
            false => self.plan.release.keeps(),
        };
        sleep(keeps).await;
        loop {
            if let Some(process) = self.state().processes.get_mut(&process_id)
                // Whoever asks again for the start must not start another.
                && process.is_answered
            {
                process.is_forgotten = true;
                break;
            }
            sleep(Duration::from_secs(5)).await;
        }
        self.met("process forgotten");
    }

    fn kill(self: &Rc<Self>, process_id: &str, exit_code: i32) -> bool {
        let running = match self.state().processes.get_mut(process_id) {
            Some(process) => process.kill(exit_code),
            None => false,
        };
        if running {
            actix::spawn(self.clone().run(process_id.to_owned()));
        }
        running
    }

    fn read(&self, process_id: &str, params: &Value) -> Answer {
        let state = self.state();
        let process = state.processes.get(process_id);
        let Some(process) = process.filter(|process| !process.is_forgotten) else {
            return Answer::Error(-32600, format!("unknown process id {process_id}"));
        };
        let after_seq = params["afterSeq"].as_u64().unwrap_or(0);
        let max_bytes = params["maxBytes"].as_u64().map(|bytes| bytes as usize);
        let (chunks, next_seq) = process.read(after_seq, max_bytes, self.plan.release);
        let chunks: Vec<_> = chunks
            .into_iter()
            .map(|(seq, stream, length)| {
                let chunk = Process::content(process_id, seq, length);
                let chunk = base64_simd::STANDARD.encode_to_string(chunk);
                json!({"seq": seq, "stream": stream, "chunk": chunk})
            })
            .collect();
        Answer::Result(json!({
            "chunks": chunks,
            "nextSeq": next_seq,
            "exited": process.exited,
            "exitCode": process.exited.then_some(process.exit_code),
            "closed": process.closed,
            "failure": null,
        }))
    }

    fn write(&self, process_id: &str, params: &Value) -> Answer {
        let release = self.plan.release;
        let mut state = self.state();
        let process = state.processes.get_mut(process_id);
        let Some(process) = process.filter(|process| !process.is_forgotten) else {
            return Answer::Result(json!({"status": "unknownProcess"}));
        };
        if !release.writes_pipes() {
            return Answer::Result(json!({"status": "stdinClosed"}));
        }
        let write_id = params["writeId"].as_str().unwrap_or_default();
        let chunk = params["chunk"].as_str().unwrap_or_default();
        let text = base64_simd::STANDARD.decode_to_vec(chunk).expect("base64");
        match process.write(write_id, &String::from_utf8(text).expect("text"), release) {
            Taken::Accepted => {}
            Taken::Repeated => {
                drop(state);
                self.met("write repeated");
            }
            Taken::Later => {
                state.blocking.insert(process_id.to_owned());
                drop(state);
                self.met("write held up");
                return Answer::Later;
            }
        }
        Answer::Result(json!({"status": "accepted"}))
    }

    /// Takes out what is sent next, not always the first.
    fn next_push(&self, number: u64, places: usize, random: &mut Random) -> Option<Push> {
        let mut state = self.state();
        if state.attached != Some(number) {
            return None;
        }
        let pushes = &mut state.pushes;
        let stuck = pushes.iter().position(|push| push.overtaken >= places);
        let wanted = match stuck {
            Some(at) => at,
            None => random.below(places.min(pushes.len()).max(1) as u64) as usize,
        };
        let lane = |push: &Push| match push.event {
            Event::Output { stream, .. } => stream,
            Event::Exited => "exited",
            Event::Closed => "closed",
        };
        let wanted = pushes.get(wanted)?;
        // Never within one stream: the first of that goes.
        let at = pushes
            .iter()
            .position(|push| push.process_id == wanted.process_id && lane(push) == lane(wanted))?;
        for push in pushes.range_mut(..at) {
            push.overtaken += 1;
        }
        pushes.remove(at)
    }

    fn is_attached(&self, number: u64) -> bool {
        self.state().attached == Some(number)
    }
}

impl Push {
    fn json(&self) -> String {
        let Push {
            process_id, seq, ..
        } = self;
        // Not with `json!`: these are most of all messages, and tests are not optimised.
        match self.event {
            Event::Output { stream, length } => {
                let chunk = Process::content(process_id, *seq, length);
                let chunk = base64_simd::STANDARD.encode_to_string(chunk);
                format!(
                    r#"{{"method":"process/output","params":{{"processId":"{process_id}","seq":{seq},"stream":"{stream}","chunk":"{chunk}"}}}}"#
                )
            }
            Event::Exited => {
                let exit_code = self.exit_code;
                format!(
                    r#"{{"method":"process/exited","params":{{"processId":"{process_id}","seq":{seq},"exitCode":{exit_code}}}}}"#
                )
            }
            Event::Closed => format!(
                r#"{{"method":"process/closed","params":{{"processId":"{process_id}","seq":{seq}}}}}"#
            ),
        }
    }
}
