//! The file methods, request by request.
