//! The file methods, request by request.

mod root;

use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use super::*;

/// A directory of its own, removed with all that is in it.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("execmux-fs-{}-{number}", std::process::id());
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    fn uri(&self, path: &str) -> String {
        format!("file://{}/{path}", self.0.display())
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.0);
        // A second panic would hide the first.
        assert!(std::thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

struct Peer {
    files: Files,
    handles: Handles,
}

impl Peer {
    fn new(root: Option<&Path>) -> Self {
        Peer {
            files: Files::new(root.map(Path::to_owned)).unwrap(),
            handles: Handles::default(),
        }
    }

    fn ask(&self, method: &str, params: &Value) -> Result<Value, (i64, String)> {
        let params = RawValue::from_string(params.to_string()).unwrap();
        let memory = Memory::new(usize::MAX);
        handle(&self.files, &self.handles, &memory, method, &params)
            .unwrap()
            .map(|json| serde_json::from_str(&json).unwrap())
            .map_err(|error| (error.code, error.message))
    }

    fn code(&self, method: &str, params: Value) -> i64 {
        self.ask(method, &params).unwrap_err().0
    }

    fn text(&self, method: &str, params: Value) -> String {
        self.ask(method, &params).unwrap_err().1
    }
}

/// Answers the file requests of a recording and compares with what was recorded.
fn replay(transcript: &str) -> usize {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    let here = directory.0.to_str().unwrap();
    fs::create_dir_all(directory.0.join("fs/a")).unwrap();
    symlink("f.txt", directory.0.join("fs/a/link")).unwrap();
    let text = transcript.replace("/tmp/demo", here);
    let frames: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["frame"].take())
        .collect();
    let mut compared = 0;
    for request in &frames {
        let method = request["method"].as_str().unwrap_or_default();
        if !method.starts_with("fs/") || method.contains("Missing") || method.contains("missing") {
            continue;
        }
        let answer = frames
            .iter()
            .find(|frame| frame["id"] == request["id"] && frame.get("method").is_none())
            .unwrap();
        let given = peer.ask(method, &request["params"]);
        match given {
            Err((code, message)) => {
                assert_eq!(
                    answer["error"],
                    json!({"code": code, "message": message}),
                    "{request}"
                );
            }
            Ok(mut result) => {
                let mut expected = answer["result"].clone();
                for value in [&mut result, &mut expected] {
                    if value["modifiedAtMs"].take().is_number() && value["isDirectory"] == true {
                        value["size"].take();
                    }
                    if method == "fs/readDirectory"
                        && let Some(entries) = value["entries"].as_array_mut()
                    {
                        entries.sort_by_key(|entry| entry["fileName"].to_string());
                    }
                }
                assert_eq!(result, expected, "{request}");
            }
        }
        compared += 1;
    }
    compared
}

#[test]
fn a_recorded_round_trip_is_answered_as_it_was() {
    let transcript = include_str!("../../../tests/transcripts/0.171.0-fs-roundtrip.jsonl");
    assert!(replay(transcript) > 30);
}

#[test]
fn paths_in_all_formats_are_answered_as_they_were() {
    let transcript = include_str!("../../../tests/transcripts/0.171.0-path-format.jsonl");
    assert_eq!(replay(transcript), 3);
}

#[test]
fn errors_have_the_code_of_their_row() {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    fs::write(directory.0.join("f"), "hello").unwrap();
    fs::create_dir_all(directory.0.join("d/e")).unwrap();
    let at = |path: &str| json!({"path": directory.uri(path)});
    assert_eq!(peer.code("fs/readFile", at("no")), -32004);
    assert_eq!(peer.code("fs/readFile", at("f/x")), -32603);
    assert_eq!(peer.code("fs/readFile", at("d")), -32600);
    assert_eq!(peer.code("fs/readDirectory", at("f")), -32603);
    assert_eq!(peer.code("fs/createDirectory", at("f")), -32603);
    assert_eq!(peer.code("fs/canonicalize", at("no")), -32004);
    assert_eq!(
        peer.code(
            "fs/remove",
            json!({"path": directory.uri("d"), "recursive": false})
        ),
        -32603
    );
    assert_eq!(
        peer.code(
            "fs/remove",
            json!({"path": directory.uri("no"), "force": false})
        ),
        -32004
    );
    assert_eq!(peer.code("fs/getMetadata", json!({"path": 7})), -32602);
    assert_eq!(
        peer.code(
            "fs/getMetadata",
            json!({"path": directory.uri("f"), "sandbox": {}})
        ),
        -32600
    );
    let copy = json!({"sourcePath": directory.uri("d"), "destinationPath": directory.uri("d/e/x"), "recursive": true});
    assert_eq!(
        peer.text("fs/copy", copy),
        "fs/copy cannot copy a directory to itself or one of its descendants"
    );
    let copy = json!({"sourcePath": directory.uri("f"), "destinationPath": directory.uri("f")});
    assert_eq!(peer.text("fs/copy", copy), "missing field `recursive`");
}

#[test]
fn a_copy_of_a_file_onto_itself_leaves_it_as_it_is() {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    fs::write(directory.0.join("f"), "hello").unwrap();
    let copy = json!({"sourcePath": directory.uri("f"), "destinationPath": directory.uri("f"), "recursive": false});
    assert_eq!(peer.ask("fs/copy", &copy).unwrap(), json!({}));
    assert_eq!(fs::read(directory.0.join("f")).unwrap(), b"hello");
}

#[test]
fn what_is_no_path_of_this_system_is_refused() {
    let peer = Peer::new(None);
    for (path, code, message) in [
        ("/x", -32602, "invalid URI: relative URL without a base"),
        ("http://x/y", -32602, "unsupported path URI scheme `http`"),
        (
            "file:///x?y",
            -32602,
            "query parameters are not allowed in path URIs",
        ),
        (
            "file:///x#y",
            -32602,
            "fragments are not allowed in path URIs",
        ),
        (
            "file:///x%00",
            -32602,
            "'file:///x%00' is invalid on 'linux'",
        ),
        (
            "file://other/x",
            -32600,
            "'file://other/x' is invalid on 'linux'",
        ),
        (
            "file:///C:/x",
            -32600,
            "'file:///C:/x' is invalid on 'linux'",
        ),
    ] {
        let message = message.replace("linux", std::env::consts::OS);
        let error = peer
            .ask("fs/getMetadata", &json!({"path": path}))
            .unwrap_err();
        assert_eq!(error, (code, message), "{path}");
    }
}

#[test]
fn paths_are_decoded_and_lose_their_dots() {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    fs::create_dir(directory.0.join("d")).unwrap();
    fs::write(directory.0.join("a b"), "").unwrap();
    let expected = json!({"path": directory.uri("a%20b")});
    for path in [
        "a%20b",
        "a b",
        "no/../a%20b",
        "d%2f..%2Fa%20b",
        "./%2e/a%20b",
    ] {
        let answer = peer.ask("fs/canonicalize", &json!({"path": directory.uri(path)}));
        assert_eq!(answer.unwrap(), expected, "{path}");
    }
    let local = directory
        .uri("a%20b")
        .replace("file://", "file://LOCALHOST");
    assert_eq!(
        peer.ask("fs/canonicalize", &json!({"path": local}))
            .unwrap(),
        expected
    );
}

#[test]
fn links_are_not_followed_if_so_asked() {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    fs::create_dir(directory.0.join("d")).unwrap();
    symlink("d", directory.0.join("l")).unwrap();
    let at = |path: &str| json!({"path": directory.uri(path), "followSymlinks": false, "recursive": false, "dataBase64": ""});
    assert_eq!(
        peer.text("fs/getMetadata", at("l")),
        "path contains a symbolic link"
    );
    assert_eq!(
        peer.text("fs/remove", at("l")),
        "path contains a symbolic link"
    );
    for method in [
        "fs/getMetadata",
        "fs/readFile",
        "fs/writeFile",
        "fs/createDirectory",
        "fs/remove",
    ] {
        assert_eq!(peer.code(method, at("l/x")), -32603, "{method}");
    }
    assert_eq!(peer.ask("fs/writeFile", &at("d/x")).unwrap(), json!({}));
    assert_eq!(peer.ask("fs/remove", &at("d/x")).unwrap(), json!({}));
}

#[test]
fn nothing_leads_out_of_the_root() {
    let directory = TempDir::new();
    let root = directory.0.join("root");
    fs::create_dir(&root).unwrap();
    fs::write(directory.0.join("secret"), "x").unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink("../secret", root.join("link")).unwrap();
    symlink(directory.0.join("new"), root.join("dangling")).unwrap();
    symlink("self", root.join("self")).unwrap();
    let peer = Peer::new(Some(&root));
    for path in [
        "secret",
        "root/../secret",
        "root/up/secret",
        "root/link",
        "root/dangling",
        "root/up/no",
        "no",
    ] {
        let uri = directory.uri(path);
        let at = json!({"path": uri, "dataBase64": "", "handleId": "h", "mode": "replace", "options":
            {"maxDepth": 1, "maxDirectories": 1, "maxEntries": 1, "followDirectorySymlinks": true}});
        for method in [
            "fs/readFile",
            "fs/writeFile",
            "fs/getMetadata",
            "fs/readDirectory",
            "fs/createDirectory",
            "fs/canonicalize",
            "fs/open",
            "fs/walk",
        ] {
            assert_eq!(peer.code(method, at.clone()), -32600, "{method} {path}");
        }
        let copy = json!({"sourcePath": directory.uri("root/f"), "destinationPath": uri, "recursive": true});
        fs::write(root.join("f"), "f").unwrap();
        assert_eq!(peer.code("fs/copy", copy), -32600, "{path}");
    }
    assert_eq!(
        peer.code(
            "fs/remove",
            json!({"path": directory.uri("root/up/secret")})
        ),
        -32600
    );
    assert_eq!(
        peer.code("fs/remove", json!({"path": directory.uri("root")})),
        -32600
    );
    assert_eq!(
        peer.code("fs/readFile", json!({"path": directory.uri("root/self")})),
        -32603
    );
    assert_eq!(
        peer.ask("fs/remove", &json!({"path": directory.uri("root/up")}))
            .unwrap(),
        json!({})
    );
    assert!(!directory.0.join("new").exists());
    assert_eq!(fs::read(directory.0.join("secret")).unwrap(), b"x");
    let listing = peer
        .ask("fs/readDirectory", &json!({"path": directory.uri("root")}))
        .unwrap();
    assert_eq!(listing["entries"].as_array().unwrap().len(), 1, "{listing}");
}

#[test]
fn handles_are_bounded_and_close_after_a_read_that_failed() {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    fs::write(directory.0.join("f"), "hello").unwrap();
    let open =
        |id: &str, mode: &str| json!({"handleId": id, "path": directory.uri("f"), "mode": mode});
    for id in 0..128 {
        peer.ask("fs/open", &open(&id.to_string(), "read")).unwrap();
    }
    assert_eq!(
        peer.text("fs/open", open("0", "read")),
        "file handle `0` already exists"
    );
    let text = peer.text("fs/open", open("128", "read"));
    assert_eq!(text, "at most 128 file handles may be open per connection");
    peer.ask("fs/close", &json!({"handleId": "0"})).unwrap();
    peer.ask("fs/open", &open("w", "replace")).unwrap();
    let read = json!({"handleId": "w", "offset": 0, "len": 1});
    assert_eq!(peer.code("fs/readBlock", read.clone()), -32603);
    assert_eq!(peer.code("fs/readBlock", read), -32004);
    let write = json!({"handleId": "1", "offset": i64::MAX, "chunk": "YQ=="});
    assert_eq!(peer.code("fs/writeBlock", write), -32600);
    assert_eq!(
        peer.text("fs/open", open(&"x".repeat(33), "read")),
        "file handle ID must not exceed 32 bytes"
    );
}

#[test]
fn files_of_every_size_around_a_piece_are_read_whole() {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    let piece = 3 << 14;
    for size in [0, 1, piece - 1, piece, piece + 1, 2 * piece, 2 * piece + 2] {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        fs::write(directory.0.join("f"), &content).unwrap();
        let read = peer
            .ask("fs/readFile", &json!({"path": directory.uri("f")}))
            .unwrap();
        let text = read["dataBase64"].as_str().unwrap();
        assert!(
            base64::decode(text.as_bytes()).unwrap() == content,
            "{size}"
        );
    }
    let large = File::create(directory.0.join("large")).unwrap();
    large.set_len((512 << 20) + 1).unwrap();
    assert_eq!(
        peer.text("fs/readFile", json!({"path": directory.uri("large")})),
        "file is too large to read: limit is 536870912 bytes"
    );
}

#[test]
fn the_defect_of_base64_is_named() {
    for (text, defect) in [
        ("***", "Invalid symbol 42, offset 0."),
        ("aGk", "Invalid padding"),
        ("aGk==", "Invalid symbol 61, offset 3."),
        ("a", "Invalid input length: 1"),
        ("aGl=", "Invalid last symbol 108, offset 2."),
        ("aGk=\n", "Invalid symbol 10, offset 4."),
        ("QQ=Q", "Invalid symbol 61, offset 2."),
    ] {
        assert_eq!(content::defect(text.as_bytes()), defect, "{text}");
    }
}

#[test]
fn a_walk_ends_at_its_limits_and_goes_no_circles() {
    let directory = TempDir::new();
    let peer = Peer::new(None);
    fs::create_dir_all(directory.0.join("a/b")).unwrap();
    fs::create_dir_all(directory.0.join(".h/i")).unwrap();
    symlink("..", directory.0.join("a/up")).unwrap();
    let walk = |depth: u32, directories: u32, entries: u32, follow: bool| {
        let options = json!({"maxDepth": depth, "maxDirectories": directories, "maxEntries": entries,
            "followDirectorySymlinks": follow, "pruneHiddenDirectories": true});
        let tree = peer.ask(
            "fs/walk",
            &json!({"path": directory.uri(""), "options": options}),
        );
        let tree = tree.unwrap();
        (
            tree["entries"].as_array().unwrap().len(),
            tree["truncated"] == true,
        )
    };
    assert_eq!(walk(8, 100, 100, false), (3, false));
    assert_eq!(walk(8, 100, 100, true), (4, false));
    assert_eq!(walk(0, 100, 100, true), (2, false));
    assert_eq!(walk(8, 1, 100, true), (2, true));
    assert_eq!(walk(8, 100, 1, true), (1, true));
}
