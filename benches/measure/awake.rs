//! Keeps the cores awake: how long a virtual machine takes to wake one is no property of what is measured, and
//! whoever has less to do sleeps more.

use std::{
    hint, io,
    process::{Child, Command, Stdio},
};

/// Makes an executable stay awake, as its first argument.
const ARGUMENT: &str = "stay-awake";

/// One process for each of two cores, which runs when nobody else wants to. Without a `chrt` that can do that, there
/// is none, which is said at the end.
pub struct Awake(Vec<Child>);

impl Awake {
    /// To be called before this thread is pinned.
    pub fn start() -> Self {
        let bench = std::env::current_exe().expect("this executable");
        let start = |place: usize| {
            Command::new("chrt")
                .args(["--idle", "0"])
                .arg(&bench)
                .args([ARGUMENT, &place.to_string()])
                .stdin(Stdio::piped())
                .spawn()
        };
        let awake = (0..2).map_while(|place| start(place).ok()).collect();
        Awake(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        let mut were_awake = self.0.len() == 2;
        for child in &mut self.0 {
            were_awake &= matches!(child.try_wait(), Ok(None));
            // It ends with its stdin.
            drop(child.stdin.take());
            let _ended = child.wait();
        }
        if !were_awake {
            eprintln!("The cores were not kept awake: `chrt --idle` does not work here.");
        }
    }
}

/// Whether this process was to stay awake, and has been: `main` does nothing else then.
pub fn has_stayed_awake() -> bool {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return false;
    }
    let place = arguments.next().and_then(|place| place.parse().ok());
    super::pin(place.expect("the place of a core"));
    let stdin = std::thread::spawn(|| io::copy(&mut io::stdin().lock(), &mut io::sink()));
    while !stdin.is_finished() {
        hint::spin_loop();
    }
    true
}
