//! What the server runs on and can do.

use std::{env, path::Path, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde_json::{Value, json};

/// The answer to `environment/info`, which does not change.
#[derive(Debug)]
pub(super) struct Environment(Value);

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn uri(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    format!("file://{}", percent_encode(bytes, UNRESERVED))
}

impl Environment {
    pub(super) fn look(session_window: Duration) -> Self {
        let shell = env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
        let name = Path::new(&shell)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let home = env::var_os("HOME").map(|home| uri(Path::new(&home)));
        Environment(json!({
            "shell": {"name": name, "path": shell},
            "executorVersion": concat!("execmux/", env!("CARGO_PKG_VERSION")),
            "cwd": env::current_dir().ok().map(|cwd| uri(&cwd)),
            "userHomeDir": home,
            "platformOs": env::consts::OS,
            "prependPathDirs": [],
            "temporaryDirectories": [],
            "tempDir": uri(&env::temp_dir()),
            "sessionWindowMs": u64::try_from(session_window.as_millis()).unwrap_or(u64::MAX),
            "capabilities": {
                "fileWriteStreaming": true,
                "processCloseStdin": true,
                "processConcurrency": true,
                "processOutputWindow": true,
                "processResize": true,
                "processSignals": true,
            },
        }))
    }

    pub(super) fn info(&self) -> &Value {
        &self.0
    }
}
