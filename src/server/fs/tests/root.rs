//! P17: under a root, no file operation reads or changes anything outside of it.
//!
//! `EXECMUX_OPERATIONS=n` makes the random test carry out so many operations, `EXECMUX_SEED=n` repeats a run of it, but for what
//! the other thread does meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::fs::{AtFlags, mkdirat, openat, symlinkat, unlinkat};

use super::*;
use crate::seeds::{self, Random};

/// A directory that is the root of a server, beside one that is outside of it.
struct Place {
    directory: TempDir,
    peer: Peer,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new();
        let root = directory.0.join("root");
        fs::create_dir(&root).unwrap();
        fs::create_dir_all(directory.0.join("outside/deep")).unwrap();
        fs::write(directory.0.join("outside/secret"), SECRET).unwrap();
        fs::write(directory.0.join("outside/deep/only-outside"), SECRET).unwrap();
        let peer = Peer::new(Some(&root));
        Place { directory, peer }
    }

    /// Returns a path below the root.
    fn at(&self, path: &str) -> PathBuf {
        self.directory.0.join("root").join(path)
    }

    fn uri(&self, path: &str) -> String {
        self.directory.uri(&format!("root/{path}"))
    }

    fn copy(&self, from: &str, to: &str) -> Result<Value, (i64, String)> {
        let params = json!({"sourcePath": self.uri(from), "destinationPath": self.uri(to), "recursive": true});
        self.peer.ask("fs/copy", &params)
    }

    /// Describes everything outside of the root: contents, kinds, permissions and times.
    fn outside(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.directory.0.join("outside")];
        while let Some(path) = left.pop() {
            let metadata = path.symlink_metadata().unwrap();
            let content = match metadata.is_file() {
                true => String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned(),
                false => String::new(),
            };
            if metadata.is_dir() {
                left.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            }
            let modified = metadata.modified().unwrap();
            let described = format!("{:?} {modified:?} {content}", metadata.permissions());
            found.insert(path, described);
        }
        found
    }
}

/// The content of every file outside of the root. No answer may hold it, or its length.
const SECRET: &str = "a secret that no client of the server may ever get to see, or the size of it";

const LEADS_OUT: &str = "path leads out of the root of this server";

fn refused(answer: Result<Value, (i64, String)>) {
    let (code, message) = answer.unwrap_err();
    assert_eq!((code, message.as_str()), (-32600, LEADS_OUT));
}

#[test]
fn p17_a_copy_does_not_write_into_a_linked_folder_outside() {
    let place = Place::new();
    symlink("../outside", place.at("out")).unwrap();
    fs::create_dir_all(place.at("evil/out")).unwrap();
    fs::write(place.at("evil/out/PWNED"), "x").unwrap();
    let before = place.outside();
    refused(place.copy("evil", ""));
    assert_eq!(place.outside(), before);
}

#[test]
fn p17_a_copy_does_not_write_through_a_linked_file_outside() {
    let place = Place::new();
    let before = place.outside();
    for (link, target) in [
        ("file", "../outside/secret"),
        ("dangling", "../outside/new"),
    ] {
        symlink(target, place.at(link)).unwrap();
        fs::write(place.at("f"), "x").unwrap();
        refused(place.copy("f", link));
        fs::create_dir_all(place.at("evil")).unwrap();
        fs::write(place.at("evil").join(link), "x").unwrap();
        refused(place.copy("evil", ""));
        fs::remove_dir_all(place.at("evil")).unwrap();
    }
    assert_eq!(place.outside(), before);
}

#[test]
fn p17_a_copied_link_is_refused_where_it_would_lead_out() {
    let place = Place::new();
    fs::create_dir_all(place.at("a/b/c")).unwrap();
    symlink("../..", place.at("a/b/up")).unwrap();
    symlink("missing/../../../..", place.at("a/b/c/later")).unwrap();
    symlink(place.directory.0.join("outside"), place.at("absolute")).unwrap();
    symlink(place.at("a"), place.at("inner")).unwrap();
    refused(place.copy("a/b/up", "up"));
    refused(place.copy("a/b", "b"));
    refused(place.copy("a/b/c/later", "later"));
    refused(place.copy("absolute", "absolute2"));
    for name in ["up", "b/up", "later", "absolute2"] {
        assert!(place.at(name).symlink_metadata().is_err(), "{name}");
    }
    // Links that stay below the root are copied as they are, relative or not.
    place.copy("a/b/up", "a/b/up2").unwrap();
    place.copy("inner", "inner2").unwrap();
    assert_eq!(place.at("a/b/up2").read_link().unwrap(), Path::new("../.."));
    assert_eq!(place.at("inner2").read_link().unwrap(), place.at("a"));
}

#[test]
fn p17_an_absolute_link_is_followed_where_it_stays_below_the_root() {
    let place = Place::new();
    fs::create_dir_all(place.at("releases/1")).unwrap();
    fs::write(place.at("releases/1/f"), "hello").unwrap();
    symlink(place.at("releases/1"), place.at("current")).unwrap();
    let read = json!({"path": place.uri("current/f")});
    let content = place.peer.ask("fs/readFile", &read).unwrap();
    assert_eq!(content, json!({"dataBase64": "aGVsbG8="}));
    let write = json!({"path": place.uri("current/g"), "dataBase64": "aGVsbG8="});
    place.peer.ask("fs/writeFile", &write).unwrap();
    assert_eq!(fs::read(place.at("releases/1/g")).unwrap(), b"hello");
    let listing = place
        .peer
        .ask("fs/readDirectory", &json!({"path": place.uri("current")}));
    assert_eq!(listing.unwrap()["entries"].as_array().unwrap().len(), 2);
    let asked = json!({"path": place.uri("current")});
    let canonical = place.peer.ask("fs/canonicalize", &asked).unwrap();
    assert_eq!(canonical, json!({"path": place.uri("releases/1")}));
    // A link is removed, and not the folder behind it.
    place.peer.ask("fs/remove", &asked).unwrap();
    assert!(place.at("releases/1/f").exists());
}

#[test]
fn p17_a_root_that_is_itself_given_through_a_link_is_found_by_both_names() {
    let place = Place::new();
    let alias = place.directory.0.join("alias");
    symlink("root", &alias).unwrap();
    fs::write(place.at("f"), "x").unwrap();
    let peer = Peer::new(Some(&alias));
    for path in ["alias/f", "root/f"] {
        let asked = json!({"path": place.directory.uri(path)});
        let found = peer.ask("fs/canonicalize", &asked).unwrap();
        assert_eq!(found, json!({"path": place.uri("f")}), "{path}");
    }
}

fn encoded(text: &str) -> String {
    let mut json = Vec::new();
    base64::append_json(text.as_bytes(), &mut json);
    String::from_utf8(json)
        .unwrap()
        .trim_matches('"')
        .to_owned()
}

/// Draws one request about names that may be files, folders, or links that come and go.
fn draw(place: &Place, random: &mut Random) -> (&'static str, Value) {
    const NAMES: [&str; 6] = ["a", "b", "swapped", "out", "secret", "deep"];
    let path = |random: &mut Random| {
        let depth = 1 + random.below(3);
        let names: Vec<_> = (0..depth).map(|_| random.pick(&NAMES)).collect();
        place.uri(&names.join("/"))
    };
    let methods = [
        "fs/readFile",
        "fs/writeFile",
        "fs/createDirectory",
        "fs/getMetadata",
        "fs/readDirectory",
        "fs/remove",
        "fs/copy",
        "fs/copy",
        "fs/canonicalize",
        "fs/walk",
        "fs/open",
    ];
    let method = random.pick(&methods);
    let params = json!({
        "path": path(random),
        "sourcePath": path(random),
        "destinationPath": path(random),
        "dataBase64": "d3JpdHRlbg==",
        "recursive": random.below(4) > 0,
        "force": random.below(2) > 0,
        "followSymlinks": random.below(4) > 0,
        "handleId": "h",
        "mode": if random.below(2) > 0 { "read" } else { "replace" },
        "options": {"maxDepth": 8, "maxDirectories": 100, "maxEntries": 200,
            "followDirectorySymlinks": random.below(2) > 0},
    });
    (method, params)
}

/// Puts a link of a random kind at a random place below the root, as a process beside the server may.
fn plant(place: &Place, random: &mut Random) {
    let names = [
        "a", "b", "out", "swapped", "a/out", "b/a", "a/b/out", "deep",
    ];
    let name = random.pick(&names);
    let outside = place.directory.0.join("outside");
    let (absolute, inner) = (outside.to_str().unwrap(), place.at("a"));
    let targets = [
        "../outside",
        "../../outside",
        "../outside/secret",
        "../outside/new",
        "..",
        "../..",
        "a",
        "b/out",
        absolute,
        inner.to_str().unwrap(),
    ];
    let target = random.pick(&targets);
    let name = Path::new(name);
    let folder = open_without_links(&place.at(""), name.parent().unwrap());
    if let Some(folder) = folder {
        let _there_already = symlinkat(target, folder, name.file_name().unwrap());
    }
}

/// A thread that swaps folders for links to the outside and back, as fast as it can, until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(root: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                swap(&root);
            }
        });
        Swapper {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Each step may fail, since the server removes and creates meanwhile what it is told to.
fn swap(root: &Path) {
    let (swapped, folder, link) = (root.join("swapped"), root.join("folder"), root.join("link"));
    let _there = fs::create_dir(&folder);
    let _there = symlink("../outside", &link);
    let _gone = fs::rename(&folder, &swapped);
    let _gone = fs::rename(&swapped, &folder);
    let _gone = fs::rename(&link, &swapped);
    let _gone = fs::rename(&swapped, &link);
    if let Some(nested) = open_without_links(root, Path::new("a")) {
        let _there = mkdirat(&nested, "swapped", rustix::fs::Mode::RWXU);
        let _gone = unlinkat(&nested, "swapped", AtFlags::REMOVEDIR);
        let _there = symlinkat("../../outside", &nested, "swapped");
        let _gone = unlinkat(&nested, "swapped", AtFlags::empty());
    }
}

/// Removes what is below the root, or else copies of copies would grow without end.
fn clear(root: &Path) {
    for entry in root.read_dir().unwrap() {
        let path = entry.unwrap().path();
        // The other thread may have been quicker.
        let _gone = match path.is_symlink() {
            true => fs::remove_file(path),
            false => fs::remove_dir_all(&path).or_else(|_| fs::remove_file(path)),
        };
    }
}

/// Opens a folder below the root without following links: the test itself must not write outside.
fn open_without_links(root: &Path, path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = rustix::fs::open(root, flags, rustix::fs::Mode::empty()).ok()?;
    for name in path {
        folder = openat(&folder, name, flags, rustix::fs::Mode::empty()).ok()?;
    }
    Some(folder)
}

#[test]
fn p17_nothing_outside_is_read_or_changed_whatever_links_there_are_and_come() {
    let operations = std::env::var("EXECMUX_OPERATIONS").ok();
    let operations = operations.map_or(20_000, |number| number.parse().unwrap());
    let seed = seeds::fresh();
    let mut random = Random::of(seed, "root");
    let place = Place::new();
    let before = place.outside();
    let swapper = Swapper::start(place.at(""));
    let mut answered: BTreeMap<&str, u64> = BTreeMap::new();
    let encoded = encoded(SECRET);
    for n in 0..operations {
        if n % 200 == 0 {
            clear(&place.at(""));
            for folder in ["a/b/a", "b/deep/a", "deep/b"] {
                fs::create_dir_all(place.at(folder)).unwrap();
            }
            for file in ["a/secret", "b/a", "deep/b/secret"] {
                fs::write(place.at(file), "inside").unwrap();
            }
        }
        if n % 4 == 0 {
            plant(&place, &mut random);
        }
        let (method, params) = draw(&place, &mut random);
        if let Ok(answer) = place.peer.ask(method, &params) {
            *answered.entry(method).or_default() += 1;
            let text = answer.to_string();
            let tells = text.contains(&encoded)
                || text.contains("only-outside")
                || text.contains(&place.directory.uri("outside"))
                || answer["size"] == SECRET.len();
            assert!(!tells, "seed {seed}: {method} {params} told {text}");
            let close = json!({"handleId": "h"});
            if method == "fs/open" {
                let read = json!({"handleId": "h", "offset": 0, "len": 1000});
                let block = place.peer.ask("fs/readBlock", &read);
                let told = block.is_ok_and(|block| block.to_string().contains(&encoded));
                assert!(!told, "seed {seed}: {params} opened a file outside");
                place.peer.ask("fs/close", &close).unwrap();
            }
        }
        if n % 1000 == 0 {
            assert_eq!(place.outside(), before, "seed {seed}, operation {n}");
        }
    }
    drop(swapper);
    assert_eq!(place.outside(), before, "seed {seed}");
    // Every method has been carried out, or else the test shows nothing.
    assert_eq!(answered.len(), 10, "{answered:?}");
    println!("{answered:?}");
}

#[test]
fn p17_a_copied_file_keeps_its_permissions_and_an_unreadable_one_is_refused() {
    let place = Place::new();
    fs::write(place.at("f"), "x").unwrap();
    fs::set_permissions(place.at("f"), fs::Permissions::from_mode(0o640)).unwrap();
    place.copy("f", "g").unwrap();
    let mode = place.at("g").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(fs::read(place.at("g")).unwrap(), b"x");
}
