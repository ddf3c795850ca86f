//! The connection that a subcommand works over, and where its commands run.

use std::{cell::RefCell, env::VarError, path::PathBuf, time::Duration};

use actix::{Actor, Arbiter, ArbiterHandle, Context, Handler};
use actix_rt::time::timeout;
use clap::Args;
use execmux::{
    Config, ConnectError, LinkState, Mux, ProcessId,
    protocol::{
        Capabilities, EnvironmentInfo, EnvironmentPolicy, InheritEnvironment, StartProcess,
    },
    server::Server,
};
use log::{debug, warn};

use crate::{embedded, problem::told};

/// How long it may take to tell the server that this side leaves.
pub(crate) const LEAVING: Duration = Duration::from_secs(1);

/// Where programs are on most systems.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the server is.
#[derive(Debug, Default, Args)]
pub(crate) struct ServerOptions {
    /// Where the server listens: ws://HOST:PORT [default: on this machine, in this program]
    #[arg(long, env = "EXECMUX_URL", hide_env_values = true)]
    url: Option<String>,
    /// How long to try to resume a lost connection [default: as long as the server keeps what runs]
    #[arg(long, value_name = "SECONDS")]
    resume_timeout: Option<u64>,
}

/// Where commands run, and with what environment.
#[derive(Debug, Args)]
pub(crate) struct PlaceOptions {
    /// Absolute directory to run in [default: the server's own if it tells, else /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Sets a variable, over the basic ones (PATH, HOME …) of the server; can be given repeatedly
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

impl PlaceOptions {
    /// Whether a variable is set for the command.
    pub(crate) fn sets(&self, name: &str) -> bool {
        self.env.iter().any(|(its, _)| its == name)
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// A connection, and what is known of the server.
pub(crate) struct Remote {
    pub(crate) mux: Mux,
    /// The thread of the connection.
    pub(crate) arbiter: ArbiterHandle,
    /// What the server runs on; old ones do not tell.
    pub(crate) environment: Option<EnvironmentInfo>,
    /// What the server can do beyond the basics.
    pub(crate) capabilities: Capabilities,
    /// The server, if it is in this program.
    embedded: RefCell<Option<Server>>,
    /// Whether commands run on this machine.
    is_here: bool,
}

impl Remote {
    /// Connects, and from then on says when the connection is lost and resumed.
    pub(crate) async fn connect(options: ServerOptions) -> Result<Self, String> {
        let (embedded, mut config) = match options.url.filter(|url| !url.is_empty()) {
            Some(url) => {
                let mut config = Config::new(url);
                config.bearer_token = token()?;
                (None, config)
            }
            None => {
                let (server, config) = embedded::start().await?;
                (Some(server), config)
            }
        };
        if let Some(seconds) = options.resume_timeout {
            config.resume_timeout = Duration::from_secs(seconds);
        }
        let resume_timeout = config.resume_timeout;
        let arbiter = Arbiter::new().handle();
        let mux = Mux::connect_on(&arbiter, config)
            .await
            .map_err(|error| connect_problem(&error))?;
        let server = mux.server().await;
        let window = server.as_ref().and_then(|it| it.dialect.resume_window);
        let window = window.unwrap_or_default().min(resume_timeout);
        let watcher = Watcher::start_in_arbiter(&arbiter, move |_| Watcher {
            window,
            is_lost: false,
        });
        mux.subscribe(watcher).await;
        Ok(Remote {
            mux,
            arbiter,
            capabilities: server
                .as_ref()
                .map(|it| it.capabilities)
                .unwrap_or_default(),
            environment: server.and_then(|server| server.environment),
            is_here: embedded.is_some(),
            embedded: RefCell::new(embedded),
        })
    }

    /// A process that runs there.
    pub(crate) fn process(&self, argv: Vec<String>, place: &PlaceOptions) -> StartProcess {
        let its_cwd = self.environment.as_ref().and_then(|it| it.cwd.clone());
        let cwd = place.cwd.clone().or(its_cwd).unwrap_or_else(|| "/".into());
        let mut process =
            StartProcess::new(ProcessId::unique(), argv, cwd).env_policy(match self.is_here {
                true => embedded::whole_environment(),
                false => EnvironmentPolicy::new(InheritEnvironment::Core),
            });
        if self.environment.is_none() {
            // It may not know policies, and then finds programs for a pty nowhere.
            process = process.env("PATH", DEFAULT_PATH);
        }
        process.envs(place.env.iter().cloned())
    }

    /// Whether it has `/bin/sh`, as far as can be told.
    pub(crate) fn has_posix_shell(&self) -> bool {
        let shell = self.environment.as_ref().and_then(|it| it.shell.as_ref());
        shell.is_none_or(|shell| shell.path.to_string_lossy().starts_with('/'))
    }

    /// Ends the server, if it is in this program, and all that still runs on it.
    pub(crate) async fn end(&self) {
        if self.is_here {
            self.leave().await;
        }
    }

    /// Ends what still runs, as far as the server can be told in time.
    pub(crate) async fn leave(&self) {
        match timeout(LEAVING, self.mux.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("what ran may run on: {}", told(&error)),
            Err(_) => debug!("the server was not told in time that this side leaves"),
        }
        // After the connection has ended, or its end would be taken for a loss.
        let server = self.embedded.borrow_mut().take();
        if let Some(server) = server {
            server.stop().await;
        }
    }
}

fn token() -> Result<Option<String>, String> {
    match std::env::var("EXECMUX_TOKEN") {
        Ok(token) => Ok(Some(token).filter(|token| !token.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err("EXECMUX_TOKEN is not UTF-8".to_owned()),
    }
}

/// What went wrong, and what to do about it where that is not plain.
fn connect_problem(error: &ConnectError) -> String {
    let advice = match error {
        ConnectError::UpgradeRefused { status: 401, .. } => {
            match std::env::var_os("EXECMUX_TOKEN") {
                Some(token) if !token.is_empty() => {
                    ": it does not accept the token in EXECMUX_TOKEN"
                }
                _ => ": it asks for a token, set EXECMUX_TOKEN to it",
            }
        }
        ConnectError::UpgradeRefused { status: 404, .. } => {
            ": the path is wrong, exec-servers listen at /"
        }
        ConnectError::Unreachable { .. } => "; is an exec-server running there?",
        _ => "",
    };
    format!("{}{advice}", told(error))
}

/// Says that the commands go on unheard.
struct Watcher {
    window: Duration,
    is_lost: bool,
}

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<LinkState> for Watcher {
    type Result = ();

    fn handle(&mut self, state: LinkState, _: &mut Self::Context) {
        match state {
            LinkState::Recovering { .. } if !self.is_lost => {
                self.is_lost = true;
                warn!(
                    "the connection is lost, trying to resume it for {} s",
                    self.window.as_secs()
                );
            }
            LinkState::Open if self.is_lost => {
                self.is_lost = false;
                warn!("the connection is resumed");
            }
            _ => {}
        }
    }
}
