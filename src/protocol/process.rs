//! The process methods, and the names they share.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::{Done, InvalidRequest, Method, Params, base64};

/// The name of a process on the wire, chosen by the client and unique in its session. Not a pid.
///
/// The id of an ended process stays taken for 30 to 80 seconds, depending on the server: use fresh
/// ones, say from [`ProcessId::unique`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(Arc<str>);

impl ProcessId {
    /// Makes an id that no other call has made, in this program or another.
    pub fn unique() -> Self {
        ProcessId(unique_name().into())
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProcessId({:?})", self.as_str())
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Borrow<str> for ProcessId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for ProcessId {
    fn from(text: &str) -> Self {
        ProcessId(text.into())
    }
}

impl From<String> for ProcessId {
    fn from(text: String) -> Self {
        ProcessId(text.into())
    }
}

impl From<&ProcessId> for ProcessId {
    fn from(id: &ProcessId) -> Self {
        id.clone()
    }
}

impl Serialize for ProcessId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ProcessId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = ProcessId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a process id")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ProcessId, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The name of one write. A server from 0.142 on that sees it again for the same process answers
/// without writing again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct WriteId(String);

impl WriteId {
    /// Makes an id that no other call has made.
    pub fn unique() -> Self {
        WriteId(unique_name())
    }
}

impl From<&str> for WriteId {
    fn from(text: &str) -> Self {
        WriteId(text.to_owned())
    }
}

impl From<String> for WriteId {
    fn from(text: String) -> Self {
        WriteId(text)
    }
}

/// 64 random bits for this program, and a counter.
fn unique_name() -> String {
    static PROGRAM: LazyLock<u64> =
        LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}-{count}", *PROGRAM)
}

/// One of the streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output of a process with pipes.
    Stdout,
    /// Standard error of a process with pipes.
    Stderr,
    /// Both, of a process on a pty.
    Pty,
}

/// `process/start`: starts a process.
///
/// Sent as a bare call, nobody receives its events: use [`Start`](crate::Start) or
/// [`Mux::start`](crate::Mux::start), which register its session first.
///
/// ```
/// use execmux::protocol::StartProcess;
///
/// let process = StartProcess::new("build-7", ["make", "-j4"], "/srv/project")
///     .env("PATH", "/usr/bin:/bin")
///     .tty(true);
/// ```
#[derive(Clone)]
#[must_use]
pub struct StartProcess {
    process_id: ProcessId,
    argv: Vec<String>,
    cwd: PathBuf,
    env: BTreeMap<String, String>,
    tty: bool,
    arg0: Option<String>,
    pipe_stdin: bool,
    env_policy: Option<EnvironmentPolicy>,
    shell_snapshot: Option<ShellSnapshot>,
    metadata: Option<ProcessMetadata>,
    sandbox: Option<Value>,
    enforce_managed_network: Option<bool>,
    managed_network: Option<Value>,
    network_proxy: Option<Value>,
}

impl StartProcess {
    /// Runs `argv` in `cwd`, with pipes, its stdin closed and its environment empty.
    ///
    /// `argv[0]` is looked up in the `PATH` of the environment given, else in a default of the
    /// system; a relative one with a slash is relative to `cwd`. `cwd` must be absolute and exist: a
    /// server that does not find it refuses to start a process with pipes, but runs one on a pty in
    /// the home directory, and says nothing.
    pub fn new<A: Into<String>>(
        process_id: impl Into<ProcessId>,
        argv: impl IntoIterator<Item = A>,
        cwd: impl Into<PathBuf>,
    ) -> Self {
        StartProcess {
            process_id: process_id.into(),
            argv: argv.into_iter().map(Into::into).collect(),
            cwd: cwd.into(),
            env: BTreeMap::new(),
            tty: false,
            arg0: None,
            pipe_stdin: false,
            env_policy: None,
            shell_snapshot: None,
            metadata: None,
            sandbox: None,
            enforce_managed_network: None,
            managed_network: None,
            network_proxy: None,
        }
    }

    /// Returns the id that the process will have.
    pub fn process_id(&self) -> &ProcessId {
        &self.process_id
    }

    /// Sets a variable. These are the whole environment of the process: it inherits nothing, unless
    /// an [`env_policy`](Self::env_policy) says so.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets several variables.
    pub fn envs<N: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.env.extend(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        self
    }

    /// Whether it runs on a pty of 24 rows and 80 columns, with its output on
    /// [`Stream::Pty`]. `TERM` is not set for it.
    pub fn tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Sets the name that the process sees as its own.
    pub fn arg0(mut self, arg0: impl Into<String>) -> Self {
        self.arg0 = Some(arg0.into());
        self
    }

    /// Whether the stdin of a process with pipes can be written to (0.130 on; older servers ignore
    /// it). No server can close it again.
    pub fn pipe_stdin(mut self, pipe_stdin: bool) -> Self {
        self.pipe_stdin = pipe_stdin;
        self
    }

    /// Lets it inherit from the server's environment (0.130 on; older servers ignore it).
    pub fn env_policy(mut self, policy: EnvironmentPolicy) -> Self {
        self.env_policy = Some(policy);
        self
    }

    /// Runs it with a snapshot of a shell's state (servers with the capability `shellSnapshotV2`).
    pub fn shell_snapshot(mut self, snapshot: ShellSnapshot) -> Self {
        self.shell_snapshot = Some(snapshot);
        self
    }

    /// Names what it is run for, in the server's telemetry (0.160 on).
    pub fn metadata(mut self, metadata: ProcessMetadata) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// Runs it in a sandbox, given as the server wants it (0.142 on).
    pub fn sandbox(mut self, sandbox: Value) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    /// Whether it must use the managed network (0.142 on).
    pub fn enforce_managed_network(mut self, enforce: bool) -> Self {
        self.enforce_managed_network = Some(enforce);
        self
    }

    /// Configures the managed network, as the server wants it (0.150 on).
    pub fn managed_network(mut self, network: Value) -> Self {
        self.managed_network = Some(network);
        self
    }

    /// Starts a network proxy for it, configured as the server wants it (0.150 on). Requests of
    /// the server for a decision are answered with "method not found", which denies.
    pub fn network_proxy(mut self, proxy: Value) -> Self {
        self.network_proxy = Some(proxy);
        self
    }
}

/// Arguments and environment may hold secrets; the id and the program tell enough.
impl fmt::Debug for StartProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartProcess")
            .field("process_id", &self.process_id)
            .field("program", &self.argv.first())
            .field("cwd", &self.cwd)
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

impl Method for StartProcess {
    const NAME: &'static str = "process/start";
    type Response = Started;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        if self.argv.is_empty() {
            return Err(InvalidRequest::EmptyArgv);
        }
        params.field("processId", &self.process_id)?;
        params.field("argv", &self.argv)?;
        params.path("cwd", &self.cwd)?;
        params.field("env", &self.env)?;
        params.field("tty", &self.tty)?;
        params.optional("arg0", self.arg0.as_ref())?;
        params.optional("pipeStdin", self.pipe_stdin.then_some(&true))?;
        params.optional("envPolicy", self.env_policy.as_ref())?;
        params.optional("shellSnapshot", self.shell_snapshot.as_ref())?;
        params.optional("metadata", self.metadata.as_ref())?;
        params.optional("sandbox", self.sandbox.as_ref())?;
        params.optional(
            "enforceManagedNetwork",
            self.enforce_managed_network.as_ref(),
        )?;
        params.optional("managedNetwork", self.managed_network.as_ref())?;
        params.optional("networkProxy", self.network_proxy.as_ref())
    }
}

/// What a process inherits from the environment of the server. `StartProcess::env` is laid over it.
///
/// Patterns are globs that ignore case.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct EnvironmentPolicy {
    /// What to begin with.
    pub inherit: InheritEnvironment,
    /// Whether to keep variables that look like secrets, which are left out otherwise.
    pub ignore_default_excludes: bool,
    /// Patterns of variables to leave out.
    pub exclude: Vec<String>,
    /// Variables to set.
    pub set: BTreeMap<String, String>,
    /// Patterns of the only variables to keep, if there are any.
    pub include_only: Vec<String>,
}

impl EnvironmentPolicy {
    /// Inherits `inherit`, without what looks like a secret.
    pub fn new(inherit: InheritEnvironment) -> Self {
        EnvironmentPolicy {
            inherit,
            ignore_default_excludes: false,
            exclude: Vec::new(),
            set: BTreeMap::new(),
            include_only: Vec::new(),
        }
    }
}

impl fmt::Debug for EnvironmentPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvironmentPolicy")
            .field("inherit", &self.inherit)
            .field("set", &self.set.keys())
            .finish_non_exhaustive()
    }
}

/// Which variables of the server a process begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InheritEnvironment {
    /// Those without which little runs: `PATH`, `HOME` and the like.
    Core,
    /// All.
    All,
    /// None.
    None,
}

/// Which snapshot of a shell's state to run with.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ShellSnapshot {
    /// Names the snapshot.
    pub scope_id: String,
    /// The shell.
    pub shell: super::Shell,
}

impl ShellSnapshot {
    /// Names the snapshot `scope_id` of `shell`.
    pub fn new(scope_id: impl Into<String>, shell: super::Shell) -> Self {
        ShellSnapshot {
            scope_id: scope_id.into(),
            shell,
        }
    }
}

/// What a process is run for. Begin with the default, which says nothing.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ProcessMetadata {
    /// The conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// The tool call in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// The answer to [`StartProcess`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Started {
    /// The process.
    pub process_id: ProcessId,
    /// The sandbox it runs in, `none` for none (0.150 on).
    #[serde(default)]
    pub sandbox_type: Option<String>,
}

/// `process/read`: reads what the server retains of the output of a process: the newest 1 MiB.
///
/// Sessions get output without asking; this is for looking again.
#[derive(Debug, Clone)]
#[must_use]
pub struct ReadProcess {
    process_id: ProcessId,
    after_seq: Option<u64>,
    max_bytes: Option<u64>,
    wait: Duration,
}

impl ReadProcess {
    /// Reads all that is retained of `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        ReadProcess {
            process_id: process_id.into(),
            after_seq: None,
            max_bytes: None,
            wait: Duration::ZERO,
        }
    }

    /// Reads only what came after this `seq`.
    pub fn after_seq(mut self, seq: u64) -> Self {
        self.after_seq = Some(seq);
        self
    }

    /// Stops before exceeding so many bytes, but returns one chunk at least.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Waits so long for something to read; not at all by default.
    ///
    /// Servers handle the requests of a connection one after the other: while this one waits, every
    /// other call of the whole application waits behind it.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

impl Method for ReadProcess {
    const NAME: &'static str = "process/read";
    type Response = RetainedOutput;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.optional("afterSeq", self.after_seq.as_ref())?;
        params.optional("maxBytes", self.max_bytes.as_ref())?;
        params.field(
            "waitMs",
            &u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX),
        )
    }
}

/// What a server retains of a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RetainedOutput {
    /// Output in order of `seq`. What has left the server's window is missing without a word.
    pub chunks: Vec<OutputChunk>,
    /// Reading goes on with `after_seq` set to one less than this.
    pub next_seq: u64,
    /// Whether the process has ended.
    pub exited: bool,
    /// Its exit code, if it has ended.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Whether its streams have ended too.
    pub closed: bool,
    /// Never seen to be anything but `None`.
    #[serde(default)]
    pub failure: Option<String>,
    /// Whether the sandbox refused it something (0.142 on).
    #[serde(default)]
    pub sandbox_denied: Option<bool>,
}

/// A piece of retained output.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct OutputChunk {
    /// Its place among all events of the process.
    pub seq: u64,
    /// Where the process wrote it.
    pub stream: Stream,
    /// The bytes.
    #[serde(deserialize_with = "base64::deserialize")]
    pub chunk: Bytes,
}

impl fmt::Debug for OutputChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputChunk")
            .field("seq", &self.seq)
            .field("stream", &self.stream)
            .field("bytes", &self.chunk.len())
            .finish()
    }
}

/// `process/write`: writes to the stdin of a process on a pty, or with
/// [`pipe_stdin`](StartProcess::pipe_stdin).
#[derive(Clone)]
#[must_use]
pub struct WriteStdin {
    process_id: ProcessId,
    chunk: Bytes,
    write_id: WriteId,
}

impl WriteStdin {
    /// Writes `chunk`, at most about 48 MiB, under an id of its own.
    pub fn new(process_id: impl Into<ProcessId>, chunk: impl Into<Bytes>) -> Self {
        WriteStdin {
            process_id: process_id.into(),
            chunk: chunk.into(),
            write_id: WriteId::unique(),
        }
    }

    /// Gives the write an id, so that it can be repeated without writing twice. Must not be empty.
    pub fn write_id(mut self, write_id: impl Into<WriteId>) -> Self {
        self.write_id = write_id.into();
        self
    }
}

impl fmt::Debug for WriteStdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteStdin")
            .field("process_id", &self.process_id)
            .field("bytes", &self.chunk.len())
            .finish_non_exhaustive()
    }
}

impl Method for WriteStdin {
    const NAME: &'static str = "process/write";
    type Response = Written;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.base64("chunk", &self.chunk);
        params.field("writeId", &self.write_id)
    }
}

/// The answer to [`WriteStdin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Written {
    /// What became of the write.
    pub status: WriteStatus,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum WriteStatus {
    /// Queued for the process; it may end without reading it.
    Accepted,
    /// There is no such process.
    UnknownProcess,
    /// The process has no stdin to write to.
    StdinClosed,
    /// Its start is not finished yet: try again.
    Starting,
    /// A word that this version of the crate does not know.
    #[serde(other)]
    Unknown,
}

/// `process/terminate`: kills a process and its group at once. Output that the server has not read
/// from the pipe yet is lost.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Terminate {
    /// The process.
    pub process_id: ProcessId,
}

impl Terminate {
    /// Kills `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        Terminate {
            process_id: process_id.into(),
        }
    }
}

impl Method for Terminate {
    const NAME: &'static str = "process/terminate";
    type Response = Terminated;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)
    }
}

/// The answer to [`Terminate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Terminated {
    /// Whether it was running; `false` also if it was never known.
    pub running: bool,
}

/// `process/signal`: sends SIGINT to the group of a process (0.140 on). A process that is not there
/// is not an error.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Interrupt {
    /// The process.
    pub process_id: ProcessId,
}

impl Interrupt {
    /// Interrupts `process_id`.
    pub fn new(process_id: impl Into<ProcessId>) -> Self {
        Interrupt {
            process_id: process_id.into(),
        }
    }
}

impl Method for Interrupt {
    const NAME: &'static str = "process/signal";
    type Response = Done;

    fn write_params(&self, params: &mut Params<'_>) -> Result<(), InvalidRequest> {
        params.field("processId", &self.process_id)?;
        params.field("signal", "interrupt")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{Dialect, PathSpelling, Shell, jsonrpc::encode_request};

    fn params<M: Method>(method: &M) -> Value {
        let json = encode_request(1, method, Dialect::new(PathSpelling::Plain)).unwrap();
        let mut request: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(request["method"], M::NAME);
        request["params"].take()
    }

    #[test]
    fn a_bare_start_sends_the_required_fields_only() {
        assert_eq!(
            params(&StartProcess::new("p", ["true"], "/")),
            json!({"processId": "p", "argv": ["true"], "cwd": "/", "env": {}, "tty": false})
        );
    }

    #[test]
    fn every_option_of_start_reaches_the_wire() {
        let mut policy = EnvironmentPolicy::new(InheritEnvironment::Core);
        policy.exclude.push("*_KEY".into());
        let start = StartProcess::new("p", ["sh", "-c", "true"], "/tmp")
            .env("A", "1")
            .envs([("B", "2")])
            .tty(true)
            .arg0("-sh")
            .pipe_stdin(true)
            .env_policy(policy)
            .shell_snapshot(ShellSnapshot::new("s", Shell::new("sh", "/bin/sh")))
            .metadata(ProcessMetadata {
                thread_id: Some("t".into()),
                tool_call_id: None,
            })
            .sandbox(Value::Null)
            .enforce_managed_network(false)
            .managed_network(json!({}))
            .network_proxy(json!({"proxy": {}}));
        assert_eq!(
            params(&start),
            json!({
                "processId": "p", "argv": ["sh", "-c", "true"], "cwd": "/tmp",
                "env": {"A": "1", "B": "2"}, "tty": true, "arg0": "-sh", "pipeStdin": true,
                "envPolicy": {"inherit": "core", "ignoreDefaultExcludes": false, "exclude": ["*_KEY"],
                              "set": {}, "includeOnly": []},
                "shellSnapshot": {"scopeId": "s", "shell": {"name": "sh", "path": "/bin/sh"}},
                "metadata": {"threadId": "t"}, "sandbox": null, "enforceManagedNetwork": false,
                "managedNetwork": {}, "networkProxy": {"proxy": {}},
            })
        );
    }

    #[test]
    fn a_start_without_a_program_is_refused() {
        let start = StartProcess::new("p", Vec::<String>::new(), "/");
        let error = encode_request(1, &start, Dialect::new(PathSpelling::Plain)).unwrap_err();
        assert!(matches!(error, InvalidRequest::EmptyArgv));
    }

    #[test]
    fn a_write_always_has_an_id_and_a_read_always_says_how_long_it_waits() {
        let (a, b) = (
            params(&WriteStdin::new("p", "x")),
            params(&WriteStdin::new("p", "x")),
        );
        assert_eq!(
            (&a["processId"], &a["chunk"]),
            (&json!("p"), &json!("eA=="))
        );
        assert_ne!(a["writeId"], b["writeId"]);
        assert_eq!(
            params(&ReadProcess::new("p")),
            json!({"processId": "p", "waitMs": 0})
        );
        assert_eq!(
            params(
                &ReadProcess::new("p")
                    .after_seq(3)
                    .max_bytes(9)
                    .wait(Duration::from_secs(1))
            ),
            json!({"processId": "p", "afterSeq": 3, "maxBytes": 9, "waitMs": 1000})
        );
    }

    #[test]
    fn write_statuses_decode_also_those_of_later_servers() {
        for (word, status) in [
            ("accepted", WriteStatus::Accepted),
            ("unknownProcess", WriteStatus::UnknownProcess),
            ("stdinClosed", WriteStatus::StdinClosed),
            ("starting", WriteStatus::Starting),
            ("later", WriteStatus::Unknown),
        ] {
            let written: Written = serde_json::from_value(json!({ "status": word })).unwrap();
            assert_eq!(written.status, status);
        }
    }

    #[test]
    fn p11_debug_shows_neither_arguments_nor_environment_nor_payload() {
        let start = StartProcess::new("p", ["login", "secret"], "/").env("TOKEN", "secret");
        let write = WriteStdin::new("p", "secret");
        let mut policy = EnvironmentPolicy::new(InheritEnvironment::None);
        policy.set.insert("TOKEN".into(), "secret".into());
        let shown = format!("{start:?} {write:?} {policy:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn unique_ids_differ() {
        assert_ne!(ProcessId::unique(), ProcessId::unique());
    }
}
