//! Whatever text comes, both ways to read it agree, and neither panics.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    execmux::fuzzing::message(bytes);
});
