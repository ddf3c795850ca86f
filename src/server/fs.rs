//! The methods on files. None is here yet.

use std::path::PathBuf;

use serde_json::value::RawValue;

use super::envelope::RpcError;

/// Where files are looked for.
#[derive(Clone)]
pub(super) struct Files {
    #[expect(dead_code, reason = "for the methods to come")]
    pub(super) root: Option<PathBuf>,
}

/// The open files of one connection.
#[derive(Default)]
pub(super) struct Handles;

/// Carries out a method on files; `None` if it is not one. It blocks.
pub(super) fn handle(
    _: &Files,
    _: &Handles,
    _: &str,
    _: &RawValue,
) -> Option<Result<String, RpcError>> {
    None
}
