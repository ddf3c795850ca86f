//! The processor's cache: memory is brought into it before its turn.
//!
//! With thousands of sessions nothing of any of them is in the cache when something is to be done for it, and to wait
//! for one line after the other takes as long as all else. Fetched ahead, 10,000 sessions get a third more events of
//! 64 bytes a second: worth the only `unsafe` of this crate.

/// What is fetched at a time.
pub(crate) const LINE: usize = 64;

/// Has so many bytes brought into the cache, without waiting for them. It does not matter what is there, or whether
/// anything is.
#[inline(always)]
pub(crate) fn fetch(from: *const u8, bytes: usize) {
    each_line(from, bytes, fetch_line);
}

/// Visits the lines in which so many bytes lie, the last one too where the first is not used from its start: perhaps
/// twice, which costs less than to find out.
#[inline(always)]
fn each_line(from: *const u8, bytes: usize, mut visit: impl FnMut(*const u8)) {
    let mut offset = 0;
    while offset < bytes {
        visit(from.wrapping_add(offset));
        offset += LINE;
    }
    if bytes > 1 {
        visit(from.wrapping_add(bytes - 1));
    }
}

/// As [`fetch`], of all that it takes.
#[inline(always)]
pub(crate) fn fetch_all<T>(from: *const T) {
    fetch(from.cast(), size_of::<T>());
}

#[inline]
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn fetch_line(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: all x86_64 processors have it, and it has no effect but on time: nothing is read, and a bad address is
    // ignored.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

/// Others have no stable way to say so.
#[inline]
#[cfg(not(target_arch = "x86_64"))]
fn fetch_line(_: *const u8) {}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn every_line_is_fetched_in_which_something_lies() {
        let lines_of = |from: usize, bytes| {
            let mut lines = Vec::new();
            each_line(ptr::without_provenance(from), bytes, |at| {
                lines.push(at.addr() / LINE * LINE);
            });
            lines.dedup();
            lines
        };
        assert_eq!(lines_of(640, 64), [640]);
        assert_eq!(lines_of(640, 65), [640, 704]);
        assert_eq!(lines_of(656, 64), [640, 704]);
        assert_eq!(lines_of(656, 48), [640]);
        assert_eq!(lines_of(703, 2), [640, 704]);
        assert_eq!(lines_of(656, 1), [640]);
        assert_eq!(lines_of(656, 176), [640, 704, 768]);
        assert_eq!(lines_of(656, 177), [640, 704, 768, 832]);
        assert!(lines_of(656, 0).is_empty());
    }
}
