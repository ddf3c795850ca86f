//! `execmux cp`: what comes of files and folders, of their permissions, and of what cannot be copied.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

use support::{
    between::{Between, Verdict},
    exec_server::ExecServer,
    program::{Directory, Serving, execmux, said},
    soon,
};

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
    for version in ["0.120.0", "0.142.0", "0.169.0"] {
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
    assert!(
        stderr.contains("the message has 80000148 bytes"),
        "{stderr}"
    );
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
    for version in ["0.120.0", "0.169.0"] {
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
