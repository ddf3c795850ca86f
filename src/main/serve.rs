//! `execmux serve`: the server, for others to connect to.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use actix::System;
use clap::Args;
use execmux::server::{Auth, Server, ServerConfig, ServerError, SignedToken};
use log::warn;

use crate::{
    problem::told,
    signals::{self, Signal},
};

/// Serves processes and files to clients, with the rights of this program
#[derive(Debug, Args)]
#[command(after_help = "\
The first line on stdout is the URL. SIGTERM and Ctrl-C end it, with all that it runs. Who comes and goes, what starts and
ends, and what is refused is told on stderr; RUST_LOG=warn leaves the refusals.

Examples:
  execmux serve --listen 127.0.0.1:8080
  execmux serve --listen 0.0.0.0:8080 --token-file /run/secrets/execmux --root /srv
  execmux serve --listen 0.0.0.0:8080 --jwt-secret-file /run/secrets/hs256 --jwt-audience build-7")]
pub(crate) struct Serve {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// File with the token that clients have to show
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the secret, of 32 bytes or more, that clients' JSON Web Tokens are signed with (HS256)
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    jwt_secret_file: Option<PathBuf>,
    /// Who has to have issued them (iss) [default: anyone]
    #[arg(long, value_name = "ISSUER", requires = "jwt_secret_file")]
    jwt_issuer: Option<String>,
    /// Whom they have to be for (aud) [default: anyone]
    #[arg(long, value_name = "AUDIENCE", requires = "jwt_secret_file")]
    jwt_audience: Option<String>,
    /// How far the clocks of whoever issues them and of this machine may differ [default: 30]
    #[arg(long, value_name = "SECONDS", requires = "jwt_secret_file")]
    jwt_max_clock_skew: Option<u64>,
    /// The only directory in which files are read and written and commands start
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How long a client that has lost its connection may take to come back
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    session_window: u64,
    /// Lets everyone in who can reach an address that is not loopback
    #[arg(long)]
    allow_unauthenticated: bool,
}

impl Serve {
    pub(crate) fn execute(self) -> Result<u8, String> {
        System::new().block_on(self.serve())
    }

    async fn serve(self) -> Result<u8, String> {
        let mut signals = signals::watch(&[Signal::Interrupt, Signal::Terminate, Signal::HangUp]);
        let mut config = ServerConfig::new();
        config.auth = self.auth()?;
        let secret_file = self.token_file.or(self.jwt_secret_file);
        config.listen = self.listen;
        config.root = self.root;
        config.allow_unauthenticated = self.allow_unauthenticated;
        // This program starts nothing else.
        config.adopt_orphans = cfg!(target_os = "linux");
        config.session_window = Duration::from_secs(self.session_window);
        let server = Server::start(config)
            .await
            .map_err(|error| start_problem(&error, secret_file.as_deref()))?;
        if let Some(file) = &secret_file {
            warn_if_readable(file);
        }
        let mut stdout = io::stdout();
        let printed = writeln!(stdout, "{}", server.url()).and_then(|()| stdout.flush());
        if printed.is_ok() {
            signals.recv().await;
        }
        server.stop().await;
        printed
            .map(|()| 0)
            .map_err(|error| format!("cannot print the URL: {error}"))
    }

    /// What clients have to show.
    fn auth(&self) -> Result<Auth, String> {
        if let Some(file) = &self.token_file {
            let token = String::from_utf8(read_trimmed(file, "token")?)
                .map_err(|_| {
                    let file = file.display();
                    format!("the token in {file} is not UTF-8: save it as plain text without a byte order mark")
                })?;
            return Ok(Auth::Token(token));
        }
        let Some(file) = &self.jwt_secret_file else {
            return Ok(Auth::None);
        };
        let mut signed = SignedToken::new(read_trimmed(file, "secret")?);
        signed.issuer.clone_from(&self.jwt_issuer);
        signed.audience.clone_from(&self.jwt_audience);
        if let Some(seconds) = self.jwt_max_clock_skew {
            signed.clock_skew = Duration::from_secs(seconds);
        }
        Ok(Auth::SignedToken(signed))
    }
}

/// Says why the server did not start, and in which file a secret is that it cannot use.
fn start_problem(error: &ServerError, secret_file: Option<&Path>) -> String {
    let is_secret = matches!(
        error,
        ServerError::WeakSecret { .. } | ServerError::UnusableSecret { .. }
    );
    match secret_file {
        Some(file) if is_secret => format!("{} (in {})", told(error), file.display()),
        Some(_) | None => told(error),
    }
}

/// Warns of a secret that every user of this machine can read.
fn warn_if_readable(file: &Path) {
    let mode = fs::metadata(file).map(|metadata| metadata.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o004 != 0) {
        warn!(
            "every user of this machine can read {0}: say chmod o-r {0}, and make a new secret",
            file.display()
        );
    }
}

/// Reads a file without the white space around what it holds, as an editor leaves it at the end.
fn read_trimmed(file: &Path, what: &str) -> Result<Vec<u8>, String> {
    fs::read(file)
        .map(|content| content.trim_ascii().to_owned())
        .map_err(|error| format!("cannot read the {what} in {}: {error}", file.display()))
}
