//! What went wrong, as this program tells it.

use std::error::Error;

/// Returns the text of an error and, behind colons, of each of its causes.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += ": ";
        text += &error.to_string();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use execmux::{DisconnectReason, FailureReason};

    use super::*;

    #[test]
    fn an_error_is_told_with_each_cause_once() {
        let failed = Arc::new(std::io::Error::other("no route"));
        let reason = FailureReason::Disconnected(DisconnectReason::ReadFailed(failed));
        assert_eq!(
            told(&reason),
            "the connection is gone: reading from the socket failed: no route"
        );
    }
}
