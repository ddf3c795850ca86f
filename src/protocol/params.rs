//! Writes the params of a request, field by field, in the server's dialect.

use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::Serialize;

use super::{Dialect, PathSpelling, base64};
use crate::error::{InvalidRequest, JsonError};

/// The params object of one request, written straight into the frame.
#[derive(Debug)]
pub struct Params<'a> {
    json: &'a mut Vec<u8>,
    dialect: Dialect,
    is_empty: bool,
}

impl<'a> Params<'a> {
    /// Opens the object at the end of `json`.
    pub(crate) fn open(json: &'a mut Vec<u8>, dialect: Dialect) -> Self {
        json.push(b'{');
        Params {
            json,
            dialect,
            is_empty: true,
        }
    }

    pub(crate) fn close(self) {
        self.json.push(b'}');
    }

    /// Writes a field.
    ///
    /// # Errors
    ///
    /// When `value` does not serialise to JSON.
    pub fn field(
        &mut self,
        name: &'static str,
        value: &(impl Serialize + ?Sized),
    ) -> Result<(), InvalidRequest> {
        self.name(name);
        serde_json::to_writer(&mut *self.json, value).map_err(|source| {
            InvalidRequest::Unserializable {
                field: name,
                source: JsonError::from(source),
            }
        })
    }

    /// Writes a field, or nothing if there is no value.
    ///
    /// # Errors
    ///
    /// As [`field`](Params::field).
    pub fn optional(
        &mut self,
        name: &'static str,
        value: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<(), InvalidRequest> {
        value.map_or(Ok(()), |value| self.field(name, value))
    }

    /// Writes bytes as base64.
    pub fn base64(&mut self, name: &'static str, bytes: &[u8]) {
        self.name(name);
        base64::append_json(bytes, self.json);
    }

    /// Writes an absolute path, spelled as the server wants it.
    ///
    /// # Errors
    ///
    /// When the path is relative, or not UTF-8 where the server takes plain paths only.
    pub fn path(&mut self, name: &'static str, path: &Path) -> Result<(), InvalidRequest> {
        let bytes = path.as_os_str().as_encoded_bytes();
        let drive = has_drive(bytes);
        if !bytes.starts_with(b"/") && !drive {
            return Err(InvalidRequest::RelativePath {
                field: name,
                path: path.to_owned(),
            });
        }
        match self.dialect.paths {
            PathSpelling::Plain => {
                let plain = path.to_str().ok_or_else(|| InvalidRequest::PathNotUtf8 {
                    field: name,
                    path: path.to_owned(),
                })?;
                self.field(name, plain)
            }
            PathSpelling::Uri if drive => {
                let slashed: Vec<u8> = bytes
                    .iter()
                    .map(|&byte| if byte == b'\\' { b'/' } else { byte })
                    .collect();
                // The drive's colon stands as it is: `file:///C:/x`.
                self.file_uri(name, &[b'/', slashed[0], b':'], &slashed[2..]);
                Ok(())
            }
            PathSpelling::Uri => {
                self.file_uri(name, &[], bytes);
                Ok(())
            }
        }
    }

    /// Writes a URI that begins with `plain`. In what is encoded there is nothing that JSON would escape.
    fn file_uri(&mut self, name: &'static str, plain: &[u8], path: &[u8]) {
        self.name(name);
        self.json.extend_from_slice(b"\"file://");
        self.json.extend_from_slice(plain);
        for piece in percent_encode(path, PATH) {
            self.json.extend_from_slice(piece.as_bytes());
        }
        self.json.push(b'"');
    }

    fn name(&mut self, name: &'static str) {
        if !self.is_empty {
            self.json.push(b',');
        }
        self.is_empty = false;
        // Names are ours and need no escaping.
        self.json.push(b'"');
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
    }
}

/// Reads a path of a result: a `file:` URI from newer servers, plain from older ones.
pub(crate) fn read_path(text: &str) -> std::path::PathBuf {
    let Some(rest) = text.strip_prefix("file://") else {
        return text.into();
    };
    let rest = rest.strip_prefix("localhost").unwrap_or(rest);
    let decoded: Vec<u8> = percent_decode_str(rest).collect();
    let decoded = match decoded.as_slice() {
        [b'/', windows @ ..] if has_drive(windows) => windows.to_vec(),
        _ => decoded,
    };
    path_from_bytes(decoded)
}

#[cfg(unix)]
fn path_from_bytes(bytes: Vec<u8>) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn path_from_bytes(bytes: Vec<u8>) -> std::path::PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// `C:\` or `C:/`: absolute on the server, whatever this side runs on.
fn has_drive(path: &[u8]) -> bool {
    matches!(path, [drive, b':', b'/' | b'\\', ..] if drive.is_ascii_alphabetic())
}

/// All but the unreserved characters of RFC 3986 and the slash.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn spell(paths: PathSpelling, path: impl AsRef<Path>) -> Result<String, InvalidRequest> {
        let mut json = Vec::new();
        let mut params = Params::open(&mut json, Dialect::new(paths));
        params.path("path", path.as_ref())?;
        params.close();
        Ok(String::from_utf8(json).unwrap())
    }

    #[test]
    fn p12_the_dialect_spells_paths() {
        use PathSpelling::{Plain, Uri};
        for (paths, path, expected) in [
            (Plain, "/tmp/a b", r#"{"path":"/tmp/a b"}"#),
            (Plain, "/tmp/\"x\"", r#"{"path":"/tmp/\"x\""}"#),
            (Plain, r"C:\x y", r#"{"path":"C:\\x y"}"#),
            (Uri, "/", r#"{"path":"file:///"}"#),
            (Uri, "/tmp/a b", r#"{"path":"file:///tmp/a%20b"}"#),
            (Uri, "/a%b#c?d", r#"{"path":"file:///a%25b%23c%3Fd"}"#),
            (Uri, "/ä-._~", r#"{"path":"file:///%C3%A4-._~"}"#),
            (Uri, r"C:\x y", r#"{"path":"file:///C:/x%20y"}"#),
        ] {
            assert_eq!(spell(paths, path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn relative_paths_are_refused_by_name() {
        for path in ["", "x", "./x", "../x", "C:x", "file:///x"] {
            for paths in [PathSpelling::Plain, PathSpelling::Uri] {
                let error = spell(paths, path).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!("path must be an absolute path, got {path}")
                );
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_not_utf8_travel_in_uris_only() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
        let path = Path::new(OsStr::from_bytes(b"/\xff"));
        assert_eq!(
            spell(PathSpelling::Uri, path).unwrap(),
            r#"{"path":"file:///%FF"}"#
        );
        assert!(matches!(
            spell(PathSpelling::Plain, path),
            Err(InvalidRequest::PathNotUtf8 { field: "path", .. })
        ));
        assert_eq!(read_path("file:///%FF"), path);
    }

    #[test]
    fn paths_of_results_are_read_in_both_spellings() {
        assert_eq!(read_path("/tmp/a%20b"), PathBuf::from("/tmp/a%20b"));
        assert_eq!(read_path("file:///tmp/a%20b"), PathBuf::from("/tmp/a b"));
        assert_eq!(read_path("file://localhost/x"), PathBuf::from("/x"));
        assert_eq!(read_path("file:///C:/x"), PathBuf::from("C:/x"));
    }

    #[test]
    fn fields_are_separated_and_absent_ones_left_out() {
        let mut json = Vec::new();
        let mut params = Params::open(&mut json, Dialect::new(PathSpelling::Plain));
        params.optional("none", None::<&str>).unwrap();
        params.field("a", &1).unwrap();
        params.base64("b", b"hi");
        params.optional("c", Some("x\n")).unwrap();
        params.close();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"a":1,"b":"aGk=","c":"x\n"}"#
        );
    }

    #[test]
    fn a_value_that_is_no_json_is_refused_by_name() {
        let map = std::collections::BTreeMap::from([((1, 2), 3)]);
        let mut json = Vec::new();
        let mut params = Params::open(&mut json, Dialect::new(PathSpelling::Plain));
        let error = params.field("map", &map).unwrap_err();
        assert_eq!(
            crate::error::Causes(&error).to_string(),
            "map does not serialise: key must be a string"
        );
    }
}
