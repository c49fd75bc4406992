//! What real sites' builds are made of: sources from all systems of version control, and the shapes of their steps.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, Master, Protocol, Rig, SOON, WITH_GUESTS, contains_all, over_both_protocols};

over_both_protocols!(
    #[ignore = "long: checkouts by ten clients, twice"]
    sources_of_all_kinds_are_got,
    #[ignore = "long: waits for logs of 32 files and for a step that is silent"]
    shapes_of_real_factories_work,
);

/// A rig whose image `sources` has all that these builds need.
fn rig(protocol: Protocol, python: &str, slots: i64) -> Result<Rig> {
    let master = Master::plan().speaking(protocol).python(python).start()?;
    Rig::of(master, |host| {
        host.set("pool.slots", slots);
        // A master's and a guest's silence is noticed in this time.
        host.set("connection.dead_after", 6);
        host.image("sources", Guest::sources()?);
        Ok(())
    })
}

fn sources_of_all_kinds_are_got(protocol: Protocol) -> Result<()> {
    let rig = rig(
        protocol,
        &format!(
            "from buildbot_kvm import in_vm\n\
             from sources import sources\n\
             add_builder(c, 'host', sources({0:?}))\n\
             add_builder(c, 'guest', in_vm(sources({0:?}), image='sources'))",
            protocol.name()
        ),
        1,
    )?;
    let patched = match protocol {
        Protocol::Pb => "git-patch/file: git more patched / file part\n",
        Protocol::Msgpack => "",
    };
    let before = "\
        bzr/file: bzr / file\n\
        cvs/file: cvs / CVS file\n\
        darcs/file: darcs / _darcs file\n\
        git-copy/file: git more / file part\n";
    let after = "\
        git-retry/file: git more / file part\n\
        git-shallow/file: git more / file part\n\
        git-submodules/file: git more / file part\n\
        hg/file: hg / file\n\
        svn/file: svn / file\n";
    let expected = [before, patched, after].concat();
    for builder in ["host", "guest"] {
        let build = rig.master.run_within(builder, WITH_GUESTS * 2)?;
        build.succeeded().context(builder)?;
        assert_eq!(build.step("look")?.stdio().stdout, expected, "{builder}");
        contains_all(&build.step("git-retry")?.stdio().text(), &["late.git"])?;
    }
    rig.finish()
}

fn shapes_of_real_factories_work(protocol: Protocol) -> Result<()> {
    let rig = rig(
        protocol,
        &format!(
            "from buildbot_kvm import in_vm\n\
             from shapes import continued, shapes\n\
             add_builder(c, 'shapes', in_vm(shapes({:?}), image='sources'))\n\
             add_builder(c, 'continued', in_vm(continued(), image='sources'))\n\
             c['schedulers'].append(schedulers.Triggerable('continue', builderNames=['continued']))",
            protocol.name()
        ),
        2,
    )?;
    let build = rig.master.run_within("shapes", WITH_GUESTS)?;
    build.succeeded()?;
    let told = |name: &str| -> Result<String> { Ok(build.step(name)?.stdio().stdout) };
    let builddir = rig.host.basedir().join("shapes").display().to_string();
    assert_eq!(told("ccache")?, format!("cache_miss\t1\ndirect_cache_hit\t1\n{builddir}/ccache\n"));
    assert_eq!(told("mode of the key")?, "600\nsecret\n");
    let logs = build.step("lazy logs")?;
    for number in 0..32 {
        assert_eq!(logs.log(&format!("log {number}")).stdout, format!("log {number}\n"));
    }
    let got = rig.master.path("got");
    let report = fs::read_to_string(got.join("shapes.xml")).context("read the report")?;
    contains_all(&report, &["<testcase name=\"größe\"/>", "</testsuite>"])?;
    let numbers = fs::read_to_string(got.join("shapes/deep/numbers")).context("read from the tree")?;
    ensure!(numbers.lines().count() == 1000 && got.join("shapes/link").is_symlink(), "not the whole tree");
    let sequence = build.step("sequence")?;
    contains_all(&sequence.log("make").stdout, &["GNU Make"])?;
    contains_all(&sequence.log("fails").header, &["program finished with exit code 3"])?;
    assert_eq!(sequence.log("path").stdout, format!("{builddir}/x\n"));
    let slot = fs::read_to_string(rig.master.path("from-the-master")).context("read what the master wrote")?;
    assert_eq!(slot.trim(), build.property("vm_slot").to_string());
    contains_all(&told("terminal")?, &["yes"])?;
    assert_eq!(told("quiet")?, "begin\nend\n");

    // The build that it triggered is the next one.
    let other = rig.master.ended(build.id + 1, SOON)?;
    other.succeeded()?;
    ensure!(other.property("vm_slot") != build.property("vm_slot"), "not another machine: {}", other.story());
    let here = rig.host.basedir().join("continued");
    let expected = format!("shapes {builddir}\n{}\nbuild\n", here.display());
    assert_eq!(other.step("continued")?.stdio().stdout, expected);
    rig.finish()
}
