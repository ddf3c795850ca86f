//! Whatever comes, and wherever the reads end, the same messages are cut out of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| execmux::fuzzing::frames(bytes));
