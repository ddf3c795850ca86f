//! `execmux info`: what the server is and can.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use actix::System;
use clap::Args;
use execmux::{
    ServerInfo,
    protocol::{EnvironmentInfo, PathSpelling},
};
use serde_json::json;

use crate::{
    connect::{Remote, ServerOptions},
    signals::{self, Signal},
};

/// Tells what a server is and what it can do
#[derive(Debug, Args)]
#[command(after_help = "\
Example: execmux info --url ws://127.0.0.1:8080 --json")]
pub(crate) struct Info {
    #[command(flatten)]
    server: ServerOptions,
    /// Tells it as one JSON object
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(crate) fn execute(self) -> Result<u8, String> {
        System::new().block_on(async {
            let mut signals = signals::watch(&[Signal::Interrupt, Signal::Terminate]);
            tokio::select! {
                told = self.tell() => told.map(|()| 0),
                Some(signal) = signals.recv() => Ok(signal.exit_code()),
            }
        })
    }

    async fn tell(self) -> Result<(), String> {
        let remote = Remote::connect(self.server).await?;
        let server = remote.mux.server().await.ok_or("the connection is gone")?;
        let text = if self.json {
            format!("{}\n", as_json(&server))
        } else {
            as_text(&server)
        };
        let printed = io::stdout().write_all(text.as_bytes());
        remote.leave().await;
        printed.map_err(|error| format!("cannot print: {error}"))
    }
}

fn paths(spelling: PathSpelling) -> &'static str {
    match spelling {
        PathSpelling::Plain => "plain",
        PathSpelling::Uri => "uri",
    }
}

fn as_json(server: &ServerInfo) -> serde_json::Value {
    let environment = server.environment.as_ref();
    let shell = environment.and_then(|it| it.shell.as_ref());
    json!({
        "version": environment.and_then(|it| it.executor_version.as_ref()),
        "provider": environment.and_then(|it| it.provider_id.as_ref()),
        "os": environment.and_then(|it| it.platform_os.as_ref()),
        "shell": shell.map(|shell| json!({"name": shell.name, "path": shell.path.to_string_lossy()})),
        "cwd": environment.and_then(|it| it.cwd.as_ref()).map(|path| path.to_string_lossy()),
        "home": environment.and_then(|it| it.user_home_dir.as_ref()).map(|path| path.to_string_lossy()),
        "temporary_directory": environment.and_then(|it| it.temp_dir.as_ref()).map(|path| path.to_string_lossy()),
        "paths": paths(server.dialect.paths),
        "deduplicates_writes": server.dialect.deduplicates_writes,
        "resume_window_seconds": server.dialect.resume_window.map(|window| window.as_secs()),
        "capabilities": environment.map(|it| &it.capabilities),
    })
}

fn as_text(server: &ServerInfo) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        let value = value.unwrap_or_else(|| "not told".to_owned());
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{name:<16} {value}");
    };
    let environment = server.environment.as_ref();
    let told = |get: fn(&EnvironmentInfo) -> Option<String>| environment.and_then(get);
    line("version", told(|it| it.executor_version.clone()));
    line("system", told(|it| it.platform_os.clone()));
    line(
        "shell",
        told(|it| Some(it.shell.as_ref()?.path.display().to_string())),
    );
    line(
        "directory",
        told(|it| Some(it.cwd.as_ref()?.display().to_string())),
    );
    line(
        "home",
        told(|it| Some(it.user_home_dir.as_ref()?.display().to_string())),
    );
    line("paths", Some(paths(server.dialect.paths).to_owned()));
    let window = server.dialect.resume_window;
    line(
        "resumes within",
        Some(window.map_or_else(|| "never".to_owned(), |window| format!("{window:?}"))),
    );
    let can = told(|it| {
        let names = it.capabilities.iter().filter(|(_, can)| **can);
        let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
        Some(names.join(" "))
    });
    line("capabilities", can);
    text
}
