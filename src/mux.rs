//! The two addresses in one handle.

mod helper_process;
mod input;

use std::{fmt, io, panic, path::PathBuf, rc::Rc, sync::Arc};

use actix::{Actor as _, Addr, ArbiterHandle, AsyncContext as _, System};
use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::oneshot,
    task::spawn_local,
};

use crate::{
    config::Config,
    connection::{
        Call, Connecting, Connection, DescribeServer, Dialler, FirstLink, GetStatistics,
        ServerInfo, Statistics, Subscribe, Subscriber,
    },
    error::{CallError, ConnectError, DisconnectReason, HelperFailure, RegisterError, StartError},
    protocol::{
        Block, CanonicalPath, Canonicalize, Capabilities, CloseFile, CloseStdin, CopyPath,
        CreateDirectory, DirectoryListing, Done, EnvironmentInfo, FileContent, HandleId, Interrupt,
        Metadata, Method, OpenFile, OpenMode, ProcessId, ReadBlock, ReadDirectory,
        ReadEnvironmentInfo, ReadFile, ReadMetadata, ReadProcess, Record, RemovePath,
        ResizeTerminal, RetainedOutput, SendSignal, Signal, StartProcess, Started, StdinClosed,
        TerminalSize, Terminate, Terminated, Unsupported, Walk, WalkOptions, Walked, WriteBlock,
        WriteFile, WriteStdin, Written,
    },
    router::{
        FindUnconsumed, Outcome, Register, Router, Session, Shutdown, ShutdownError, Start,
        Unregister,
    },
};

/// A connection to an exec-server, with all that runs over it.
///
/// A cheap clone that can be sent to any thread. When the last clone is dropped the connection is
/// closed, and the sessions that still have a process get [`Failed`](crate::Failed). A session that
/// holds a clone keeps the connection open until its process has ended.
///
/// Processes are ended by [`shutdown`](Mux::shutdown). When the last clone is dropped instead, they are left to the server,
/// which ends them when it forgets the session: 10 to 80 s later, and at once before 0.120. When the arbiter of the `Mux`
/// stops first, or its actix system, the processes that have a session are terminated as far as that can be done: the
/// requests are written as far as the socket takes them at that moment, no answer is read, and the socket is closed a quarter
/// of a second later. Nothing is written while the connection is being resumed, while the socket is full, or if the program
/// ends before the thread of the arbiter does.
///
/// Every method sends a message to one of the two actors, whose addresses are there for those who
/// would rather send it themselves.
#[derive(Clone)]
pub struct Mux {
    connection: Addr<Connection>,
    router: Addr<Router>,
    /// How it ended, also for those who ask when the router is gone.
    outcome: Outcome,
}

impl Mux {
    /// Connects, shakes hands, and starts both actors on the current arbiter.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), execmux::ConnectError> {
    /// use execmux::{Config, Mux};
    ///
    /// let mux = Mux::connect(Config::new("ws://127.0.0.1:8080")).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    ///
    /// # Panics
    ///
    /// Outside of an actix system: see [`connect_on`](Mux::connect_on).
    pub async fn connect(config: Config) -> Result<Self, ConnectError> {
        assert_runs_locally("Mux::connect");
        let first = FirstLink::dial(Dialler::Url, &config).await?;
        Ok(Mux::start_actors(first, config))
    }

    /// As [`connect`](Mux::connect), but runs both actors on another arbiter, which keeps the
    /// connection's work off the current one. The future may be awaited on any runtime; the arbiter is that of an actix
    /// system, in this thread or another.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]; [`ArbiterStopped`](ConnectError::ArbiterStopped) where that is so.
    pub async fn connect_on(arbiter: &ArbiterHandle, config: Config) -> Result<Self, ConnectError> {
        let (mut connected, mux) = oneshot::channel();
        // What dials stays on its thread, so that it is the arbiter itself that has to begin.
        arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                // If nobody waits for it any more, it is dropped here and so closed.
                let mux = tokio::select! {
                    mux = Mux::connect(config) => mux,
                    () = connected.closed() => return,
                };
                let _unwanted = connected.send(mux);
            });
        });
        mux.await.unwrap_or(Err(ConnectError::ArbiterStopped))
    }

    /// Shakes hands over a socket on which the WebSocket upgrade is already done, and starts both
    /// actors on the current arbiter.
    ///
    /// Of the options in `config`, those about dialling are not used. When the connection is lost it
    /// cannot be resumed, as there is no other socket: see [`connect_through`](Mux::connect_through).
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    ///
    /// # Panics
    ///
    /// Outside of an actix system: see [`connect_on`](Mux::connect_on).
    pub async fn connect_over(
        socket: impl AsyncRead + AsyncWrite + Unpin + 'static,
        config: Config,
    ) -> Result<Self, ConnectError> {
        assert_runs_locally("Mux::connect_over");
        let first = FirstLink::over(Box::new(socket), &config).await?;
        Ok(Mux::start_actors(first, config))
    }

    /// As [`connect_over`](Mux::connect_over), but with as many sockets as it takes: `connect` is called
    /// for the first one, and whenever a lost connection is to be resumed. For proxies, Unix sockets, TLS
    /// of one's own, and tests.
    ///
    /// ```no_run
    /// # async fn upgrade(socket: tokio::net::TcpStream) -> std::io::Result<tokio::net::TcpStream> { Ok(socket) }
    /// # async fn example() -> Result<(), execmux::ConnectError> {
    /// use execmux::{Config, Mux};
    /// use tokio::net::TcpStream;
    ///
    /// let mux = Mux::connect_through(Config::new("ws://sandbox.internal"), || async {
    ///     upgrade(TcpStream::connect("10.0.0.1:8080").await?).await
    /// })
    /// .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]; an error of `connect` is [`Unreachable`](ConnectError::Unreachable).
    ///
    /// # Panics
    ///
    /// Outside of an actix system: see [`connect_on`](Mux::connect_on).
    pub async fn connect_through<C, F, S>(
        config: Config,
        mut connect: C,
    ) -> Result<Self, ConnectError>
    where
        C: FnMut() -> F + 'static,
        F: Future<Output = io::Result<S>> + 'static,
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        assert_runs_locally("Mux::connect_through");
        let connect = move || -> Connecting {
            let socket = connect();
            Box::pin(async move { Ok(Box::new(socket.await?) as _) })
        };
        let first = FirstLink::dial(Dialler::Custom(Box::new(connect)), &config).await?;
        Ok(Mux::start_actors(first, config))
    }

    fn start_actors(first: FirstLink, config: Config) -> Self {
        let config = Rc::new(config);
        let server = first.server().clone();
        let outcome = Outcome::default();
        let for_router = Arc::clone(&outcome);
        let mut connection = None;
        let router = Router::create(|context| {
            let router = context.address().downgrade();
            let events = router.clone().recipient();
            let (started, farewell) = Connection::start_with(first, config.clone(), events);
            connection = Some(started.clone());
            Router::new(router, started, farewell, for_router, &config, &server)
        });
        Mux {
            connection: connection.expect("`create` runs its closure before it returns"),
            router,
            outcome,
        }
    }

    /// Returns the address of the connection, for sending it messages directly.
    pub fn connection(&self) -> &Addr<Connection> {
        &self.connection
    }

    /// Returns the address of the router, for sending it messages directly.
    pub fn router(&self) -> &Addr<Router> {
        &self.router
    }

    /// Calls any method.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    ///
    /// # Cancel safety
    ///
    /// As [`Call`]; so are all methods below that call one.
    pub async fn call<M: Method>(
        &self,
        call: impl Into<Call<M>>,
    ) -> Result<M::Response, CallError> {
        // An actor that stops after this may have sent the request.
        let sent = self.connection.connected();
        match self.connection.send(call.into()).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Disconnected {
                method: M::NAME,
                reason: DisconnectReason::Closed,
                sent,
            }),
        }
    }

    /// Registers a session and starts its process: see [`Start`].
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    ///
    /// # Cancel safety
    ///
    /// See [`Start`].
    pub async fn start(
        &self,
        process: StartProcess,
        session: impl Into<Session>,
    ) -> Result<Started, StartError> {
        // An actor that stops after this may have sent the request.
        let sent = self.router.connected();
        match self.router.send(Start::new(process, session)).await {
            Ok(answer) => answer,
            Err(_) if sent => Err(StartError::Call(CallError::Disconnected {
                method: StartProcess::NAME,
                reason: DisconnectReason::Closed,
                sent,
            })),
            Err(_) => Err(RegisterError::Disconnected(DisconnectReason::Closed).into()),
        }
    }

    /// Registers a session for a process that something else starts: see [`Register`].
    ///
    /// # Errors
    ///
    /// See [`RegisterError`].
    pub async fn register(
        &self,
        process_id: impl Into<ProcessId>,
        session: impl Into<Session>,
    ) -> Result<(), RegisterError> {
        match self.router.send(Register::new(process_id, session)).await {
            Ok(answer) => answer,
            Err(_) => Err(RegisterError::Disconnected(DisconnectReason::Closed)),
        }
    }

    /// Takes a session off its process: see [`Unregister`]. Returns the `seq` of the last event that it
    /// was told, 0 for none, or `None` if there was no session.
    pub async fn unregister(&self, process_id: impl Into<ProcessId>) -> Option<u64> {
        // A router that is gone has no sessions.
        self.router.send(Unregister::new(process_id)).await.ok()?
    }

    /// Reads what the server retains of a process's output: see [`ReadProcess`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; an unknown process is [`Rejected`](CallError::Rejected).
    pub async fn read(&self, read: ReadProcess) -> Result<RetainedOutput, CallError> {
        self.call(read).await
    }

    /// Writes to the stdin of a process: see [`WriteStdin`]. The server accepts some 128 writes that the
    /// process does not read; the one after blocks all calls of the connection, until the process counts
    /// as [`Stuck`](CallError::Stuck). A process that waits for its output to be consumed does not read either: consume while
    /// you write.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`OutputNotConsumed`](CallError::OutputNotConsumed) where that is why the process does not read. An
    /// unknown process is not an error but a [`WriteStatus`](crate::protocol::WriteStatus).
    pub async fn write(
        &self,
        process_id: impl Into<ProcessId>,
        chunk: impl Into<Bytes>,
    ) -> Result<Written, CallError> {
        let process_id = process_id.into();
        let written = self.call(WriteStdin::new(&process_id, chunk)).await;
        match written {
            Err(
                error @ (CallError::DeadlineExceeded { .. }
                | CallError::Overloaded { .. }
                | CallError::Stuck { .. }),
            ) => Err(self.name_unconsumed(process_id, error).await),
            written => written,
        }
    }

    /// Names what a failed write waited for, if that is the output of its own process. The router knows of output, the
    /// connection of writes.
    async fn name_unconsumed(&self, process_id: ProcessId, error: CallError) -> CallError {
        let find = FindUnconsumed {
            process_id: process_id.clone(),
        };
        // A router that is gone knows of none.
        match self.router.send(find).await {
            Ok(Some(unconsumed)) => CallError::OutputNotConsumed {
                method: WriteStdin::NAME,
                process_id,
                unconsumed,
                source: Box::new(error),
            },
            Ok(None) | Err(_) => error,
        }
    }

    /// Ends the input of a process with pipes, behind the writes made before: see [`CloseStdin`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`close_stdin`](Capabilities::close_stdin). An unknown process is not an error but a
    /// [`CloseStatus`](crate::protocol::CloseStatus).
    pub async fn close_stdin(
        &self,
        process_id: impl Into<ProcessId>,
    ) -> Result<StdinClosed, CallError> {
        self.call(CloseStdin::new(process_id)).await
    }

    /// Sets the size of the pty of a process: see [`ResizeTerminal`]. Where the server cannot, a helper process
    /// does, if the process was started for that ([`StartProcess::helper_processes`]): await each size before
    /// the next, or the last may not be the last there.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`resize`](Capabilities::resize) and the process was not started for helpers, and
    /// [`HelperFailed`](CallError::HelperFailed) if a helper could not. An unknown process is not an error.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, if a helper process is needed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped while a helper process runs, it may still do what it was to.
    pub async fn resize(
        &self,
        process_id: impl Into<ProcessId>,
        size: TerminalSize,
    ) -> Result<Done, CallError> {
        let resize = ResizeTerminal::new(process_id, size);
        let Some(missing) = self.missing_for(&resize).await else {
            return self.call(resize).await;
        };
        let method = ResizeTerminal::NAME;
        let size = (size.check()).map_err(|source| CallError::InvalidRequest { method, source })?;
        self.help(method, &resize.process_id, missing, |record, is_written| {
            if record.is_tty() {
                Ok(record.resize(size, is_written))
            } else {
                Err(HelperFailure::NoTerminal)
            }
        })
        .await
    }

    /// Sends a signal to the group of a process: see [`SendSignal`]. Where the server has no other signals,
    /// SIGINT is an [`Interrupt`] and SIGKILL is [`Terminate`]; a helper process sends the others, if the process
    /// was started for that ([`StartProcess::helper_processes`]).
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`signals`](Capabilities::signals) (for SIGINT, [`interrupt`](Capabilities::interrupt)) and the process
    /// was not started for helpers, and [`HelperFailed`](CallError::HelperFailed) if a helper could not. An
    /// unknown process is not an error.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, if a helper process is needed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped while a helper process runs, it may still do what it was to.
    pub async fn signal(
        &self,
        process_id: impl Into<ProcessId>,
        signal: Signal,
    ) -> Result<Done, CallError> {
        let send = SendSignal::new(process_id, signal);
        match (signal, self.missing_for(&send).await) {
            // Both may be repeated on a resumed connection, unlike other signals.
            (Signal::Interrupt, None) => self.interrupt(send.process_id).await,
            (Signal::Kill, Some(_)) => self.terminate(send.process_id).await.map(|_| Done {}),
            (_, None) => self.call(send).await,
            (_, Some(missing)) => {
                let helper = |record: &Record, is_written| Ok(record.signal(signal, is_written));
                self.help(SendSignal::NAME, &send.process_id, missing, helper)
                    .await
            }
        }
    }

    /// What the server lacks for a call; nothing if that cannot be asked, which the call will tell.
    async fn missing_for(&self, method: &impl Method) -> Option<Unsupported> {
        method.supported_by(&self.capabilities().await?).err()
    }

    /// Kills a process and its group: see [`Terminate`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; an unknown process is not an error.
    pub async fn terminate(
        &self,
        process_id: impl Into<ProcessId>,
    ) -> Result<Terminated, CallError> {
        self.call(Terminate::new(process_id)).await
    }

    /// Sends SIGINT to the group of a process: see [`Interrupt`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`interrupt`](Capabilities::interrupt). An unknown process is not an error.
    pub async fn interrupt(&self, process_id: impl Into<ProcessId>) -> Result<Done, CallError> {
        self.call(Interrupt::new(process_id)).await
    }

    /// Reads a whole file: see [`ReadFile`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn read_file(&self, path: impl Into<PathBuf>) -> Result<FileContent, CallError> {
        self.call(ReadFile::new(path)).await
    }

    /// Creates a file or replaces what it holds: see [`WriteFile`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn write_file(
        &self,
        path: impl Into<PathBuf>,
        content: impl Into<Bytes>,
    ) -> Result<Done, CallError> {
        self.call(WriteFile::new(path, content)).await
    }

    /// Opens a file, to read or write it in pieces: see [`OpenFile`]. It has to be
    /// [closed](Mux::close_file), and is when the connection is lost.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`file_blocks`](Capabilities::file_blocks), or for writing
    /// [`file_writes`](Capabilities::file_writes).
    pub async fn open_file(
        &self,
        path: impl Into<PathBuf>,
        mode: OpenMode,
    ) -> Result<HandleId, CallError> {
        let opened = self.call(OpenFile::new(path).mode(mode)).await?;
        Ok(opened.handle_id)
    }

    /// Reads a piece of an open file: see [`ReadBlock`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn read_block(
        &self,
        handle: impl Into<HandleId>,
        offset: u64,
        len: usize,
    ) -> Result<Block, CallError> {
        self.call(ReadBlock::new(handle, offset, len)).await
    }

    /// Writes a piece of an open file: see [`WriteBlock`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn write_block(
        &self,
        handle: impl Into<HandleId>,
        offset: u64,
        chunk: impl Into<Bytes>,
    ) -> Result<Done, CallError> {
        self.call(WriteBlock::new(handle, offset, chunk)).await
    }

    /// Closes an open file: see [`CloseFile`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; a file that is not open is not an error.
    pub async fn close_file(&self, handle: impl Into<HandleId>) -> Result<Done, CallError> {
        self.call(CloseFile::new(handle)).await
    }

    /// Lists a directory and all below it: see [`Walk`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`walk`](Capabilities::walk).
    pub async fn walk(
        &self,
        path: impl Into<PathBuf>,
        options: WalkOptions,
    ) -> Result<Walked, CallError> {
        self.call(Walk::new(path).options(options)).await
    }

    /// Asks where a path leads, with all links resolved: see [`Canonicalize`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`canonicalize`](Capabilities::canonicalize).
    pub async fn canonicalize(&self, path: impl Into<PathBuf>) -> Result<CanonicalPath, CallError> {
        self.call(Canonicalize::new(path)).await
    }

    /// Creates a directory in one that exists. For those above it too, call [`CreateDirectory`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn create_directory(&self, path: impl Into<PathBuf>) -> Result<Done, CallError> {
        self.call(CreateDirectory::new(path)).await
    }

    /// Asks what is at a path: see [`ReadMetadata`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn metadata(&self, path: impl Into<PathBuf>) -> Result<Metadata, CallError> {
        self.call(ReadMetadata::new(path)).await
    }

    /// Lists a directory: see [`ReadDirectory`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn read_directory(
        &self,
        path: impl Into<PathBuf>,
    ) -> Result<DirectoryListing, CallError> {
        self.call(ReadDirectory::new(path)).await
    }

    /// Removes a file or empty directory. For more, call [`RemovePath`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn remove(&self, path: impl Into<PathBuf>) -> Result<Done, CallError> {
        self.call(RemovePath::new(path)).await
    }

    /// Copies a file on the server. For directories, call [`CopyPath`].
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn copy(
        &self,
        source: impl Into<PathBuf>,
        destination: impl Into<PathBuf>,
    ) -> Result<Done, CallError> {
        self.call(CopyPath::new(source, destination)).await
    }

    /// Asks what the server runs on: see [`ReadEnvironmentInfo`].
    ///
    /// # Errors
    ///
    /// See [`CallError`]; [`Unsupported`](CallError::Unsupported) where the server lacks
    /// [`environment_info`](Capabilities::environment_info).
    pub async fn environment_info(&self) -> Result<EnvironmentInfo, CallError> {
        self.call(ReadEnvironmentInfo).await
    }

    /// Returns what the handshake learned of the server; `None` if the connection's actor is gone.
    pub async fn server(&self) -> Option<ServerInfo> {
        self.connection.send(DescribeServer).await.ok()
    }

    /// Returns what the server can do beyond what all can; `None` if the connection's actor is gone.
    pub async fn capabilities(&self) -> Option<Capabilities> {
        Some(self.server().await?.capabilities)
    }

    /// Returns the connection's counters; `None` if the connection's actor is gone.
    pub async fn statistics(&self) -> Option<Statistics> {
        self.connection.send(GetStatistics).await.ok()
    }

    /// Has an actor told of the state of the link, of the present one first: see [`Subscribe`].
    ///
    /// Given as a [`Recipient`](actix::Recipient) or an address, the actor is kept alive until it was told
    /// [`LinkState::Closed`](crate::LinkState::Closed), or stops itself. Given as a
    /// [`WeakRecipient`](actix::WeakRecipient) or a weak address, it is not kept alive: this is for actors that hold a
    /// `Mux` themselves (see [`Subscriber`]). An actor that asks when the connection's actor is gone hears nothing.
    ///
    /// ```no_run
    /// # use actix::prelude::*;
    /// # struct Watch;
    /// # impl Actor for Watch { type Context = Context<Self>; }
    /// # impl Handler<execmux::LinkState> for Watch {
    /// #     type Result = ();
    /// #     fn handle(&mut self, _: execmux::LinkState, _: &mut Self::Context) {}
    /// # }
    /// # async fn example(mux: execmux::Mux) {
    /// mux.subscribe(Watch.start().recipient()).await;
    /// # }
    /// ```
    pub async fn subscribe(&self, subscriber: impl Into<Subscriber>) {
        // A connection that is gone has no state.
        let _gone = self.connection.send(Subscribe::new(subscriber)).await;
    }

    /// Terminates the processes, closes the connection in order and returns when that is done: see
    /// [`Shutdown`], which can also leave the processes alone.
    ///
    /// Call it while the arbiter of the `Mux` runs. Servers of actix-web stop the actix system, with all arbiters, on SIGTERM
    /// and SIGINT, so that `HttpServer::run().await` returns too late for it. An application that handles the signals itself
    /// has the time:
    ///
    /// ```no_run
    /// # async fn example(mux: execmux::Mux, http: actix_web::dev::Server, signal: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
    /// // `http` is what `HttpServer::new(..).bind(..)?.disable_signals().run()` returned.
    /// let handle = http.handle();
    /// let serving = actix::spawn(http);
    /// signal.await; // SIGTERM or SIGINT, as by `tokio::signal::unix`
    /// handle.stop(true).await;
    /// mux.shutdown().await?;
    /// serving.await??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ShutdownError`]. If this is called after a shutdown, it answers as that did.
    ///
    /// # Cancel safety
    ///
    /// Once begun, the connection closes also if the future is dropped.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        match self.router.send(Shutdown::new()).await {
            Ok(outcome) => outcome,
            // The router is gone, and has left how it ended.
            Err(_) => (self.outcome.get().cloned()).unwrap_or(Err(ShutdownError::ArbiterStopped)),
        }
    }
}

/// Panics with advice, where tokio or actix would panic without, unless tasks can be started on this thread.
fn assert_runs_locally(what: &str) {
    let advice = "call it within an actix system, or use `Mux::connect_on` with the arbiter of one";
    assert!(
        Handle::try_current().is_ok(),
        "`{what}` needs an actix system, and is called outside of any runtime: {advice}"
    );
    // A `LocalSet` of tokio will do, and only trying tells whether there is one.
    let is_local = System::is_registered() || panic::catch_unwind(|| spawn_local(async {})).is_ok();
    assert!(
        is_local,
        "`{what}` needs an actix system, and is called on a runtime without one: {advice}"
    );
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux")
            .field("connected", &self.connection.connected())
            .finish_non_exhaustive()
    }
}
