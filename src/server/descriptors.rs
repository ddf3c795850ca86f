//! Descriptors of this process that what it starts must not get: inherited ones, and those that somebody in this
//! process has opened without `O_CLOEXEC`, which Rust's standard library never does.

/// The descriptors up to here are the standard streams, which a process gets anew.
const LAST_STANDARD: i32 = 2;

/// Has processes that are started from now on not inherit any descriptor but their standard streams.
///
/// One that another thread opens without `O_CLOEXEC` between this call and the start is inherited all the same.
pub(super) fn keep_from_processes() {
    // One system call from Linux 5.11 on. Before, and elsewhere, it goes through the descriptors.
    close_fds::set_fds_cloexec_threadsafe(LAST_STANDARD + 1, &[]);
}
