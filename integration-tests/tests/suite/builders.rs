//! Where builders have their directories on a worker, and what becomes of one that can't have any.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration_tests::{Master, Protocol, Results, Rig, SOON, contains_all, over_both_protocols};
use serde_json::json;

const WHERE: &str = r#"steps.ShellCommand(name="where", command="pwd")"#;

over_both_protocols! {
    a_builders_directory_may_be_anywhere,
    a_builder_without_a_directory_is_the_only_one_that_suffers,
}

/// As with Buildbot's worker.
fn a_builders_directory_may_be_anywhere(protocol: Protocol) -> Result<()> {
    let elsewhere = tempfile::tempdir()?;
    let elsewhere = elsewhere.path().canonicalize()?;
    let absolute = elsewhere.join("data/x");
    let at = |directory: &str| format!("workerbuilddir={directory:?}");
    let master = Master::plan()
        .speaking(protocol)
        .builder("usual", WHERE)
        .builder_with("elsewhere", WHERE, &at(&absolute.display().to_string()))
        .builder_with("base", WHERE, &at("."))
        .builder_with("detour", WHERE, &at("up/../norm"))
        .start()?;
    let rig = Rig::of(master, |_| Ok(()))?;
    let basedir = rig.host.basedir();
    for (builder, directory) in [
        ("usual", basedir.join("usual/build")),
        ("elsewhere", absolute.join("build")),
        ("base", basedir.join("build")),
        ("detour", basedir.join("norm/build")),
    ] {
        let build = rig.master.run(builder)?;
        build.succeeded().context(builder)?;
        assert_eq!(build.step("where")?.stdio().stdout, format!("{}\n", directory.display()), "{builder}");
    }
    assert_eq!(rig.host.status()?["refused_builders"], json!([]));
    rig.finish()
}

fn a_builder_without_a_directory_is_the_only_one_that_suffers(protocol: Protocol) -> Result<()> {
    let master = Master::plan()
        .speaking(protocol)
        .builder_with("broken", WHERE, r#"workerbuilddir="file/x""#)
        .builder("usual", WHERE)
        .start()?;
    let mut rig = Rig::of(master, |host| {
        fs::create_dir(host.basedir())?;
        fs::write(host.basedir().join("file"), "in the way")?;
        Ok(())
    })?;
    let broken = rig.host.basedir().join("file/x").display().to_string();
    let request = rig.master.force("broken")?;
    rig.master.run("usual")?.succeeded()?;

    let line = rig.worker.transcript().find("builder refused", SOON)?;
    contains_all(&line, &["WARN", &broken, "Not a directory", "restart the worker"])?;
    let name = match protocol {
        Protocol::Pb => json!("broken"),
        Protocol::Msgpack => json!(null),
    };
    let refused = json!([{ "builder": name, "directory": broken, "why": "Not a directory (os error 20)" }]);
    assert_eq!(rig.host.status()?["refused_builders"], refused);
    let page = String::from_utf8(rig.host.ask(&["status"])?.stdout)?;
    contains_all(&page, &["connected for", &format!("directory {broken}: Not a directory")])?;

    match protocol {
        // Other workers may take it.
        Protocol::Pb => ensure!(!rig.master.has_begun(request)?, "a builder that is refused got a build"),
        // This protocol has no way to refuse a builder.
        Protocol::Msgpack => {
            let build = rig.master.ended(rig.master.begun(request)?, SOON)?;
            build.ended(Results::Exception)?;
            contains_all(&build.step("where")?.stdio().stderr, &["can't make the workdir", "Not a directory"])?;
        }
    }

    fs::remove_file(rig.host.basedir().join("file"))?;
    rig.worker.stop()?;
    rig.worker = rig.host.attach(&rig.master)?;
    if protocol == Protocol::Pb {
        rig.master.complete(request, SOON)?.succeeded()?;
    }
    assert_eq!(rig.host.status()?["refused_builders"], json!([]));
    rig.finish()
}
