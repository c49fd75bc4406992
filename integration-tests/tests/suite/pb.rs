//! What Perspective Broker adds: files for the worker, the master's list of builders, and references that both sides
//! must give up. What both protocols can do is tested over both, beside what it is about.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Result, ensure};
use integration_tests::{Certificates, KvmHost, Master, Protocol, Results, Rig, SOON, contains_all};

/// Bytes of every value, in no pattern that a block's length would repeat.
fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|place| (place.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A rig of a builder of these steps.
fn building(steps: &str) -> Result<Rig> {
    Rig::building_over(Protocol::Pb, steps)
}

#[test]
fn downloads_arrive_byte_for_byte() -> Result<()> {
    let rig = building(
        r##"steps.FileDownload(mastersrc="big", workerdest="big", blocksize=16 * 1024, mode=0o640),
           steps.FileDownload(mastersrc="big", workerdest="wide", blocksize=1_000_000),
           steps.FileDownload(mastersrc="empty", workerdest="new/deep/empty"),
           steps.FileDownload(mastersrc="big", workerdest="~/at-home"),
           steps.StringDownload("#!/bin/sh\necho 'grüße'\n", workerdest="run", mode=0o755),
           steps.ShellCommand(name="run", command=["./run"]),
           steps.JSONStringDownload({"ü": [1, None]}, workerdest="json"),"##,
    )?;
    let big = noise(3_000_001);
    fs::write(rig.master.path("big"), &big)?;
    fs::write(rig.master.path("empty"), "")?;
    let build = rig.run()?;
    build.succeeded()?;
    let here = rig.host.basedir().join("build/build");
    for path in [here.join("big"), here.join("wide"), rig.host.home().join("at-home")] {
        // Millions of bytes are no good message.
        ensure!(fs::read(&path)? == big, "{} arrived changed", path.display());
    }
    assert_eq!(fs::read(here.join("new/deep/empty"))?, b"");
    assert_eq!(build.step("run")?.stdio().stdout, "grüße\n");
    assert_eq!(fs::read_to_string(here.join("json"))?, r#"{"\u00fc": [1, null]}"#);
    for (file, mode) in [("big", 0o640), ("run", 0o755)] {
        assert_eq!(fs::metadata(here.join(file))?.permissions().mode() & 0o777, mode, "{file}");
    }
    rig.finish()
}

#[test]
fn download_ends_at_its_largest_size() -> Result<()> {
    let rig =
        building(r#"steps.FileDownload(mastersrc="big", workerdest="cut", maxsize=40_000, blocksize=16 * 1024),"#)?;
    let big = noise(100_000);
    fs::write(rig.master.path("big"), &big)?;
    let build = rig.run()?;
    build.ended(Results::Failure)?;
    contains_all(&build.step("download")?.stdio().stderr, &["Maximum filesize reached, truncating file"])?;
    ensure!(fs::read(rig.host.basedir().join("build/build/cut"))? == big[..40_000], "not the first 40000 bytes");
    rig.finish()
}

#[test]
fn download_that_cannot_be_written_says_why() -> Result<()> {
    let rig = building(
        r#"steps.MakeDirectory(dir="build/taken"),
           steps.StringDownload("text", workerdest="taken"),"#,
    )?;
    let build = rig.run()?;
    build.ended(Results::Failure)?;
    contains_all(&build.step("string_download")?.stdio().stderr, &["build/build/taken'", "directory"])?;
    rig.finish()
}

/// A string of PB has at most 655,360 bytes.
#[test]
fn upload_in_blocks_that_are_too_large_for_pb_is_split() -> Result<()> {
    let rig = building(
        r#"steps.FileUpload(workersrc="big", masterdest="up/big", blocksize=1_000_000),
           steps.DirectoryUpload(workersrc=".", masterdest="up/directory", blocksize=1_000_000),"#,
    )?;
    let here = rig.host.basedir().join("build/build");
    let big = noise(3_000_001);
    fs::create_dir_all(&here)?;
    fs::write(here.join("big"), &big)?;
    rig.run()?.succeeded()?;
    for copy in ["up/big", "up/directory/big"] {
        ensure!(fs::read(rig.master.path(copy))? == big, "{copy} arrived changed");
    }
    rig.finish()
}

#[test]
fn upload_keeps_its_times() -> Result<()> {
    let rig = building(
        r#"steps.ShellCommand(command="echo text > file; touch -d @1000000000 file"),
           steps.FileUpload(workersrc="file", masterdest="kept", keepstamp=True),
           steps.FileUpload(workersrc="file", masterdest="new"),"#,
    )?;
    rig.run()?.succeeded()?;
    let modified = |file: &str| -> Result<i64> { Ok(fs::metadata(rig.master.path(file))?.mtime()) };
    assert_eq!(modified("kept")?, 1_000_000_000);
    ensure!(modified("new")? > 1_000_000_000, "the times were kept without being asked for");
    rig.finish()
}

#[test]
fn relative_paths_begin_in_the_builders_directory() -> Result<()> {
    let steps = r#"steps.ShellCommand(name="where", command="pwd", workdir="sub"),
        steps.MakeDirectory(dir="made"),
        steps.ShellCommand(name="fill", command="echo 1 > a1; echo 2 > a2; echo 3 > b1; echo 4 > c1; echo 5 > d1", workdir="made"),
        steps.CopyDirectory(src="made", dest="copy"),
        steps.FileExists(file="copy/d1"),
        steps.RemoveDirectory(dir="made"),
        steps.MultipleFileUpload(workersrcs=["a*", "b?", "[c]1"], masterdest="up", glob=True, workdir="copy"),"#;
    let master =
        Master::plan().speaking(Protocol::Pb).builder_with("build", steps, r#"workerbuilddir="elsewhere""#).start()?;
    let rig = Rig::of(master, |_| Ok(()))?;
    let build = rig.run()?;
    build.succeeded()?;
    let directory = rig.host.basedir().join("elsewhere");
    assert_eq!(build.step("where")?.stdio().stdout, format!("{}\n", directory.join("sub").display()));
    ensure!(directory.join("copy/d1").exists() && !directory.join("made").exists(), "{}", build.story());
    let up = |file: &str| fs::read_to_string(rig.master.path("up").join(file));
    for (file, text) in [("a1", "1\n"), ("a2", "2\n"), ("b1", "3\n"), ("c1", "4\n")] {
        assert_eq!(up(file)?, text, "{file}");
    }
    ensure!(up("d1").is_err(), "d1 is of no pattern");
    rig.finish()
}

/// Attaches a worker whose basedir has a directory of a builder that the master does not know.
fn leftovers(delete: bool) -> Result<Rig> {
    let master = Master::plan().speaking(Protocol::Pb).builder("one", "").builder("two", "").start()?;
    let rig = Rig::of(master, |host: &mut KvmHost| {
        for directory in ["gone/build", "info", "one/build"] {
            fs::create_dir_all(host.basedir().join(directory))?;
        }
        fs::write(host.basedir().join("gone/build/file"), "text")?;
        host.set("worker.delete_leftover_dirs", delete);
        Ok(())
    })?;
    for directory in ["info", "one/build", "two"] {
        ensure!(rig.host.basedir().join(directory).is_dir(), "there is no {directory}");
    }
    Ok(rig)
}

#[test]
fn leftover_directories_are_removed_if_so_configured() -> Result<()> {
    let rig = leftovers(true)?;
    let gone = rig.host.basedir().join("gone");
    // The master is not kept waiting for it.
    rig.host.becomes("the directory of no builder is gone", |_| {
        Ok(gone.exists().then(|| gone.display().to_string()).into_iter().collect())
    })?;
    rig.finish()
}

#[test]
fn leftover_directories_stay_otherwise_and_are_named() -> Result<()> {
    let rig = leftovers(false)?;
    let gone = rig.host.basedir().join("gone");
    rig.worker.transcript().find(&format!("directory={}", gone.display()), SOON)?;
    ensure!(gone.join("build/file").exists(), "the directory of no builder is gone");
    rig.finish()
}

#[test]
fn port_that_speaks_tls_by_itself_is_spoken_with() -> Result<()> {
    let certificates = Certificates::new()?;
    let steps = r#"steps.StringDownload("text\n", workerdest="file"), steps.ShellCommand(command=["cat", "file"]),"#;
    let master = Master::plan().speaking_tls(&certificates).builder("build", steps).start()?;
    let url = master.url_by_tls(master.port());
    let rig = Rig::of(master, |host| {
        host.set("worker.master", url);
        host.set("worker.ca_file", certificates.write_ca(&host.path(""))?.display().to_string());
        Ok(())
    })?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.step("shell")?.stdio().stdout, "text\n");
    rig.finish()
}

/// Either side of PB gives up at 1024 references.
#[test]
#[ignore = "long"]
fn references_are_given_up() -> Result<()> {
    let rig = building(r#"Repeat("stat", {"file": ".", "workdir": "."}, times=1100),"#)?;
    let build = rig.run()?;
    build.succeeded()?;
    let trouble = rig.master.transcript().lines(|line| line.contains("Maximum PB reference count exceeded"));
    ensure!(trouble.is_empty(), "{trouble:?}");
    rig.finish()
}

#[test]
fn builder_that_is_removed_loses_its_command_and_one_that_is_added_gets_its_directory() -> Result<()> {
    let hello = r#"steps.ShellCommand(command="echo hello"),"#;
    let stays = r#"steps.ShellCommand(command="echo begun; until test -e ../go-on; do sleep 0.1; done", maxTime=60),"#;
    let goes = r#"steps.ShellCommand(command="echo begun; sleep 1000 & wait"),"#;
    let plan = || Master::plan().speaking(Protocol::Pb).builder("stays", stays);
    let rig = Rig::of(plan().builder("goes", goes).start()?, |_| Ok(()))?;
    let [stays, goes] = [rig.master.force("stays")?, rig.master.force("goes")?];
    for request in [stays, goes] {
        rig.master.printed(request, "begun", SOON)?;
    }
    rig.master.reconfigure(plan().builder("comes", hello))?;
    ensure!(rig.host.basedir().join("comes").is_dir(), "the new builder has no directory");
    rig.nothing_of("goes")?;
    let gone = rig.master.ended(rig.master.begun(goes)?, SOON)?;
    gone.ended(Results::Exception)?;
    contains_all(&gone.story(), &["the builder 'goes' is gone"])?;
    rig.master.run("comes")?.succeeded()?;
    fs::write(rig.host.basedir().join("stays/go-on"), "")?;
    rig.master.complete(stays, SOON)?.succeeded()?;
    rig.finish()
}

#[test]
fn words_that_are_secret_are_shown_to_nobody() -> Result<()> {
    let rig = building(
        r#"Repeat("shell", {"command": ["sh", "-c", "echo ${#1}", "sh", ("obfuscated", "hunter2", "XXXXXX")],
                            "workdir": "build"}, times=1),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    let stdio = build.step("repeat")?.stdio();
    assert_eq!(stdio.stdout, "7\n", "the program was not given the word");
    contains_all(&stdio.header, &["XXXXXX"])?;
    for text in [build.story(), rig.worker.transcript().text()] {
        ensure!(!text.contains("hunter2"), "the word is shown:\n{text}");
    }
    rig.finish()
}
