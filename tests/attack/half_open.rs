//! Networks that go silent without closing anything, between the crate's own client and its own server.

use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use execmux::{
    Config, LinkState, Mux, ProcessId,
    protocol::StartProcess,
    server::{Server, ServerConfig},
};
use serde_json::json;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};

use crate::support::{checked, proxy::Proxy, raw::Raw, recorder::Recorder, soon};

/// Longer than any test takes.
const NEVER: Duration = Duration::from_secs(3600);

async fn listen(change: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = ServerConfig::new();
    config.session_window = Duration::from_secs(60);
    change(&mut config);
    soon(Server::start(config)).await.unwrap()
}

/// A client that notices a silent network soon.
fn impatient(proxy: &Proxy) -> Config {
    let mut config = Config::new(proxy.url());
    config.ping_interval = Duration::from_millis(500);
    config.silence_timeout = Duration::from_secs(2);
    config
}

/// Says one word at once, one when its stdin has a line, and one at its end.
fn talker() -> StartProcess {
    let script = "echo one; read line; echo $line; read line; echo $line; exit 7";
    StartProcess::new(ProcessId::unique(), ["sh", "-c", script], "/")
        .env("PATH", "/usr/bin:/bin")
        .pipe_stdin(true)
}

/// Tells its test of the link.
struct Watcher(UnboundedSender<LinkState>);

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<LinkState> for Watcher {
    type Result = ();

    fn handle(&mut self, state: LinkState, _: &mut Self::Context) {
        // The test may have seen enough.
        let _gone = self.0.send(state);
    }
}

async fn watch(mux: &Mux) -> (Addr<Watcher>, UnboundedReceiver<LinkState>) {
    let (sender, states) = unbounded_channel();
    let watcher = Watcher(sender).start();
    mux.subscribe(watcher.clone().recipient()).await;
    (watcher, states)
}

/// Waits until the link is lost and open again.
async fn resumed(states: &mut UnboundedReceiver<LinkState>) {
    let mut was_lost = false;
    loop {
        match soon(states.recv()).await.unwrap() {
            LinkState::Open if was_lost => return,
            LinkState::Open => {}
            LinkState::Recovering { .. } => was_lost = true,
            other => panic!("{other:?}"),
        }
    }
}

/// A network, and how long servers and clients are patient with it.
struct Case {
    name: &'static str,
    silent_to_server: bool,
    silent_to_client: bool,
    server: fn(&mut ServerConfig),
    client: fn(&mut Config),
}

/// Only the takeover frees the session.
fn server_waits(config: &mut ServerConfig) {
    config.silence_timeout = NEVER;
    config.takeover_timeout = Duration::from_millis(500);
}

/// Only the silence of the client frees the session.
fn server_drops(config: &mut ServerConfig) {
    config.ping_interval = Duration::from_millis(500);
    config.silence_timeout = Duration::from_secs(4);
    // Such a newcomer gives up.
    config.takeover_timeout = NEVER;
}

const CASES: [Case; 5] = [
    Case {
        name: "silent both ways, the client takes over",
        silent_to_server: true,
        silent_to_client: true,
        server: server_waits,
        client: |_| {},
    },
    Case {
        name: "silent both ways, the server drops the client",
        silent_to_server: true,
        silent_to_client: true,
        server: server_drops,
        client: |config| config.handshake_timeout = Duration::from_secs(1),
    },
    Case {
        name: "silent to the client, which closes",
        silent_to_server: false,
        silent_to_client: true,
        server: server_waits,
        client: |_| {},
    },
    Case {
        name: "silent to the server, which pings the client that hears it",
        silent_to_server: true,
        silent_to_client: false,
        server: server_drops,
        client: |config| config.handshake_timeout = Duration::from_secs(1),
    },
    Case {
        name: "silent to the server, of a client that hears nothing either",
        silent_to_server: true,
        silent_to_client: false,
        server: server_waits,
        client: |_| {},
    },
];

#[actix::test]
async fn p6_a_network_that_goes_silent_loses_nothing() {
    for case in CASES {
        checked(async {
            let server = listen(case.server).await;
            let proxy = Proxy::start(server.address()).await;
            let mut config = impatient(&proxy);
            (case.client)(&mut config);
            let mux = soon(Mux::connect(config)).await.unwrap();
            let (_watcher, mut states) = watch(&mux).await;
            let (session, mut recording) = Recorder::start_session();
            let process = talker();
            let id = process.process_id().clone();
            soon(mux.start(process, session)).await.unwrap();
            recording.began().await;

            let begun = Instant::now();
            proxy.go_silent(case.silent_to_server, case.silent_to_client);
            // Sent into the silence: the server may get it before or after the client is back, but once.
            let write = {
                let (mux, id) = (mux.clone(), id.clone());
                actix::spawn(async move { mux.write(&id, "two\n").await })
            };
            resumed(&mut states).await;
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", case.name);
            soon(write).await.unwrap().unwrap();
            soon(mux.write(&id, "three\n")).await.unwrap();

            let record = recording.record().await;
            let said = String::from_utf8_lossy(&record.stdout).into_owned();
            assert_eq!(said, "one\ntwo\nthree\n", "{}", case.name);
            assert_eq!((record.exit_code(), record.gaps), (7, 0), "{}", case.name);
            soon(mux.shutdown()).await.unwrap();
            drop(proxy);
            soon(server.stop()).await;
        })
        .await;
    }
}

/// Waits until the server has so many connections.
async fn connections(server: &Server, expected: usize) {
    soon(async {
        while server.statistics().connections != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[actix::test]
async fn p6_a_client_that_takes_nothing_any_more_is_dropped_and_may_come_back() {
    let server = listen(|config| {
        config.ping_interval = Duration::from_millis(100);
        config.silence_timeout = Duration::from_millis(500);
    })
    .await;
    let proxy = Proxy::start(server.address()).await;
    let (mut raw, session) = Raw::greet(&proxy.url(), None).await;
    let flood = json!({"processId": "p", "argv": ["sh", "-c", "yes | head -c 20000000"],
        "cwd": "file:///", "env": {"PATH": "/usr/bin:/bin"}, "tty": false});
    raw.call("process/start", flood).await.unwrap();
    proxy.go_silent(true, true);
    connections(&server, 0).await;
    let (mut raw, resumed) = Raw::greet(&server.url(), Some(&session)).await;
    assert_eq!(resumed, session);
    let read = json!({"processId": "p", "afterSeq": 0});
    assert!(raw.call("process/read", read).await.unwrap()["nextSeq"].as_u64() > Some(1));
    drop(raw);
    soon(server.stop()).await;
}

#[actix::test]
async fn p6_a_session_is_not_taken_from_a_client_that_answers_pings() {
    let server = listen(|config| config.takeover_timeout = NEVER).await;
    let (mut owner, session) = Raw::greet(&server.url(), None).await;
    let mut other = Raw::connect(&server.url()).await;
    let resume = json!({"clientName": "other", "resumeSessionId": session});
    // The owner answers the ping while it reads.
    let refused = tokio::select! {
        refused = other.call("initialize", resume) => refused.unwrap_err(),
        message = owner.next() => panic!("{message:?}"),
    };
    assert_eq!(refused["code"], -32010, "{refused}");
    // The refused connection may begin a session of its own, and the owner's is what it was.
    other
        .call("initialize", json!({"clientName": "other"}))
        .await
        .unwrap();
    owner.call("environment/status", json!({})).await.unwrap();
    soon(server.stop()).await;
}

#[actix::test]
async fn p6_of_two_that_take_over_at_once_one_gets_the_session() {
    let server = listen(|config| config.takeover_timeout = Duration::from_millis(500)).await;
    let proxy = Proxy::start(server.address()).await;
    let (_silent, session) = Raw::greet(&proxy.url(), None).await;
    proxy.go_silent(true, true);
    let rival = async |url: String, session: String| {
        let mut rival = Raw::connect(&url).await;
        let resume = json!({"clientName": "rival", "resumeSessionId": session});
        let outcome = rival.call("initialize", resume).await;
        (rival, outcome)
    };
    let a = Box::pin(rival(server.url(), session.clone()));
    let b = Box::pin(rival(server.url(), session.clone()));
    let ((mut first, outcome), rest) = futures_util::future::select(a, b).await.factor_first();
    assert_eq!(outcome.unwrap()["sessionId"], session.as_str());
    // Whoever has it now answers pings, while it reads.
    let (_second, outcome) = tokio::select! {
        second = rest => second,
        message = first.next() => panic!("{message:?}"),
    };
    assert_eq!(outcome.unwrap_err()["code"], -32010);
    first.send(r#"{"method":"initialized"}"#).await;
    first.call("environment/status", json!({})).await.unwrap();
    soon(server.stop()).await;
}

#[actix::test]
async fn p6_a_newcomer_that_goes_before_its_turn_takes_nothing() {
    let server = listen(|config| config.takeover_timeout = NEVER).await;
    let proxy = Proxy::start(server.address()).await;
    let (_silent, session) = Raw::greet(&proxy.url(), None).await;
    proxy.go_silent(true, true);
    let mut newcomer = Raw::connect(&server.url()).await;
    connections(&server, 2).await;
    let resume = json!({"id": 1, "method": "initialize",
        "params": {"clientName": "newcomer", "resumeSessionId": session}});
    newcomer.send(&resume.to_string()).await;
    drop(newcomer);
    connections(&server, 1).await;
    assert_eq!(server.statistics().sessions, 1);
    soon(server.stop()).await;
}

#[actix::test]
async fn p6_a_takeover_ends_at_once_when_the_old_connection_does() {
    let server = listen(|config| config.takeover_timeout = NEVER).await;
    let proxy = Proxy::start(server.address()).await;
    let (_silent, session) = Raw::greet(&proxy.url(), None).await;
    proxy.go_silent(true, true);
    let mut newcomer = Raw::connect(&server.url()).await;
    let resume = json!({"clientName": "newcomer", "resumeSessionId": session.clone()});
    let resumed = newcomer.call("initialize", resume);
    tokio::pin!(resumed);
    connections(&server, 2).await;
    assert!(futures_util::poll!(&mut resumed).is_pending());
    proxy.cut();
    assert_eq!(resumed.await.unwrap()["sessionId"], session.as_str());
    soon(server.stop()).await;
}

#[actix::test]
async fn p6_a_takeover_of_a_session_that_ends_meanwhile_is_refused() {
    let server = listen(|config| {
        config.takeover_timeout = NEVER;
        config.session_window = Duration::ZERO;
    })
    .await;
    let proxy = Proxy::start(server.address()).await;
    let (_silent, session) = Raw::greet(&proxy.url(), None).await;
    proxy.go_silent(true, true);
    let mut newcomer = Raw::connect(&server.url()).await;
    let resume = json!({"clientName": "newcomer", "resumeSessionId": session});
    let resumed = newcomer.call("initialize", resume);
    tokio::pin!(resumed);
    connections(&server, 2).await;
    assert!(futures_util::poll!(&mut resumed).is_pending());
    proxy.cut();
    // Either the newcomer was in time, or the session was over: it is never left waiting.
    match resumed.await {
        Ok(_) => assert_eq!(server.statistics().sessions, 1),
        Err(unknown) => assert_eq!(unknown["code"], -32600, "{unknown}"),
    }
    soon(server.stop()).await;
}
