//! `execmux serve`: the server, for others to connect to.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use actix::System;
use clap::Args;
use execmux::server::{Auth, Server, ServerConfig};

use crate::signals::{self, Signal};

/// Serves processes and files to clients, with the rights of this program
#[derive(Debug, Args)]
#[command(after_help = "\
The first line on stdout is the URL. SIGTERM and Ctrl-C end it, with all that it runs.

Examples:
  execmux serve --listen 127.0.0.1:8080
  execmux serve --listen 0.0.0.0:8080 --token-file /run/secrets/execmux --root /srv")]
pub(crate) struct Serve {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// File with the token that clients have to show
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
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
        config.listen = self.listen;
        config.root = self.root;
        config.allow_unauthenticated = self.allow_unauthenticated;
        config.session_window = Duration::from_secs(self.session_window);
        if let Some(file) = self.token_file {
            let token = fs::read_to_string(&file)
                .map_err(|error| format!("cannot read the token in {}: {error}", file.display()))?;
            config.auth = Auth::Token(token.trim().to_owned());
        }
        let server = Server::start(config).await.map_err(|error| {
            let cause = std::error::Error::source(&error);
            match cause {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }
        })?;
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
}
