//! Paths as the wire writes them: `file:` URIs.

use std::{
    borrow::Cow,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};
use url::Url;

use crate::server::envelope::RpcError;

/// A path of the params. What is no URI of a path at all is refused when it is read; what is one of another host or
/// system when it is used, since other params are looked at first.
#[derive(Debug)]
pub(super) enum FileUri {
    Path(PathBuf),
    Foreign(String),
}

impl FileUri {
    pub(super) fn path(self) -> Result<PathBuf, RpcError> {
        match self {
            FileUri::Path(path) => Ok(path),
            FileUri::Foreign(uri) => Err(RpcError::invalid_request(invalid_here(&uri))),
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("invalid URI: {error}"))?;
        if url.scheme() != "file" {
            return Err(format!("unsupported path URI scheme `{}`", url.scheme()));
        }
        if url.query().is_some() {
            return Err("query parameters are not allowed in path URIs".to_owned());
        }
        if url.fragment().is_some() {
            return Err("fragments are not allowed in path URIs".to_owned());
        }
        if url.host_str().is_some() {
            return Ok(FileUri::Foreign(url.into()));
        }
        let path: Vec<u8> = percent_encoding::percent_decode_str(url.path()).collect();
        if path.contains(&0) {
            return Err(invalid_here(url.as_str()));
        }
        if matches!(path.as_slice(), [b'/', drive, b':'] | [b'/', drive, b':', b'/', ..] if drive.is_ascii_alphabetic())
        {
            return Ok(FileUri::Foreign(url.into()));
        }
        Ok(FileUri::Path(without_dots(&path_of(path))))
    }
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    std::ffi::OsString::from_vec(bytes).into()
}

fn invalid_here(uri: &str) -> String {
    format!("'{uri}' is invalid on '{}'", std::env::consts::OS)
}

/// Resolves `.` and `..` by their names alone, as URIs do, also those that came percent-encoded with their slashes.
fn without_dots(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir => {
                resolved.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    resolved
}

impl<'de> Deserialize<'de> for FileUri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        FileUri::parse(&text).map_err(D::Error::custom)
    }
}

/// Writes an absolute path as a `file:` URI, for `#[serde(serialize_with)]`.
pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    let url = Url::from_file_path(path).map_err(|()| S::Error::custom("the path is relative"))?;
    serializer.serialize_str(url.as_str())
}
