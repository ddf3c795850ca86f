//! The entries of the crate on runtimes that are not an actix system, and on none.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake},
    thread,
};

use actix::{ArbiterHandle, System};
use execmux::{Config, ConnectError, Mux};
use futures_util::FutureExt as _;
use tokio::{
    io::DuplexStream,
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::LocalSet,
};

/// Nothing listens there.
fn config() -> Config {
    Config::new("ws://127.0.0.1:1")
}

async fn connect() -> Result<Mux, ConnectError> {
    Mux::connect(config()).await
}

async fn connect_over() -> Result<Mux, ConnectError> {
    // The peer is gone.
    Mux::connect_over(tokio::io::duplex(100).0, config()).await
}

async fn connect_through() -> Result<Mux, ConnectError> {
    let refused = async || Err::<DuplexStream, _>(std::io::ErrorKind::ConnectionRefused.into());
    Mux::connect_through(config(), refused).await
}

/// Returns the words with which it panics.
fn panics(call: impl FnOnce() -> Result<Mux, ConnectError>) -> String {
    let panicked = catch_unwind(AssertUnwindSafe(call)).map(|result| result.err());
    let payload = panicked.expect_err("a panic");
    payload.downcast_ref::<String>().unwrap().clone()
}

fn plain_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn connecting_outside_of_an_actix_system_panics_with_advice() {
    let runtime = plain_runtime();
    for words in [
        panics(|| runtime.block_on(connect())),
        panics(|| runtime.block_on(connect_over())),
        panics(|| runtime.block_on(connect_through())),
    ] {
        assert!(words.contains("on a runtime without one"), "{words}");
        assert!(words.contains("`Mux::connect_on`"), "{words}");
    }
    for words in [
        panics(|| connect().now_or_never().unwrap()),
        panics(|| connect_over().now_or_never().unwrap()),
        panics(|| connect_through().now_or_never().unwrap()),
    ] {
        assert!(words.contains("outside of any runtime"), "{words}");
        assert!(words.contains("`Mux::connect_on`"), "{words}");
    }
}

#[test]
fn connecting_within_a_local_set_works_without_an_actix_system() {
    let (runtime, connecting) = (plain_runtime(), LocalSet::new());
    let refused = connecting.block_on(&runtime, connect()).unwrap_err();
    assert!(
        matches!(refused, ConnectError::Unreachable { .. }),
        "{refused:?}"
    );
}

/// Awaits on this thread, without a runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Runs a test beside an actix system in another thread.
fn beside_a_system(test: impl FnOnce(ArbiterHandle)) {
    let (tell, arbiter) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let system = thread::spawn(move || {
        System::new().block_on(async move {
            tell.send(System::current().arbiter().clone()).unwrap();
            stopped.await
        })
    });
    test(arbiter.recv().unwrap());
    stop.send(()).unwrap();
    system.join().unwrap().unwrap();
}

#[test]
fn connecting_on_an_arbiter_works_from_any_runtime_and_from_none() {
    beside_a_system(|arbiter| {
        let refused = plain_runtime().block_on(Mux::connect_on(&arbiter, config()));
        assert!(matches!(refused, Err(ConnectError::Unreachable { .. })));
        let refused = block_on(Mux::connect_on(&arbiter, config()));
        assert!(matches!(refused, Err(ConnectError::Unreachable { .. })));
    });
}

#[test]
fn an_arbiter_that_has_stopped_is_named_and_not_to_be_tried_again() {
    let system = actix::System::new();
    system.block_on(async {
        let arbiter = actix::Arbiter::new();
        let handle = arbiter.handle();
        handle.stop();
        arbiter.join().unwrap();
        let error = Mux::connect_on(&handle, config()).await.unwrap_err();
        assert!(matches!(error, ConnectError::ArbiterStopped), "{error}");
        assert!(!error.is_retryable());
    });
}

#[cfg(all(feature = "server", unix))]
#[test]
fn a_server_starts_and_a_mux_works_from_any_runtime() {
    use execmux::server::{Server, ServerConfig};
    beside_a_system(|arbiter| {
        plain_runtime().block_on(async {
            let server = support::soon(Server::start(ServerConfig::new()))
                .await
                .unwrap();
            let connecting = Mux::connect_on(&arbiter, Config::new(server.url()));
            let mux = support::soon(connecting).await.unwrap();
            assert!(support::soon(mux.metadata("/")).await.unwrap().is_directory);
            let (session, mut events) = execmux::Session::stream();
            let echo = execmux::StartProcess::new("cat", ["cat"], "/").env("PATH", "/bin:/usr/bin");
            let started = mux.start_with_input(echo, session, "hello");
            support::soon(started).await.unwrap();
            while let Some(event) = support::soon(events.recv()).await {
                if let execmux::SessionEvent::Output(output) = event {
                    assert_eq!(output.chunk, "hello");
                }
            }
            support::soon(mux.shutdown()).await.unwrap();
            support::soon(server.stop()).await;
        });
    });
}
