//! `environment/info`: what the server runs on.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::{Capabilities, InvalidRequest, Method, Params, Repeat, Unsupported, params::read_path};

/// `environment/info`: asks what the server runs on (servers with
/// [`environment_info`](Capabilities::environment_info)).
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadEnvironmentInfo;

impl Method for ReadEnvironmentInfo {
    const NAME: &'static str = "environment/info";
    type Response = EnvironmentInfo;
    const REPEAT: Repeat = Repeat::Always;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        capabilities
            .environment_info
            .then_some(())
            .ok_or(Unsupported::new(
                "environment_info",
                "a process can tell what it runs on, say uname -a",
            ))
    }

    fn write_params(&self, _: &mut Params<'_>) -> Result<(), InvalidRequest> {
        Ok(())
    }
}

/// `environment/status`: asks whether the server is ready (servers with
/// [`environment_status`](Capabilities::environment_status)). The cheapest call there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadEnvironmentStatus;

impl Method for ReadEnvironmentStatus {
    const NAME: &'static str = "environment/status";
    type Response = EnvironmentStatus;
    const REPEAT: Repeat = Repeat::Always;

    fn supported_by(&self, capabilities: &Capabilities) -> Result<(), Unsupported> {
        capabilities
            .environment_status
            .then_some(())
            .ok_or(Unsupported::new(
                "environment_status",
                "any other call tells whether it answers, say metadata of /",
            ))
    }

    fn write_params(&self, _: &mut Params<'_>) -> Result<(), InvalidRequest> {
        Ok(())
    }
}

/// The answer to [`ReadEnvironmentStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct EnvironmentStatus {
    /// `ready`; others have not been seen.
    pub status: String,
}

/// What a server runs on and can do. Old servers leave most of it out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct EnvironmentInfo {
    /// The user's shell.
    #[serde(default)]
    pub shell: Option<Shell>,
    /// The server's working directory (0.150 on).
    #[serde(default, deserialize_with = "optional_path")]
    pub cwd: Option<PathBuf>,
    /// The user's home directory (0.160 on).
    #[serde(default, deserialize_with = "optional_path")]
    pub user_home_dir: Option<PathBuf>,
    /// Where temporary files go (0.150 on).
    #[serde(default, deserialize_with = "optional_path")]
    pub temp_dir: Option<PathBuf>,
    /// Directories that are cleaned up by the server's system (0.150 on).
    #[serde(default, deserialize_with = "paths")]
    pub temporary_directories: Vec<PathBuf>,
    /// Directories that the server puts in front of `PATH` (0.169 on).
    #[serde(default, deserialize_with = "paths")]
    pub prepend_path_dirs: Vec<PathBuf>,
    /// The server's release, `0.0.0` when unknown (0.160 on).
    #[serde(default)]
    pub executor_version: Option<String>,
    /// Which build of the server this is (0.160 on).
    #[serde(default)]
    pub provider_id: Option<String>,
    /// `linux`, `macos` or `windows` (0.160 on).
    #[serde(default)]
    pub platform_os: Option<String>,
    /// How long the server keeps a session whose connection is lost, in milliseconds (the crate's own server).
    #[serde(default)]
    pub session_window_ms: Option<u64>,
    /// What the server can do beyond the basics; what is missing it cannot (0.150 on).
    #[serde(default, deserialize_with = "capabilities")]
    pub capabilities: BTreeMap<String, bool>,
}

/// A shell.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Shell {
    /// Its name, such as `bash`.
    pub name: String,
    /// Its path, always written plainly.
    pub path: PathBuf,
}

impl Shell {
    /// Names a shell.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Shell {
            name: name.into(),
            path: path.into(),
        }
    }
}

fn optional_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.as_deref().map(read_path))
}

fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(deserializer)?;
    Ok(texts
        .unwrap_or_default()
        .iter()
        .map(|text| read_path(text))
        .collect())
}

/// Keeps what is true or false; a later server may say other things there.
fn capabilities<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, bool>, D::Error> {
    let all = Option::<BTreeMap<String, serde_json::Value>>::deserialize(deserializer)?;
    Ok(all
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, value)| value.as_bool().map(|value| (name, value)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p12_old_and_new_answers_decode() {
        let old: EnvironmentInfo =
            serde_json::from_str(r#"{"shell":{"name":"bash","path":"/bin/bash"}}"#).unwrap();
        assert_eq!(old.shell.unwrap().path, PathBuf::from("/bin/bash"));
        assert_eq!(old.cwd, None);

        let new: EnvironmentInfo = serde_json::from_str(
            r#"{"shell":{"name":"bash","path":"/bin/bash"},"executorVersion":"0.169.0",
                "cwd":"file:///tmp/a%20b","userHomeDir":null,"temporaryDirectories":["file:///tmp"],
                "capabilities":{"fsWatchMissing":true,"windowsMxc":false,"limits":{"n":1}}}"#,
        )
        .unwrap();
        assert_eq!(new.cwd, Some(PathBuf::from("/tmp/a b")));
        assert_eq!(new.user_home_dir, None);
        assert_eq!(new.temporary_directories, [PathBuf::from("/tmp")]);
        assert_eq!(
            new.capabilities,
            BTreeMap::from([
                ("fsWatchMissing".into(), true),
                ("windowsMxc".into(), false)
            ])
        );
    }
}
