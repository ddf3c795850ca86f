//! A TCP proxy on loopback that loses connections in the ways that networks do.

use std::{
    cell::{Cell, RefCell},
    future::pending,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{oneshot, watch},
    task::{JoinHandle, yield_now},
};

/// Forwards every connection that it accepts, until the test says otherwise. It ends with its tasks.
pub struct Proxy {
    address: SocketAddr,
    shared: Rc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: Cell<SocketAddr>,
    refusing: Cell<bool>,
    flowing: watch::Sender<bool>,
    /// The most bytes that go to a client in one piece.
    piece: Cell<usize>,
    /// How many bytes still go to clients before all connections are cut.
    until_cut: Cell<Option<usize>>,
    connections: RefCell<Vec<Connection>>,
    /// The server's ends of connections whose clients are gone.
    half_open: RefCell<Vec<TcpStream>>,
    accepted: Cell<usize>,
    cuts: Cell<usize>,
}

/// What the test can do to a connection.
struct Connection {
    end: oneshot::Sender<End>,
    silent: Rc<Silent>,
}

/// The directions in which a connection does not forward any more, though it stays open.
#[derive(Default)]
struct Silent {
    to_server: Cell<bool>,
    to_client: Cell<bool>,
}

/// How a connection is to end.
#[derive(Clone, Copy)]
enum End {
    Cut,
    Reset,
    HalfOpen,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("an address");
        let shared = Rc::new(Shared {
            target: Cell::new(target),
            refusing: Cell::new(false),
            flowing: watch::Sender::new(true),
            piece: Cell::new(usize::MAX),
            until_cut: Cell::new(None),
            connections: RefCell::default(),
            half_open: RefCell::default(),
            accepted: Cell::new(0),
            cuts: Cell::new(0),
        });
        Proxy {
            address,
            accepting: actix::spawn(accept(listener, shared.clone())),
            shared,
        }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Where connections go that come from now on.
    pub fn set_target(&self, target: SocketAddr) {
        self.shared.target.set(target);
    }

    /// Whether connections that come from now on are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.set(refuse);
    }

    /// Closes both ends of all connections. Nothing is forwarded any more when it returns.
    pub fn cut(&self) {
        self.shared.end_all(End::Cut);
    }

    /// As [`cut`](Proxy::cut), but with a reset where that closes in order.
    pub fn reset(&self) {
        self.shared.end_all(End::Reset);
    }

    /// Cuts when so many more bytes have gone to clients, on whichever connection they go.
    pub fn cut_after(&self, bytes: usize) {
        self.shared.until_cut.set(Some(bytes));
    }

    /// Closes the clients' ends, so that the servers go on to think that they are there.
    pub fn half_open(&self) {
        self.shared.end_all(End::HalfOpen);
    }

    /// Lets the servers notice.
    pub fn release(&self) {
        self.shared.half_open.take();
    }

    /// Forwards nothing in either direction, and closes nothing.
    pub fn stall(&self) {
        self.shared.flowing.send_replace(false);
    }

    /// Has the connections that there are go silent in these directions for ever, without closing them. Those that
    /// come from now on are forwarded.
    pub fn go_silent(&self, to_server: bool, to_client: bool) {
        for Connection { silent, .. } in &*self.shared.connections.borrow() {
            silent.to_server.set(silent.to_server.get() || to_server);
            silent.to_client.set(silent.to_client.get() || to_client);
        }
    }

    pub fn go_on(&self) {
        self.shared.flowing.send_replace(true);
    }

    /// What goes to clients goes in pieces of at most so many bytes, and others have turns between.
    pub fn slice(&self, bytes: usize) {
        assert!(bytes > 0, "a piece has a byte");
        self.shared.piece.set(bytes);
    }

    /// How many connections have come, also those refused.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.get()
    }

    /// How many connections were cut, reset or left half open.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.get()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        // Each task ends when it cannot be told anything any more.
        self.shared.connections.take();
        self.shared.half_open.take();
    }
}

async fn accept(listener: TcpListener, shared: Rc<Shared>) {
    loop {
        let (client, _) = listener.accept().await.expect("a client");
        shared.accepted.set(shared.accepted.get() + 1);
        if shared.refusing.get() {
            continue;
        }
        let (sender, end) = oneshot::channel();
        let silent = Rc::<Silent>::default();
        let mut connections = shared.connections.borrow_mut();
        connections.retain(|connection| !connection.end.is_closed());
        connections.push(Connection {
            end: sender,
            silent: silent.clone(),
        });
        actix::spawn(carry(client, shared.clone(), end, silent));
    }
}

/// Forwards between a client and the target until one of them ends it, or the test does.
async fn carry(
    mut client: TcpStream,
    shared: Rc<Shared>,
    mut end: oneshot::Receiver<End>,
    silent: Rc<Silent>,
) {
    let connected = tokio::select! {
        biased;
        _ = &mut end => return,
        connected = TcpStream::connect(shared.target.get()) => connected,
    };
    let Ok(mut server) = connected else {
        return;
    };
    for socket in [&client, &server] {
        socket.set_nodelay(true).expect("TCP");
    }
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            // What the test has said comes before what is left to forward.
            biased;
            end = end => end.ok(),
            () = shared.to_server(from_client, to_server, &silent.to_server) => None,
            () = shared.to_client(from_server, to_client, &silent.to_client) => None,
        }
    };
    match end {
        None | Some(End::Cut) => {}
        Some(End::Reset) => {
            for socket in [client, server] {
                // Deprecated because it can block, which it does not for zero. Its successor is younger
                // than the oldest tokio allowed.
                #[allow(deprecated)]
                socket.set_linger(Some(Duration::ZERO)).expect("TCP");
            }
        }
        Some(End::HalfOpen) => shared.half_open.borrow_mut().push(server),
    }
}

impl Shared {
    fn end_all(&self, end: End) {
        self.until_cut.set(None);
        for connection in self.connections.take() {
            if connection.end.send(end).is_ok() {
                self.cuts.set(self.cuts.get() + 1);
            }
        }
    }

    async fn to_server(
        &self,
        mut client: ReadHalf<'_>,
        mut server: WriteHalf<'_>,
        silent: &Cell<bool>,
    ) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = client.read(&mut buffer).await;
            if silent.get() {
                return pending().await;
            }
            let Ok(length) = read else {
                return;
            };
            self.flow().await;
            if length == 0 {
                // The server may still have something to say. It ends the connection.
                let _gone = server.shutdown().await;
                return pending().await;
            }
            if server.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }

    async fn to_client(
        &self,
        mut server: ReadHalf<'_>,
        mut client: WriteHalf<'_>,
        silent: &Cell<bool>,
    ) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = server.read(&mut buffer).await;
            if silent.get() {
                return pending().await;
            }
            let Ok(length @ 1..) = read else {
                return;
            };
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                self.flow().await;
                let most = self
                    .until_cut
                    .get()
                    .map_or(self.piece.get(), |left| left.min(self.piece.get()));
                let (piece, more) = rest.split_at(rest.len().min(most));
                if client.write_all(piece).await.is_err() {
                    return;
                }
                rest = more;
                if let Some(left) = self.until_cut.get() {
                    let left = left.saturating_sub(piece.len());
                    if left == 0 {
                        return self.end_all(End::Cut);
                    }
                    self.until_cut.set(Some(left));
                }
                if !rest.is_empty() {
                    yield_now().await;
                }
            }
        }
    }

    /// Waits while nothing is to be forwarded.
    async fn flow(&self) {
        let mut flowing = self.flowing.subscribe();
        flowing
            .wait_for(|flowing| *flowing)
            .await
            .expect("`self` can still say so");
    }
}
