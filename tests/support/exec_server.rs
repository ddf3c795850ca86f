//! Real exec-servers, as `tests/install-servers.sh` installs them, and the crate's own.

use std::{path::PathBuf, process::Stdio};

use execmux::{Config, Mux};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// A server of its own for one test. It ends with it.
pub struct ExecServer {
    pub version: &'static str,
    pub url: String,
    /// A directory for the test's files.
    pub directory: PathBuf,
    running: Running,
}

enum Running {
    Real(Box<Child>),
    #[cfg(all(feature = "server", unix))]
    Embedded(Option<execmux::server::Server>),
}

/// What the crate's own server is called here. It speaks as 0.171.0 does, and more.
pub const EMBEDDED: &str = "embedded";

/// Set where a missing server is a failure.
const REQUIRE: &str = "EXECMUX_REQUIRE_SERVERS";

impl ExecServer {
    /// Starts a server, or says loudly that it cannot.
    pub async fn start(version: &'static str, test: &str) -> Option<Self> {
        #[cfg(all(feature = "server", unix))]
        if version == EMBEDDED {
            return Some(ExecServer::embed(test).await);
        }
        let binary = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("target/exec-servers")
            .join(version)
            .join("codex");
        if !binary.exists() {
            let missing =
                format!("exec-server {version} is not installed: run tests/install-servers.sh");
            assert!(std::env::var_os(REQUIRE).is_none(), "{missing}");
            // Past the capture of the test harness, which would show it only on failure.
            let shout = format!("\n*** SKIPPED {test} on {version}: {missing}\n");
            let _said = std::io::Write::write_all(&mut std::io::stderr(), shout.as_bytes());
            return None;
        }
        let directory = directory(version, test);
        let home = directory.join("server-home");
        let mut child = Command::new(binary)
            .args(["exec-server", "--listen", "ws://127.0.0.1:0"])
            .env("CODEX_HOME", &home)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the server runs");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let mut url = String::new();
        super::soon(BufReader::new(stdout).read_line(&mut url))
            .await
            .expect("the server prints its URL");
        Some(ExecServer {
            version,
            url: url.trim().to_owned(),
            directory,
            running: Running::Real(Box::new(child)),
        })
    }

    #[cfg(all(feature = "server", unix))]
    async fn embed(test: &str) -> Self {
        let config = execmux::server::ServerConfig::new();
        let server = super::soon(execmux::server::Server::start(config))
            .await
            .expect("the server listens");
        ExecServer {
            version: EMBEDDED,
            url: server.url(),
            directory: directory(EMBEDDED, test),
            running: Running::Embedded(Some(server)),
        }
    }

    pub async fn connect(&self) -> Mux {
        super::soon(Mux::connect(Config::new(&self.url)))
            .await
            .expect("the server accepts")
    }

    /// Kills the server as `kill -9` does. The crate's own can only be stopped.
    pub async fn kill(&mut self) {
        match &mut self.running {
            Running::Real(child) => child.kill().await.expect("the server runs"),
            #[cfg(all(feature = "server", unix))]
            Running::Embedded(server) => {
                if let Some(server) = server.take() {
                    super::soon(server.stop()).await;
                }
            }
        }
    }

    /// Whether this version is at least 0.`minor`.
    pub fn is_at_least(&self, minor: u32) -> bool {
        if self.version == EMBEDDED {
            return true;
        }
        let mine = self.version.split('.').nth(1).expect("three numbers");
        mine.parse::<u32>().expect("a number") >= minor
    }
}

fn directory(version: &str, test: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{test}-{version}-{}", execmux::ProcessId::unique()));
    std::fs::create_dir_all(directory.join("server-home")).expect("the test's directory");
    directory
}

impl Drop for ExecServer {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.directory);
    }
}

/// Runs each scenario against each version.
#[allow(unused_macros, reason = "not every test has scenarios")]
macro_rules! scenarios {
    ($($scenario:ident,)*) => {
        scenarios!(@version v0_120_0 "0.120.0" $($scenario)*);
        scenarios!(@version v0_142_0 "0.142.0" $($scenario)*);
        scenarios!(@version v0_171_0 "0.171.0" $($scenario)*);
        #[cfg(all(feature = "server", unix))]
        scenarios!(@version embedded "embedded" $($scenario)*);
    };
    (@version $module:ident $version:literal $($scenario:ident)*) => {
        mod $module {
            $(
                #[actix::test]
                async fn $scenario() {
                    if let Some(server) =
                        $crate::support::exec_server::ExecServer::start($version, stringify!($scenario)).await
                    {
                        $crate::support::checked(super::$scenario(server)).await;
                    }
                }
            )*
        }
    };
}

#[allow(unused_imports, reason = "not every test has scenarios")]
pub(crate) use scenarios;
