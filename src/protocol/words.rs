//! Reads what servers tell by the text of an error only. Texts are no part of the protocol, so nothing else in the crate
//! may depend on them, and a text that is not known here leads to the most general answer.
//!
//! Each text was seen on Linux, on the servers named beside it.

use super::ErrorCode;

/// Returns true if a server does not know the process that a request is about. Seen on all servers, from the form of
/// March 2026 to 0.171.0.
pub(crate) fn is_unknown_process(code: ErrorCode, message: &str) -> bool {
    // At the start: elsewhere it may be part of a process id, which an application chooses.
    code == ErrorCode::INVALID_REQUEST && message.starts_with("unknown process id")
}

/// Returns true if a file method failed because nothing is at the path. The form of March 2026 tells it by these words;
/// all later servers have the code [`ErrorCode::NOT_FOUND`].
pub(crate) fn is_missing_file(code: ErrorCode, message: &str) -> bool {
    code == ErrorCode::INTERNAL_ERROR && os_error(message) == Some(ENOENT)
}

/// Returns true if a path leads through something that is not a directory, or to it where a directory is needed. Seen
/// on all servers.
pub(crate) fn is_not_a_directory(code: ErrorCode, message: &str) -> bool {
    code == ErrorCode::INTERNAL_ERROR && os_error(message) == Some(ENOTDIR)
}

/// What the text of a refused `process/start` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpawnFailure {
    ProgramNotFound,
    ProgramOrCwdNotFound,
    PermissionDenied,
    /// Any other reason, or one that the text does not tell.
    Other,
}

/// Reads the text of a refused `process/start`.
pub(crate) fn spawn_failure(message: &str) -> SpawnFailure {
    match os_error(message) {
        // Pipes on all servers; a pty from 0.169.0 on.
        Some(ENOENT) => return SpawnFailure::ProgramOrCwdNotFound,
        Some(EACCES) => return SpawnFailure::PermissionDenied,
        Some(_) => return SpawnFailure::Other,
        None => {}
    }
    // A pty: servers look for the program themselves before they start it.
    if !message.starts_with("Unable to spawn ") {
        return SpawnFailure::Other;
    }
    const NOT_THERE: &[&str] = &[
        // An absolute path: 0.120.0 and 0.142.0; 0.169.0 and 0.171.0 where the cwd is missing, too.
        " (ENOENT: No such file or directory)",
        // A relative path with a slash: 0.120.0 to 0.171.0.
        " because it does not exist",
    ];
    const NOT_PERMITTED: &[&str] = &[
        // 0.120.0 and 0.142.0.
        " (EACCES: Permission denied)",
        " because it is a directory",
    ];
    let ends_with = |ends: &[&str]| ends.iter().any(|end| message.ends_with(end));
    // A name without a slash: 0.120.0 to 0.171.0. The value of `PATH` follows.
    let is_not_in_path = message.contains(" because:\nNo viable candidates found in PATH ");
    if is_not_in_path || ends_with(NOT_THERE) {
        SpawnFailure::ProgramNotFound
    } else if ends_with(NOT_PERMITTED) {
        SpawnFailure::PermissionDenied
    } else {
        SpawnFailure::Other
    }
}

const ENOENT: u32 = 2;
const EACCES: u32 = 13;
const ENOTDIR: u32 = 20;

/// Returns the number at the end of what Rust's standard library says of an error of the operating system.
fn os_error(message: &str) -> Option<u32> {
    let (_, number) = message.strip_suffix(')')?.rsplit_once(" (os error ")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p12_the_texts_of_refused_starts_are_read_as_they_were_seen() {
        use SpawnFailure::{Other, PermissionDenied, ProgramNotFound, ProgramOrCwdNotFound};
        for (message, expected) in [
            (
                "No such file or directory (os error 2)",
                ProgramOrCwdNotFound,
            ),
            ("Permission denied (os error 13)", PermissionDenied),
            ("Not a directory (os error 20)", Other),
            ("Exec format error (os error 8)", Other),
            (
                "Unable to spawn /no/such/program because it doesn't exist on the filesystem (ENOENT: No such file or directory)",
                ProgramNotFound,
            ),
            (
                "Unable to spawn no-such-program because:\nNo viable candidates found in PATH \"/usr/bin:/bin\"",
                ProgramNotFound,
            ),
            (
                "Unable to spawn /tmp/./none because it does not exist",
                ProgramNotFound,
            ),
            (
                "Unable to spawn /tmp/noexec because it is not executable (EACCES: Permission denied)",
                PermissionDenied,
            ),
            (
                "Unable to spawn /tmp because it is a directory",
                PermissionDenied,
            ),
            (
                "Unable to spawn /tmp/a/x because it doesn't exist on the filesystem (ENOTDIR: Not a directory)",
                Other,
            ),
            ("missing program for pipe spawn", Other),
            ("missing program for PTY spawn", Other),
            ("nul byte found in provided data", Other),
            ("", Other),
            (")", Other),
            ("(os error 2)", Other),
            (" (os error 2", Other),
            (" (os error 99999999999)", Other),
        ] {
            assert_eq!(spawn_failure(message), expected, "{message:?}");
        }
    }

    #[test]
    fn p12_a_missing_file_and_an_unknown_process_are_known_by_code_and_text() {
        let missing = "No such file or directory (os error 2)";
        assert!(is_missing_file(ErrorCode::INTERNAL_ERROR, missing));
        assert!(!is_missing_file(ErrorCode::INVALID_REQUEST, missing));
        assert!(!is_missing_file(
            ErrorCode::INTERNAL_ERROR,
            "No space left on device (os error 28)"
        ));
        let no_directory = "Not a directory (os error 20)";
        assert!(is_not_a_directory(ErrorCode::INTERNAL_ERROR, no_directory));
        assert!(!is_not_a_directory(ErrorCode::INTERNAL_ERROR, missing));
        let unknown = "unknown process id p";
        assert!(is_unknown_process(ErrorCode::INVALID_REQUEST, unknown));
        assert!(!is_unknown_process(ErrorCode::INTERNAL_ERROR, unknown));
        let taken = "process unknown process id p already exists";
        assert!(!is_unknown_process(ErrorCode::INVALID_REQUEST, taken));
    }
}
