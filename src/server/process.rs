//! A process with pipes: its start, its output in order of `seq`, its end.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    os::unix::process::ExitStatusExt as _,
    process::Stdio,
    rc::Rc,
};

use process_wrap::tokio::{CommandWrap, ProcessSession};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::mpsc::Sender,
};

use super::envelope::RpcError;
use crate::protocol::{self, base64};

/// Largest piece of output.
const CHUNK: usize = 8192;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Start {
    process_id: String,
    argv: Vec<String>,
    cwd: String,
    env: BTreeMap<String, String>,
    tty: bool,
    arg0: Option<String>,
}

/// The processes of one connection, which end with it.
#[derive(Clone, Default)]
pub(super) struct Processes(Rc<RefCell<BTreeMap<String, Rc<Process>>>>);

struct Process {
    id: String,
    group: Pid,
    seq: Cell<u64>,
    is_running: Cell<bool>,
}

impl Processes {
    /// `process/start`. Events go to `out`; where it is full, the pipes are not read.
    pub(super) fn start(
        &self,
        params: &RawValue,
        out: &Sender<String>,
    ) -> Result<String, RpcError> {
        let start: Start = serde_json::from_str(params.get())
            .map_err(|error| RpcError::invalid_params(error.to_string()))?;
        let Some((program, arguments)) = start.argv.split_first() else {
            return Err(RpcError::invalid_params("argv must not be empty"));
        };
        if program.is_empty() {
            return Err(RpcError::internal("missing program for pipe spawn"));
        }
        if !start.cwd.starts_with("file:///") {
            return Err(RpcError::invalid_params(
                "invalid URI: relative URL without a base",
            ));
        }
        if start.tty {
            return Err(RpcError::internal("processes on a pty are not supported"));
        }
        if self.0.borrow().contains_key(&start.process_id) {
            let message = format!("process {} already exists", start.process_id);
            return Err(RpcError::invalid_request(message));
        }
        let mut command = CommandWrap::with_new(program, |command| {
            command
                .args(arguments)
                .current_dir(protocol::read_path(&start.cwd))
                .env_clear()
                .envs(&start.env)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            if let Some(arg0) = &start.arg0 {
                command.arg0(arg0);
            }
        });
        command.wrap(ProcessSession);
        let failed = |error: io::Error| RpcError::internal(error.to_string());
        let mut child = command.spawn().map_err(failed)?;
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| RpcError::internal("the process has no id"))?;
        let process = Rc::new(Process {
            id: start.process_id.clone(),
            group,
            seq: Cell::new(0),
            is_running: Cell::new(true),
        });
        self.0
            .borrow_mut()
            .insert(start.process_id.clone(), process.clone());
        let stdout = child.stdout().take();
        let stderr = child.stderr().take();
        let out = out.clone();
        actix_rt::spawn(async move {
            let exit = async {
                let status = child.wait().await;
                process.is_running.set(false);
                let exit_code = status.map_or(-1, |status| {
                    status
                        .code()
                        .or_else(|| status.signal().map(|signal| 128 + signal))
                        .unwrap_or(-1)
                });
                let params = json!({"processId": process.id, "seq": process.next_seq(),
                    "exitCode": exit_code, "sandboxDenied": false});
                send(&out, "process/exited", &params).await;
            };
            tokio::join!(
                process.forward(stdout, "stdout", &out),
                process.forward(stderr, "stderr", &out),
                exit
            );
            let params = json!({"processId": process.id, "seq": process.next_seq()});
            send(&out, "process/closed", &params).await;
        });
        Ok(json!({"processId": start.process_id, "sandboxType": "none"}).to_string())
    }

    /// `process/terminate`.
    pub(super) fn terminate(&self, params: &RawValue) -> Result<String, RpcError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Terminate {
            process_id: String,
        }
        let terminate: Terminate = serde_json::from_str(params.get())
            .map_err(|error| RpcError::invalid_params(error.to_string()))?;
        let processes = self.0.borrow();
        let process = processes.get(&terminate.process_id);
        let is_running = process.is_some_and(|process| process.kill());
        Ok(json!({"running": is_running}).to_string())
    }

    pub(super) fn kill_all(&self) {
        for process in self.0.borrow().values() {
            process.kill();
        }
    }
}

impl Process {
    fn next_seq(&self) -> u64 {
        self.seq.set(self.seq.get() + 1);
        self.seq.get()
    }

    /// Kills its group, unless it has been reaped: the number may be another's by then.
    fn kill(&self) -> bool {
        if self.is_running.get() {
            // It may have ended already.
            let _ended = kill_process_group(self.group, Signal::KILL);
        }
        self.is_running.get()
    }

    async fn forward<R: AsyncRead + Unpin>(
        &self,
        pipe: Option<R>,
        stream: &str,
        out: &Sender<String>,
    ) {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0; CHUNK];
        // An error is an end like another.
        while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
            let id = serde_json::Value::from(self.id.as_str());
            let mut json = format!(
                r#"{{"method":"process/output","params":{{"processId":{id},"seq":{},"stream":"{stream}","chunk":"#,
                self.next_seq()
            )
            .into_bytes();
            base64::append_json(&buffer[..length], &mut json);
            json.extend_from_slice(b"}}");
            let json = String::from_utf8(json).expect("JSON and base64");
            // Nobody may be there to be told.
            let _gone = out.send(json).await;
        }
    }
}

async fn send(out: &Sender<String>, method: &str, params: &serde_json::Value) {
    // Nobody may be there to be told.
    let _gone = out
        .send(json!({"method": method, "params": params}).to_string())
        .await;
}
