//! `process/start`, with all that a process can be started with.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Capabilities, InvalidRequest, Lane, Method, Params, ProcessId, Record, Shell, TerminalSize,
    Unsupported, record,
};

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
    size: Option<TerminalSize>,
    output_window: Option<usize>,
    helper_processes: bool,
}

impl StartProcess {
    /// Runs `argv` in `cwd`, with pipes, its stdin closed and its environment empty.
    ///
    /// `argv[0]` is looked up in the `PATH` of the environment given, else in a default of the
    /// system; a relative one with a slash is relative to `cwd`. `cwd` must be absolute and exist: a
    /// server that does not find it refuses to start a process with pipes, but runs one on a pty in
    /// the home directory, and says nothing. Look with [`Mux::metadata`](crate::Mux::metadata) first, if that
    /// matters. The server of this crate refuses both.
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
            size: None,
            output_window: None,
            helper_processes: false,
        }
    }

    /// Returns the id that the process will have.
    pub fn process_id(&self) -> &ProcessId {
        &self.process_id
    }

    pub(crate) fn cwd(&self) -> &Path {
        &self.cwd
    }

    pub(crate) fn is_tty(&self) -> bool {
        self.tty
    }

    /// Has it run by a shell whose script gets `path` as `$0` and the arguments as the others, and stands in
    /// for the program in the end. `None` if it has an `arg0`, which a shell cannot set.
    pub(crate) fn run_by_shell(mut self, script: &str, path: &Path) -> Option<Self> {
        if self.arg0.is_some() {
            return None;
        }
        let shell = ["/bin/sh", "-c", script, path.to_str()?];
        self.argv.splice(..0, shell.into_iter().map(str::to_owned));
        Some(self)
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
    /// [`Stream::Pty`](super::Stream::Pty). `TERM` is not set for it.
    pub fn tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Sets the size of its pty. Without a [`tty`](Self::tty) it means nothing.
    ///
    /// Servers without [`resize`](Capabilities::resize) start a pty with 24 rows and 80 columns. There
    /// [`Mux::start`](crate::Mux::start) has `/bin/sh` set the size before it becomes the program: one that
    /// is not found is then no error, but an exit code of 127. The shell adds `PWD` to the environment, some
    /// `SHLVL` and others too. Many drop variables whose names are not made of letters, digits and underscores,
    /// as `a.b` is: given such a variable, the program starts without the size, as it can do with that rather
    /// than without the variable; one that is inherited may be lost.
    pub fn size(mut self, size: TerminalSize) -> Self {
        self.size = Some(size);
        self
    }

    /// Whether helper processes may send it signals and resize its pty, where the server cannot: then
    /// [`Mux::signal`](crate::Mux::signal) and [`Mux::resize`](crate::Mux::resize) work for it on every
    /// server with a POSIX `sh`. Off by default.
    ///
    /// Servers with [`signals`](Capabilities::signals) and [`resize`](Capabilities::resize) start it as ever.
    /// On the others [`Mux::start`](crate::Mux::start) has `/bin/sh` write its pid and terminal to a file
    /// before it becomes the program, with the same pid: some milliseconds more for the start, and a program
    /// that is not found is no error, but an exit code of 127. Each signal or size then is a short process
    /// beside it, with `kill`, `stty` and `sleep` from `/usr/bin` or `/bin`. The file is one that nobody else
    /// may read, in the server's directory for temporary files. It is removed when the process has ended or
    /// loses its session, and with [`Shutdown`](crate::Shutdown); it stays if the connection is lost for good
    /// before that, or the last [`Mux`](crate::Mux) dropped, and may stay if the session goes before the first
    /// event.
    ///
    /// A process without a session is not helped, and one with an [`arg0`](Self::arg0) not started on those
    /// servers. One with a variable that a shell may drop is started without it, and not helped
    /// ([`Unsupported`](crate::CallError::Unsupported)): see [`size`](Self::size) for that, and for what a
    /// shell adds to the environment. In a sandbox that hides its pid or the directory, signals end as
    /// [`HelperFailed`](crate::CallError::HelperFailed).
    pub fn helper_processes(mut self, allowed: bool) -> Self {
        self.helper_processes = allowed;
        self
    }

    /// Has the server hold it back while so much of its output is not consumed.
    pub(crate) fn output_window(mut self, window: usize) -> Self {
        self.output_window = Some(window);
        self
    }

    /// Whether there is something that helpers may do and the server cannot.
    fn needs_helpers(&self, capabilities: &Capabilities) -> bool {
        self.helper_processes && !(capabilities.signals && (capabilities.resize || !self.tty))
    }

    /// Whether the variables given for it reach a program that a shell becomes: many shells drop those with
    /// other names.
    fn passes_a_shell(&self) -> bool {
        let of_policy = self.env_policy.iter().flat_map(|policy| policy.set.keys());
        self.env.keys().chain(of_policy).all(|name| {
            !name.starts_with(|first: char| first.is_ascii_digit())
                && !name.is_empty()
                && name
                    .bytes()
                    .all(|it| it.is_ascii_alphanumeric() || it == b'_')
        })
    }

    /// Has a shell do what the server cannot: set the size of the pty, and write a record for helpers, to a
    /// file in the directory `temporary`.
    pub(crate) fn adapted(
        mut self,
        capabilities: &Capabilities,
        temporary: &Path,
    ) -> (Self, Option<Record>) {
        // Replacing the program would lose the name that it is to see as its own.
        if self.arg0.is_some() || self.argv.is_empty() {
            return (self, None);
        }
        let is_unsized = self.tty && !capabilities.resize;
        let size = self.size.filter(|size| is_unsized && size.check().is_ok());
        let needs_helpers = self.needs_helpers(capabilities);
        if !self.passes_a_shell() {
            self.helper_processes &= !needs_helpers;
            if size.is_some() {
                self.size = None;
            }
            return (self, None);
        }
        let record = needs_helpers.then(|| Record::new(temporary, self.tty));
        if size.is_none() && record.is_none() {
            return (self, None);
        }
        let mut script = String::new();
        if let Some(record) = &record {
            self.helper_processes = false;
            script += &record::writing();
            let path = record.path().to_owned();
            self.env.insert(record::VARIABLE.to_owned(), path);
        }
        let mut arguments = Vec::new();
        if let Some(size) = size {
            self.size = None;
            script += SIZED;
            arguments.extend([size.rows.to_string(), size.cols.to_string()]);
        }
        script += r#"exec "$@""#;
        let shell = ["/bin/sh", "-c", &script, "sh"].map(str::to_owned);
        let wrapped = shell.into_iter().chain(arguments).chain(self.argv);
        self.argv = wrapped.collect();
        (self, record)
    }

    /// Sets the name that the process sees as its own.
    pub fn arg0(mut self, arg0: impl Into<String>) -> Self {
        self.arg0 = Some(arg0.into());
        self
    }

    /// Whether the stdin of a process with pipes can be written to (0.130 on; older servers ignore
    /// it). It can be closed again with [`CloseStdin`](super::CloseStdin), where the server has that.
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

/// Sets the size of the terminal. What is given is never part of the script.
const SIZED: &str = r#"stty rows "$1" cols "$2"; shift 2; "#;

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

    fn lane(&self) -> Lane<'_> {
        Lane::Start
    }

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        if self.tty && self.size.is_some() && !capabilities.resize {
            return Err(Unsupported::new(
                "resize",
                "start it with Mux::start and without arg0: a shell sets the size",
            ));
        }
        if self.needs_helpers(capabilities) {
            return Err(Unsupported::new(
                if capabilities.signals {
                    "resize"
                } else {
                    "signals"
                },
                "start it with Mux::start and without arg0, for helper processes to find it",
            ));
        }
        Ok(())
    }

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
        params.optional("networkProxy", self.network_proxy.as_ref())?;
        let size = self.size.map(TerminalSize::check).transpose()?;
        params.optional("size", size.as_ref())?;
        params.optional("outputWindow", self.output_window.as_ref())
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
    pub shell: Shell,
}

impl ShellSnapshot {
    /// Names the snapshot `scope_id` of `shell`.
    pub fn new(scope_id: impl Into<String>, shell: Shell) -> Self {
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

#[cfg(test)]
mod tests;
