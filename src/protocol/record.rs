//! What a process notes down about itself when a shell starts it, and the helper processes that find it by
//! that: for signals and sizes that the server itself cannot give it.
//!
//! The scripts are plain POSIX, but for `/proc`, which they use where it is there.

use std::{fmt, path::Path, sync::Arc};

use super::{ProcessId, RemovePath, Signal, StartProcess, TerminalSize, id::unguessable_name};

/// The file that holds the pid of a process, when it began, and its terminal; a line for each.
///
/// Its name is a secret, as whoever has the file before the process does can say who gets its signals: the
/// environment of a process is nobody else's to read, unlike its arguments.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Record {
    path: Arc<str>,
    is_tty: bool,
}

/// The variable that holds the path of the file. The program does not see it.
pub(super) const VARIABLE: &str = "EXECMUX_RECORD";

/// How long a helper looks for the file of a process that may not have written it yet, in twentieths of a
/// second: about 10 s.
const TRIES: u32 = 200;

/// Exit code of a helper that has not found the file.
pub(crate) const NOT_RECORDED: i32 = 3;
/// Exit code of a helper that has not found the process.
pub(crate) const NOT_FOUND: i32 = 4;

/// Says when a process began, so that another that has its pid by now is not taken for it.
const BEGAN: &str = r#"
began() {
    if [ -r "/proc/$1/stat" ] && read -r stat <"/proc/$1/stat"; then
        set -- ${stat##*) }
        echo "${20}"
    else
        LC_ALL=C TZ=UTC ps -o lstart= -p "$1"
    fi
} 2>/dev/null
"#;

/// Writes the file; what is run after it keeps the pid. In a subshell, so that the program gets the file mode
/// mask that it would have had. If it cannot be written the program runs all the same.
const WRITE: &str = r#"
(
    umask 077
    set -C
    PATH=/usr/bin:/bin:$PATH
    printf '%s\n' "$$" "$(began "$$")" "$(tty)" >"$EXECMUX_RECORD"
) 2>/dev/null
unset EXECMUX_RECORD
"#;

/// Waits for the file, as long as the first argument says, and looks for the process.
///
/// A file of another user's, or a link, is not believed: it would say who gets signals. POSIX does not have `-O`;
/// dash, bash, ksh, zsh and busybox do. A `sleep` may only know whole seconds. Where nothing tells when a process
/// began, any that has the pid would be taken for it, so none is.
const FIND: &str = r#"
tries=$1
until [ -s "$EXECMUX_RECORD" ] && [ -O "$EXECMUX_RECORD" ] && [ ! -L "$EXECMUX_RECORD" ] &&
    { read -r pid && read -r born && read -r tty; } <"$EXECMUX_RECORD"
do
    [ "$tries" -gt 1 ] || exit 3
    if sleep 0.05 2>/dev/null; then
        tries=$((tries - 1))
    else
        sleep 1
        tries=$((tries - 20))
    fi
done
lives() {
    [ -n "$born" ] && [ "$(began "$pid")" = "$born" ] || exit 4
}
lives
"#;

/// If it fails, that may be because the process has just ended.
const SIGNAL: &str = r#"
kill -s "$2" -- "-$pid" && exit
lives
exit 1
"#;

/// The kernel tells the processes on the terminal.
const RESIZE: &str = r#"
stty rows "$2" cols "$3" <"$tty" && exit
lives
exit 1
"#;

/// The script that writes the file.
pub(super) fn writing() -> String {
    [BEGAN, WRITE].concat()
}

impl Record {
    /// Names a file that nobody knows of, in a directory for temporary files.
    pub(super) fn new(directory: &Path, is_tty: bool) -> Self {
        let directory = directory.to_str().unwrap_or("/tmp");
        Record {
            path: format!("{directory}/execmux-{}", unguessable_name()).into(),
            is_tty,
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the process runs on a terminal.
    pub(crate) fn is_tty(&self) -> bool {
        self.is_tty
    }

    /// A helper that sends a signal to the group of the process. `is_written` if the file must be there by now.
    pub(crate) fn signal(&self, signal: Signal, is_written: bool) -> StartProcess {
        let name = signal.name().trim_start_matches("SIG").to_owned();
        self.helper(SIGNAL, is_written, [name])
    }

    /// A helper that sets the size of the terminal of the process.
    pub(crate) fn resize(&self, size: TerminalSize, is_written: bool) -> StartProcess {
        let size = [size.rows, size.cols].map(|n| n.to_string());
        self.helper(RESIZE, is_written, size)
    }

    fn helper(
        &self,
        deed: &str,
        is_written: bool,
        arguments: impl IntoIterator<Item = String>,
    ) -> StartProcess {
        let tries = if is_written { 1 } else { TRIES };
        let shell = ["/bin/sh", "-c"].map(str::to_owned);
        let argv = shell
            .into_iter()
            .chain([
                [BEGAN, FIND, deed].concat(),
                "sh".to_owned(),
                tries.to_string(),
            ])
            .chain(arguments);
        StartProcess::new(ProcessId::unique(), argv, "/")
            .env("PATH", "/usr/bin:/bin")
            .env(VARIABLE, self.path())
    }

    /// Removes the file, if it is there.
    pub(crate) fn remove(&self) -> RemovePath {
        RemovePath::new(&*self.path).force(true)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Record(…)")
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{
        fs, io,
        os::unix::{
            fs::{PermissionsExt as _, chown, symlink},
            process::{CommandExt as _, ExitStatusExt as _},
        },
        process::{Child, Command, Output, Stdio},
    };

    use super::*;
    use crate::protocol::{Capabilities, PathSpelling, jsonrpc::encoded_params};

    /// Runs it as a server would.
    fn spawn(process: &StartProcess) -> io::Result<Child> {
        let params = encoded_params(PathSpelling::Plain, process);
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let argv: Vec<_> = (params["argv"].as_array().unwrap().iter())
            .map(text)
            .collect();
        let env = params["env"].as_object().unwrap();
        Command::new(&argv[0])
            .args(&argv[1..])
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, text(value))))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }

    fn recorded() -> (StartProcess, Record) {
        let sleep = StartProcess::new("p", ["sleep", "600"], "/").helper_processes(true);
        let (process, record) = sleep.adapted(&Capabilities::default(), &std::env::temp_dir());
        (process, record.unwrap())
    }

    fn output(process: &StartProcess) -> Output {
        spawn(process).unwrap().wait_with_output().unwrap()
    }

    #[test]
    fn a_helper_waits_for_a_record_that_may_be_written_yet() {
        let (process, record) = recorded();
        let mut helper = spawn(&record.signal(Signal::Terminate, false)).unwrap();
        // It sleeps when it has found nothing.
        let children = format!("/proc/{0}/task/{0}/children", helper.id());
        while fs::read(&children).unwrap().is_empty() {
            assert_eq!(helper.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        let mut process = spawn(&process).unwrap();
        let helped = helper.wait_with_output().unwrap();
        assert_eq!(helped.status.code(), Some(0), "{helped:?}");
        assert_eq!(process.wait().unwrap().signal(), Some(15));
        fs::remove_file(record.path()).unwrap();
    }

    #[test]
    fn a_helper_tells_what_it_has_not_found() {
        let (process, record) = recorded();
        let none = output(&record.signal(Signal::Terminate, true));
        assert_eq!(none.status.code(), Some(NOT_RECORDED), "{none:?}");
        let mut process = spawn(&process).unwrap();
        let helped = output(&record.signal(Signal::Kill, false));
        assert_eq!(helped.status.code(), Some(0), "{helped:?}");
        assert_eq!(process.wait().unwrap().signal(), Some(9));
        let gone = output(&record.signal(Signal::Kill, true));
        assert_eq!(gone.status.code(), Some(NOT_FOUND), "{gone:?}");
        fs::remove_file(record.path()).unwrap();
    }

    #[test]
    fn a_process_of_which_nothing_says_when_it_began_is_not_found() {
        let (_, record) = recorded();
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        fs::write(record.path(), format!("{}\n\n?\n", gone.id())).unwrap();
        let none = output(&record.signal(Signal::Terminate, true));
        assert_eq!(none.status.code(), Some(NOT_FOUND), "{none:?}");
        fs::remove_file(record.path()).unwrap();
    }

    #[test]
    fn a_record_that_another_can_have_made_is_not_believed() {
        let (process, record) = recorded();
        let mut process = spawn(&process).unwrap();
        let helped = output(&record.signal(Signal::Continue, false));
        assert_eq!(helped.status.code(), Some(0), "{helped:?}");
        let (_, linked) = recorded();
        symlink(record.path(), linked.path()).unwrap();
        let none = output(&linked.signal(Signal::Kill, true));
        assert_eq!(none.status.code(), Some(NOT_RECORDED), "{none:?}");
        // Only root can give files away.
        if chown(record.path(), Some(65534), None).is_ok() {
            let none = output(&record.signal(Signal::Kill, true));
            assert_eq!(none.status.code(), Some(NOT_RECORDED), "{none:?}");
        }
        assert_eq!(process.try_wait().unwrap(), None);
        process.kill().unwrap();
        process.wait().unwrap();
        fs::remove_file(linked.path()).unwrap();
        fs::remove_file(record.path()).unwrap();
    }

    #[test]
    fn a_helper_looks_no_longer_where_sleep_only_knows_whole_seconds() {
        let (_, record) = recorded();
        // The directory of a sleep that counts the seconds.
        let directory = std::env::temp_dir().join(unguessable_name());
        fs::create_dir(&directory).unwrap();
        let [sleep, slept] = ["sleep", "slept"].map(|name| directory.join(name));
        let script = format!(
            "#!/bin/sh\ncase $1 in *.*) exit 1; esac\necho $1 >>{}\n",
            slept.display()
        );
        fs::write(&sleep, script).unwrap();
        fs::set_permissions(&sleep, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", directory.display());
        let none = output(&record.signal(Signal::Terminate, false).env("PATH", path));
        assert_eq!(none.status.code(), Some(NOT_RECORDED), "{none:?}");
        assert_eq!(fs::read_to_string(slept).unwrap(), "1\n".repeat(10));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_record_that_is_there_is_not_written_over() {
        let (process, record) = recorded();
        fs::write(record.path(), "another's").unwrap();
        let mut process = spawn(&process).unwrap();
        // The program runs all the same.
        while fs::read(format!("/proc/{}/cmdline", process.id())).unwrap() != b"sleep\x00600\x00" {
            std::thread::yield_now();
        }
        assert_eq!(fs::read(record.path()).unwrap(), b"another's");
        process.kill().unwrap();
        process.wait().unwrap();
        fs::remove_file(record.path()).unwrap();
    }
}
