//! Buildbot's own file commands on the host. What only PB can do is in `pb.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use integration_tests::{Protocol, Results, Rig, SOON, contains_all, over_both_protocols};

/// Each file below a directory: whether it may be executed, and what is in it.
fn tree(directory: &Path) -> Result<BTreeMap<String, (bool, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            files.extend(tree(&entry.path())?.into_iter().map(|(path, file)| (format!("{name}/{path}"), file)));
        } else {
            files.insert(name, (entry.metadata()?.permissions().mode() & 0o111 != 0, fs::read(entry.path())?));
        }
    }
    Ok(files)
}

over_both_protocols! {
    directories_are_made_copied_looked_at_and_removed,
    files_arrive_at_the_master_as_they_are,
    directories_arrive_at_the_master_as_they_are,
    stopping_a_build_ends_its_upload,
}

fn directories_are_made_copied_looked_at_and_removed(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(
        protocol,
        r#"steps.MakeDirectory(name="make", dir="build/a/b"),
           steps.MakeDirectory(name="make again", dir="build/a/b"),
           steps.ShellCommand(name="fill", command="echo text > a/b/file; chmod 500 a/b"),
           steps.CopyDirectory(name="copy", src="build/a", dest="build/c/copy"),
           steps.FileExists(name="is there", file="build/c/copy/b/file"),
           steps.FileExists(name="is not there", file="build/nothing", flunkOnFailure=False, haltOnFailure=False),
           steps.RemoveDirectory(name="remove", dir="build/a"),
           steps.RemoveDirectory(name="remove nothing", dir="build/nothing"),
           steps.ShellCommand(name="look", command=["find", ".", "-type", "f"]),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    for (step, results) in
        [("copy", Results::Success), ("is there", Results::Success), ("is not there", Results::Failure)]
    {
        assert_eq!(build.step(step)?.results, Some(results), "{step}");
    }
    assert_eq!(build.step("look")?.stdio().stdout, "./c/copy/b/file\n");
    rig.finish()
}

fn files_arrive_at_the_master_as_they_are(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(
        protocol,
        r#"steps.ShellCommand(name="make", command="head -c 1000000 /dev/urandom > big; : > empty; echo x > 'a b'"),
           steps.FileUpload(workersrc="big", masterdest="up/big"),
           steps.FileUpload(workersrc="empty", masterdest="up/empty"),
           steps.MultipleFileUpload(name="glob", workersrcs=["a*", "em*"], masterdest="up/globbed", glob=True),
           steps.FileUpload(name="cut", workersrc="big", masterdest="up/cut", maxsize=1000, flunkOnFailure=False,
                            haltOnFailure=False),
           steps.FileUpload(name="missing", workersrc="nothing", masterdest="up/nothing", flunkOnFailure=False,
                            haltOnFailure=False),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    let made = rig.host.basedir().join("build/build");
    let up = tree(&rig.master.path("up"))?;
    let file = |path: &str| -> Result<(bool, Vec<u8>)> { Ok((false, fs::read(made.join(path))?)) };
    let expected = BTreeMap::from([
        ("big".to_owned(), file("big")?),
        ("empty".to_owned(), file("empty")?),
        ("globbed/a b".to_owned(), file("a b")?),
        ("globbed/empty".to_owned(), file("empty")?),
    ]);
    ensure!(up == expected, "the master has {:?} of {:?}", up.keys(), expected.keys());
    contains_all(&build.step("cut")?.stdio().stderr, &["Maximum filesize reached, truncating file"])?;
    contains_all(&build.step("missing")?.stdio().stderr, &["Cannot open file", "nothing"])?;
    assert_eq!(build.step("missing")?.results, Some(Results::Failure));
    rig.finish()
}

fn directories_arrive_at_the_master_as_they_are(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(
        protocol,
        r#"steps.ShellCommand(name="make", command="mkdir -p d/sub; seq 20000 > d/sub/numbers; echo '#!' > d/run; chmod 755 d/run; : > d/ö"),
           steps.DirectoryUpload(workersrc="d", masterdest="plain"),
           steps.DirectoryUpload(workersrc="d", masterdest="gz", compress="gz"),
           steps.DirectoryUpload(workersrc="d", masterdest="bz2", compress="bz2"),
           steps.DirectoryUpload(name="missing", workersrc="nothing", masterdest="no", flunkOnFailure=False,
                                 haltOnFailure=False),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    let made = tree(&rig.host.basedir().join("build/build/d"))?;
    for compress in ["plain", "gz", "bz2"] {
        assert_eq!(tree(&rig.master.path(compress))?, made, "{compress}");
    }
    contains_all(&build.step("missing")?.stdio().stderr, &["Cannot read directory", "nothing"])?;
    rig.finish()
}

fn stopping_a_build_ends_its_upload(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(
        protocol,
        r#"steps.FileUpload(workersrc="/dev/zero", masterdest="endless", maxsize=4 << 30),"#,
    )?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "sending /dev/zero", SOON)?;
    let id = rig.master.begun(request)?;
    rig.master.stop(id)?;
    rig.master.ended(id, SOON)?.ended(Results::Cancelled)?;
    ensure!(!rig.master.path("endless").exists(), "the master took what had come for the whole");
    rig.finish()
}

#[test]
fn property_is_what_the_command_printed() -> Result<()> {
    let rig = Rig::building(
        r#"steps.SetPropertyFromCommand(command="echo hello-1.0.tar.gz", property="tarball"),
           steps.ShellCommand(name="use", command=["echo", util.Property("tarball")]),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.property("tarball"), "hello-1.0.tar.gz");
    assert_eq!(build.step("use")?.stdio().stdout, "hello-1.0.tar.gz\n");
    rig.finish()
}

/// The 4.3.0 master fails to set the times over MessagePack, after it has taken the file; its own worker then fails the
/// command, and the build with it.
#[test]
fn upload_that_keeps_its_times_is_not_lost_over_them() -> Result<()> {
    let rig = Rig::building(
        r#"steps.ShellCommand(name="make", command="echo text > file"),
           steps.FileUpload(workersrc="file", masterdest="kept", keepstamp=True),"#,
    )?;
    rig.run()?.succeeded()?;
    assert_eq!(fs::read_to_string(rig.master.path("kept"))?, "text\n");
    rig.finish()
}

/// The 4.3.0 master answers each read of a download over MessagePack with nothing: the file would be empty, and the
/// step green.
#[test]
fn download_over_messagepack_fails_with_the_reason() -> Result<()> {
    let rig = Rig::building(r#"steps.StringDownload("text", workerdest="file"),"#)?;
    let build = rig.run()?;
    build.ended(Results::Failure)?;
    contains_all(&build.step("string_download")?.stdio().stderr, &["master", "msgpack"])?;
    ensure!(!rig.host.basedir().join("build/build/file").exists(), "an empty file was left behind");
    rig.finish()
}
