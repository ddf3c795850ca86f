//! What the server tells its log of clients, sessions, processes and refusals.
#![cfg(all(feature = "server", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fmt::Write as _,
    sync::{Mutex, OnceLock},
};

use execmux::{
    Config, Mux, StartError,
    protocol::StartProcess,
    server::{Auth, Server, ServerConfig},
};
use log::{Level, LevelFilter, Log, Metadata, Record, kv};
use support::{checked, proxy::Proxy, recorder::Recorder};

/// Keeps the lines of the server.
#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

/// Appends ` key=value`.
struct Pairs<'a>(&'a mut String);

impl<'kvs> kv::VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        write!(self.0, " {key}={value}").map_err(kv::Error::from)
    }
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target().starts_with("execmux::server") && record.level() <= Level::Info {
            let mut line = format!("{} {}", record.level(), record.args());
            record.key_values().visit(&mut Pairs(&mut line)).unwrap();
            self.0.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

fn lines() -> &'static Lines {
    static LINES: OnceLock<Lines> = OnceLock::new();
    LINES.get_or_init(Lines::default)
}

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Waits until there are so many lines: some are written after the client has its answer.
async fn told(count: usize) -> Vec<String> {
    while lines().count() < count {
        tokio::task::yield_now().await;
    }
    lines().take()
}

/// Checks that each line begins as expected, and holds the rest of what is expected.
fn expect(told: &[String], expected: &[(&str, &[&str])]) {
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (line, (begin, parts)) in told.iter().zip(expected) {
        assert!(line.starts_with(begin), "{line}: {begin}");
        for part in *parts {
            assert!(line.contains(part), "{line}: {part}");
        }
    }
}

const TOKEN: &str = "a token of more than sixteen bytes";

/// One test, as there is one log.
#[actix::test]
async fn a_server_tells_what_comes_goes_and_is_refused_and_no_secret() {
    log::set_logger(lines()).unwrap();
    log::set_max_level(LevelFilter::Info);
    checked(async {
        let mut all = Vec::new();
        let mut config = ServerConfig::new();
        config.auth = Auth::Token(TOKEN.to_owned());
        let server = Server::start(config).await.unwrap();
        let address = format!("address={}", server.address());
        let started = told(1).await;
        expect(
            &started,
            &[(
                "INFO the server listens",
                &[&address, "clients=who shows the token"],
            )],
        );
        all.extend(started);

        let proxy = Proxy::start(server.address()).await;
        let mut config = Config::new(proxy.url());
        config.bearer_token = Some(TOKEN.into());
        let mux = Mux::connect(config.clone()).await.unwrap();
        let argv = ["sh", "-c", "echo a-password; exit 3"];
        let process = StartProcess::new("p\n1", argv, "/");
        let (session, recording) = Recorder::start_session();
        mux.start(process, session).await.unwrap();
        assert_eq!(recording.record().await.exit_code(), 3);
        let missing = StartProcess::new("p2", ["/no/such/program"], "/");
        let refused = mux.start(missing, Recorder::start_session().0).await;
        assert!(matches!(refused, Err(StartError::Call(_))), "{refused:?}");
        let of_session = told(4).await;
        expect(
            &of_session,
            &[
                ("INFO a session begins", &["session=1", "peer=127.0.0.1:"]),
                (
                    "INFO a process starts",
                    &["session=1", r#"process_id="p\n1""#, r#"program="sh""#],
                ),
                (
                    "INFO a process has exited",
                    &["session=1", r#"process_id="p\n1""#, "exit_code=3"],
                ),
                (
                    "INFO a start is refused",
                    &["session=1", r#"process_id="p2""#, "os error 2"],
                ),
            ],
        );
        all.extend(of_session);

        proxy.cut();
        let resumed = told(3).await;
        expect(
            &resumed,
            &[
                ("INFO a connection ends", &["peer=127.0.0.1:"]),
                (
                    "INFO a session waits for its client",
                    &["session=1", "window_seconds=30"],
                ),
                ("INFO a session is resumed", &["session=1"]),
            ],
        );
        all.extend(resumed);

        // Each of a flood is refused, and not each is written.
        config.bearer_token = Some("another token, of somebody else".into());
        for _ in 0..25 {
            Mux::connect(config.clone()).await.unwrap_err();
        }
        let refused = told(19).await;
        assert_eq!(refused.len(), 19, "with the start, 20 in 10 s");
        for line in &refused {
            let why = "why=invalid websocket bearer token";
            assert!(line.starts_with("WARN a client is refused"), "{line}");
            assert!(line.contains(why), "{line}");
        }
        all.extend(refused);

        mux.shutdown().await.unwrap();
        let left = told(2).await;
        expect(
            &left,
            &[
                ("INFO a connection ends", &["peer=127.0.0.1:"]),
                ("INFO a session waits for its client", &["session=1"]),
            ],
        );
        all.extend(left);
        server.stop().await;
        let stopped = told(2).await;
        expect(
            &stopped,
            &[
                ("INFO the server stops", &[]),
                ("INFO a session ends", &["session=1"]),
            ],
        );
        all.extend(stopped);

        let all = all.join("\n");
        for secret in [TOKEN, "another token", "a-password"] {
            assert!(!all.contains(secret), "{all}");
        }
    })
    .await;
}
