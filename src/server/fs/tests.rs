//! The file methods, request by request.

use std::{
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
        fs::remove_dir_all(&self.0).unwrap();
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
        handle(&self.files, &self.handles, method, &params)
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
                assert_eq!(answer["error"], json!({"code": code, "message": message}), "{request}");
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
    let transcript = include_str!("../../../tests/transcripts/0.169.0-fs-roundtrip.jsonl");
    assert!(replay(transcript) > 30);
}

#[test]
fn paths_in_all_formats_are_answered_as_they_were() {
    let transcript = include_str!("../../../tests/transcripts/0.169.0-path-format.jsonl");
    assert_eq!(replay(transcript), 3);
}
#[test]
fn zz_compare() {
    let Ok(list) = std::env::var("FS_LIST") else { return };
    let peer = Peer::new(std::env::var("FS_ROOT").ok().map(PathBuf::from).as_deref());
    let mut out = String::new();
    for line in fs::read_to_string(list).unwrap().lines() {
        let (method, params): (String, Box<RawValue>) = serde_json::from_str(line).unwrap();
        let r = match handle(&peer.files, &peer.handles, &method, &params) {
            None => "none".to_owned(),
            Some(Ok(t)) => format!("\"result\":{t}"),
            Some(Err(e)) => format!("\"error\":{}", json!({"code": e.code, "message": e.message})),
        };
        out.push_str(line); out.push('\n'); out.push_str(&r); out.push('\n');
    }
    fs::write(std::env::var("FS_OUT").unwrap(), out).unwrap();
}
