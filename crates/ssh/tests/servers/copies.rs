use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cap_std::fs::Dir;
use ssh::{Copied, CopyError, CopyOptions, HostPath, Limits, Session, Side};
use tokio::time::{Instant, sleep, timeout};

use crate::server::{ALL, Kind, Server};

const SOON: Duration = Duration::from_secs(60);

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// A path that a copy on the host may take wherever it leads.
pub fn host(path: impl AsRef<Path>) -> HostPath {
    let root = Dir::open_ambient_dir("/", cap_std::ambient_authority()).expect("open /");
    HostPath::below(root, "/", path.as_ref())
}

/// What an entry of a tree is, as far as a copy must keep it.
#[derive(Debug, PartialEq, Eq)]
enum Is {
    File { contents: Vec<u8>, mode: u32, mtime: i64 },
    Directory { mode: u32, mtime: i64 },
    Link { target: PathBuf },
}

fn snapshot(top: &Path) -> BTreeMap<PathBuf, Is> {
    let mut entries = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = path.symlink_metadata().expect("stat");
        let (mode, mtime) = (metadata.mode() & 0o7777, metadata.mtime());
        let is = if metadata.is_symlink() {
            Is::Link { target: path.read_link().expect("read a link") }
        } else if metadata.is_dir() {
            todo.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("list").path()));
            Is::Directory { mode, mtime }
        } else {
            Is::File { contents: fs::read(&path).expect("read"), mode, mtime }
        };
        entries.insert(path.strip_prefix(top).expect("below").to_owned(), is);
    }
    entries
}

fn age(path: &Path, seconds: i64) {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds as u64);
    File::open(path).expect("open").set_modified(time).expect("set time");
}

/// Makes a tree with everything that is easily lost.
fn tree(top: &Path) {
    let long = "n".repeat(200);
    fs::create_dir_all(top.join("sub/empty")).expect("make a directory");
    fs::create_dir_all(top.join(&long).join(&long)).expect("make a directory");
    let names: [&[u8]; 8] =
        [b"plain", b"two words", b"new\nline", b"-n", b"quote'\"\\$(id)`", b"\xff\xfe", b"sub/*", b".hidden"];
    for (number, name) in names.into_iter().enumerate() {
        let path = top.join(OsStr::from_bytes(name));
        fs::write(&path, vec![number as u8; number * 700]).expect("write");
        fs::set_permissions(&path, Permissions::from_mode(0o600 | number as u32)).expect("chmod");
        age(&path, 1_000_000_000 + number as i64);
    }
    fs::write(top.join(&long).join(&long).join("deep"), "deep").expect("write");
    fs::write(top.join("script"), "#!/bin/sh\n").expect("write");
    fs::set_permissions(top.join("script"), Permissions::from_mode(0o4755)).expect("chmod");
    symlink("sub", top.join("to directory")).expect("link");
    fs::create_dir(top.join("links")).expect("make a directory");
    symlink("/no/such/../place//x/.", top.join("links/dangling")).expect("link");
    symlink(format!("{long}/{long}/deep"), top.join("far")).expect("link");
    fs::create_dir(top.join("readonly")).expect("make a directory");
    fs::write(top.join("readonly/file"), "kept").expect("write");
    fs::set_permissions(top.join("readonly"), Permissions::from_mode(0o555)).expect("chmod");
    for name in ["readonly", "links", "sub/empty", "sub", ""] {
        age(&top.join(name), 1_100_000_000);
    }
}

#[tokio::test]
async fn a_tree_comes_back_as_it_went() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let (source, guest, back) = (server.path("source"), server.path("guest"), server.path("back"));
        fs::create_dir(&source).expect("make a directory");
        tree(&source);
        let options = CopyOptions::default();
        let copied = session.copy_in(&host(&source), bytes(&guest), &options).await.expect("copied");
        let expected =
            Copied { bytes: 19_618, files: 11, directories: 7, links: 3, elapsed: copied.elapsed, ..Copied::default() };
        assert_eq!(copied, expected);
        let mut wanted = snapshot(&source);
        if let Some(Is::File { mode, .. }) = wanted.get_mut(Path::new("script")) {
            *mode = 0o755;
        }
        let mut there = snapshot(&guest);
        if let (Kind::Busybox, Some(Is::Directory { mtime, .. })) = (kind, there.get_mut(Path::new("links"))) {
            // Its tar makes links that lead out of the archive last, after it has set the times of directories.
            *mtime = 1_100_000_000;
            age(&guest.join("links"), *mtime);
        }
        assert_eq!(there, wanted, "{kind:?}");
        let copied = session.copy_out(bytes(&guest), &host(&back), &options).await.expect("copied");
        assert_eq!(copied, Copied { elapsed: copied.elapsed, ..expected });
        assert_eq!(snapshot(&back), wanted, "{kind:?}");
        for name in ["source/readonly", "guest/readonly", "back/readonly"] {
            fs::set_permissions(server.path(name), Permissions::from_mode(0o755)).expect("chmod");
        }
        assert!(leftovers(server.dir.path()).is_empty(), "{:?}", leftovers(server.dir.path()));
    }
}

#[tokio::test]
async fn exact_times_and_the_names_of_one_file_survive_both_ways() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let (source, guest, back) = (server.path("source"), server.path("guest"), server.path("back"));
        fs::create_dir_all(source.join("sub")).expect("make a directory");
        fs::write(source.join("a"), "text").expect("write");
        fs::hard_link(source.join("a"), source.join("sub/b")).expect("link");
        for (name, before) in [("a", 1_000_250), ("sub", 2_000_500)] {
            let time = std::time::UNIX_EPOCH - Duration::from_millis(before);
            File::open(source.join(name)).and_then(|file| file.set_modified(time)).expect("set time");
        }
        let look = |top: &Path| {
            let stat = |name: &str| top.join(name).metadata().expect("stat");
            // Busybox's tar makes a file's further names last, after it has set the times of directories.
            let timed = if kind == Kind::Busybox { ["a", "a"] } else { ["a", "sub"] };
            let times = timed.map(|name| (stat(name).mtime(), stat(name).mtime_nsec()));
            (times, stat("a").ino() == stat("sub/b").ino())
        };
        let exact = [(-1001, 750_000_000), (-2001, 500_000_000)];
        // All that busybox's tar knows of times.
        let (seconds, zero) = ([(-1001, 0); 2], [(0, 0); 2]);
        let (there, here) = if kind == Kind::Busybox { (seconds, zero) } else { (exact, exact) };
        // At first the destination is new, then it is there and merged with.
        for _ in 0..2 {
            let copied =
                session.copy_in(&host(source.join(".")), bytes(&guest), &CopyOptions::default()).await.expect("copied");
            assert_eq!((copied.files, copied.bytes), (2, 4), "{kind:?}");
            assert_eq!(look(&guest), (there, true), "{kind:?}");
            let copied =
                session.copy_out(bytes(&guest.join(".")), &host(&back), &CopyOptions::default()).await.expect("copied");
            assert_eq!((copied.files, copied.bytes), (2, 4), "{kind:?}");
            assert_eq!(look(&back), (here, true), "{kind:?}");
        }
    }
}

/// Returns what unfinished copies left in a directory.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).expect("list").map(|entry| entry.expect("list").path());
    paths.filter(|path| path.extension() == Some(OsStr::new("part"))).collect()
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

async fn copy(session: &Session, way: Way, from: &Path, to: &Path) -> Result<Copied, CopyError> {
    match way {
        Way::In => session.copy_in(&host(from), bytes(to), &CopyOptions::default()).await,
        Way::Out => session.copy_out(bytes(from), &host(to), &CopyOptions::default()).await,
    }
}

#[tokio::test]
async fn destinations_follow_the_rules_of_scp() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        for way in [Way::In, Way::Out] {
            let dir = tempfile::tempdir().expect("make a directory");
            let at = |name: &str| dir.path().join(name);
            fs::write(at("file"), "new").expect("write");
            fs::create_dir_all(at("tree/sub")).expect("make a directory");
            fs::write(at("tree/sub/file"), "in tree").expect("write");
            fs::create_dir_all(at("existing")).expect("make a directory");
            fs::write(at("old"), "old").expect("write");
            symlink("existing", at("link to existing")).expect("link");
            let check = async |from: &str, to: &str, made: &str, contents: &str| {
                let copied = copy(&session, way, &at(from), &at(to)).await;
                assert!(copied.is_ok(), "{kind:?} {from} {to}: {copied:?}");
                assert_eq!(fs::read_to_string(at(made)).ok().as_deref(), Some(contents), "{kind:?} {from} {to}");
            };
            check("file", "copy", "copy", "new").await;
            check("file", "existing", "existing/file", "new").await;
            check("file", "existing/", "existing/file", "new").await;
            check("file", "link to existing", "existing/file", "new").await;
            check("file", "old", "old", "new").await;
            check("file", "made/on the way", "made/on the way", "new").await;
            check("file", "made/with slash/", "made/with slash/file", "new").await;
            check("tree", "another", "another/sub/file", "in tree").await;
            check("tree/", "existing", "existing/tree/sub/file", "in tree").await;
            check("tree", "made/deep/tree", "made/deep/tree/sub/file", "in tree").await;
            check("tree", "made/slash/", "made/slash/tree/sub/file", "in tree").await;
            check("tree/.", "contents", "contents/sub/file", "in tree").await;
            check("tree/.", "existing", "existing/sub/file", "in tree").await;
            // Merging replaces files, and keeps what only the destination has.
            fs::write(at("existing/tree/kept"), "kept").expect("write");
            fs::write(at("existing/tree/sub/file"), "older").expect("write");
            check("tree", "existing", "existing/tree/sub/file", "in tree").await;
            assert_eq!(fs::read_to_string(at("existing/tree/kept")).expect("read"), "kept");
            for place in ["", "existing", "existing/tree", "made"] {
                assert!(leftovers(&at(place)).is_empty(), "{:?}", leftovers(&at(place)));
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_copied_is_said_with_its_side() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let at = |name: &str| server.path(name);
        fs::write(at("file"), "x").expect("write");
        fs::create_dir_all(at("dir/file")).expect("make a directory");
        symlink("nothing", at("dangling")).expect("link");
        let path = |name: &str| at(name).display().to_string();
        for (way, here, there) in [(Way::In, Side::Host, Side::Guest), (Way::Out, Side::Guest, Side::Host)] {
            let check = async |from: &str, to: &str, expected: CopyError| {
                assert_eq!(copy(&session, way, &at(from), &at(to)).await, Err(expected), "{kind:?} {from} {to}");
            };
            check("none", "x", CopyError::Missing { side: here, path: path("none") }).await;
            check("dangling", "x", CopyError::Missing { side: here, path: path("dangling") }).await;
            let shown = |way, name: &str, told: &str| match way {
                Way::In => path(told),
                Way::Out => path(name),
            };
            let why = "it is a directory";
            check("file", "dir", CopyError::InTheWay { side: there, path: shown(way, "dir/file", "dir"), why }).await;
            let why = "it is not a directory";
            check("dir", "file", CopyError::InTheWay { side: there, path: path("file"), why }).await;
            let options = CopyOptions { recursive: false, ..CopyOptions::default() };
            let refused = match way {
                Way::In => session.copy_in(&host(at("dir")), bytes(&at("x")), &options).await,
                Way::Out => session.copy_out(bytes(&at("dir")), &host(at("x")), &options).await,
            };
            assert_eq!(refused, Err(CopyError::IsDirectory { side: here, path: path("dir") }));
            let special = copy(&session, way, Path::new("/dev/null"), &at("x")).await;
            assert_eq!(special, Err(CopyError::Special { side: here, path: "/dev/null".to_owned() }));
            if let Way::Out = way {
                let made_up = copy(&session, way, Path::new("/proc/self/environ"), &at("x")).await;
                let error = made_up.expect_err("tar cannot copy it").to_string();
                assert!(error.contains("made up by the kernel"), "{error}");
            }
            let below = copy(&session, way, &at("file"), &at("file/below")).await.expect_err("a file is in the way");
            assert!(matches!(below, CopyError::Failed { side, .. } if side == there), "{below}");
            for limits in [Limits { bytes: 0, ..Limits::default() }, Limits { entries: 0, ..Limits::default() }] {
                let options = CopyOptions { limits, ..CopyOptions::default() };
                let too_much = match way {
                    Way::In => session.copy_in(&host(at("file")), bytes(&at("x")), &options).await,
                    Way::Out => session.copy_out(bytes(&at("file")), &host(at("x")), &options).await,
                };
                assert!(
                    matches!(too_much, Err(CopyError::TooManyBytes { .. } | CopyError::TooManyEntries { .. })),
                    "{too_much:?}"
                );
            }
            assert!(!at("x").exists());
            assert!(leftovers(server.dir.path()).is_empty(), "{:?}", leftovers(server.dir.path()));
        }
    }
}

#[tokio::test]
async fn without_preserve_times_are_new_and_the_umask_counts() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let options = CopyOptions { preserve: false, ..CopyOptions::default() };
        let (source, guest, back) = (server.path("source"), server.path("guest"), server.path("back"));
        fs::create_dir(&source).expect("make a directory");
        fs::write(source.join("file"), "x").expect("write");
        fs::set_permissions(source.join("file"), Permissions::from_mode(0o755)).expect("chmod");
        age(&source.join("file"), 1_000_000_000);
        session.copy_in(&host(&source), bytes(&guest), &options).await.expect("copied");
        session.copy_out(bytes(&guest), &host(&back), &options).await.expect("copied");
        for copy in [guest, back] {
            let metadata = copy.join("file").metadata().expect("stat");
            assert!(metadata.mtime() > 1_700_000_000 && metadata.mode() & 0o700 == 0o700, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_big_file_streams_both_ways() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let (source, guest, back) = (server.path("source"), server.path("guest"), server.path("back"));
        let contents: Vec<u8> = (0..30_000_000u32).map(|number| (number * 7 / 3) as u8).collect();
        fs::write(&source, &contents).expect("write");
        let copied = session.copy_in(&host(&source), bytes(&guest), &CopyOptions::default()).await.expect("copied");
        assert_eq!((copied.files, copied.bytes), (1, 30_000_000));
        session.copy_out(bytes(&guest), &host(&back), &CopyOptions::default()).await.expect("copied");
        assert!(fs::read(&back).expect("read") == contents, "{kind:?}");
    }
}

#[tokio::test]
async fn an_interrupted_copy_leaves_nothing_under_the_final_name() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        // Sparse, and too much to be copied before we look.
        let source = server.path("source");
        File::create(&source).expect("make a file").set_len(20 << 30).expect("grow it");
        let started = |dir: PathBuf| async move {
            while !dir.exists() || leftovers(&dir).is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        for way in [Way::In, Way::Out] {
            let dir = server.path("to");
            let last = dir.join("copy");
            let interrupted = tokio::select! {
                copied = copy(&session, way, &source, &last) => panic!("{kind:?}: {copied:?}"),
                started = timeout(SOON, started(dir.clone())) => started,
            };
            interrupted.expect("a copy has begun");
            assert!(!last.exists());
            let deadline = Instant::now() + SOON;
            while !leftovers(&dir).is_empty() {
                assert!(Instant::now() < deadline, "{kind:?}: {:?}", leftovers(&dir));
                sleep(Duration::from_millis(20)).await;
            }
            assert!(!last.exists());
            fs::remove_dir_all(&dir).expect("remove");
        }
    }
}

#[tokio::test]
async fn a_connection_lost_during_a_copy_is_said() {
    let server = Server::start(Kind::OpenSsh);
    let session = server.session().await;
    let source = server.path("source");
    File::create(&source).expect("make a file").set_len(20 << 30).expect("grow it");
    for way in [Way::In, Way::Out] {
        let (session, last) = (server.session().await, server.path("copy"));
        let closing = session.clone();
        let begun = async {
            while leftovers(server.dir.path()).is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
            closing.close().await;
            std::future::pending::<()>().await;
        };
        let error = tokio::select! {
            copied = copy(&session, way, &source, &last) => copied.expect_err("a lost connection"),
            () = begun => unreachable!("it waits for ever"),
        };
        assert!(matches!(error, CopyError::Lost(_)), "{error}");
        assert!(!last.exists());
        let deadline = Instant::now() + SOON;
        while !leftovers(server.dir.path()).is_empty() {
            assert!(Instant::now() < deadline, "{:?}", leftovers(server.dir.path()));
            sleep(Duration::from_millis(20)).await;
        }
    }
    drop(session);
}

#[tokio::test]
async fn a_guest_whose_tar_lies_gets_nowhere() {
    let evil = |name: &str, link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(if link.is_empty() { tar::EntryType::Regular } else { tar::EntryType::Symlink });
        let gnu = header.as_gnu_mut().expect("a GNU header");
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(0);
        header.set_mode(0o777);
        header.set_mtime(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let archives = [
        evil("../evil", ""),
        evil("/tmp/evil", ""),
        [evil("l", ".."), evil("l/evil", "")].concat(),
        vec![0xff; 5000],
        vec![0; 3 << 20],
        evil("something else", ""),
        evil("file", "/etc/passwd"),
    ];
    let server = Server::start(Kind::Busybox);
    let session = server.session().await;
    fs::create_dir(server.path("dir")).expect("make a directory");
    fs::write(server.path("file"), "x").expect("write");
    fs::create_dir_all(server.path("host/merged/dir")).expect("make a directory");
    let tar = server.path("bin/tar");
    fs::remove_file(&tar).expect("remove");
    fs::write(&tar, format!("#!/bin/sh\nexec cat {}\n", server.path("evil.tar").display())).expect("write");
    fs::set_permissions(&tar, Permissions::from_mode(0o755)).expect("chmod");
    for archive in archives {
        fs::write(server.path("evil.tar"), &archive).expect("write");
        for (from, to) in [("file", "host/copy"), ("dir", "host/copy"), ("dir", "host/merged")] {
            // A directory may hold such things.
            if from == "dir" && [&b"something"[..], b"file"].iter().any(|name| archive.starts_with(name)) {
                continue;
            }
            let copied = timeout(SOON, copy(&session, Way::Out, &server.path(from), &server.path(to))).await;
            let error = copied.expect("an end").expect_err("a bad archive");
            assert!(matches!(error, CopyError::Hostile { .. } | CopyError::InTheWay { .. }), "{error}");
            assert!(!server.path("host/copy").exists() && !server.path("host/evil").exists());
            assert!(!server.path("host/merged/evil").exists() && leftovers(&server.path("host")).is_empty());
        }
    }
}

#[tokio::test]
async fn a_directory_of_the_host_that_becomes_a_link_leads_nowhere() {
    let server = Server::start(Kind::Busybox);
    let session = server.session().await;
    let (root, outside) = (server.path("root"), server.path("outside"));
    fs::create_dir_all(root.join("sub")).expect("make a directory");
    fs::create_dir(&outside).expect("make a directory");
    for path in ["root/sub/file", "outside/file", "file"] {
        fs::write(server.path(path), path).expect("write");
    }
    let below = |path: &str| {
        let opened = Dir::open_ambient_dir(&root, cap_std::ambient_authority()).expect("open it");
        HostPath::below(opened, &root, path)
    };
    // As if they had been looked at before: who asks for a copy waits for its guest, and another one comes between.
    let (from, to) = (below("sub/file"), below("sub/copy"));
    let link = |target: &Path| {
        fs::rename(root.join("sub"), root.join("moved")).expect("rename");
        symlink(target, root.join("sub")).expect("link");
    };
    let put_back = || {
        fs::remove_file(root.join("sub")).expect("remove");
        fs::rename(root.join("moved"), root.join("sub")).expect("rename");
    };
    let options = CopyOptions::default();
    for target in [Path::new("../outside"), &outside] {
        link(target);
        let refused = [
            session.copy_in(&from, bytes(&server.path("got")), &options).await,
            session.copy_in(&below("sub"), bytes(&server.path("got")), &options).await,
            session.copy_out(bytes(&server.path("file")), &to, &options).await,
            session.copy_out(bytes(&root.join("moved")), &to, &options).await,
        ];
        for refused in refused {
            assert!(matches!(refused, Err(CopyError::Outside { .. })), "{refused:?}");
        }
        put_back();
    }

    // A guest that takes its time when the copy has begun.
    let tar = server.path("bin/tar");
    let real = fs::read_link(&tar).expect("a link to busybox");
    fs::remove_file(&tar).expect("remove");
    let go = server.path("go");
    let slow =
        format!("#!/bin/sh\nuntil [ -e {} ]; do sleep 0.05; done\nexec {} tar \"$@\"\n", go.display(), real.display());
    fs::write(&tar, slow).expect("write");
    fs::set_permissions(&tar, Permissions::from_mode(0o755)).expect("chmod");
    let meanwhile = async {
        while leftovers(&root.join("sub")).is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        link(&outside);
        fs::write(&go, "").expect("write");
    };
    let file = server.path("file");
    let copying = session.copy_out(bytes(&file), &to, &options);
    let (copied, ()) = timeout(SOON, async { tokio::join!(copying, meanwhile) }).await.expect("an end");
    copied.expect("it goes where it was asked for");
    assert_eq!(fs::read_to_string(root.join("moved/copy")).expect("read"), "file");
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
    assert!(!server.path("got").exists());
}

#[tokio::test]
async fn a_guest_that_says_nothing_is_given_up() {
    let server = Server::start(Kind::Busybox);
    let session = server.session().await;
    fs::write(server.path("file"), "x").expect("write");
    File::create(server.path("large")).expect("make a file").set_len(1 << 30).expect("grow it");
    let tar = server.path("bin/tar");
    fs::remove_file(&tar).expect("remove");
    fs::write(&tar, "#!/bin/sh\nexec sleep 1000\n").expect("write");
    fs::set_permissions(&tar, Permissions::from_mode(0o755)).expect("chmod");
    let silence = Duration::from_millis(500);
    let options = CopyOptions { silence, ..CopyOptions::default() };
    let copies = async {
        [
            session.copy_out(bytes(&server.path("file")), &host(server.path("x")), &options).await,
            // It takes nothing, or all there is and does not end.
            session.copy_in(&host(server.path("large")), bytes(&server.path("x")), &options).await,
            session.copy_in(&host(server.path("file")), bytes(&server.path("x")), &options).await,
        ]
    };
    for copied in timeout(SOON, copies).await.expect("an end") {
        assert_eq!(copied, Err(CopyError::Silent { silence }));
    }
    assert!(!server.path("x").exists());
}
