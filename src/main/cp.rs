//! `execmux cp`: copies files and folders to the server, or from it.

#[path = "cp/local.rs"]
mod local;
#[path = "cp/permissions.rs"]
mod permissions;
#[path = "cp/place.rs"]
mod place;
#[path = "cp/shell.rs"]
mod shell;
#[path = "cp/transfer.rs"]
mod transfer;
#[path = "cp/tree.rs"]
mod tree;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    rc::Rc,
    str::FromStr,
};

use actix::System;
use actix_rt::time::timeout;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use log::warn;
use tokio::task::JoinSet;

use self::{
    transfer::{Transfer, Way},
    tree::Plan,
};
use crate::{
    connect::{LEAVING, Remote, ServerOptions},
    signals::{self, Signal},
};

/// How many files are copied at a time.
const FILES_AT_ONCE: usize = 4;
/// Exit code if something was left out.
const INCOMPLETE: u8 = 1;

/// Copies a file or a folder to the server, or from it
#[derive(Debug, Args)]
#[command(after_help = "\
One of SRC and DST is remote:PATH; a relative PATH is below the server's directory. Folders are copied with all that is in
them. As with cp, what is copied goes into DST if that is a folder, and becomes DST otherwise.

A file is written beside its place under another name, .execmux-….part, and put in place when its size is right, so that
nothing half-written is ever found there; a link that is there is replaced. On the server that takes its sh, mv and chmod;
without them, the server copies the file into place, and removes it if that fails. Ctrl-C removes what is not finished.

Links to files are copied as the files; links to folders below SRC, and what is neither file nor folder, are left out, and
said. Towards the server permissions are kept, from it whether a file is executable; both only if the server has sh, as the
protocol has no permissions. Owners and times are not kept.

Exit code: 0; 1 if something was left out; 125 if something went wrong; 130 after Ctrl-C.

Examples:
  execmux cp --url ws://127.0.0.1:8080 src remote:/srv/project
  execmux cp --url ws://127.0.0.1:8080 remote:/srv/project/target/app .")]
pub(crate) struct Cp {
    #[command(flatten)]
    server: ServerOptions,
    /// Does nothing: folders are copied anyway
    #[arg(short, long)]
    recursive: bool,
    /// What to copy: PATH or remote:PATH
    #[arg(value_name = "SRC")]
    source: Operand,
    /// Where to: PATH or remote:PATH
    #[arg(value_name = "DST")]
    destination: Operand,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operand {
    Here(PathBuf),
    Remote(PathBuf),
}

/// What a path on the server begins with. A file here of such a name is `./remote:…`.
const REMOTE: &str = "remote:";

impl FromStr for Operand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(REMOTE) {
            _ if text.is_empty() => Err("expected a path".to_owned()),
            Some(path) => Ok(Operand::Remote(path.into())),
            None => Ok(Operand::Here(text.into())),
        }
    }
}

impl Cp {
    pub(crate) fn execute(self) -> Result<u8, String> {
        System::new().block_on(self.run())
    }

    async fn run(self) -> Result<u8, String> {
        let (way, source, destination) = match (self.source, self.destination) {
            (Operand::Here(source), Operand::Remote(destination)) => (Way::Up, source, destination),
            (Operand::Remote(source), Operand::Here(destination)) => {
                (Way::Down, source, destination)
            }
            (Operand::Here(_), Operand::Here(_)) => {
                return Err(
                    "neither path is on the server: write the one there as remote:PATH".into(),
                );
            }
            (Operand::Remote(_), Operand::Remote(_)) => {
                return Err("both paths are on the server: execmux run -- cp copies there".into());
            }
        };
        let mut signals = signals::watch(&[Signal::Interrupt, Signal::Terminate, Signal::HangUp]);
        let remote = tokio::select! {
            remote = Remote::connect(self.server) => remote?,
            Some(signal) = signals.recv() => return Ok(signal.exit_code()),
        };
        let remote = Rc::new(remote);
        let transfer = Rc::new(Transfer::new(remote.clone(), way, bar()));
        let result = tokio::select! {
            copied = copy(transfer.clone(), source, destination) => copied,
            Some(signal) = signals.recv() => Ok(signal.exit_code()),
        };
        transfer.bar.finish_and_clear();
        if timeout(LEAVING, transfer.clean_up()).await.is_err() {
            warn!("what is half-written on the server could not be removed: .execmux-….part");
        }
        remote.leave().await;
        result
    }
}

/// Copies all there is to copy. Dropping it leaves remote temporaries to
/// [`clean_up`](Transfer::clean_up).
async fn copy(transfer: Rc<Transfer>, source: PathBuf, destination: PathBuf) -> Result<u8, String> {
    let plan = match transfer.way {
        Way::Up => Plan::up(&transfer.remote, source, destination).await?,
        Way::Down => Plan::down(&transfer.remote, source, destination).await?,
    };
    transfer.bar.set_length(plan.bytes());
    for folder in &plan.folders {
        transfer.create_folder(folder).await?;
    }
    let mut files = plan.files.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < FILES_AT_ONCE {
            let Some(file) = files.next() else {
                break;
            };
            let transfer = transfer.clone();
            running.spawn_local(async move { transfer.copy(file).await });
        }
        match running.join_next().await {
            None => break,
            Some(copied) => copied.map_err(|error| error.to_string())??,
        }
    }
    for what in &plan.left_out {
        warn!("left out: {what}");
    }
    Ok(if plan.left_out.is_empty() {
        0
    } else {
        INCOMPLETE
    })
}

fn bar() -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} left {eta}";
    let bar = ProgressBar::with_draw_target(Some(0), target);
    bar.set_style(ProgressStyle::with_template(style).expect("the template above is one"));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_with_remote_is_there() {
        assert_eq!("remote:/a".parse(), Ok(Operand::Remote("/a".into())));
        assert_eq!("remote:".parse(), Ok(Operand::Remote("".into())));
        assert_eq!("./remote:a".parse(), Ok(Operand::Here("./remote:a".into())));
        assert!("".parse::<Operand>().is_err());
    }
}
