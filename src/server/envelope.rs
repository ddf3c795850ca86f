//! What a request is answered with if it fails.

#[derive(Debug)]
pub(super) struct RpcError {
    pub(super) code: i64,
    pub(super) message: String,
}

impl RpcError {
    pub(super) fn invalid_request(message: impl Into<String>) -> Self {
        RpcError {
            code: -32600,
            message: message.into(),
        }
    }

    pub(super) fn invalid_params(message: impl Into<String>) -> Self {
        RpcError {
            code: -32602,
            message: message.into(),
        }
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        RpcError {
            code: -32603,
            message: message.into(),
        }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        RpcError {
            code: -32004,
            message: message.into(),
        }
    }
}
