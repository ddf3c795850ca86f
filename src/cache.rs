//! The processor's cache: memory is brought into it before its turn.
//!
//! With thousands of sessions nothing of any of them is in the cache when something is to be done for it, and to wait
//! for one line after the other takes as long as all else. Fetched ahead, 10,000 sessions get a third more events of
//! 64 bytes a second: worth the only `unsafe` of this crate.

/// What is fetched at a time.
pub(crate) const LINE: usize = 64;

/// Has so many bytes brought into the cache, without waiting for them. It does not matter what is there, or whether
/// anything is.
#[inline]
pub(crate) fn fetch(from: *const u8, bytes: usize) {
    for line in lines(from, bytes) {
        fetch_line(line);
    }
}

/// The lines in which so many bytes lie, the last one too where the first is not used from its start.
#[inline]
fn lines(from: *const u8, bytes: usize) -> impl Iterator<Item = *const u8> {
    let before = from.addr() % LINE;
    let end = if bytes > 0 { before + bytes } else { 0 };
    let offsets = (0..end).step_by(LINE);
    offsets.map(move |offset| from.wrapping_sub(before).wrapping_add(offset))
}

/// As [`fetch`], of all that it takes.
#[inline]
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
            let lines = lines(ptr::without_provenance(from), bytes);
            lines.map(|line| line.addr()).collect::<Vec<_>>()
        };
        assert_eq!(lines_of(640, 64), [640]);
        assert_eq!(lines_of(640, 65), [640, 704]);
        assert_eq!(lines_of(656, 64), [640, 704]);
        assert_eq!(lines_of(656, 48), [640]);
        assert_eq!(lines_of(703, 2), [640, 704]);
        assert!(lines_of(656, 0).is_empty());
    }
}
