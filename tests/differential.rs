//! The crate's own server against release 0.171.0: the same messages, one answer beside the other.
//!
//! Compared are the shapes of answers, error codes and texts, and the values that say something about the
//! process or file; ids, times and the like are not. What differs on purpose is in [`INTENDED`].

#![cfg(all(feature = "server", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{
    checked,
    exec_server::{EMBEDDED, ExecServer},
    raw::Raw,
};

/// Cases in which the answers differ, and why they may. A case that is no longer different has to go.
const INTENDED: &[(&str, &str)] = &[
    ("initialize", "has capabilities of its own"),
    (
        "read before initialize",
        "looks at the handshake before the params",
    ),
    (
        "fs before initialize",
        "looks at the handshake before the params",
    ),
    (
        "fs before initialized",
        "looks at the handshake before the params",
    ),
    ("params array", "takes params by name only"),
    ("signal by a POSIX name", "an extension"),
    ("close stdin", "an extension"),
    ("resize", "an extension"),
    (
        "tty not in PATH",
        "says spawnNotFound, as for a program with a path",
    ),
    (
        "tty with a relative program",
        "says spawnNotFound, as for a program with a path",
    ),
    (
        "tty with cwd missing",
        "refuses it; the release runs the command in the home directory",
    ),
    (
        "tty with cwd a file",
        "refuses it; the release runs the command in the home directory",
    ),
    (
        "tty with cwd below a file",
        "refuses it; the release runs the command in the home directory",
    ),
    (
        "start what is no program",
        "glibc has a shell run it; the C library of the release does not",
    ),
    (
        "tty what is no program",
        "glibc has a shell run it; the C library of the release does not",
    ),
    (
        "tty with both missing",
        "says spawnNotFound, as for one of them",
    ),
];

/// Values that are compared, and not only by their type.
const COMPARED: &[&str] = &[
    "status",
    "running",
    "exited",
    "closed",
    "exitCode",
    "nextSeq",
    "seq",
    "stream",
    "chunk",
    "failure",
    "dataBase64",
    "isDirectory",
    "isFile",
    "isSymlink",
    "size",
    "sandboxType",
    "fileName",
    "processId",
    "eof",
    "sandboxDenied",
    "id",
    "code",
    "kind",
];

/// What is sent on one connection, one after the other: each message once the one before is answered.
struct Case {
    name: &'static str,
    is_greeted: bool,
    steps: Vec<Step>,
}

enum Step {
    Send(String),
    /// Waits until the streams of this process are closed, and compares its notifications.
    Closed(&'static str),
}

fn request(method: &str, params: Value) -> Step {
    Step::Send(json!({"id": 1, "method": method, "params": params}).to_string())
}

fn text(text: &str) -> Step {
    Step::Send(text.to_owned())
}

/// The params to start a shell as process `p`.
fn shell(script: &str) -> Value {
    json!({"processId": "p", "argv": ["sh", "-c", script], "cwd": "file:///tmp",
           "env": {"PATH": "/usr/bin:/bin"}, "tty": false, "pipeStdin": true})
}

fn with(mut params: Value, key: &str, value: Value) -> Value {
    params[key] = value;
    params
}

fn without(mut params: Value, key: &str) -> Value {
    params.as_object_mut().unwrap().remove(key);
    params
}

fn cases(uri: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut bare = |name, steps: Vec<Step>| {
        cases.push(Case {
            name,
            is_greeted: false,
            steps,
        })
    };
    let probe = || text(r#"{"id":99,"method":"probe"}"#);
    let initialize = || request("initialize", json!({"clientName": "x"}));

    // The handshake.
    bare(
        "info before initialize",
        vec![request("environment/info", json!({}))],
    );
    bare(
        "start before initialize",
        vec![request("process/start", shell("true"))],
    );
    bare(
        "read before initialize",
        vec![request("process/read", json!({}))],
    );
    bare(
        "fs before initialize",
        vec![request("fs/readFile", json!({}))],
    );
    bare("unknown method before initialize", vec![probe()]);
    bare("initialize", vec![initialize()]);
    bare("initialize twice", vec![initialize(), initialize()]);
    bare(
        "initialize again after initialized",
        vec![
            initialize(),
            text(r#"{"method":"initialized"}"#),
            initialize(),
        ],
    );
    bare(
        "start before initialized",
        vec![initialize(), request("process/start", shell("true"))],
    );
    bare(
        "fs before initialized",
        vec![initialize(), request("fs/readFile", json!({}))],
    );
    bare(
        "info before initialized",
        vec![initialize(), request("environment/info", json!({}))],
    );
    bare(
        "initialize without params",
        vec![text(r#"{"id":1,"method":"initialize"}"#)],
    );
    bare(
        "initialize without a name",
        vec![request("initialize", json!({}))],
    );
    bare(
        "initialize with a number for a name",
        vec![request("initialize", json!({"clientName": 1}))],
    );
    bare(
        "initialize after a failed one",
        vec![request("initialize", json!({})), initialize()],
    );
    bare(
        "initialize with an empty name",
        vec![request("initialize", json!({"clientName": ""}))],
    );
    bare(
        "resume null",
        vec![request(
            "initialize",
            json!({"clientName": "x", "resumeSessionId": null}),
        )],
    );
    bare(
        "resume unknown",
        vec![request(
            "initialize",
            json!({"clientName": "x", "resumeSessionId": "nobody"}),
        )],
    );
    bare(
        "resume empty",
        vec![request(
            "initialize",
            json!({"clientName": "x", "resumeSessionId": ""}),
        )],
    );
    bare(
        "initialized first",
        vec![text(r#"{"method":"initialized"}"#), probe()],
    );
    bare(
        "initialized twice",
        vec![
            initialize(),
            text(r#"{"method":"initialized"}"#),
            text(r#"{"method":"initialized"}"#),
            probe(),
        ],
    );

    // The envelope.
    for (name, message) in [
        ("not JSON", "hello"),
        ("nothing", ""),
        ("array", r#"[{"id":1,"method":"initialize"}]"#),
        ("scalar", "7"),
        ("null", "null"),
        ("empty object", "{}"),
        ("only an id", r#"{"id":7}"#),
        ("id null", r#"{"id":null,"method":"probe"}"#),
        ("id fraction", r#"{"id":1.5,"method":"probe"}"#),
        (
            "id too large",
            r#"{"id":9223372036854775808,"method":"probe"}"#,
        ),
        (
            "id largest",
            r#"{"id":9223372036854775807,"method":"probe"}"#,
        ),
        ("id negative", r#"{"id":-7,"method":"probe"}"#),
        ("id string", r#"{"id":"ä\n","method":"probe"}"#),
        ("id bool", r#"{"id":true,"method":"probe"}"#),
        ("id object", r#"{"id":{},"method":"probe"}"#),
        ("method number", r#"{"id":1,"method":1}"#),
        ("method null", r#"{"id":1,"method":null}"#),
        ("method empty", r#"{"id":1,"method":""}"#),
        (
            "jsonrpc ignored",
            r#"{"jsonrpc":"2.0","id":1,"method":"probe"}"#,
        ),
        ("unknown field", r#"{"id":1,"method":"probe","x":[1]}"#),
        (
            "trace",
            r#"{"id":1,"method":"probe","trace":{"traceparent":"x"}}"#,
        ),
        (
            "trace of the wrong type",
            r#"{"id":1,"method":"probe","trace":5}"#,
        ),
        ("duplicate key", r#"{"id":1,"id":2,"method":"probe"}"#),
        (
            "duplicate key in params",
            r#"{"id":1,"method":"initialize","params":{"clientName":"a","clientName":"b"}}"#,
        ),
        ("result for nobody", r#"{"id":5,"result":{}}"#),
        (
            "error for nobody",
            r#"{"id":5,"error":{"code":1,"message":"x"}}"#,
        ),
        (
            "error with id null",
            r#"{"id":null,"error":{"code":1,"message":"x"}}"#,
        ),
        ("trailing garbage", r#"{"id":1,"method":"probe"} x"#),
        (
            "params string",
            r#"{"id":1,"method":"initialize","params":"x"}"#,
        ),
        (
            "params array",
            r#"{"id":1,"method":"initialize","params":["x"]}"#,
        ),
    ] {
        bare(name, vec![text(message), probe()]);
    }
    bare(
        "unknown notification",
        vec![text(r#"{"method":"probe"}"#), probe()],
    );

    let mut case = |name, steps: Vec<Step>| {
        cases.push(Case {
            name,
            is_greeted: true,
            steps,
        })
    };
    case(
        "notification of a request method",
        vec![text(r#"{"method":"environment/info"}"#), probe()],
    );
    case("status", vec![request("environment/status", json!({}))]);
    case(
        "status with null",
        vec![request("environment/status", json!(null))],
    );

    // Starting.
    let start = |params| request("process/start", params);
    case("true", vec![start(shell("true")), Step::Closed("p")]);
    case(
        "output",
        vec![start(shell("printf hello")), Step::Closed("p")],
    );
    case(
        "stderr",
        vec![start(shell("printf oops >&2; exit 7")), Step::Closed("p")],
    );
    case(
        "killed by itself",
        vec![start(shell("kill -9 $$")), Step::Closed("p")],
    );
    case(
        "terminal",
        vec![
            start(with(shell("printf hi"), "tty", json!(true))),
            Step::Closed("p"),
        ],
    );
    for key in ["processId", "argv", "cwd", "env", "tty"] {
        let name = match key {
            "processId" => "start without processId",
            "argv" => "start without argv",
            "cwd" => "start without cwd",
            "env" => "start without env",
            _ => "start without tty",
        };
        case(name, vec![start(without(shell("true"), key))]);
    }
    for (name, key, value) in [
        ("start with an empty argv", "argv", json!([])),
        ("start with an empty program", "argv", json!([""])),
        ("start nothing there", "argv", json!(["/no/such/program"])),
        ("start a directory", "argv", json!(["/tmp"])),
        ("start not in PATH", "argv", json!(["no-such-program"])),
        ("start with NUL", "argv", json!(["sh", "a\u{0}b"])),
        ("start argv of numbers", "argv", json!([1])),
        ("start with cwd a path", "cwd", json!("/tmp")),
        (
            "start with cwd missing",
            "cwd",
            json!("file:///no/such/directory"),
        ),
        ("start with cwd elsewhere", "cwd", json!("file://other/tmp")),
        ("start with cwd of http", "cwd", json!("http://x/tmp")),
        ("start with cwd null", "cwd", json!(null)),
        ("start with env null", "env", json!(null)),
        ("start with env of numbers", "env", json!({"A": 1})),
        ("start with tty as string", "tty", json!("yes")),
        ("start with processId as number", "processId", json!(1)),
        ("start with arg0", "arg0", json!("me")),
        ("start with arg0 as number", "arg0", json!(1)),
        ("start with an unknown field", "whatever", json!(1)),
        (
            "start with a bad policy",
            "envPolicy",
            json!({"inherit": "all"}),
        ),
        ("start with sandbox null", "sandbox", json!(null)),
    ] {
        case(name, vec![start(with(shell("true"), key, value))]);
    }
    case(
        "tty nothing there",
        vec![start(with(
            with(shell("true"), "argv", json!(["/no/such/program"])),
            "tty",
            json!(true),
        ))],
    );
    case(
        "tty with an empty program",
        vec![start(with(
            with(shell("true"), "argv", json!([""])),
            "tty",
            json!(true),
        ))],
    );
    // Starts that the system refuses.
    let path = |name: &str| format!("{uri}/{name}");
    let native = |name: &str| format!("{}/{name}", uri.trim_start_matches("file://"));
    let put = |name: &str| {
        request(
            "fs/writeFile",
            json!({"path": path(name), "dataBase64": "aGVsbG8="}),
        )
    };
    // Makes an executable file of this content, as process `p`.
    let make = |name: &str, content: &str| {
        let script = format!("printf '{content}' > {0}; chmod +x {0}", native(name));
        start(shell(&script))
    };
    let as_q = |argv: &str, cwd: &str, tty: bool| {
        start(json!({"processId": "q", "argv": [argv], "cwd": cwd,
                     "env": {"PATH": "/usr/bin:/bin"}, "tty": tty}))
    };
    for tty in [false, true] {
        let mut case = |pipes: &'static str, pty: &'static str, steps| {
            case(if tty { pty } else { pipes }, steps);
        };
        let tmp = "file:///tmp";
        case(
            "start what is not executable",
            "tty what is not executable",
            vec![put("plain"), as_q(&native("plain"), tmp, tty)],
        );
        case(
            "start a directory by its path",
            "tty a directory by its path",
            vec![as_q("/tmp", tmp, tty)],
        );
        case(
            "start below a file",
            "tty below a file",
            vec![put("plain"), as_q(&native("plain/x"), tmp, tty)],
        );
        case(
            "start without its interpreter",
            "tty without its interpreter",
            vec![
                make("script", "#!/no/such/interpreter\\n"),
                Step::Closed("p"),
                as_q(&native("script"), tmp, tty),
            ],
        );
        case(
            "start what is no program",
            "tty what is no program",
            vec![
                make("garbage", "\\001\\002"),
                Step::Closed("p"),
                as_q(&native("garbage"), tmp, tty),
            ],
        );
        case(
            "start a relative program",
            "tty with a relative program",
            vec![as_q("./none", &path(""), tty)],
        );
        case(
            "start what is not in PATH",
            "tty not in PATH",
            vec![as_q("no-such-program", tmp, tty)],
        );
        case(
            "start with cwd missing, too",
            "tty with cwd missing",
            vec![as_q("true", &path("none"), tty)],
        );
        case(
            "start with both missing",
            "tty with both missing",
            vec![as_q("/no/such/program", &path("none"), tty)],
        );
        case(
            "start with cwd a file",
            "tty with cwd a file",
            vec![put("plain"), as_q("true", &path("plain"), tty)],
        );
        case(
            "start with cwd below a file",
            "tty with cwd below a file",
            vec![put("plain"), as_q("true", &path("plain/x"), tty)],
        );
    }
    case(
        "empty process id",
        vec![
            start(with(shell("true"), "processId", json!(""))),
            Step::Closed(""),
        ],
    );
    case(
        "duplicate process id",
        vec![start(shell("exec sleep 60")), start(shell("true"))],
    );
    case(
        "duplicate of one that ended",
        vec![
            start(shell("true")),
            Step::Closed("p"),
            start(shell("true")),
        ],
    );
    case(
        "id free after a failed start",
        vec![
            start(with(shell("true"), "argv", json!(["/no/such"]))),
            start(shell("true")),
            Step::Closed("p"),
        ],
    );

    // Reading.
    let read = |params: Value| {
        let mut all = json!({"processId": "p"});
        all.as_object_mut()
            .unwrap()
            .extend(params.as_object().unwrap().clone());
        request("process/read", all)
    };
    let ended = |rest: Vec<Step>| {
        let mut steps = vec![start(shell("printf one; read x; printf two; read x"))];
        steps.extend([read(json!({"afterSeq": 0, "waitMs": 60000}))]);
        steps.push(request(
            "process/write",
            json!({"processId": "p", "writeId": "1", "chunk": "Cg=="}),
        ));
        steps.push(read(json!({"afterSeq": 1, "waitMs": 60000})));
        steps.push(request(
            "process/write",
            json!({"processId": "p", "writeId": "2", "chunk": "Cg=="}),
        ));
        steps.push(Step::Closed("p"));
        steps.extend(rest);
        steps
    };
    case("read all", ended(vec![read(json!({}))]));
    case(
        "read null options",
        ended(vec![read(
            json!({"afterSeq": null, "maxBytes": null, "waitMs": null}),
        )]),
    );
    case("read after 1", ended(vec![read(json!({"afterSeq": 1}))]));
    case(
        "read after the last output",
        ended(vec![read(json!({"afterSeq": 2}))]),
    );
    case("read after all", ended(vec![read(json!({"afterSeq": 4}))]));
    case(
        "read far beyond",
        ended(vec![read(json!({"afterSeq": 1000}))]),
    );
    case("read 0 bytes", ended(vec![read(json!({"maxBytes": 0}))]));
    case("read 1 byte", ended(vec![read(json!({"maxBytes": 1}))]));
    case("read 3 bytes", ended(vec![read(json!({"maxBytes": 3}))]));
    case("read 6 bytes", ended(vec![read(json!({"maxBytes": 6}))]));
    case(
        "read 7 bytes after 1",
        ended(vec![read(json!({"afterSeq": 1, "maxBytes": 7}))]),
    );
    case(
        "read a negative seq",
        ended(vec![read(json!({"afterSeq": -1}))]),
    );
    case(
        "read a string seq",
        ended(vec![read(json!({"afterSeq": "1"}))]),
    );
    case("read unknown", vec![read(json!({}))]);
    case(
        "read without an id",
        vec![request("process/read", json!({}))],
    );
    case(
        "read nothing yet",
        vec![start(shell("exec sleep 60")), read(json!({"waitMs": 10}))],
    );

    // Writing, signals and the end.
    let write = |id: &str, chunk: &str| {
        request(
            "process/write",
            json!({"processId": "p", "writeId": id, "chunk": chunk}),
        )
    };
    case("write unknown", vec![write("1", "Cg==")]);
    case(
        "write",
        vec![
            start(shell("read x; printf \"$x\"")),
            write("1", "aGkK"),
            Step::Closed("p"),
        ],
    );
    case(
        "write twice the same",
        vec![
            start(shell("read x; read y; printf \"$x$y\"")),
            write("1", "aGkK"),
            write("1", "aGkK"),
            write("2", "aG8K"),
            Step::Closed("p"),
        ],
    );
    case(
        "write no base64",
        vec![start(shell("exec sleep 60")), write("1", "?")],
    );
    case(
        "write an empty id",
        vec![start(shell("exec sleep 60")), write("", "Cg==")],
    );
    case(
        "write without an id",
        vec![
            start(shell("exec sleep 60")),
            request("process/write", json!({"processId": "p", "chunk": "Cg=="})),
        ],
    );
    case(
        "write without a chunk",
        vec![
            start(shell("exec sleep 60")),
            request("process/write", json!({"processId": "p", "writeId": "1"})),
        ],
    );
    case(
        "write an empty chunk",
        vec![start(shell("exec sleep 60")), write("1", "")],
    );
    case(
        "write without stdin",
        vec![
            start(with(shell("exec sleep 60"), "pipeStdin", json!(false))),
            write("1", "Cg=="),
        ],
    );
    case(
        "write after the end",
        vec![start(shell("true")), Step::Closed("p"), write("1", "Cg==")],
    );
    case(
        "write to a terminal",
        vec![
            start(with(
                shell("stty -echo; printf up; read x; printf \"$x\""),
                "tty",
                json!(true),
            )),
            read(json!({"waitMs": 60000})),
            write("1", "aGkK"),
            Step::Closed("p"),
        ],
    );
    let signal = |name: Value| request("process/signal", json!({"processId": "p", "signal": name}));
    case("signal unknown process", vec![signal(json!("interrupt"))]);
    case(
        "interrupt",
        vec![
            start(shell("exec sleep 60")),
            signal(json!("interrupt")),
            Step::Closed("p"),
        ],
    );
    case(
        "signal after the end",
        vec![
            start(shell("true")),
            Step::Closed("p"),
            signal(json!("interrupt")),
        ],
    );
    case(
        "signal of an unknown name",
        vec![start(shell("exec sleep 60")), signal(json!("nonsense"))],
    );
    case(
        "signal by number",
        vec![start(shell("exec sleep 60")), signal(json!(2))],
    );
    case(
        "signal by a POSIX name",
        vec![start(shell("exec sleep 60")), signal(json!("SIGWINCH"))],
    );
    case(
        "signal without a name",
        vec![request("process/signal", json!({"processId": "p"}))],
    );
    let terminate = || request("process/terminate", json!({"processId": "p"}));
    case(
        "terminate",
        vec![
            start(shell("exec sleep 60")),
            terminate(),
            Step::Closed("p"),
            terminate(),
        ],
    );
    case("terminate unknown", vec![terminate()]);
    case(
        "terminate without an id",
        vec![request("process/terminate", json!({}))],
    );
    case(
        "close stdin",
        vec![
            start(shell("cat")),
            request("process/closeStdin", json!({"processId": "p"})),
        ],
    );
    case(
        "resize",
        vec![request(
            "process/resize",
            json!({"processId": "p", "size": {"rows": 1, "cols": 1}}),
        )],
    );

    // Files.
    let fs = |method: &str, name: &str| request(method, json!({"path": path(name)}));
    case(
        "write and read a file",
        vec![put("a"), fs("fs/readFile", "a"), fs("fs/getMetadata", "a")],
    );
    case("read no file", vec![fs("fs/readFile", "none")]);
    case("read a directory as a file", vec![fs("fs/readFile", "")]);
    case(
        "read a path",
        vec![request("fs/readFile", json!({"path": "/etc/hostname"}))],
    );
    case(
        "read without a path",
        vec![request("fs/readFile", json!({}))],
    );
    case("write to no directory", vec![put("no/where")]);
    case(
        "write no base64 to a file",
        vec![request(
            "fs/writeFile",
            json!({"path": path("b"), "dataBase64": "?"}),
        )],
    );
    case(
        "write without data",
        vec![request("fs/writeFile", json!({"path": path("b")}))],
    );
    case("metadata of nothing", vec![fs("fs/getMetadata", "none")]);
    case("metadata of a directory", vec![fs("fs/getMetadata", "")]);
    case(
        "make and list a directory",
        vec![
            request(
                "fs/createDirectory",
                json!({"path": path("d/e"), "recursive": true}),
            ),
            put("d/f"),
            fs("fs/readDirectory", "d"),
        ],
    );
    case(
        "make a directory twice",
        vec![
            request(
                "fs/createDirectory",
                json!({"path": path("t"), "recursive": false}),
            ),
            request(
                "fs/createDirectory",
                json!({"path": path("t"), "recursive": false}),
            ),
        ],
    );
    case("list a file", vec![put("c"), fs("fs/readDirectory", "c")]);
    case("list nothing", vec![fs("fs/readDirectory", "none")]);
    let remove = |name: &str, recursive: bool, force: bool| {
        request(
            "fs/remove",
            json!({"path": path(name), "recursive": recursive, "force": force}),
        )
    };
    case(
        "remove a file",
        vec![put("r"), remove("r", false, false), fs("fs/readFile", "r")],
    );
    case("remove nothing", vec![remove("none", false, false)]);
    case("remove nothing by force", vec![remove("none", false, true)]);
    case(
        "remove a full directory",
        vec![
            request(
                "fs/createDirectory",
                json!({"path": path("g/h"), "recursive": true}),
            ),
            remove("g", false, false),
            remove("g", true, false),
        ],
    );
    case(
        "copy a file",
        vec![
            put("k"),
            request(
                "fs/copy",
                json!({"sourcePath": path("k"), "destinationPath": path("l"), "recursive": false}),
            ),
            fs("fs/readFile", "l"),
        ],
    );
    case(
        "copy nothing",
        vec![request(
            "fs/copy",
            json!({"sourcePath": path("none"), "destinationPath": path("l"), "recursive": false}),
        )],
    );
    case("canonicalize", vec![fs("fs/canonicalize", "")]);
    case("canonicalize nothing", vec![fs("fs/canonicalize", "none")]);
    case(
        "read a block of nobody",
        vec![request(
            "fs/readBlock",
            json!({"handleId": "x", "offset": 0, "len": 5}),
        )],
    );
    case(
        "close nobody",
        vec![request("fs/close", json!({"handleId": "x"}))],
    );
    case(
        "open nothing",
        vec![request(
            "fs/open",
            json!({"handleId": "x", "path": path("none")}),
        )],
    );
    case(
        "open and close",
        vec![
            put("o"),
            request("fs/open", json!({"handleId": "x", "path": path("o")})),
            request(
                "fs/readBlock",
                json!({"handleId": "x", "offset": 0, "len": 3}),
            ),
            request(
                "fs/readBlock",
                json!({"handleId": "x", "offset": 3, "len": 30}),
            ),
            request("fs/close", json!({"handleId": "x"})),
        ],
    );
    cases
}

/// What is compared of a value.
fn shape(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.clone(), shape(key, value)))
            .collect(),
        Value::Array(items) => items.iter().map(|item| shape(key, item)).collect(),
        Value::Null => Value::Null,
        value if COMPARED.contains(&key) => value.clone(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
    }
}

/// What a server answers to a case: one line for each answer and notification.
async fn answers(case: Case, server: &ExecServer) -> Vec<String> {
    let mut raw = match case.is_greeted {
        true => Raw::greet(&server.url, None).await.0,
        false => Raw::connect(&server.url).await,
    };
    let mut lines = Vec::new();
    for step in case.steps {
        match step {
            Step::Closed(id) => {
                raw.closed(id).await;
                // Whether the end or the last output is seen first is chance; that no seq is missing is not.
                let mut seqs = Vec::new();
                let mut events: Vec<_> = (raw.notifications.drain(..))
                    .map(|mut message| {
                        seqs.push(message["params"]["seq"].take());
                        let method = message["method"].clone();
                        format!("{method} {}", shape("", &message))
                    })
                    .collect();
                events.sort();
                lines.push(format!("{seqs:?}"));
                lines.extend(events);
            }
            Step::Send(text) => {
                raw.send(&text).await;
                let parsed: Option<Value> = serde_json::from_str(&text).ok();
                if parsed.is_some_and(|message| {
                    message.get("method").is_some() && message.get("id").is_none()
                }) {
                    continue;
                }
                let Some(mut answer) = raw.answer().await else {
                    lines.push("disconnected".to_owned());
                    break;
                };
                if case.name != "initialize"
                    && let Some(info) = answer.pointer_mut("/result/environmentInfo")
                {
                    *info = Value::Null;
                }
                let mut line = shape("", &answer).to_string();
                if let Some(message) = answer["error"]["message"].as_str() {
                    line += " ";
                    line += &says(message, server);
                }
                lines.push(line);
            }
        }
    }
    lines
}

/// A text without what differs each time.
fn says(message: &str, server: &ExecServer) -> String {
    if message.starts_with("failed to parse websocket JSON-RPC message") {
        return "failed to parse".to_owned();
    }
    // What a parser says about a value of the wrong type or form.
    const PARSERS: &[&str] = &[
        "invalid type",
        "invalid number",
        "invalid value",
        "unknown variant",
        "unknown signal",
        "Invalid symbol",
        "invalid base64",
    ];
    if PARSERS.iter().any(|words| message.starts_with(words)) {
        return "wrong type or form".to_owned();
    }
    message.replace(server.directory.to_str().unwrap(), "DIRECTORY")
}

#[actix::test]
async fn the_answers_are_those_of_the_release() {
    checked(async {
        let Some(real) = ExecServer::start("0.171.0", "differential").await else {
            return;
        };
        let own = ExecServer::start(EMBEDDED, "differential").await.unwrap();
        let uri = |server: &ExecServer| format!("file://{}", server.directory.display());
        let mut wrong = String::new();
        let mut count = 0;
        for (theirs, ours) in cases(&uri(&real)).into_iter().zip(cases(&uri(&own))) {
            let name = theirs.name;
            let (theirs, ours) = (answers(theirs, &real).await, answers(ours, &own).await);
            let is_intended = INTENDED.iter().any(|(intended, _)| *intended == name);
            if (theirs != ours) != is_intended {
                wrong += &format!("{name}\n  real {theirs:#?}\n  ours {ours:#?}\n");
            }
            count += 1;
        }
        assert!(count >= 80, "{count}");
        for (name, _) in INTENDED {
            assert!(cases("").iter().any(|case| case.name == *name), "no case is called {name}");
        }
        assert!(wrong.is_empty(), "of {count} cases, these differ without being listed, or are listed and do not differ:\n{wrong}");
    })
    .await;
}
