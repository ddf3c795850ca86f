//! `execmux cp`: what comes of files and folders, of their permissions, and of what cannot be copied.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    cell::Cell,
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    rc::Rc,
};

use support::{
    between::{Between, Verdict},
    exec_server::ExecServer,
    program::{Directory, Serving, Terminal, execmux, said},
    soon,
};
use tokio::sync::Notify;

type Said = (Option<i32>, String, String);

async fn copy(url: &str, from: &str, to: &str) -> Said {
    let output = execmux(&["cp", "--url", url, from, to]).output();
    said(&soon(output).await.unwrap())
}

fn well() -> Said {
    (Some(0), String::new(), String::new())
}

fn remote(path: impl AsRef<Path>) -> String {
    format!("remote:{}", path.as_ref().display())
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) {
    fs::write(&path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

/// The folder of the server's files, and ours.
fn sides() -> (Directory, Directory) {
    (Directory::new(), Directory::new())
}

/// What is copied to it and from it is the same, and what can be executed still can.
async fn round_trip(url: &str) {
    let (here, there) = sides();
    fs::create_dir_all(here.at("folder/in/it")).unwrap();
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n / 7) as u8).collect();
    write(here.at("folder/large"), &large, 0o644);
    write(here.at("folder/empty"), "", 0o600);
    write(here.at("folder/in/it/run it's"), "#!/bin/sh\n", 0o755);
    let source = here.at("folder");
    assert_eq!(copy(url, &source, &remote(there.at("new"))).await, well());
    assert_eq!(mode(there.at("new/in/it/run it's")), 0o755);
    assert_eq!(mode(there.at("new/empty")), 0o600);
    let back = here.at("back");
    assert_eq!(copy(url, &remote(there.at("new")), &back).await, well());
    assert!(fs::read(here.at("back/large")).unwrap() == large);
    assert_eq!(fs::read(here.at("back/empty")).unwrap(), b"");
    assert_eq!(mode(here.at("back/large")) & 0o111, 0);
    assert_eq!(mode(here.at("back/in/it/run it's")) & 0o500, 0o500);
    for folder in [there.at("new"), here.at("back")] {
        assert_eq!(names(&folder), ["empty", "in", "large"]);
        assert_eq!(names(Path::new(&folder).join("in/it")), ["run it's"]);
    }
    // What is there is replaced, and who may read and write it stays as it was.
    write(here.at("old"), "a longer content than the new one", 0o600);
    let run = remote(there.at("new/in/it/run it's"));
    assert_eq!(copy(url, &run, &here.at("old")).await, well());
    assert_eq!(fs::read(here.at("old")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(mode(here.at("old")), 0o700);
    write(here.at("old"), "new", 0o640);
    let old = remote(there.at("new/in/it/run it's"));
    assert_eq!(copy(url, &here.at("old"), &old).await, well());
    assert_eq!(fs::read(there.at("new/in/it/run it's")).unwrap(), b"new");
    assert_eq!(copy(url, &old, &here.at("old")).await, well());
    assert_eq!(mode(here.at("old")), 0o640);
}

#[actix::test]
async fn real_servers_give_back_what_they_got() {
    for version in ["0.120.0", "0.142.0", "0.171.0"] {
        if let Some(server) = ExecServer::start(version, "copying").await {
            round_trip(&server.url).await;
        }
    }
}

#[actix::test]
async fn a_server_that_only_knows_a_root_gives_back_what_it_got() {
    round_trip(&Serving::start(&[]).await.url).await;
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).to_str().unwrap();
    round_trip(&Serving::start(&["--root", root]).await.url).await;
}

#[actix::test]
async fn what_an_old_server_cannot_take_is_said() {
    let Some(server) = ExecServer::start("0.120.0", "copying_large").await else {
        return;
    };
    let (here, there) = sides();
    let large = fs::File::create(here.at("large")).unwrap();
    large.set_len(60_000_000).unwrap();
    let (code, stdout, stderr) =
        copy(&server.url, &here.at("large"), &remote(there.at("large"))).await;
    assert_eq!((code, &*stdout), (Some(125), ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    // And so many more as its path is long.
    assert!(stderr.contains("the message has 80000"), "{stderr}");
    assert!(names(&there.0).is_empty());
    // The other way it can.
    let source = remote(here.at("large"));
    assert_eq!(copy(&server.url, &source, &there.at("large")).await, well());
    assert_eq!(fs::metadata(there.at("large")).unwrap().len(), 60_000_000);
}

/// Each failure is one line that names what it is about, and leaves all as it was.
async fn refusals(url: &str) {
    let (here, there) = sides();
    for side in [&here, &there] {
        write(side.at("file"), "old", 0o644);
        fs::create_dir_all(side.at("folder/file")).unwrap();
        write(side.at("folder/file/kept"), "old", 0o644);
        // A folder whose `file` is a file, to be copied over one whose `file` is a folder.
        fs::create_dir_all(side.at("another/folder")).unwrap();
        write(side.at("another/folder/file"), "new", 0o644);
        let made = std::process::Command::new("mkfifo")
            .arg(side.at("fifo"))
            .status();
        assert!(made.unwrap().success());
    }
    let long = "x".repeat(300);
    for (from, to, problem) in [
        ("missing", "new", "missing"),
        ("file", "no/folder", "No such file or directory"),
        ("file", "no/", "there is no folder"),
        ("file", "file/new", "Not a directory"),
        ("file", &long, "too long"),
        ("folder", "file", "is not a folder"),
        ("file", "fifo", "is neither file nor folder"),
        ("another/folder", ".", "file is no file"),
    ] {
        for (from, to) in [
            (here.at(from), remote(there.at(to))),
            (remote(there.at(from)), here.at(to)),
        ] {
            let (code, stdout, stderr) = copy(url, &from, &to).await;
            assert_eq!((code, &*stdout), (Some(125), ""), "{from} {to}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{from} {to}: {stderr}");
            assert!(stderr.contains(problem), "{from} {to}: {stderr}");
        }
    }
    for side in [&here, &there] {
        let all = ["another", "fifo", "file", "folder"];
        assert_eq!(names(&side.0), all);
        assert_eq!(names(side.at("folder")), ["file"]);
        assert_eq!(names(side.at("folder/file")), ["kept"]);
        assert_eq!(fs::read(side.at("file")).unwrap(), b"old");
        assert!(fs::metadata(side.at("fifo")).unwrap().file_type().is_fifo());
    }
}

#[actix::test]
async fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    for version in ["0.120.0", "0.171.0"] {
        if let Some(server) = ExecServer::start(version, "copying_refused").await {
            refusals(&server.url).await;
        }
    }
    refusals(&Serving::start(&[]).await.url).await;
}

/// A server on which no command starts, and how it answers when it is to copy a file.
async fn without_commands(
    url: &str,
    mut copying: impl FnMut(&Path) -> Verdict + 'static,
) -> Between {
    Between::start(url, move |request| match request["method"].as_str() {
        Some("process/start") => Verdict::Reject(-32603, "no commands here"),
        Some("fs/copy") => {
            let to = request["params"]["destinationPath"].as_str().unwrap();
            copying(Path::new(to.trim_start_matches("file://")))
        }
        _ => Verdict::Forward,
    })
    .await
}

#[actix::test]
async fn without_commands_the_server_copies_a_file_into_place() {
    let serving = Serving::start(&[]).await;
    let (here, there) = sides();
    write(here.at("file"), "new", 0o755);
    write(there.at("old"), "old and longer", 0o600);
    let server = without_commands(&serving.url, |_| Verdict::Forward).await;
    for name in ["old", "new"] {
        let to = remote(there.at(name));
        assert_eq!(copy(&server.url, &here.at("file"), &to).await, well());
        assert_eq!(fs::read(there.at(name)).unwrap(), b"new");
    }
    assert_eq!(names(&there.0), ["new", "old"]);
    // Whether it can be executed, nobody tells.
    let back = here.at("back");
    assert_eq!(
        copy(&server.url, &remote(there.at("new")), &back).await,
        well()
    );
    assert_eq!(mode(&back) & 0o111, 0);
}

#[actix::test]
async fn what_a_server_does_not_begin_to_replace_stays() {
    let serving = Serving::start(&[]).await;
    let (here, there) = sides();
    write(here.at("file"), "new", 0o755);
    write(there.at("old"), "old", 0o600);
    let refuses = |_: &Path| Verdict::Reject(-32600, "not now");
    let server = without_commands(&serving.url, refuses).await;
    for name in ["old", "new"] {
        let (code, _, stderr) = copy(&server.url, &here.at("file"), &remote(there.at(name))).await;
        assert_eq!(code, Some(125), "{stderr}");
        assert!(stderr.contains("cannot put it in place"), "{stderr}");
        assert!(stderr.contains("not now"), "{stderr}");
    }
    assert_eq!(names(&there.0), ["old"]);
    assert_eq!(fs::read(there.at("old")).unwrap(), b"old");
}

#[actix::test]
async fn what_a_server_has_half_replaced_is_removed() {
    let serving = Serving::start(&[]).await;
    let (here, there) = sides();
    write(here.at("file"), "new", 0o755);
    write(there.at("old"), "old", 0o600);
    let runs_full = |to: &Path| {
        fs::write(to, "n").unwrap();
        Verdict::Reject(-32603, "No space left on device")
    };
    let server = without_commands(&serving.url, runs_full).await;
    for name in ["old", "new"] {
        let (code, _, stderr) = copy(&server.url, &here.at("file"), &remote(there.at(name))).await;
        assert_eq!(code, Some(125), "{stderr}");
        assert!(stderr.contains("No space left"), "{stderr}");
    }
    assert!(names(&there.0).is_empty());
}

/// The path that a request is about, as a request names it, that only has one.
fn path(request: &serde_json::Value) -> Option<&str> {
    let path = request["params"]["path"].as_str()?;
    Some(path.trim_start_matches("file://"))
}

#[actix::test]
async fn what_cannot_be_looked_at_is_not_replaced() {
    let serving = Serving::start(&[]).await;
    let (here, there) = sides();
    write(here.at("file"), "new", 0o644);
    write(there.at("old"), "old", 0o644);
    let old = there.at("old");
    let mut is_placed = false;
    let server = Between::start(&serving.url, move |request| {
        match request["method"].as_str() {
            Some("process/start") => {
                is_placed = true;
                Verdict::Reject(-32603, "no commands here")
            }
            Some("fs/getMetadata") if is_placed && path(request) == Some(&old) => {
                Verdict::Reject(-32603, "the disk is tired")
            }
            // It would be half-written then.
            Some("fs/copy") => {
                fs::write(&old, "n").unwrap();
                Verdict::Reject(-32603, "No space left on device")
            }
            _ => Verdict::Forward,
        }
    })
    .await;
    let to = remote(there.at("old"));
    let (code, _, stderr) = copy(&server.url, &here.at("file"), &to).await;
    assert_eq!(code, Some(125), "{stderr}");
    assert!(stderr.contains("cannot look at its place"), "{stderr}");
    assert!(stderr.contains("the disk is tired"), "{stderr}");
    assert_eq!(names(&there.0), ["old"]);
    assert_eq!(fs::read(there.at("old")).unwrap(), b"old");
}

#[actix::test]
async fn what_is_in_place_without_an_answer_is_no_failure() {
    let serving = Serving::start(&[]).await;
    let (here, there) = sides();
    write(here.at("file"), "new", 0o644);
    write(there.at("old"), "old", 0o644);
    let mut first = None;
    let server = Between::start(&serving.url, move |request| {
        match request["method"].as_str() {
            Some("process/start") => {
                let params = &request["params"];
                let id = params["processId"].as_str().unwrap().to_owned();
                if first.get_or_insert_with(|| id.clone()) != &id {
                    return Verdict::Forward;
                }
                // The command has run, and nobody will ever know.
                let argv = params["argv"].as_array().unwrap();
                let [.., from, to] = &argv[..] else {
                    panic!("{argv:?}")
                };
                let _moved = fs::rename(from.as_str().unwrap(), to.as_str().unwrap());
                Verdict::Cut
            }
            _ => Verdict::Forward,
        }
    })
    .await;
    let to = remote(there.at("old"));
    let (code, _, stderr) = copy(&server.url, &here.at("file"), &to).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(names(&there.0), ["old"]);
    assert_eq!(fs::read(there.at("old")).unwrap(), b"new");
}

#[actix::test]
async fn a_copy_that_is_not_whole_is_said() {
    let serving = Serving::start(&[]).await;
    let (here, there) = sides();
    write(here.at("file"), "new", 0o644);
    let new = there.at("new");
    let mut is_copied = false;
    let server = Between::start(&serving.url, move |request| {
        match request["method"].as_str() {
            Some("process/start") => return Verdict::Reject(-32603, "no commands here"),
            Some("fs/copy") => is_copied = true,
            Some("fs/getMetadata") if is_copied && path(request) == Some(&new) => {
                fs::write(&new, "n").unwrap();
            }
            _ => {}
        }
        Verdict::Forward
    })
    .await;
    let to = remote(there.at("new"));
    let (code, _, stderr) = copy(&server.url, &here.at("file"), &to).await;
    assert_eq!(code, Some(125), "{stderr}");
    assert!(
        stderr.contains("3 bytes were copied, but at its place are 1"),
        "{stderr}"
    );
}

const MIB: usize = 1 << 20;

fn is_block(request: &serde_json::Value) -> bool {
    matches!(
        request["method"].as_str(),
        Some("fs/readBlock" | "fs/writeBlock")
    )
}

/// The crate's own server and a real one, as far as it is installed.
async fn servers(test: &str) -> (Serving, Option<ExecServer>, Vec<String>) {
    let serving = Serving::start(&[]).await;
    let real = ExecServer::start("0.171.0", test).await;
    let urls = [
        Some(serving.url.clone()),
        real.as_ref().map(|it| it.url.clone()),
    ];
    (serving, real, urls.into_iter().flatten().collect())
}

/// A file of twelve blocks on each side, and one to replace.
fn large_files() -> (Directory, Directory, Vec<u8>) {
    let (here, there) = sides();
    let large: Vec<u8> = (0..12 * MIB - 5).map(|n| (n / 7) as u8).collect();
    for side in [&here, &there] {
        write(side.at("large"), &large, 0o644);
        write(side.at("old"), "old", 0o644);
    }
    (here, there, large)
}

fn both_ways(here: &Directory, there: &Directory, to: &str) -> [(String, String); 2] {
    [
        (here.at("large"), remote(there.at(to))),
        (remote(there.at("large")), here.at(to)),
    ]
}

fn check_unchanged(side: &Directory) {
    assert_eq!(names(&side.0), ["large", "old"]);
    assert_eq!(fs::read(side.at("old")).unwrap(), b"old");
}

#[actix::test]
async fn a_file_is_begun_again_when_the_connection_is_lost_and_resumed() {
    let (_serving, _real, urls) = servers("copying_resumed").await;
    for url in urls {
        let (here, there, large) = large_files();
        for (from, to) in both_ways(&here, &there, "new") {
            let mut blocks = 0;
            let between = Between::start(&url, move |request| {
                blocks += usize::from(is_block(request));
                match is_block(request) && blocks == 10 {
                    true => Verdict::Cut,
                    false => Verdict::Forward,
                }
            })
            .await;
            let (code, stdout, stderr) = copy(&between.url, &from, &to).await;
            assert_eq!((code, &*stdout), (Some(0), ""), "{stderr}");
            assert!(stderr.contains("the connection is resumed"), "{stderr}");
        }
        for side in [&here, &there] {
            assert_eq!(names(&side.0), ["large", "new", "old"]);
            assert!(fs::read(side.at("new")).unwrap() == large);
        }
    }
}

#[actix::test]
async fn a_file_is_given_up_when_the_connection_is_lost_again_and_again() {
    let (_serving, _real, urls) = servers("copying_again").await;
    for url in urls {
        let (here, there, _) = large_files();
        for name in ["new", "old"] {
            for (from, to) in both_ways(&here, &there, name) {
                let mut blocks = 0;
                let between = Between::start(&url, move |request| {
                    blocks += usize::from(is_block(request));
                    match is_block(request) && blocks.is_multiple_of(10) {
                        true => Verdict::Cut,
                        false => Verdict::Forward,
                    }
                })
                .await;
                let (code, _, stderr) = copy(&between.url, &from, &to).await;
                assert_eq!(code, Some(125), "{stderr}");
                let last = stderr.lines().last().unwrap();
                assert!(last.starts_with("execmux: cannot copy "), "{stderr}");
                check_unchanged(&here);
                check_unchanged(&there);
            }
        }
    }
}

#[actix::test]
async fn a_connection_that_is_lost_for_good_leaves_nothing_under_the_final_name() {
    let serving = Serving::start(&[]).await;
    let (here, there, _) = large_files();
    for (from, to) in both_ways(&here, &there, "old") {
        let mut blocks = 0;
        let between = Between::start(&serving.url, move |request| {
            blocks += usize::from(is_block(request));
            match blocks >= 10 {
                true => Verdict::Cut,
                false => Verdict::Forward,
            }
        })
        .await;
        let url = &between.url;
        let arguments = ["cp", "--url", url, "--resume-timeout", "1", &from, &to];
        let output = soon(execmux(&arguments).output()).await.unwrap();
        let (code, _, stderr) = said(&output);
        assert_eq!(code, Some(125), "{stderr}");
        assert!(stderr.contains("the connection is gone"), "{stderr}");
        check_unchanged(&here);
        // What cannot be removed there is named.
        let left: Vec<_> = names(&there.0)
            .into_iter()
            .filter(|name| name.ends_with(".part"))
            .collect();
        for name in &left {
            assert!(stderr.contains(name), "{name} is not in {stderr}");
            fs::remove_file(there.at(name)).unwrap();
        }
        check_unchanged(&there);
    }
}

#[actix::test]
async fn ctrl_c_removes_what_is_not_finished() {
    let (_serving, _real, urls) = servers("copying_ctrl_c").await;
    for url in urls {
        let (here, there, _) = large_files();
        for (from, to) in both_ways(&here, &there, "old") {
            let is_stuck = Rc::new(Notify::new());
            let blocks = Rc::new(Cell::new(0));
            let between = Between::start(&url, {
                let (is_stuck, blocks) = (is_stuck.clone(), blocks.clone());
                move |request| {
                    if !is_block(request) {
                        return Verdict::Forward;
                    }
                    blocks.set(blocks.get() + 1);
                    if blocks.get() < 6 {
                        return Verdict::Forward;
                    }
                    is_stuck.notify_one();
                    Verdict::Swallow
                }
            })
            .await;
            let arguments = ["cp", "--url", &between.url, &from, &to];
            let mut terminal = Terminal::start(&arguments, (24, 80));
            soon(is_stuck.notified()).await;
            let half = [&here, &there].map(|side| names(&side.0).len());
            assert_eq!(half.iter().sum::<usize>(), 5, "a temporary is there");
            terminal.press("\x03").await;
            assert_eq!(terminal.end().await, Some(130));
            check_unchanged(&here);
            check_unchanged(&there);
        }
    }
}
