//! What every place has to do alike: the same results and the same errors, on the host and in a guest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use nix::libc;
use ssh::TarTime;
use tar::{Archive, EntryType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use std::sync::Arc;

use super::glob::python;
use super::*;
use crate::commands::scenery::{Scenery, Tools, Where, everywhere};

/// Runs a test at a place, with a directory.
fn at_place<F: Future<Output = ()>>(at: Where, test: impl FnOnce(Arc<dyn Place>, PathBuf) -> F) {
    let directory = tempfile::tempdir().expect("a directory");
    at_place_of(at, &directory, &Tools::of(at).path, test);
}

fn at_place_of<F: Future<Output = ()>>(
    at: Where,
    directory: &TempDir,
    path: &str,
    test: impl FnOnce(Arc<dyn Place>, PathBuf) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let scenery = Scenery::build(at, vec![("PATH".into(), path.into())], directory.path()).await;
        test(Arc::clone(&scenery.place), directory.path().to_owned()).await;
        scenery.strike().await;
    });
}

/// Names that tools and shells stumble over.
fn odd_names() -> Vec<OsString> {
    let text = [
        "plain",
        " lead",
        "trail ",
        "a b",
        "-rf",
        "--",
        "new\nline",
        "end\n",
        "tab\t",
        "it's",
        "\"q\"",
        "$HOME",
        "`id`",
        "*",
        "?",
        "[a]",
        "back\\slash",
        "\\c",
        "é",
        "a;b",
        "#",
        "~",
        "..x",
        ".hidden",
        "%s",
        "!",
    ];
    let mut names: Vec<OsString> = text.iter().map(OsString::from).collect();
    names.push(OsStr::from_bytes(b"bad\xff\xfe").to_owned());
    names.push("n".repeat(255).into());
    names.sort();
    names
}

async fn read_all(place: &dyn Place, path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    place.read(path, offset).await?.read_to_end(&mut content).await?;
    Ok(content)
}

async fn write_all(place: &dyn Place, path: &Path, mode: Option<u32>, content: &[u8]) -> io::Result<()> {
    let mut file = place.write(path, mode).await?;
    file.write_all(content).await?;
    file.shutdown().await
}

async fn pack_all(place: &dyn Place, path: &Path, compression: Compression) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    place.pack(path, compression).await?.read_to_end(&mut archive).await?;
    Ok(archive)
}

/// A number that no system call has, for what is refused without one.
const REFUSED: i32 = -1;

fn refusal_is_the_systems(at: Where) {
    at_place(at, async |place, root| {
        fs::write(root.join("f"), "x").expect("a file");
        fs::create_dir(root.join("d")).expect("a directory");
        symlink("nowhere", root.join("broken")).expect("a link");
        symlink("loop", root.join("loop")).expect("a link");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).expect("a socket");
        let long = "n".repeat(300);

        let number = |result: io::Result<()>| result.map_err(|error| error.raw_os_error().unwrap_or(REFUSED));
        for (name, expected) in [
            ("f", Ok(())),
            ("d/", Ok(())),
            ("no", Err(libc::ENOENT)),
            ("broken", Err(libc::ENOENT)),
            ("f/x", Err(libc::ENOTDIR)),
            ("loop", Err(libc::ELOOP)),
            (&long, Err(libc::ENAMETOOLONG)),
        ] {
            assert_eq!(number(place.stat(&root.join(name)).await.map(drop)), expected, "stat {name}");
        }
        for (name, expected) in
            [("d", Ok(())), ("no", Err(libc::ENOENT)), ("f", Err(libc::ENOTDIR)), ("loop", Err(libc::ELOOP))]
        {
            assert_eq!(number(place.list(&root.join(name)).await.map(drop)), expected, "list {name}");
        }
        for (name, expected) in [
            ("d", Ok(())),
            ("f", Err(libc::EEXIST)),
            ("f/x", Err(libc::ENOTDIR)),
            ("broken", Err(libc::EEXIST)),
            ("new/deep/.", Ok(())),
            (&long, Err(libc::ENAMETOOLONG)),
        ] {
            assert_eq!(number(place.make_directory(&root.join(name)).await), expected, "mkdir {name}");
        }
        for (name, expected) in [
            ("f", Ok(())),
            ("no", Err(libc::ENOENT)),
            ("d", Err(libc::EISDIR)),
            ("f/x", Err(libc::ENOTDIR)),
            ("pipe", Err(REFUSED)),
            ("socket", Err(libc::ENXIO)),
            ("loop", Err(libc::ELOOP)),
        ] {
            for offset in [0, 1] {
                let read = read_all(&*place, &root.join(name), offset).await.map(drop);
                assert_eq!(number(read), expected, "read {name} from {offset}");
            }
        }
        for (name, expected) in [
            ("d", Err(libc::EISDIR)),
            ("pipe", Err(libc::ENXIO)),
            ("socket", Err(libc::ENXIO)),
            ("no/f", Err(libc::ENOENT)),
            ("f/x", Err(libc::ENOTDIR)),
            ("loop", Err(libc::ELOOP)),
            (&long, Err(libc::ENAMETOOLONG)),
            ("/dev/full", Err(libc::ENOSPC)),
        ] {
            let written = write_all(&*place, &root.join(name), None, b"y").await;
            assert_eq!(number(written), expected, "write {name}");
        }
        for (name, expected) in [("d", Ok(())), ("no", Err(libc::ENOENT)), ("f", Err(libc::ENOTDIR))] {
            let packed = pack_all(&*place, &root.join(name), Compression::None).await.map(drop);
            assert_eq!(number(packed), expected, "pack {name}");
        }
        for (name, expected) in [
            ("no", Err(libc::ENOENT)),
            ("d", Err(libc::EISDIR)),
            ("f/", Err(libc::ENOTDIR)),
            ("f/x", Err(libc::ENOTDIR)),
            ("f", Ok(())),
            ("broken", Ok(())),
        ] {
            assert_eq!(number(place.remove_file(&root.join(name)).await), expected, "remove {name}");
        }
        let mut left: Vec<_> =
            fs::read_dir(&root).expect("names").map(|entry| entry.expect("a name").file_name()).collect();
        left.sort();
        assert_eq!(left, ["d", "loop", "new", "pipe", "socket"]);
    });
}

fn a_workdir_is_made_for_its_program(at: Where) {
    at_place(at, async |place, root| {
        fs::write(root.join("f"), "x").expect("a file");
        symlink("d", root.join("link")).expect("a link");
        let spawn = async |workdir: &Path| {
            let argv = ["/bin/sh", "-c", "echo here >> made"].map(OsString::from).to_vec();
            let environment = place.environment();
            let stdin = Bytes::new();
            place.spawn(Program { argv, workdir: workdir.to_owned(), environment, stdin, pty: false }).await
        };
        // The second time it is there.
        for name in ["d", "d", "a/b/-c d", "link"] {
            let mut process = spawn(&root.join(name)).await.unwrap_or_else(|error| panic!("spawn in {name}: {error}"));
            let ending = loop {
                if let Event::Ended(ending) = process.event().await {
                    break ending;
                }
            };
            assert_eq!(ending, Ending::Exited { status: 0 }, "{name}");
        }
        assert_eq!(fs::read_to_string(root.join("d/made")).expect("made"), "here\nhere\nhere\n");
        assert_eq!(fs::read_to_string(root.join("a/b/-c d/made")).expect("made"), "here\n");
        let long = "n".repeat(300);
        for (name, errno) in [("f", libc::EEXIST), ("f/x", libc::ENOTDIR), (&long, libc::ENAMETOOLONG)] {
            match spawn(&root.join(name)).await {
                Err(SpawnError::NoWorkdir { workdir, source }) => {
                    assert_eq!((workdir, source.raw_os_error()), (root.join(name), Some(errno)));
                }
                other => panic!("{name}: {:?}", other.map(|_| ())),
            }
        }
    });
}

fn names_are_bytes_of_any_kind(at: Where) {
    at_place(at, async |place, root| {
        let directory = root.join(OsStr::from_bytes(b"-dir\nof \xff'"));
        place.make_directory(&directory.join("made")).await.expect("a directory");
        assert!(directory.join("made").is_dir());
        fs::remove_dir(directory.join("made")).expect("removed");
        for name in odd_names() {
            let (path, content) = (directory.join(&name), name.as_bytes());
            write_all(&*place, &path, Some(0o644), content)
                .await
                .unwrap_or_else(|error| panic!("write {name:?}: {error}"));
            assert_eq!(fs::read(&path).expect("it is there"), content, "{name:?}");
            assert_eq!(read_all(&*place, &path, 0).await.expect("content"), content, "{name:?}");
            assert_eq!(place.stat(&path).await.expect("numbers")[6], content.len() as i64, "{name:?}");
        }
        assert_eq!(place.list(&directory).await.expect("names"), odd_names());
        for name in odd_names() {
            place.remove_file(&directory.join(&name)).await.unwrap_or_else(|error| panic!("remove {name:?}: {error}"));
        }
        assert_eq!(place.list(&directory).await.expect("names"), Vec::<OsString>::new());
    });
}

fn numbers_are_the_systems(at: Where) {
    at_place(at, async |place, root| {
        let path = root.join("f");
        fs::write(&path, "12345").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).expect("a mode");
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let times = fs::FileTimes::new().set_accessed(time(978_307_201)).set_modified(time(978_307_200));
        File::open(&path).and_then(|file| file.set_times(times)).expect("times");
        symlink("f", root.join("link")).expect("a link");
        for name in ["f", "link", "."] {
            let of = root.join(name).metadata().expect("it is there");
            let expected = [
                i64::from(of.mode()),
                of.ino() as i64,
                of.dev() as i64,
                of.nlink() as i64,
                of.uid().into(),
                of.gid().into(),
                of.size() as i64,
                of.atime(),
                of.mtime(),
                of.ctime(),
            ];
            assert_eq!(place.stat(&root.join(name)).await.expect("numbers"), expected, "{name}");
        }
    });
}

fn times_are_exact_and_go_back_before_1970(at: Where) {
    at_place(at, async |place, root| {
        let path = root.join("f");
        fs::write(&path, "12345").expect("a file");
        symlink("f", root.join("link")).expect("a link");
        let before = SystemTime::UNIX_EPOCH - Duration::from_millis(1_000_250);
        let after = SystemTime::UNIX_EPOCH + Duration::from_millis(978_307_200_500);
        let times = fs::FileTimes::new().set_accessed(after).set_modified(before);
        File::open(&path).and_then(|file| file.set_times(times)).expect("times");
        for name in ["f", "link"] {
            let stat = place.stat(&root.join(name)).await.expect("numbers");
            assert_eq!((stat[7], stat[8]), (978_307_200, -1001), "{name}");
            let times = place.times(&root.join(name)).await.expect("times");
            assert_eq!(times, (978_307_200.5, -1000.25), "{name}");
        }
        let error = place.times(&root.join("no")).await.expect_err("nothing is there");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    });
}

fn a_file_is_read_from_any_byte_on(at: Where) {
    at_place(at, async |place, root| {
        let content: Vec<u8> = (0..300_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        fs::write(root.join("f"), &content).expect("a file");
        fs::write(root.join("empty"), "").expect("a file");
        for offset in [0, 1, 65_536, 299_999, 300_000, 300_001] {
            let expected = content.get(offset..).unwrap_or_default();
            let read = read_all(&*place, &root.join("f"), offset as u64).await.expect("content");
            assert!(read == expected, "{} bytes from {offset} on", read.len());
        }
        assert_eq!(read_all(&*place, &root.join("empty"), 0).await.expect("content"), b"");
        // One that has no size before it is read.
        let generated = read_all(&*place, Path::new("/proc/version"), 0).await.expect("content");
        assert_eq!(generated, fs::read("/proc/version").expect("content"));
    });
}

/// 64 MiB, nearly all of it a hole.
fn a_huge_file_goes_both_ways(at: Where) {
    const SIZE: u64 = 64 << 20;
    at_place(at, async |place, root| {
        let (from, to) = (root.join("sparse"), root.join("written"));
        let file = File::create(&from).expect("a file");
        file.set_len(SIZE).expect("a hole");
        file.write_all_at(b"here", SIZE / 2).expect("something in it");
        let content = read_all(&*place, &from, 0).await.expect("content");
        assert!(content == fs::read(&from).expect("content"), "{} bytes", content.len());
        write_all(&*place, &to, None, &content).await.expect("written");
        assert!(content == fs::read(&to).expect("content"));
    });
}

fn a_file_is_replaced_as_a_whole(at: Where) {
    at_place(at, async |place, root| {
        let look = |name: &str| {
            let path = root.join(name);
            let mode = path.metadata().expect("it is there").mode() & 0o7777;
            (fs::read_to_string(&path).expect("text"), mode)
        };
        fs::write(root.join("usual"), "").expect("a file");
        let (_, usual) = look("usual");
        let write = async |name: &str, mode, text: &str| {
            write_all(&*place, &root.join(name), mode, text.as_bytes()).await.expect("written");
        };
        write("f", None, "1").await;
        assert_eq!(look("f"), ("1".to_owned(), usual));
        write("f", Some(0o6755), "2").await;
        assert_eq!(look("f"), ("2".to_owned(), 0o6755));
        write("f", None, "3").await;
        assert_eq!(look("f"), ("3".to_owned(), 0o6755));
        write("read only", Some(0o400), "4").await;
        assert_eq!(look("read only"), ("4".to_owned(), 0o400));
        write("empty", Some(0o640), "").await;
        assert_eq!(look("empty"), (String::new(), 0o640));

        std::os::unix::fs::chown(root.join("f"), Some(1234), Some(2345)).expect("an owner");
        fs::create_dir(root.join("d")).expect("a directory");
        symlink("../f", root.join("d/link\n")).expect("a link");
        symlink("to come", root.join("d/broken")).expect("a link");
        write("d/link\n", None, "5").await;
        write("d/broken", Some(0o600), "6").await;
        let owner = root.join("f").metadata().expect("it is there");
        assert_eq!((owner.uid(), owner.gid()), (1234, 2345));
        assert_eq!(look("f").0, "5");
        assert_eq!(look("d/to come"), ("6".to_owned(), 0o600));
        assert!(root.join("d/link\n").is_symlink() && root.join("d/broken").is_symlink());
        assert_eq!(fs::read_dir(root.join("d")).expect("names").count(), 3);
    });
}

/// Takes root's right to leave setuid and setgid to what it writes from this thread and all that it starts.
fn write_as_others_than_root_do() {
    use rustix::thread::{CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities};
    remove_capability_from_bounding_set(CapabilitySet::FSETID).expect("it may");
    let mut sets = capabilities(None).expect("it has some");
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(CapabilitySet::FSETID);
    }
    set_capabilities(None, sets).expect("it may");
}

fn special_bits_outlast_the_writing(at: Where) {
    write_as_others_than_root_do();
    at_place(at, async |place, root| {
        let mode = |name: &str| root.join(name).metadata().expect("it is there").mode() & 0o7777;
        write_all(&*place, &root.join("new"), Some(0o6755), b"1").await.expect("written");
        assert_eq!(mode("new"), 0o6755);
        write_all(&*place, &root.join("new"), None, b"2").await.expect("written");
        assert_eq!(mode("new"), 0o6755, "the old file's");
        write_all(&*place, &root.join("new"), Some(0o1640), b"3").await.expect("written");
        assert_eq!(mode("new"), 0o1640);
        write_all(&*place, &root.join("new"), Some(0o755), b"4").await.expect("written");
        assert_eq!(mode("new"), 0o755);
    });
}

fn a_file_that_was_given_up_leaves_the_old_one(at: Where) {
    let directory = tempfile::tempdir().expect("a directory");
    at_place_of(at, &directory, &Tools::of(at).path, async |place, root| {
        fs::write(root.join("f"), "old").expect("a file");
        for name in ["f", "new"] {
            let mut file = place.write(&root.join(name), None).await.expect("it opens");
            file.write_all(&[b'x'; 100_000]).await.expect("written");
            file.flush().await.expect("flushed");
            assert_eq!(fs::read_to_string(root.join("f")).expect("text"), "old");
        }
    });
    let names: Vec<_> =
        fs::read_dir(directory.path()).expect("names").map(|entry| entry.expect("a name").file_name()).collect();
    assert_eq!(names, ["f"]);
    assert_eq!(fs::read_to_string(directory.path().join("f")).expect("text"), "old");
}

/// One member: its kind, mode, owner, time, and content or target.
type Member = (char, u32, u64, u64, TarTime, Vec<u8>);

/// What is in an archive, by name.
fn members(archive: &[u8], compression: Compression) -> BTreeMap<Vec<u8>, Member> {
    let archive: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(archive),
        Compression::Gz => Box::new(flate2::read::GzDecoder::new(archive)),
        Compression::Bz2 => Box::new(bzip2::read::BzDecoder::new(archive)),
    };
    let mut members = BTreeMap::new();
    for entry in Archive::new(archive).entries().expect("an archive") {
        let mut entry = entry.expect("a member");
        let header = entry.header().clone();
        let extensions = entry.pax_extensions().expect("extensions").into_iter().flatten();
        let mtime = extensions.flatten().find(|extension| extension.key() == Ok("mtime"));
        let mtime = mtime.map(|mtime| mtime.value().ok().and_then(TarTime::parse).expect("a time"));
        let mut content = Vec::new();
        match header.entry_type() {
            EntryType::Symlink | EntryType::Link => {
                content = entry.link_name_bytes().expect("a target").into_owned();
            }
            _ => drop(entry.read_to_end(&mut content).expect("content")),
        }
        let number = |number: io::Result<u64>| number.expect("a number");
        assert_eq!((header.username_bytes(), header.groupname_bytes()), (Some(&b""[..]), Some(&b""[..])));
        let member = (
            char::from(header.entry_type().as_byte()),
            header.mode().expect("a mode"),
            number(header.uid()),
            number(header.gid()),
            mtime.unwrap_or_else(|| TarTime::of_header(&header).expect("a number")),
            content,
        );
        let twice = members.insert(entry.path_bytes().into_owned(), member);
        assert_eq!(twice, None);
    }
    members
}

/// Packs a directory here and there, and compares all that is in the archives.
async fn compare_packed(at: Where, place: &dyn Place, root: &Path, compression: Compression) -> usize {
    let host = Host::new(Vec::new(), root.to_owned());
    let mut expected = members(&pack_all(&host, root, compression).await.expect("an archive"), compression);
    if at == Where::Busybox {
        // All that its tar knows of times.
        for (_, _, _, _, mtime, _) in expected.values_mut() {
            *mtime = TarTime { seconds: mtime.seconds.max(0), nanoseconds: 0 };
        }
    }
    let packed = members(&pack_all(place, root, compression).await.expect("an archive"), compression);
    let differing = |ours: &BTreeMap<Vec<u8>, Member>, others: &BTreeMap<Vec<u8>, Member>| -> Vec<_> {
        ours.iter()
            .filter(|(name, member)| others.get(*name) != Some(*member))
            .map(|(name, member)| (String::from_utf8_lossy(name).into_owned(), member.clone()))
            .collect()
    };
    assert_eq!(differing(&packed, &expected), differing(&expected, &packed));
    packed.len()
}

fn a_directory_is_packed_with_all_that_it_has(at: Where) {
    at_place(at, async |place, root| {
        let tree = root.join(OsStr::from_bytes(b"-tree \xff\n"));
        fs::create_dir(&tree).expect("a directory");
        for name in odd_names() {
            fs::write(tree.join(&name), name.as_bytes()).expect("a file");
        }
        let deep = tree.join("d".repeat(200)).join("e".repeat(200));
        fs::create_dir_all(&deep).expect("directories");
        fs::write(deep.join("f".repeat(200)), "deep").expect("a file");
        symlink("t".repeat(300), tree.join("long link")).expect("a link");
        symlink("../../x", tree.join("link\n")).expect("a link");
        fs::create_dir(tree.join("empty")).expect("a directory");
        fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o1750)).expect("a mode");
        fs::set_permissions(tree.join("plain"), fs::Permissions::from_mode(0o6711)).expect("a mode");
        std::os::unix::fs::chown(tree.join("plain"), Some(1234), Some(2345)).expect("an owner");
        nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).expect("a socket");
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        File::open(tree.join("a b")).and_then(|file| file.set_modified(time(978_307_200))).expect("a time");
        let before = SystemTime::UNIX_EPOCH - Duration::from_millis(1_000_250);
        File::open(tree.join("~")).and_then(|file| file.set_modified(before)).expect("a time");
        for compression in [Compression::None, Compression::Gz, Compression::Bz2] {
            assert_eq!(compare_packed(at, &*place, &tree, compression).await, odd_names().len() + 8);
        }
    });
}

fn further_names_of_a_file_are_links(at: Where) {
    at_place(at, async |place, root| {
        let tree = root.join("tree");
        fs::create_dir(&tree).expect("a directory");
        fs::write(tree.join("a"), "content").expect("a file");
        fs::hard_link(tree.join("a"), tree.join("b")).expect("a second name");
        let packed =
            members(&pack_all(&*place, &tree, Compression::None).await.expect("an archive"), Compression::None);
        let of = |name: &str| (packed[name.as_bytes()].0, packed[name.as_bytes()].5.clone());
        let file = ('0', b"content".to_vec());
        // Which of them comes first is for the place to say.
        let linked = (of("a"), of("b"));
        assert!(linked == (file.clone(), ('1', b"a".to_vec())) || linked == (('1', b"b".to_vec()), file), "{linked:?}");
    });
}

fn ten_thousand_files_are_packed(at: Where) {
    at_place(at, async |place, root| {
        let tree = root.join("tree");
        for directory in 0..100 {
            let directory = tree.join(directory.to_string());
            fs::create_dir_all(&directory).expect("a directory");
            for file in 0..100 {
                fs::write(directory.join(file.to_string()), format!("{file}")).expect("a file");
            }
        }
        assert_eq!(compare_packed(at, &*place, &tree, Compression::None).await, 10_101);
        let found = place.glob(&format!("{}/**/9?", tree.display())).await.expect("paths");
        assert_eq!(found.len(), 10 + 100 * 10);
        assert_eq!(place.list(&tree).await.expect("names").len(), 100);
    });
}

fn patterns_match_as_in_python(at: Where) {
    at_place(at, async |place, root| {
        python::plant(&root);
        for (pattern, expected) in python::PATTERNS.iter().zip(python::finds(&root)) {
            let found = place.glob(&format!("{}/{pattern}", root.display())).await.expect("paths");
            let found: std::collections::BTreeSet<String> =
                found.iter().map(|path| path.to_string_lossy().into_owned()).collect();
            assert_eq!(found, expected, "{pattern}");
        }
        symlink(".", root.join("d/again")).expect("a link");
        let found = place.glob(&format!("{}/d/**/c.x", root.display())).await.expect("paths");
        assert_eq!(found, [root.join("d/again/c.x"), root.join("d/c.x")]);
    });
}

/// Half a file must never pass for a whole one.
#[test]
fn a_read_that_fails_in_the_middle_is_an_error_in_a_guest() {
    let tools = tempfile::tempdir().expect("a directory");
    let cat = tools.path().join("cat");
    fs::write(&cat, "#!/bin/sh\nprintf half\necho 'cat: f: Input/output error' >&2\nexit 1\n").expect("a tool");
    fs::set_permissions(&cat, fs::Permissions::from_mode(0o755)).expect("a mode");
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").expect("a PATH"));
    let directory = tempfile::tempdir().expect("a directory");
    at_place_of(Where::Guest, &directory, &path, async |place, root| {
        fs::write(root.join("f"), "half and half").expect("a file");
        let mut content = Vec::new();
        let mut reader = place.read(&root.join("f"), 0).await.expect("it opens");
        let error = reader.read_to_end(&mut content).await.expect_err("it breaks off");
        assert_eq!((content.as_slice(), error.raw_os_error()), (&b"half"[..], Some(libc::EIO)));
    });
}

everywhere! {
    refusal_is_the_systems
    a_workdir_is_made_for_its_program
    names_are_bytes_of_any_kind
    numbers_are_the_systems
    times_are_exact_and_go_back_before_1970
    a_file_is_read_from_any_byte_on
    a_huge_file_goes_both_ways
    a_file_is_replaced_as_a_whole
    special_bits_outlast_the_writing
    a_file_that_was_given_up_leaves_the_old_one
    a_directory_is_packed_with_all_that_it_has
    further_names_of_a_file_are_links
    ten_thousand_files_are_packed
    patterns_match_as_in_python
}
